"""Layouts that the names of folders tell: a table of them, and the one reader that all share.

A place is a path below the folder of a category, each step a regular expression; case does not
matter. MVTec layout and its variants::

    CATEGORY/train/good/000.png
    CATEGORY/validation/good/000.png                 (MVTec LOCO AD, MVTec AD 2)
    CATEGORY/test/good/001.png
    CATEGORY/test/DEFECT/002.png
    CATEGORY/ground_truth/DEFECT/002_mask.png        (or 002.png, 002_GT.bmp, or a folder 002)

MVTec 3D-AD has folders ``rgb``, ``xyz`` and ``gt`` in each of these; the files of points are the
images, and ``gt`` holds their masks.

MVTec AD 2 has ``test_public`` in place of ``test``, with ``ground_truth`` inside it; BTAD calls the
good images ``ok``. The others are single data sets as they are distributed.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from offnominal.datasets.catalogue import LAYOUTS
from offnominal.datasets.pairing import MaskFolder, is_mask_folder, set_masks_aside
from offnominal.datasets.reading import (
    GOOD_NAMES,
    MASK_SUFFIXES,
    Options,
    Reading,
    counted,
    images_below,
    listed,
    subfolders,
    such_as,
)
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError
from offnominal.paths import IMAGE_SUFFIXES
from offnominal.scans.places import camera_of, mask_of

__all__ = ["PATTERNS", "Pattern", "fits", "read"]


@dataclass(frozen=True)
class Pattern:
    """How the folders of a layout are called."""

    # Places that all have to be there; they make a folder a category.
    has: tuple[str, ...]
    # Place of folders with images, their split, and the place of their masks. An empty split: good
    # images are divided by folder. Empty masks: none. The same place: masks beside the images.
    images: tuple[tuple[str, str, str], ...]
    category: str = ""  # where the layout has only one; else it is called as its folder
    inside: tuple[str, ...] = ("",)  # where below the root the one category may lie
    # What makes an image defective: its folder's name; that it has a mask; that its mask is not
    # all zero (an image without one is left out then).
    label: Literal["folder", "mask", "pixels"] = "folder"
    good: frozenset[str] = GOOD_NAMES  # folders of good images, in lower case
    defect: str = ""  # the kind of all defects; empty where the folder names it
    ending: str = ""  # of the names of masks that lie beside the images, in lower case
    anywhere: bool = False  # whether a mask is found by its name alone
    threshold: int = 128  # smallest grey level of a mask that means defective
    # Places that are passed over, and what the note on them says after their name.
    unused: dict[str, str] = field(default_factory=dict)
    note: str = ""  # said of every data set of this layout


_NO_LABELS = " has no public labels"
_BY_MASK = "the masks are the only labels of this data set: defective where a mask is not all zero"
_ALL_ILL = "there are no healthy images: image metrics have nothing to compare"
_LESIONS = "ISBI2016_ISIC_Part1_Test_Data|test"
_LESION_MASKS = "ISBI2016_ISIC_Part1_Test_GroundTruth"


def _healthy(category: str, good: str, **more: Any) -> Pattern:
    """Test images only: a folder of healthy ones beside folders of findings."""
    return Pattern((good,), ((".*", "test", ""),), category, good=frozenset({good}), **more)


def _findings(category: str, images: str, masks: str, defect: str = "finding") -> Pattern:
    """Test images only: a folder of images that all show a finding beside one of masks."""
    has = (masks,) if images == ".*" else (images, masks)
    return Pattern(
        has, ((images, "test", masks),), category, good=frozenset(), defect=defect, anywhere=True,
        note=_ALL_ILL,
    )  # fmt: skip


_POLYPS = _findings("colon", "images", "masks")

#: By the name of a layout, or of a preset where the layout is ``medical``.
PATTERNS: dict[str, Pattern] = {
    "mvtec": Pattern(
        ("train|test|test_public/good|ok|normal",),
        (
            ("train/.*", "train", ""),
            ("validation/.*", "validation", ""),
            ("test/.*", "test", "ground_truth"),
            ("test_public/.*", "test", "test_public/ground_truth"),
        ),
        unused={"test_private": _NO_LABELS, "test_private_mixed": _NO_LABELS},
    ),
    # Kolektor SDD (Tabernik et al., 2020): the eight surfaces of a part resemble each other, so
    # that the good images are divided by part. SDD2 (Bozic et al., 2021).
    "ksdd": Pattern(
        (r"kos\d+",), ((r"kos\d+", "", r"kos\d+"),), "electrical_commutators", label="pixels",
        defect="defect", ending="_label", threshold=1, note=_BY_MASK,
    ),
    "ksdd2": Pattern(
        (r"train|test/.*_GT\.\w+",), (("train", "train", "train"), ("test", "test", "test")),
        "surface", label="pixels", defect="defect", ending="_gt", threshold=1, note=_BY_MASK,
    ),
    # DAGM 2007 (Wieler and Hahn): the masks are ellipses around the defects.
    "dagm": Pattern(
        (r"Train/.*\.\w+", "Test/Label"),
        (("Train", "train", "Train/Label"), ("Test", "test", "Test/Label")),
        label="mask", defect="defect",
    ),
    "brainmri": _healthy("brain", "no", inside=("", "brain_tumor_dataset")),
    "br35h": _healthy("brain", "no", unused={"pred": " has no labels"}),
    # The newer release has images/ and masks/ in each folder; those masks show the lungs.
    "covid19": _healthy("chest", "normal", unused={".*/masks": ": {} of lungs"}),
    "cvc-clinicdb": _POLYPS,
    "cvc-colondb": _POLYPS,
    "endo": _findings("colon", ".*", "masks", ""),
    "isic": replace(_findings("skin", _LESIONS, _LESION_MASKS), inside=("", "skin")),
    "kvasir": _POLYPS,
    "tn3k": _findings("thyroid", "test-image", "test-mask"),
}  # fmt: skip


def _at(home: Path, place: str) -> list[Path]:
    """What lies at a place below a folder."""
    found, how = [home], re.IGNORECASE | re.DOTALL  # a name may hold line breaks
    for step in place.split("/"):
        inside = [path for folder in found for path in listed(folder)]
        found = [path for path in inside if re.fullmatch(step, path.name, how)]
    return found


def _homes(root: Path, pattern: Pattern) -> list[Path]:
    """The folders of the categories."""
    if pattern.category:
        candidates = [root / inner for inner in pattern.inside]
    else:
        candidates = [root, *subfolders(root)]
    homes = [home for home in candidates if all(_at(home, place) for place in pattern.has)]
    return homes[:1] if pattern.category or root in homes else homes


def fits(root: Path, name: str) -> bool:
    """Whether the folders of one of `PATTERNS` lie here; False for another name."""
    return name in PATTERNS and bool(_homes(root, PATTERNS[name]))


def read(root: Path, options: Options) -> Reading:
    """Read all categories below `root`, or the one that `root` is."""
    name, reading = options.layout, Reading()
    if name not in PATTERNS:
        names = [key for key in PATTERNS if key not in LAYOUTS]
        raise DatasetError(f"{root}: name the set, as --layout {' or --layout '.join(names)}")
    pattern = PATTERNS[name]
    # Of a medical set the folders are all that it is recognised by.
    named = ", ".join(pattern.has).replace("|", " or ")
    needs = LAYOUTS[name].looks_for if name in LAYOUTS else f"the folders {named}"
    homes = _homes(root, pattern)
    if not homes:
        raise DatasetError(f"{root}: nothing in {name} layout, which needs {needs}")
    if name == "mvtec" and root not in homes:
        for folder in subfolders(root):
            if folder not in homes and _at(folder, "train|test"):
                why = "has train or test, but no folder called good in it"
                reading.notes.append(f"{folder.name} {why}: not used")
            elif folder not in homes and (images := images_below(folder)):
                why = f"{counted(images, 'image')}, but neither train nor test"
                reading.notes.append(f"{folder.name} has {why}: not used")
    for home in homes:
        category = pattern.category or home.name
        if not options.wants(category):
            continue
        own = _read_category(home, category, pattern)
        if not any(sample.split in ("test", "") for sample in own.samples):
            raise DatasetError(
                f"{home}: no images to test on; {name} layout has them in {needs}. Add some, or "
                "leave this category out with --categories"
            )
        reading.samples += own.samples
        reading.passed.update(own.passed)
        reading.notes += own.notes if pattern.category else [f"{category}: {n}" for n in own.notes]
    reading.divide(lambda sample: sample.image.parent.name, options.train_share, ", by part")
    return reading


def _read_category(home: Path, category: str, pattern: Pattern) -> Reading:
    reading = Reading([], [pattern.note] if pattern.note else [])
    apart: list[Path] = []
    for place, what in pattern.unused.items():
        for folder in _at(home, place):
            apart.append(folder)
            about = what.format(counted(images_below(folder, suffixes=MASK_SUFFIXES), "mask"))
            reading.notes.append(f"{folder.relative_to(home)}{about}: not used")
    loose: list[Path] = []
    for place, split, masks_at in pattern.images:
        masks: list[MaskFolder] = []
        at = _at(home, place)
        loose += [file for file in at if file.is_file()]
        if masks_at and masks_at != place:
            masks_in = _mask_folders(home, masks_at, pattern, reading.notes)
            apart += masks_in
            masks.append(MaskFolder(masks_in[0], anywhere=pattern.anywhere))
        folders = {
            folder: [
                image
                for image in images_below(folder, reading.passed)
                if not any(image.is_relative_to(other) for other in apart)
            ]
            for folder in at
            if folder.is_dir() and folder not in apart
        }
        # Where masks have no folder of their own, they may lie among the images.
        kept = {image for images in folders.values() for image in images}
        if pattern.good and pattern.label == "folder":
            images, beside = set_masks_aside(sorted(kept), home, reading.notes)
            kept = set(images)
            masks.append(beside)
        for folder, found in folders.items():
            images = [image for image in found if image in kept]
            own = [MaskFolder(folder, pattern.ending)] if masks_at == place else masks
            _read_folder(folder, images, split, category, pattern, own, home, reading)
        for each in masks:
            reading.notes += each.notes()
    apart += [folder for place, *_ in pattern.images for folder in _at(home, place.split("/")[0])]
    if not pattern.category:
        _note_unused(home, apart, loose, reading)
    if validation := [s for s in reading.samples if s.split == "validation"]:
        reading.notes.append(
            f"{counted(validation, 'image')} for validation: neither learned from nor tested"
        )
    return reading


def _mask_folders(home: Path, place: str, pattern: Pattern, notes: list[str]) -> list[Path]:
    """The folder of masks, or where it should be; one of another name is taken with a note."""
    if found := _at(home, place):
        return found
    other = [f for f in subfolders((home / place).parent) if is_mask_folder(f.name)]
    if pattern.category or not other:
        return [home / place]
    notes.append(f"masks from {other[0].relative_to(home)}, as there is no {place}")
    return other[:1]


def _note_unused(home: Path, known: list[Path], loose: list[Path], reading: Reading) -> None:
    """Say what lies where the layout has no place for it."""
    for folder in subfolders(home):
        if folder not in known and (images := images_below(folder)):
            reading.notes.append(
                f"{folder.name} has {counted(images, 'image')}, but no place in the layout: "
                "not used"
            )
    images = [file for file in loose if file.suffix.lower() in IMAGE_SUFFIXES]
    for file in set(loose) - set(images):
        reading.passed.note(file)
    if images:
        reading.notes.append(
            f"{counted(images, 'image')} directly in train or test, {such_as(images)}: not used, "
            "since images belong into folders named good or after their defect"
        )


def _read_folder(
    folder: Path,
    images: list[Path],
    split: str,
    category: str,
    pattern: Pattern,
    masks: list[MaskFolder],
    home: Path,
    reading: Reading,
) -> None:
    """Take in the images of one folder."""
    by_folder, by_pixels = pattern.label == "folder", pattern.label == "pixels"
    good = by_folder and folder.name.lower() in pattern.good
    bare: list[Path] = []
    of_good: list[Path] = []
    beside = by_folder and not good and (folder / "gt").is_dir()
    for image in images:
        # SDD2 holds a stray copy of a mask, "NAME_GT (copy).png": no image, and no mask.
        if pattern.ending and pattern.ending in image.stem.lower():
            continue
        # Those of good images are not used, but they have an image.
        found = [own for each in masks if (own := _mask_of(image, folder, home, each, by_folder))]
        if beside and not found and (truth := mask_of(image)):
            found = [truth]
        of_good += found[:1] if good else []
        mask = found[0] if found and not good else None
        if by_pixels and mask is None:
            bare.append(image)
            continue
        if by_pixels and mask and not _any_level(mask):
            mask = None
        label = not good if by_folder else mask is not None
        kind = (pattern.defect or folder.name) if label else "good"
        side = split or ("test" if label else "")
        reading.samples.append(
            Sample(image, int(label), mask, kind, category, side, pattern.threshold)
        )
    if of_good:
        reading.notes.append(
            f"masks of good images: {len(of_good)}, {such_as(f.relative_to(home) for f in of_good)}"
            ": not used, the label comes from the folder"
        )
    if bare:
        reading.notes.append(f"{counted(bare, 'image')} without a mask, {such_as(bare)}: not used")


def _mask_of(
    image: Path, folder: Path, home: Path, masks: MaskFolder, by_folder: bool
) -> Path | None:
    """The mask of an image in a folder of its own, which mirrors the kinds; or among the images."""
    if masks.folder == home:
        return masks.find(image.relative_to(home))
    if by_folder and image.parent != folder and camera_of(image):
        # Depth pictures have a folder of their own beside that of the colours.
        return masks.find(Path(folder.name, image.name))
    return masks.find(image.relative_to(folder.parent if by_folder else folder))


def _any_level(mask: Path) -> bool:
    # Here, as only these layouts need NumPy and Pillow to be opened.
    from offnominal.datasets.masks import mask_levels

    return bool(mask_levels(mask).any())
