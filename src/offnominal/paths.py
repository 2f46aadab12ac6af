"""Finding images: files, folders and glob patterns in, a list of files out."""

import glob
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PureWindowsPath

from offnominal.checks import meant
from offnominal.errors import OptionError
from offnominal.scans.places import SCAN_SUFFIXES, narrowed
from offnominal.text import printable

__all__ = [
    "FOUND_SUFFIXES",
    "IMAGE_SUFFIXES",
    "PassedOver",
    "find_images",
    "is_elsewhere",
    "is_kept_by_system",
    "is_own",
    "stamp",
    "walk",
    "walk_in_order",
]

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"}
)
"""Of pictures, in lower case."""
FOUND_SUFFIXES = IMAGE_SUFFIXES | SCAN_SUFFIXES
"""Of what a detector may look at: pictures and clouds of points."""

MARK = "Drawn by Offnominal"
"""Stands in every picture that the program draws, so that it is never taken for a part."""
RESULTS_MARK = f"{MARK}, results of an inspection"
"""Stands in the page of results, so that nothing else is written over."""

# Where NAS, Windows and macOS keep thumbnails and what was thrown away, in lower case.
_SYSTEM = frozenset({"@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot",
                     "$recycle.bin", "recycler", "system volume information", "__macosx",
                     "lost+found"})  # fmt: skip
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
# A results folder holds the first two; what `predict` puts there is passed over, the user's own
# pictures beside it are not.
_RESULTS = {"run.json", "results.jsonl"}
_RESULT_FILES = _RESULTS | {"results.csv", "run.lock", "index.html"}
_RESULT_FOLDERS = {"overlays", "maps", "masks", "thumbnails", "clouds", "parts"}
_OWN = "written by Offnominal"


class PassedOver(Counter[str]):
    """Files that a search left aside, counted by why: a suffix, or in words."""

    def __str__(self) -> str:
        """Such as ``3 files passed over: 2 .gif, 1 written by Offnominal``; empty without any."""
        if not self.total():
            return ""
        most = sorted(self.items(), key=lambda one: (-one[1], one[0]))[:8]
        named = [f"{number} {printable(why)}" for why, number in most if number]
        rest = self.total() - sum(number for _, number in most)
        if rest:
            named.append(f"{rest} others")
        files = "1 file" if self.total() == 1 else f"{self.total()} files"
        return f"{files} passed over: {', '.join(named)}"

    def note(self, file: str | Path) -> None:
        """Count a file that is no image by its name."""
        name = Path(file).name
        if name.lower() not in _SYSTEM_FILES:
            self[Path(name).suffix.lower() or "without a suffix"] += 1


def find_images(
    paths: Iterable[str | Path] | str | Path, passed: PassedOver | None = None
) -> list[Path]:
    """List the images that files, folders and glob patterns name.

    Parameters
    ----------
    paths : str or pathlib.Path, or iterable of them
        Files, taken whatever their suffix; folders, searched with all folders below them; glob
        patterns, where ``**`` stands for any number of folders, which match folders and files.
        In folders and patterns only `FOUND_SUFFIXES` count, in either case. Hidden files and
        folders do not, nor do those where systems keep thumbnails and what was thrown away, nor
        results folders. Pictures that Offnominal drew never count. Where scans lie, the files of
        their points do, and their colours, masks and normals do not.
    passed : PassedOver or None
        Told of what was left aside, but for what is hidden.

    Returns
    -------
    list of pathlib.Path
        In the order of `paths`, sorted within each, every file once.

    Raises
    ------
    OptionError
        If one of `paths` does not exist, matches no image, or cannot be listed.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    found: dict[str, Path] = {}
    for path in map(str, paths):
        left = PassedOver()
        images = _images_of(path, left)
        if not images:
            told = f" ({left})" if left.total() else ""
            if os.path.lexists(path) and not Path(path).is_dir():
                raise OptionError(f"{path}: written by Offnominal, not a picture of a part")
            if Path(path).is_dir():
                suffixes = " ".join(sorted(FOUND_SUFFIXES))
                raise OptionError(f"{path}: no images in this folder{told}; looked for {suffixes}")
            raise OptionError(f"{path}: the pattern matches no image{told}; check it, and quote it")
        for image in images:
            found.setdefault(os.path.abspath(image), image)  # noqa: PTH100 (symlinks stay apart)
        if passed is not None:
            passed.update(left)
    return list(found.values())


def walk(
    folder: str | Path,
    passed: PassedOver | None = None,
    suffixes: Collection[str] = FOUND_SUFFIXES,
    deep: bool = True,
) -> list[Path]:
    """Images in a folder and in all folders below it, as :func:`find_images` has it, in no order.

    Parameters
    ----------
    folder : str or pathlib.Path
    passed : PassedOver or None
        Told of what was left aside.
    suffixes : collection of str
        Those that count, in lower case. Where clouds do, what lies beside the points of scans
        does not.
    deep : bool, default True
        Whether folders below count.

    Raises
    ------
    OptionError
        If a folder cannot be listed.
    """
    left = PassedOver() if passed is None else passed
    images: list[Path] = []
    # A link to a folder above would otherwise be followed round and round.
    seen = set(map(str, Path(os.path.realpath(folder)).parents))
    for here, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders[:], pictures = _looked_at(here, folders if deep else [], files, left, suffixes)
        images += pictures
    return images


def walk_in_order(folder: str | Path, passed: PassedOver | None = None) -> Iterator[Path]:
    """The images that :func:`find_images` lists of a folder, in its order, one by one.

    Held in memory are the names in one folder and in those above it.
    """
    left = PassedOver() if passed is None else passed
    seen = set(map(str, Path(os.path.realpath(folder)).parents))

    def below(here: Path) -> Iterator[Path]:
        real = os.path.realpath(here)
        if real in seen:
            return
        seen.add(real)
        _, folders, files = next(os.walk(here, onerror=_refuse, followlinks=True))
        deeper, pictures = _looked_at(here, folders, files, left, FOUND_SUFFIXES)
        inside: dict[str, Path | None] = dict.fromkeys(deeper)
        inside |= {one.name: one for one in pictures}
        for name in sorted(inside):
            picture = inside.pop(name)
            if picture is None:
                yield from below(here / name)
            else:
                yield picture

    yield from below(Path(folder))


def _refuse(error: OSError) -> None:
    raise OptionError(f"{error.filename}: cannot be listed ({error.strerror})") from error


def _looked_at(
    here: str | Path,
    folders: list[str],
    files: list[str],
    left: PassedOver,
    suffixes: Collection[str],
) -> tuple[list[str], list[Path]]:
    """Of what is in a folder, the folders that are looked into, sorted, and the images."""
    folders = [f for f in sorted(folders) if not is_kept_by_system(f)]
    if set(files) >= _RESULTS:
        results = [f for f in folders if f in _RESULT_FOLDERS]
        left[_OWN] += len(_RESULT_FILES & set(files)) + sum(
            len(inside) for f in results for *_, inside in os.walk(Path(here, f))
        )
        folders = [f for f in folders if f not in _RESULT_FOLDERS]
        files = [f for f in files if f not in _RESULT_FILES]
    if set(suffixes) >= SCAN_SUFFIXES:
        folders, files = narrowed(Path(here), folders, files)
    shown = [Path(here, f) for f in files if not f.startswith(".")]
    return folders, _pictures(shown, left, suffixes)


def is_own(path: str | Path) -> bool:
    """Whether Offnominal wrote a file: a model, or a picture or a page with its mark."""
    suffix = Path(path).suffix.lower()
    if suffix not in FOUND_SUFFIXES | {".html"}:
        return suffix == ".offn"
    try:
        if not Path(path).is_file():  # opening a pipe would wait for whoever writes into it
            return False
        with Path(path).open("rb") as file:
            return MARK.encode() in file.read(256)
    except (OSError, ValueError):
        return False  # reading it will say what is wrong


def stamp(image: str | Path) -> str:
    """What tells a file from another that took its place: its size, and when it was changed."""
    try:
        now = Path(image).stat()
    except (OSError, ValueError):
        return ""
    return f"{now.st_size} bytes, {now.st_mtime_ns} ns"


def is_elsewhere(path: str | Path) -> bool:
    r"""Whether a path is Windows' for another machine (``\\host\share``), or for a device.

    Looking whether such a file exists is enough to reach that machine, and to sign in there.
    """
    return PureWindowsPath(path).drive.startswith("\\")


def _images_of(path: str, left: PassedOver) -> list[Path]:
    if "\0" in path:
        raise OptionError(f"{printable(path)}: no such file or folder; check the path")
    if Path(path).is_dir():
        return sorted(walk(path, left))
    if os.path.lexists(path):
        return _unmarked([Path(path)], left)
    if not glob.has_magic(path):
        raise OptionError(f"{path}: no such file or folder; {_near(path)}check the path")
    images: list[Path] = []
    for match in glob.glob(path, recursive=True):  # noqa: PTH207 (patterns may be absolute)
        images += walk(match, left) if Path(match).is_dir() else _pictures([Path(match)], left)
    return sorted(images)


def _near(path: str) -> str:
    """What is there under a name like it."""
    folder = Path(path).parent
    try:
        there = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
    except OSError:
        return ""
    return meant(Path(path).name, there)


def _pictures(
    files: list[Path], left: PassedOver, suffixes: Collection[str] = FOUND_SUFFIXES
) -> list[Path]:
    """Those with a picture's name, and not drawn by the program."""
    pictures = []
    for file in files:
        if file.suffix.lower() in suffixes or file.suffix.lower() == ".offn":
            pictures.append(file)
        else:
            left.note(file)
    return _unmarked(pictures, left)


def _unmarked(files: list[Path], left: PassedOver) -> list[Path]:
    kept = [file for file in files if not is_own(file)]
    left[_OWN] += len(files) - len(kept)
    return kept


def is_kept_by_system(folder: str) -> bool:
    """Whether a name is that of a hidden folder, or where systems keep thumbnails and bins."""
    return folder.startswith(".") or folder.lower() in _SYSTEM
