"""Layouts of single data sets: Kolektor SDD and SDD2, DAGM 2007, frames of videos."""

from pathlib import Path

import numpy as np
import pytest
from tests.datasets.pictures import image, mask

from offnominal.datasets import Sample, open_dataset
from offnominal.errors import DatasetError

COMMUTATORS = "electrical_commutators"


def test_kolektor_sdd_divides_good_images_by_part(tmp_path: Path) -> None:
    for part in range(1, 13):
        for number in range(8):
            name = f"kos{part:02d}/Part{number}"
            image(tmp_path, f"{name}.jpg")
            mask(tmp_path, f"{name}_label.bmp", level=255 if number == 3 else 0)
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.categories) == ("ksdd", (COMMUTATORS,))
    train, test = dataset.train(COMMUTATORS), dataset.test(COMMUTATORS)
    assert len(train) + len(test) == 96
    defective = [s for s in test if s.label]
    assert {s.image.name for s in defective} == {"Part3.jpg"}
    assert len(defective) == 12
    assert defective[0].mask == tmp_path / "kos01/Part3_label.bmp"
    assert defective[0].mask_threshold == 1
    learned = {s.image.parent.name for s in train}
    assert learned
    assert not learned & {s.image.parent.name for s in test if not s.label}
    assert "masks are the only labels" in dataset.notes[0]
    assert f"{len(train)} to learn from and {len(test) - 12} to test on" in dataset.notes[1]


def test_kolektor_sdd2_keeps_its_split(tmp_path: Path) -> None:
    for split, number, level in [
        ("train", 1, 0), ("train", 2, 255), ("test", 3, 0), ("test", 4, 255),
    ]:  # fmt: skip
        image(tmp_path, f"{split}/{number}.png")
        mask(tmp_path, f"{split}/{number}_GT.png", level=level)
    mask(tmp_path, "test/4_GT (copy).png")
    image(tmp_path, "test/5.png")
    dataset = open_dataset(tmp_path, "ksdd2")
    assert (dataset.name, dataset.layout) == ("ksdd2", "ksdd2")
    assert dataset.train("surface") == [
        Sample(tmp_path / "train/1.png", 0, None, "good", "surface", "train", 1)
    ]
    truth = tmp_path / "test/4_GT.png"
    assert dataset.test("surface") == [
        Sample(tmp_path / "test/3.png", 0, None, "good", "surface", "test", 1),
        Sample(tmp_path / "test/4.png", 1, truth, "defect", "surface", "test", 1),
    ]
    text = "\n".join(dataset.notes)
    assert "1 image without a mask" in text
    assert "1 defective image in the training split: left out" in text


def test_dagm_labels_by_the_names_in_its_label_folder(tmp_path: Path) -> None:
    image(tmp_path, *(f"Class{c}/Train/000{n}.PNG" for c in (1, 10) for n in (1, 2)))
    image(tmp_path, *(f"Class{c}/Test/000{n}.PNG" for c in (1, 10) for n in (3, 4)))
    for c in (1, 10):
        mask(
            tmp_path, f"Class{c}/Train/Label/0002_label.PNG", f"Class{c}/Test/Label/0004_label.PNG"
        )
    mask(tmp_path, "Class1/Test/Label/0004_label.PNG", level=0)
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.categories) == ("dagm", ("Class1", "Class10"))
    for name in dataset.categories:
        (good,) = dataset.train(name)
        assert good.image == tmp_path / name / "Train/0001.PNG"
        fine, bad = dataset.test(name)
        assert (fine.label, fine.mask) == (0, None)
        # An empty mask takes nothing away from the label.
        assert (bad.label, bad.mask) == (1, tmp_path / name / "Test/Label/0004_label.PNG")
    assert len(dataset.notes) == 2
    assert "Class10: 1 defective image in the training split" in dataset.notes[1]
    assert open_dataset(tmp_path / "Class10").samples == tuple(
        s for s in dataset.samples if s.category == "Class10"
    )


@pytest.fixture
def campus(tmp_path: Path) -> Path:
    image(
        tmp_path, *(f"training/frames/{clip}/{n}.jpg" for clip in ("01_1", "02_1") for n in (0, 1))
    )
    image(tmp_path, *(f"testing/frames/01_0014/{n}.jpg" for n in (9, 10, 11)))
    image(tmp_path, *(f"testing/frames/02_0001/{n:03d}.jpg" for n in range(2)))
    labels = tmp_path / "testing/test_frame_mask"
    labels.mkdir()
    np.save(labels / "01_0014.npy", np.array([0, 1, 1], np.int8))
    np.save(labels / "02_0001.npy", np.array([[True, False]]))
    return tmp_path


def test_frames_of_videos_by_scene_in_the_order_of_the_film(campus: Path) -> None:
    dataset = open_dataset(campus)
    assert (dataset.layout, dataset.categories) == ("video", ("01", "02"))
    assert len(dataset.train("01")) == len(dataset.train("02")) == 2
    # 9 comes before 10, though its name does not.
    assert {s.image.stem: s.label for s in dataset.test("01")} == {"9": 0, "10": 1, "11": 1}
    assert {s.image.stem: s.label for s in dataset.test("02")} == {"000": 1, "001": 0}
    assert all(s.mask is None for s in dataset.samples)
    second = open_dataset(campus, "shanghaitech", frame_step=2)
    assert second.name == "shanghaitech"
    assert {s.image.stem: s.label for s in second.test("01")} == {"9": 0, "11": 1}
    assert second.notes == ("one frame in 2 of each clip, from its first",)


def test_clips_without_scenes_are_one_category(campus: Path) -> None:
    for old, new in [("training", "train-1"), ("testing", "test-1")]:
        for clip in sorted((campus / old / "frames").iterdir()):
            clip.rename(campus / old / clip.name.replace("_", f"-{new}-"))
        (campus / old / "frames").rmdir()
    labels = campus / "testing/test_frame_mask"
    for file in sorted(labels.iterdir()):
        file.rename(labels / file.name.replace("_", "-test-1-"))
    labels.rename(campus / "test_frame_mask")
    dataset = open_dataset(campus, name="campus")
    assert dataset.categories == ("campus",)
    assert (len(dataset.train("campus")), len(dataset.test("campus"))) == (4, 5)


def test_frame_labels_that_do_not_fit(campus: Path) -> None:
    file = campus / "testing/test_frame_mask/01_0014.npy"
    np.save(file, np.zeros(4))
    with pytest.raises(DatasetError, match=r"01_0014.npy: holds labels of shape \(4,\) and .* 3"):
        open_dataset(campus)
    np.save(file, np.array([0, 2, 1]))
    with pytest.raises(DatasetError, match="other than 0 and 1"):
        open_dataset(campus)
    np.save(file, np.array([None, 1, 2], object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"01_0014.npy: cannot be read"):
        open_dataset(campus)
    file.unlink()
    with pytest.raises(DatasetError, match=r"01_0014.npy: no labels for the frames"):
        open_dataset(campus)
