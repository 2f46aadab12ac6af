"""Kolektor SDD (Tabernik et al., 2020) and SDD2 (Bozic et al., 2021), as they are distributed.

::

    kos01/Part0.jpg, kos01/Part0_label.bmp              SDD: one folder for each part
    train/10000.png, train/10000_GT.png, test/...       SDD2

Both come without any label but the mask: an image counts as defective when its mask is not all
zero, which is how their authors count. This is the one place where a label is taken from a mask,
and a note says so.
"""

import re
from pathlib import Path

from offnominal.datasets.reading import (
    Options,
    Reading,
    counted,
    divide,
    division_note,
    images_in,
    subfolders,
    such_as,
    trained_on_defects_note,
)
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError

__all__ = ["read_sdd", "read_sdd2", "recognise_sdd", "recognise_sdd2"]

_LABELS = "the masks are the only labels of this data set: defective where a mask is not all zero"


def recognise_sdd(root: Path) -> str | None:
    """What of the SDD layout lies here, in words, or None."""
    found = [f for f in subfolders(root) if re.fullmatch(r"kos\d+", f.name)]
    return f"{counted(found, 'folder')} named kosNN" if found else None


def recognise_sdd2(root: Path) -> str | None:
    """What of the SDD2 layout lies here, in words, or None."""
    for split in ("train", "test"):
        stems = {image.stem for image in images_in(root / split)}
        if any(f"{stem}_GT" in stems for stem in stems):
            return f"{split}/NAME_GT.png beside {split}/NAME.png"
    return None


def read_sdd(root: Path, options: Options) -> Reading:
    """Read Kolektor SDD; category ``electrical_commutators``.

    The good images are divided by part, since the eight surfaces of a part resemble each other.
    """
    category = "electrical_commutators"
    reading = Reading([], [_LABELS])
    for part in subfolders(root):
        if options.wants(category):
            reading.samples += _pairs(part, "_label", category, "test", reading.notes)
    if not reading.samples and options.wants(category):
        raise DatasetError(f"{root}: no images in folders kosNN; unpack the data set again")
    good = [s for s in reading.samples if s.label == 0]
    sides = divide(good, lambda s: s.image.parent.name, options.train_share)
    learned = {s.image for s, side in zip(good, sides, strict=True) if side}
    reading.samples = [
        Sample(s.image, s.label, s.mask, s.defect, category, "train", s.mask_threshold)
        if s.image in learned
        else s
        for s in reading.samples
    ]
    n_train = len(learned)
    note = division_note(f"{category}, by part", n_train, len(good) - n_train, options.train_share)
    reading.notes.append(note)
    return reading


def read_sdd2(root: Path, options: Options) -> Reading:
    """Read Kolektor SDD2; category ``surface``."""
    category = "surface"
    reading = Reading([], [_LABELS])
    for split in ("train", "test"):
        if options.wants(category):
            reading.samples += _pairs(root / split, "_GT", category, split, reading.notes)
    if learned := sum(s.split == "train" and s.label for s in reading.samples):
        reading.notes.append(trained_on_defects_note(learned))
    return reading


def _pairs(folder: Path, ending: str, category: str, split: str, notes: list[str]) -> list[Sample]:
    from offnominal.datasets.masks import mask_levels

    files = images_in(folder)
    masks = {f.stem[: -len(ending)]: f for f in files if f.stem.endswith(ending)}
    # SDD2 holds a stray copy of a mask, "NAME_GT (copy).png": no image, and not wanted as a mask.
    images = [f for f in files if ending not in f.stem]
    if bare := [image for image in images if image.stem not in masks]:
        notes.append(f"{counted(bare, 'image')} without a mask, {such_as(bare)}: not used")
    samples = []
    for image in images:
        if image.stem not in masks:
            continue
        mask = masks[image.stem]
        if bool(mask_levels(mask).any()):
            samples.append(Sample(image, 1, mask, "defect", category, split, 1))
        else:
            samples.append(Sample(image, 0, None, "good", category, split, 1))
    return samples
