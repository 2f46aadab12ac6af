"""Medical sets of zero-shot papers, as their sources distribute them: images to test on only.

Two forms serve all of them: folders of which one holds the healthy images, and a folder of images
that all show a finding beside one of masks. None has a training split.
"""

from dataclasses import dataclass
from pathlib import Path

from offnominal.datasets.reading import (
    MaskFolder,
    Options,
    Reading,
    counted,
    images_below,
    images_in,
    subfolders,
    such_as,
)
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError

__all__ = ["read", "recognise"]


@dataclass(frozen=True)
class _Form:
    """How the folders of one set are called.

    `good` is the folder of healthy images (empty: there are none), `images` the folders of findings
    (empty: all others), `masks` the folder of masks, `skip` what is passed over.
    """

    category: str
    good: str = ""
    images: tuple[str, ...] = ()
    masks: str = ""
    skip: tuple[str, ...] = ()
    inside: tuple[str, ...] = ("",)


_POLYPS = _Form("colon", images=("images",), masks="masks")
_FORMS = {
    "brainmri": _Form("brain", good="no", inside=("", "brain_tumor_dataset")),
    "br35h": _Form("brain", good="no", skip=("pred",)),
    "covid19": _Form("chest", good="normal"),
    "cvc-clinicdb": _POLYPS,
    "cvc-colondb": _POLYPS,
    "endo": _Form("colon", masks="masks"),
    "isic": _Form(
        "skin",
        images=("ISBI2016_ISIC_Part1_Test_Data", "test"),
        masks="ISBI2016_ISIC_Part1_Test_GroundTruth",
        inside=("", "skin"),
    ),
    "kvasir": _POLYPS,
    "tn3k": _Form("thyroid", images=("test-image",), masks="test-mask"),
}


def recognise(root: Path) -> str | None:
    """None: these folders look like those of any other set, so that the preset has to be named."""
    return None


def fits(root: Path, preset: str) -> bool:
    """Whether the folders of a preset lie here."""
    form = _FORMS.get(preset)
    return form is not None and _home(root, form) is not None


def read(root: Path, options: Options) -> Reading:
    """Read the set of a preset.

    Raises
    ------
    DatasetError
        If its folders are not there.
    """
    form = _FORMS.get(options.preset)
    if form is None:
        raise DatasetError(f"{root}: name the set, as --layout {' or --layout '.join(_FORMS)}")
    home = _home(root, form)
    if home is None:
        needed = [form.good, *form.images, form.masks]
        raise DatasetError(
            f"{root}: {options.preset} needs the folders {', '.join(filter(None, needed))} there"
        )
    reading = Reading([], [])
    if options.wants(form.category):
        _read_form(home, form, reading)
    return reading


def _home(root: Path, form: _Form) -> Path | None:
    for inner in form.inside:
        home = root / inner
        names = {folder.name.lower() for folder in subfolders(home)}
        if form.good and form.good.lower() not in names:
            continue
        if form.masks and form.masks.lower() not in names:
            continue
        if form.images and not {name.lower() for name in form.images} & names:
            continue
        return home if names else None
    return None


def _read_form(home: Path, form: _Form, reading: Reading) -> None:
    named = {name.lower() for name in form.images}
    apart = {form.masks.lower(), *form.skip}
    masks = None
    for folder in subfolders(home):
        name = folder.name.lower()
        if form.masks and name == form.masks.lower():
            masks = MaskFolder(folder)
    for folder in subfolders(home):
        name = folder.name.lower()
        good = name == form.good
        if name in form.skip:
            reading.notes.append(f"{folder.name} has no labels: not used")
        if name in apart or (named and name not in named):
            continue
        for image in _images(folder, form, reading):
            mask = masks.find(Path(image.name), anywhere=True) if masks and not good else None
            kind = "good" if good else "finding" if form.images else folder.name
            reading.samples.append(Sample(image, int(not good), mask, kind, form.category, "test"))
    if masks:
        reading.notes += masks.notes()
    if not form.good:
        reading.notes.append("there are no healthy images: image metrics have nothing to compare")


def _images(folder: Path, form: _Form, reading: Reading) -> list[Path]:
    # The newer COVID-19 release has images/ and masks/ in each folder; those masks show the lungs.
    if form.category == "chest" and (folder / "images").is_dir():
        if lungs := images_in(folder / "masks"):
            what = counted(lungs, "mask")
            reading.notes.append(
                f"{folder.name}/masks: {what} of lungs, {such_as(lungs)}: not used"
            )
        return images_in(folder / "images")
    return images_below(folder)
