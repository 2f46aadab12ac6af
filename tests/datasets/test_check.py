"""Checking a data set: every oddity is found, counted, named, and its consequence said."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tests.datasets.pictures import image, mask, save

from offnominal.datasets import Report, open_dataset
from offnominal.datasets.check import check
from offnominal.datasets.report import Finding
from offnominal.images import read_image


def only(report: Report, words: str) -> Finding:
    (finding,) = [f for f in report.findings if words in f.what]
    return finding


@pytest.fixture
def nut(tmp_path: Path) -> Path:
    """A data set with nothing odd: two images to learn from, one good and two defective to test."""
    home = tmp_path / "nut"
    image(home, "train/good/0.png", "train/good/1.png", "test/good/0.png")
    image(home, "test/dent/0.png", "test/rust/0.png")
    mask(home, "ground_truth/dent/0_mask.png", "ground_truth/rust/0_mask.png")
    return home


def test_a_data_set_with_nothing_odd(nut: Path) -> None:
    seen: list[int] = []
    report = check(open_dataset(nut), seen.append)
    assert seen == [1, 2, 3, 4, 5]
    assert report.findings == ()
    assert report.unreadable == 0
    (contents,) = report.categories
    assert (contents.category, contents.train, contents.test_good) == ("nut", 2, 1)
    assert contents.test_defective == {"dent": 1, "rust": 1}
    assert contents.masks == 2
    assert contents.sizes == ((24, 16, 5),)


@pytest.mark.slow
def test_the_tiles(tiles: Path) -> None:
    report = check(open_dataset(tiles))
    (contents,) = report.categories
    assert (contents.train, contents.test_good, contents.masks) == (761, 191, 392)
    assert contents.test_defective == {
        "blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 103,
    }  # fmt: skip
    assert sum(n for _, _, n in contents.sizes) == 1344
    finding, both, one_side = report.findings
    assert (finding.severity, finding.count) == ("warning", 4)
    assert finding.what == "empty masks of defective images"
    assert all(name.startswith("ground_truth/uneven/") for name in finding.examples)
    assert "count as defective for image metrics" in finding.action
    # Nearly every tile was photographed six times, in other light, and cut out by hand.
    assert both.what == "images to learn from that are one picture with images to test on"
    assert 100 <= both.count <= 130
    assert 90 <= one_side.count <= 120


def test_masks_of_every_odd_kind(nut: Path) -> None:
    kinds = ("empty", "faint", "noisy", "small", "wide", "broken", "deep", "none")
    image(nut, *(f"test/{kind}/{n}.png" for kind in kinds for n in range(2)))
    truth = nut / "ground_truth"
    for n in range(2):
        mask(truth, f"empty/{n}.png", level=0)
        mask(truth, f"faint/{n}.png", level=3)
        noisy = np.zeros((16, 24), np.uint8)
        noisy[0, :2] = 255, 5
        save(truth / f"noisy/{n}.png", noisy)
        mask(truth, f"small/{n}.png", size=(32, 48))
        mask(truth, f"wide/{n}.png", size=(16, 30))
        (truth / f"broken/{n}.png").parent.mkdir(exist_ok=True)
        (truth / f"broken/{n}.png").write_bytes(b"nonsense")
        (truth / "deep").mkdir(exist_ok=True)
        Image.fromarray(np.full((16, 24), 999, np.uint16)).save(truth / f"deep/{n}.png")
    report = check(open_dataset(nut))
    for words, severity, count, example, action in [
        ("empty masks", "warning", 2, "ground_truth/empty/0.png", "count as defective"),
        ("no pixel reaches", "warning", 2, "faint/0.png (largest level 3)", "--mask-threshold 1"),
        ("grey levels between", "note", 2, "ground_truth/noisy/0.png", "count as good"),
        ("another size", "note", 2, "small/0.png (48x32 for 24x16)", "nearest neighbour"),
        ("another shape", "error", 2, "wide/0.png (30x16 for 24x16)", "left out of pixel metrics"),
        ("cannot be read", "error", 4, "broken/0.png: the mask cannot be read", "export them"),
        ("without a mask", "warning", 2, "test/none/0.png", "left out of pixel metrics"),
    ]:
        finding = only(report, words)
        assert (finding.severity, finding.count) == (severity, count)
        assert example in finding.examples[0]
        assert action in finding.action
    assert "8 bits" in only(report, "cannot be read").examples[2]
    assert report.unreadable == 4
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    # With the threshold that the finding names, class numbers are masks like any other.
    again = check(open_dataset(nut, mask_threshold=1))
    assert not [f for f in again.findings if "no pixel reaches" in f.what]


def test_unreadable_images_are_listed_and_the_others_read(nut: Path) -> None:
    (nut / "train/good/1.png").write_bytes(b"")
    whole = (nut / "test/dent/0.png").read_bytes()
    (nut / "test/dent/0.png").write_bytes(whole[: len(whole) // 2])
    report = check(open_dataset(nut))
    finding = only(report, "images that cannot be read")
    assert (finding.severity, finding.count) == ("error", 2)
    assert "1.png: is empty (0 bytes)" in "".join(finding.examples)
    assert "truncated" in "".join(finding.examples)
    assert report.unreadable == 2
    assert report.categories[0].sizes == ((24, 16, 3),)


def test_duplicates_by_their_pixels_whatever_the_format(nut: Path) -> None:
    picture = read_image(nut / "train/good/0.png")
    save(nut / "train/good/twin.bmp", picture[..., ::-1])
    cv2.imwrite(str(nut / "train/good/j.jpg"), picture[..., ::-1])
    save(nut / "test/good/copy.png", read_image(nut / "train/good/j.jpg")[..., ::-1])
    save(nut / "test/dent/leak.tiff", read_image(nut / "train/good/1.png")[..., ::-1])
    save(nut / "test/rust/also.png", read_image(nut / "test/good/0.png")[..., ::-1])
    mask(nut, "ground_truth/dent/leak.png", "ground_truth/rust/also.png")
    report = check(open_dataset(nut))
    assert {(f.severity, f.what, f.count, f.examples) for f in report.findings} == {
        (
            "note", "images to learn from that are there more than once", 1,
            ("train/good/0.png = train/good/twin.bmp",),
        ),
        (
            "warning", "images to learn from that are also good images to test on", 1,
            ("train/good/j.jpg = test/good/copy.png",),
        ),
        (
            "error", "images to learn from that are also defective images to test on", 1,
            ("train/good/1.png = test/dent/leak.tiff",),
        ),
        (
            "error", "good images to test on that are also defective ones", 1,
            ("test/good/0.png = test/rust/also.png",),
        ),
        (
            "warning", "images to learn from that are one picture with images to test on", 1,
            ("train/good/0.png = test/good/copy.png",),
        ),
    }  # fmt: skip


def test_the_same_picture_in_two_categories_is_no_duplicate(nut: Path) -> None:
    for name in ("train/good/0.png", "test/good/0.png"):
        save(nut.parent / "bolt" / name, read_image(nut / name)[..., ::-1])
    report = check(open_dataset(nut.parent))
    assert [f.what for f in report.findings] == ["no defective images in bolt"]


def test_gaps_and_notes_of_the_reader(tmp_path: Path) -> None:
    image(tmp_path, "brain/test/tumour/0.png")
    mask(tmp_path, "brain/ground_truth/tumour/other.png")
    (tmp_path / "brain/test/good").mkdir()
    report = check(open_dataset(tmp_path))
    said = {f.what: f.action for f in report.findings}
    assert said["no good images to learn from in brain"] == "only zero-shot methods can be run"
    assert said["no good images to test on in brain"] == "image metrics are undefined"
    assert said["no masks at all in brain"] == "there are image metrics, no pixel metrics"
    assert any("1 mask without an image of that name" in what for what in said)


def test_the_outcome_does_not_depend_on_the_threads(nut: Path) -> None:
    image(nut, *(f"train/good/{n}.jpg" for n in range(20)))
    dataset = open_dataset(nut)
    assert check(dataset, workers=1) == check(dataset, workers=4)
