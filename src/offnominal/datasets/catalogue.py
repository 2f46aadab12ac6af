"""Layouts that can be read, and known data sets with where they come from.

A licence is named as we found it stated, at times by others; elsewhere it says "see source". What
counts is what the source says.
"""

from dataclasses import dataclass

__all__ = ["LAYOUTS", "PRESETS", "Layout", "Preset"]


@dataclass(frozen=True)
class Layout:
    """A layout.

    Attributes
    ----------
    name : str
        As ``--layout`` takes it.
    looks_for : str
        What it is recognised by.
    about : str
        Whose layout it is.
    """

    name: str
    looks_for: str
    about: str


@dataclass(frozen=True)
class Preset:
    """A known data set: a name for its reader, its source and its licence.

    Attributes
    ----------
    name : str
        As ``--layout`` takes it.
    title : str
        As its authors call it.
    layouts : tuple of str
        Layouts that it is found in; the first that fits is read.
    source : str
        Where its authors, or the paper that set up its use here, hand it out.
    licence : str
        As stated there.
    """

    name: str
    title: str
    layouts: tuple[str, ...]
    source: str
    licence: str


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "mvtec",
            "CATEGORY/train/good, CATEGORY/test/DEFECT",
            "MVTec AD and most others; your own",
        ),
        Layout("visa", "OBJECT/Data/Images/Normal", "VisA as distributed"),
        Layout("ksdd", "kos01/Part0.jpg, kos01/Part0_label.bmp", "Kolektor SDD as distributed"),
        Layout("ksdd2", "train/NAME.png, train/NAME_GT.png", "Kolektor SDD2 as distributed"),
        Layout("dagm", "Class1/Train, Class1/Test/Label", "DAGM 2007 as distributed"),
        Layout("folders", "good beside folders of defects; or --good, --defects", "your own"),
        Layout("manifest", "manifest.csv or manifest.jsonl, or the file itself", "your own"),
        Layout("meta", "meta.json", "zero-shot codes: VAND, AnomalyCLIP, AdaCLIP"),
        Layout("video", "testing/frames/CLIP, testing/test_frame_mask", "frames with frame labels"),
        Layout("medical", "only by a preset's name", "medical sets as distributed"),
    )
}

_OWN = ("mvtec", "meta")
_MEDICAL = ("medical", "mvtec", "meta")
_NC = "CC BY-NC-SA 4.0"
_SEE = "see source"
_KAGGLE = "https://www.kaggle.com/datasets/"
_POLYPS = "https://figshare.com/articles/figure/Polyp_DataSet_zip/21221579"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "mvtec",
            "MVTec AD",
            _OWN,
            "https://www.mvtec.com/company/research/datasets/mvtec-ad",
            _NC,
        ),
        Preset(
            "mvtec2",
            "MVTec AD 2",
            _OWN,
            "https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
            _NC,
        ),
        Preset(
            "loco",
            "MVTec LOCO AD",
            _OWN,
            "https://www.mvtec.com/company/research/datasets/mvtec-loco",
            _NC,
        ),
        Preset(
            "visa",
            "VisA",
            ("visa", *_OWN),
            "https://github.com/amazon-science/spot-diff",
            "CC BY 4.0",
        ),
        Preset("mpdd", "MPDD", _OWN, "https://github.com/stepanje/MPDD", _SEE),
        Preset("btad", "BTAD", _OWN, "http://avires.dimi.uniud.it/papers/btad/btad.zip", _SEE),
        Preset(
            "dtd",
            "DTD-Synthetic",
            _OWN,
            "https://drive.google.com/drive/folders/10OyPzvI3H6llCZBxKxFlKWt1Pw1tkMK1",
            _SEE,
        ),
        Preset(
            "mtd",
            "Magnetic Tile Defects",
            _OWN,
            "https://github.com/abin24/Magnetic-tile-defect-datasets.",
            _SEE,
        ),
        Preset(
            "ksdd",
            "Kolektor SDD",
            ("ksdd", *_OWN),
            "https://www.vicos.si/resources/kolektorsdd/",
            _NC,
        ),
        Preset(
            "ksdd2",
            "Kolektor SDD2",
            ("ksdd2", *_OWN),
            "https://www.vicos.si/resources/kolektorsdd2/",
            _SEE,
        ),
        Preset(
            "dagm",
            "DAGM 2007",
            ("dagm", *_OWN),
            "https://hci.iwr.uni-heidelberg.de/node/3616",
            _SEE,
        ),
        Preset(
            "shanghaitech",
            "ShanghaiTech Campus",
            ("video",),
            "https://svip-lab.github.io/dataset/campus_dataset.html",
            _SEE,
        ),
        Preset("headct", "HeadCT", _OWN, f"{_KAGGLE}felipekitamura/head-ct-hemorrhage", _SEE),
        Preset(
            "brainmri",
            "BrainMRI",
            _MEDICAL,
            f"{_KAGGLE}navoneel/brain-mri-images-for-brain-tumor-detection",
            _SEE,
        ),
        Preset("br35h", "Br35H", _MEDICAL, f"{_KAGGLE}ahmedhamada0/brain-tumor-detection", _SEE),
        Preset(
            "covid19",
            "COVID-19 Radiography",
            _MEDICAL,
            f"{_KAGGLE}tawsifurrahman/covid19-radiography-database",
            _SEE,
        ),
        Preset(
            "isic",
            "ISIC 2016, part 1, test",
            _MEDICAL,
            "https://isic-challenge-data.s3.amazonaws.com/2016/ISBI2016_ISIC_Part1_Test_Data.zip",
            _SEE,
        ),
        Preset("cvc-colondb", "CVC-ColonDB", _MEDICAL, _POLYPS, _SEE),
        Preset("cvc-clinicdb", "CVC-ClinicDB", _MEDICAL, _POLYPS, _SEE),
        Preset("kvasir", "Kvasir", _MEDICAL, _POLYPS, _SEE),
        Preset(
            "endo",
            "EndoTect 2020, test",
            _MEDICAL,
            "https://drive.google.com/file/d/1LNpLkv5ZlEUzr_RPN5rdOHaqk0SkZa3m/view",
            _SEE,
        ),
        Preset(
            "tn3k",
            "TN3K, test",
            _MEDICAL,
            "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation",
            _SEE,
        ),
    )
}
