"""Clouds of points: Real3D-AD and Anomaly-ShapeNet as they are distributed.

::

    CATEGORY/train/172_template.pcd
    CATEGORY/test/180_good.pcd                  ashtray0_positive3.pcd in Anomaly-ShapeNet
    CATEGORY/test/181_bulge.pcd                 ashtray0_bulge1.pcd
    CATEGORY/gt/181_bulge.txt                   x y z label; GT in Anomaly-ShapeNet

The name of a file says whether it is good, and else the kind of its defect.
"""

import re
from pathlib import Path

from offnominal.datasets.reading import Options, Reading, counted, listed, subfolders, such_as
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError
from offnominal.scans.places import SCAN_SUFFIXES, mask_of

__all__ = ["fits", "read"]

_GOOD = ("good", "positive")
_TEMPLATE = "template"


def fits(root: Path) -> bool:
    """Whether this layout lies here."""
    return bool(_homes(root))


def read(root: Path, options: Options) -> Reading:
    """Read all categories below `root`, or the one that `root` is."""
    homes = _homes(root)
    if not homes:
        raise DatasetError(f"{root}: no clouds in CATEGORY/train and CATEGORY/test")
    reading = Reading()
    for home in homes:
        if not options.wants(home.name):
            continue
        for cloud in _clouds(home / "train"):
            reading.samples.append(Sample(cloud, 0, None, "good", home.name, "train"))
        aside = []
        for cloud in _clouds(home / "test"):
            kind = _kind(cloud.stem, home.name)
            if kind == _TEMPLATE:
                aside.append(cloud.name)
                continue
            mask = None if kind == "good" else mask_of(cloud)
            label = int(kind != "good")
            reading.samples.append(Sample(cloud, label, mask, kind, home.name, "test"))
        if aside:
            reading.notes.append(
                f"{home.name}: {counted(aside, 'template')} in test, {such_as(aside)}: not used"
            )
    return reading


def _homes(root: Path) -> list[Path]:
    homes = [f for f in (root, *subfolders(root)) if _clouds(f / "train") and _clouds(f / "test")]
    return homes[:1] if root in homes else homes


def _clouds(folder: Path) -> list[Path]:
    return [p for p in listed(folder, Path.is_file) if p.suffix.lower() in SCAN_SUFFIXES]


def _kind(stem: str, category: str) -> str:
    """``bulge`` of ``181_bulge_cut`` and of ``ashtray0_bulge1``."""
    words = re.findall("[a-z]+", stem.removeprefix(category).lower())
    if any(word in _GOOD for word in words):
        return "good"
    if _TEMPLATE in words:
        return _TEMPLATE
    return next((word for word in words if word not in ("cut", "copy")), "defect")
