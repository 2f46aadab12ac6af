"""Opening a data set: which layout it is in, and its images by category and split."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from offnominal.datasets import (
    clouds,
    eyecandies,
    folders,
    manifest,
    meta_json,
    patterns,
    video,
    visa,
)
from offnominal.datasets.catalogue import LAYOUTS, PRESETS
from offnominal.datasets.doubts import named
from offnominal.datasets.reading import Options, Reading, counted, listed, slug, subfolders, such_as
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError, OptionError
from offnominal.text import printable

__all__ = ["Dataset", "open_dataset"]

# Of the layouts that are not in the table of `patterns`: whether one lies here, and its reader.
_READERS: dict[str, tuple[Callable[[Path], bool], Callable[[Path, Options], Reading]]] = {
    "visa": (visa.fits, visa.read),
    "folders": (folders.fits, folders.read),
    "manifest": (manifest.fits, manifest.read),
    "meta": (meta_json.fits, meta_json.read),
    "video": (video.fits, video.read),
    "eyecandies": (eyecandies.fits, eyecandies.read),
    "clouds": (clouds.fits, clouds.read),
}


@dataclass(frozen=True)
class Dataset:
    """The images of a data set, with what is known about each.

    Attributes
    ----------
    name : str
        Preset's name, or the folder's, fit for a file name.
    root : Path
        Where it lies.
    layout : str
        The layout that it was read in, one of `catalogue.LAYOUTS`.
    samples : tuple of Sample
        All images of the categories asked for.
    notes : tuple of str
        What the reader decided on its own, in words: how good images were divided, what was left
        out.
    """

    name: str
    root: Path
    layout: str
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, sorted."""
        return tuple(sorted({sample.category for sample in self.samples}))

    def train(self, category: str) -> list[Sample]:
        """The good images to learn from, sorted by file path; none for zero-shot sets."""
        return [s for s in self._of(category, "train") if s.label == 0]

    def test(self, category: str) -> list[Sample]:
        """The images to test on, good and defective, sorted by file path."""
        return self._of(category, "test")

    def _of(self, category: str, split: str) -> list[Sample]:
        if category not in self.categories:
            raise OptionError(f"no category {category!r}; there are {', '.join(self.categories)}")
        chosen = [s for s in self.samples if s.category == category and s.split == split]
        return sorted(chosen, key=lambda s: s.image)


def open_dataset(
    root: str | Path | None = None,
    layout: str = "auto",
    *,
    categories: Sequence[str] | None = None,
    name: str | None = None,
    good: folders.Paths | None = None,
    defects: folders.Paths | None = None,
    masks: str | Path | None = None,
    test_good: folders.Paths | None = None,
    train_share: float = 0.5,
    frame_step: int = 1,
    mask_threshold: int | None = None,
) -> Dataset:
    """Open a data set. No image is read, only names (and, for Kolektor's, the masks).

    Parameters
    ----------
    root : path or None
        The data set's folder, the folder of one of its categories, or a manifest. None where
        `good` and `defects` name the folders.
    layout : str, default "auto"
        A layout's name, a preset's (see `catalogue`), or ``auto``: told from what is there.
    categories : sequence of str or None
        Those wanted; all by default.
    name : str or None
        Of the data set; the preset's or the folder's by default.
    good, defects, masks, test_good
        Plain folders or patterns; see `folders.read_named`.
    train_share : float, default 0.5
        In [0, 1]: share of the good images to learn from, where the layout does not say which. It
        is a hash of their names that decides, and a note says so.
    frame_step : int, default 1
        For videos: every n-th frame of a clip.
    mask_threshold : int or None
        Smallest grey level, 1 to 255, that means defective, in place of the layout's own.

    Returns
    -------
    Dataset

    Raises
    ------
    DatasetError
        If no layout fits or two do, or what the layout promises is not there.
    OptionError
        If an option is outside its range, contradicts another, or names no category of this set.
    """
    _check_options(root, layout, good, defects, masks, test_good)
    if not 0 <= train_share <= 1:
        raise OptionError(f"train_share is {train_share}: give a share from 0 to 1")
    if frame_step < 1:
        raise OptionError(f"frame_step is {frame_step}: give a whole number from 1")
    if mask_threshold is not None and not 1 <= mask_threshold <= 255:
        raise OptionError(f"mask_threshold is {mask_threshold}: give a grey level from 1 to 255")

    if root is None:
        assert good is not None  # _check_options
        assert defects is not None
        home = _common_folder(good)
        title, chosen = slug(name or home.resolve().name), "folders"
        read = partial(folders.read_named, good, defects, masks, test_good)
    else:
        home = Path(root)
        if not home.exists():
            raise DatasetError(f"{home}: no such data set; check the path")
        if home.name in ("", ".."):
            home = home.resolve()
        chosen = _choose(home, layout)
        # MVTec layout is everyone's, so that its name says nothing about the data.
        preset = layout if layout in PRESETS and layout != "mvtec" else ""
        title = slug(name or preset or (home.stem if home.is_file() else home.name))
        read = partial(_READERS[chosen][1] if chosen in _READERS else patterns.read, home)
    only = frozenset(categories) if categories else None
    # Each medical set has a pattern of its own.
    pattern = layout if chosen == "medical" else chosen
    options = Options(title, pattern, only, train_share, frame_step)
    try:
        reading = read(options)
    except OSError as error:  # rights, names that are too long, disks that went away
        raise DatasetError(f"{error.filename}: cannot be read ({error.strerror})") from error
    found = {sample.category for sample in reading.samples}
    if only and (unknown := sorted(only - found)):
        known = {s.category for s in read(dataclasses.replace(options, only=None)).samples}
        raise OptionError(
            f"no category {', '.join(unknown)} in {home}; there are {', '.join(sorted(known))}"
        )
    if not found:
        raise DatasetError(f"{home}: no images in {chosen} layout; check what lies there")
    for category in sorted(found):
        if not any(s.split == "test" for s in reading.samples if s.category == category):
            raise DatasetError(
                f"{home}: no images to test on in {category}; add some, or leave it out with "
                "--categories"
            )
        learned = [s for s in reading.samples if s.category == category and s.split == "train"]
        if defective := [s for s in learned if s.label]:
            reading.notes.append(
                f"{category}: {counted(defective, 'defective image')} in the training split: left "
                "out; `fit --defects` learns from such"
            )
    samples = reading.samples
    reading.notes += _doubtful_files(samples, home)
    if reading.passed.total():
        reading.notes.append(str(reading.passed))
    if mask_threshold is not None:
        samples = [dataclasses.replace(s, mask_threshold=mask_threshold) for s in samples]
    return Dataset(title, home, chosen, tuple(samples), tuple(map(printable, reading.notes)))


def _doubtful_files(samples: Sequence[Sample], root: Path) -> list[str]:
    """What the names alone say against a data set."""
    images = {sample.image for sample in samples}
    users: dict[Path, list[Path]] = {}
    for sample in samples:
        if sample.mask is not None:
            users.setdefault(sample.mask, []).append(sample.image)
    several = [mask for mask, own in users.items() if len(own) > 1]
    both = [mask for mask in users if mask in images]
    folded: dict[str, list[Path]] = {}
    for image in images:
        folded.setdefault(str(image).lower(), []).append(image)
    alike = sorted(path for own in folded.values() if len(own) > 1 for path in own)
    return [
        f"{what}: {len(paths)}, {such_as(named(path, root) for path in paths)}: {action}"
        for what, paths, action in (
            ("masks of more than one image", several, "each marks its place in all of them"),
            ("images that are masks of others", both, "used as both"),
            ("names that differ in capitals only", alike, "Windows and macOS keep one of each"),
        )
        if paths
    ]


def _check_options(root: object, layout: str, good: object, defects: object, *rest: object) -> None:
    if layout != "auto" and layout not in LAYOUTS and layout not in PRESETS:
        names = ", ".join(dict.fromkeys(["auto", *LAYOUTS, *PRESETS]))
        raise OptionError(f"layout {layout!r} is not known; there are {names}")
    named = [option for option in (good, defects, *rest) if option is not None]
    if root is None and not named:
        raise OptionError("no data set: name its folder, or its parts with --good and --defects")
    if root is None and (good is None or defects is None):
        raise OptionError("--good and --defects are both needed where no data set is named")
    if root is not None and named:
        raise OptionError(
            "--good, --defects, --masks and --test-good take the place of a data set's folder: "
            "give the one or the others"
        )
    if root is None and layout not in ("auto", "folders"):
        raise OptionError(f"layout {layout!r} needs a data set's folder, not --good and --defects")


def _choose(root: Path, layout: str) -> str:
    """The layout to read: the one that was named, or the only one that fits."""
    if layout in PRESETS:
        names = PRESETS[layout].layouts
        fitting = [n for n in names if _fits(root, layout if n == "medical" else n)]
        return (fitting or names)[0]  # the reader of the first says what is missing
    if layout != "auto":
        return layout
    fitting = [name for name in LAYOUTS if _fits(root, name)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        both = " and ".join(f"{name} ({LAYOUTS[name].looks_for})" for name in fitting)
        raise DatasetError(
            f"{root}: several layouts fit, {both}; choose with --layout {fitting[0]}"
        )
    # One line: names in a message could otherwise forge lines of their own.
    looked = ";".join(f"  {entry.name}: {entry.looks_for}" for entry in LAYOUTS.values())
    raise DatasetError(
        f"{root}: no known layout. Looked for{looked}. Found {_contents(root)}. {_advice(root)}"
    )


def _fits(root: Path, name: str) -> bool:
    return _READERS[name][0](root) if name in _READERS else patterns.fits(root, name)


def _contents(root: Path) -> str:
    if root.is_file():
        return f"a file called {root.name}"
    names = [f"{path.name}/" if path.is_dir() else path.name for path in listed(root)]
    return ", ".join(names[:6] + ["..."] * (len(names) > 6)) or "nothing"


def _advice(root: Path) -> str:
    if root.is_file():
        return "A manifest is a table saved as CSV, or JSON lines: save it as one of them."
    for folder in subfolders(root):
        for name in LAYOUTS:
            if _fits(folder, name):
                return f"{folder} is in {name} layout: open that."
    return "Name a preset with --layout (see `offnominal datasets`), or --good and --defects."


def _common_folder(good: folders.Paths) -> Path:
    """The folder that gives a data set of plain folders its name."""
    home = folders.fixed_part(good if isinstance(good, str | Path) else next(iter(good)))
    # "parts/good" is called parts, since every folder of good images is called good.
    generic = home.resolve().name.lower() in folders.GOOD_FOLDERS
    return home.resolve().parent if generic else home
