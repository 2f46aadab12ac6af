"""Medical presets: the folders of each, as distributed."""

from pathlib import Path

import pytest
from tests.datasets.pictures import image, mask

from offnominal.datasets import open_dataset

Row = tuple[str, int, str | None]


def rows(root: Path, preset: str) -> tuple[tuple[str, ...], list[Row]]:
    dataset = open_dataset(root, preset)
    assert (dataset.name, dataset.layout) == (preset, "medical")
    (category,) = dataset.categories
    assert dataset.train(category) == []
    found = [
        (
            s.image.relative_to(root).as_posix(),
            s.label,
            None if s.mask is None else s.mask.relative_to(root).as_posix(),
        )
        for s in dataset.test(category)
    ]
    return (category, *dataset.notes), found


@pytest.mark.parametrize("inner", ["", "brain_tumor_dataset/"])
def test_brain_mri(tmp_path: Path, inner: str) -> None:
    image(tmp_path, f"{inner}yes/Y1.jpg", f"{inner}no/1 no.jpeg")
    said, found = rows(tmp_path, "brainmri")
    assert said == ("brain",)
    assert found == [(f"{inner}no/1 no.jpeg", 0, None), (f"{inner}yes/Y1.jpg", 1, None)]


def test_br35h_leaves_out_what_has_no_label(tmp_path: Path) -> None:
    image(tmp_path, "yes/y0.jpg", "no/n0.jpg", "pred/p0.jpg")
    said, found = rows(tmp_path, "br35h")
    assert said == ("brain", "pred has no labels: not used")
    assert found == [("no/n0.jpg", 0, None), ("yes/y0.jpg", 1, None)]


def test_covid_with_flat_folders_and_with_lung_masks(tmp_path: Path) -> None:
    image(tmp_path, "old/NORMAL/N1.png", "old/COVID/C1.png")
    said, found = rows(tmp_path / "old", "covid19")
    assert said == ("chest",)
    assert found == [("COVID/C1.png", 1, None), ("NORMAL/N1.png", 0, None)]
    image(tmp_path, "new/Normal/images/N1.png", "new/COVID/images/C1.png")
    mask(tmp_path, "new/COVID/masks/C1.png")
    said, found = rows(tmp_path / "new", "covid19")
    assert len(said) == 2
    assert "COVID/masks: 1 mask of lungs" in said[1]
    assert found == [("COVID/images/C1.png", 1, None), ("Normal/images/N1.png", 0, None)]


@pytest.mark.parametrize(
    ("preset", "images", "masks", "category"),
    [
        ("cvc-colondb", "images/1.png", "masks/1.png", "colon"),
        ("cvc-clinicdb", "images/1.png", "masks/1.png", "colon"),
        ("kvasir", "images/1.jpg", "masks/1.jpg", "colon"),
        ("endo", "polyps/1.jpg", "masks/1.png", "colon"),
        ("tn3k", "test-image/1.jpg", "test-mask/1.jpg", "thyroid"),
        (
            "isic",
            "ISBI2016_ISIC_Part1_Test_Data/ISIC_3.jpg",
            "ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_3_Segmentation.png",
            "skin",
        ),
        (
            "isic",
            "skin/test/lesion/ISIC_3.jpg",
            "skin/ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_3_Segmentation.png",
            "skin",
        ),
    ],
)
def test_findings_beside_masks(
    tmp_path: Path, preset: str, images: str, masks: str, category: str
) -> None:
    image(tmp_path, images)
    mask(tmp_path, masks)
    said, found = rows(tmp_path, preset)
    assert said[0] == category
    assert "no healthy images" in said[1]
    assert found == [(images, 1, masks)]


def test_a_preset_in_the_layout_of_another_code(tmp_path: Path) -> None:
    image(tmp_path, "brain/test/good/0.png", "brain/test/tumour/1.png")
    dataset = open_dataset(tmp_path, "br35h")
    assert (dataset.name, dataset.layout, dataset.categories) == ("br35h", "mvtec", ("brain",))
