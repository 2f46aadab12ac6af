"""Layouts that can be read, and known data sets with where they come from.

A licence is named as we found it stated, at times by others; elsewhere it says "see source". What
counts is what the source says.
"""

import csv
from pathlib import Path
from typing import NamedTuple

__all__ = ["LAYOUTS", "PRESETS", "Layout", "Preset"]


class Layout(NamedTuple):
    """A layout: its name as ``--layout`` takes it, what it is recognised by, and whose it is."""

    name: str
    looks_for: str
    about: str


class Preset(NamedTuple):
    """A known data set.

    Attributes
    ----------
    name : str
        As ``--layout`` takes it.
    title : str
        As its authors call it.
    layouts : tuple of str
        Layouts that it is found in; the first that fits is read.
    licence : str
        As stated at its source.
    source : str
        Where its authors, or the paper that set up its use here, hand it out.
    """

    name: str
    title: str
    layouts: tuple[str, ...]
    licence: str
    source: str


_MVTEC = "CATEGORY/train/good, CATEGORY/test/good, CATEGORY/test/DEFECT"


LAYOUTS: dict[str, Layout] = {
    row[0]: Layout(*row)
    for row in (
        ("mvtec", _MVTEC, "MVTec AD, MVTec 3D-AD and most others; your own"),
        ("visa", "OBJECT/Data/Images/Normal", "VisA as distributed"),
        ("ksdd", "kosNN/Part0.jpg, kosNN/Part0_label.bmp", "Kolektor SDD as distributed"),
        ("ksdd2", "train/NAME.png, train/NAME_GT.png", "Kolektor SDD2 as distributed"),
        ("dagm", "Class1/Train, Class1/Test/Label", "DAGM 2007 as distributed"),
        ("folders", "good beside folders of defects; or --good, --defects", "your own"),
        ("manifest", "manifest.csv or manifest.jsonl, or the file itself", "your own"),
        ("meta", "meta.json", "zero-shot codes: VAND, AnomalyCLIP, AdaCLIP"),
        ("video", "testing/frames/CLIP, testing/test_frame_mask", "frames with frame labels"),
        ("eyecandies", "CATEGORY/train/data/NAME_depth.png", "Eyecandies as distributed"),
        ("clouds", "CATEGORY/train/*.pcd, CATEGORY/test/*.pcd", "Real3D-AD, Anomaly-ShapeNet"),
        ("medical", "only by a preset's name", "medical sets as distributed"),
    )
}


with Path(__file__).with_name("presets.csv").open(newline="", encoding="utf-8") as _lines:
    PRESETS: dict[str, Preset] = {
        row["name"]: Preset(**row | {"layouts": tuple(row["layouts"].split())})
        for row in csv.DictReader(_lines)
    }
