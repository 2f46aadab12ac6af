"""Eyecandies as it is distributed (Bonfiglioli et al., ACCV 2022).

::

    CATEGORY/train/data/0000_depth.png          16 bits, with 0000_info_depth.yaml
    CATEGORY/val/data/...                       kept apart for validation
    CATEGORY/test_public/data/00_depth.png      with 00_mask.png and 00_metadata.yaml
    CATEGORY/test_private/                      no labels

Pictures are good or not as their metadata say; without them, as the mask has marks or none.
"""

import re
from pathlib import Path

from offnominal.datasets.reading import Options, Reading, counted, listed, subfolders
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError
from offnominal.scans.places import kind_of, mask_of

__all__ = ["fits", "read"]

_SPLITS = {"train": "train", "val": "validation", "test_public": "test"}
_KINDS = ("bumps", "dents", "colors", "normals")


def fits(root: Path) -> bool:
    """Whether this layout lies here."""
    return bool(_homes(root))


def read(root: Path, options: Options) -> Reading:
    """Read all categories below `root`, or the one that `root` is."""
    homes = _homes(root)
    if not homes:
        raise DatasetError(
            f"{root}: nothing in Eyecandies' layout: CATEGORY/train/data/*_depth.png"
        )
    reading = Reading()
    for home in homes:
        if not options.wants(home.name):
            continue
        for folder, split in _SPLITS.items():
            for depth in _depths(home / folder):
                label, mask = (0, None) if split == "train" else _truth(depth)
                kind = _kind(depth) if label else "good"
                reading.samples.append(Sample(depth, label, mask, kind, home.name, split, 1))
        if (home / "test_private").is_dir():
            reading.notes.append(f"{home.name}: test_private has no public labels: not used")
    if validation := [s for s in reading.samples if s.split == "validation"]:
        reading.notes.append(
            f"{counted(validation, 'image')} for validation: neither learned from nor tested"
        )
    return reading


def _homes(root: Path) -> list[Path]:
    homes = [f for f in (root, *subfolders(root))
             if _first(f / "train") or _first(f / "test_public")]  # fmt: skip
    return homes[:1] if root in homes else homes


def _first(folder: Path) -> bool:
    return any(path.name.endswith("_info_depth.yaml") for path in listed(folder / "data"))


def _depths(folder: Path) -> list[Path]:
    return [path for path in listed(folder / "data", Path.is_file) if kind_of(path) == "eyecandies"]


def _truth(depth: Path) -> tuple[int, Path | None]:
    mask = mask_of(depth)
    metadata = _beside(depth, "_metadata.yaml")
    if metadata.is_file():
        said = re.search(r"\banomalous\s*:\s*(\w+)", metadata.read_text(errors="replace")[:4096])
        if said and said[1].lower() in ("0", "1", "true", "false"):
            label = int(said[1].lower() in ("1", "true"))
            return label, mask if label else None
    if mask is None:
        raise DatasetError(
            f"{depth}: neither {metadata.name} nor a mask beside it says whether it is good; copy "
            "them again"
        )
    return (1, mask) if _any_mark(mask) else (0, None)


def _kind(depth: Path) -> str:
    """What the one mask with marks says; several kinds are ``combined``."""
    masks = [(kind, _beside(depth, f"_{kind}_mask.png")) for kind in _KINDS]
    marked = [kind for kind, mask in masks if mask.is_file() and _any_mark(mask)]
    return marked[0] if len(marked) == 1 else "combined" if marked else "defect"


def _any_mark(mask: Path) -> bool:
    # Here, as only what holds masks needs NumPy and Pillow to be opened.
    from offnominal.datasets.masks import mask_levels

    return bool(mask_levels(mask).any())


def _beside(depth: Path, ending: str) -> Path:
    return depth.with_name(depth.stem.removesuffix("_depth") + ending)
