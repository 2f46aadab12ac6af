"""Image and pixel metrics: hand-made cases, scikit-learn, and the reference procedure's figures."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from offnominal.errors import DatasetError, OptionError
from offnominal.metrics import image_metrics, pixel_metrics, read_mask


def test_image_metrics_on_a_case_worked_by_hand() -> None:
    result = image_metrics([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    assert result["image_auroc"] == pytest.approx(0.75)
    assert result["image_ap"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    # Rejecting from 0.35 catches both and rejects one good image: F1 = 2 * 2 / (2 * 2 + 1).
    assert result["image_f1_max"] == pytest.approx(0.8)
    assert result["image_f1_max_threshold"] == 0.35


def test_image_metrics_do_not_squash_scores() -> None:
    # A sigmoid in float32 makes all of these 1 and the AUROC 0.5.
    scores = np.array([40.0, 41.0, 42.0, 43.0])
    assert image_metrics([0, 0, 1, 1], scores)["image_auroc"] == 1
    assert image_metrics([0, 0, 1, 1], scores - 1000)["image_auroc"] == 1


def test_image_metrics_of_one_class_are_undefined() -> None:
    for labels in ([0, 0], [1, 1], []):
        result = image_metrics(labels, [1.0, 2.0][: len(labels)])
        assert len(result) == 4
        assert all(np.isnan(value) for value in result.values())


def test_image_metrics_refuse_what_they_cannot_mean() -> None:
    with pytest.raises(OptionError, match="2 entries"):
        image_metrics([0, 1], [1.0])
    with pytest.raises(OptionError, match="labels"):
        image_metrics([0, 2], [1.0, 2.0])
    with pytest.raises(OptionError, match="1 of 2 are not finite"):
        image_metrics([0, 1], [1.0, float("nan")])


@pytest.mark.parametrize("case", ["small", "hard"])
def test_pixel_metrics_agree_with_the_reference_procedure(shared: Path, case: str) -> None:
    folder = shared / "golden" / "metrics"
    expected = json.loads((folder / "expected.json").read_text())[case]["expected"]
    with np.load(folder / f"{case}.npz") as stored:
        maps = stored["maps"].astype(np.float32)
        masks = np.unpackbits(stored["masks"], axis=-1)[..., : maps.shape[-1]].astype(bool)
    result = pixel_metrics(maps, masks)
    for name in ("pixel_auroc", "pixel_ap", "pixel_f1_max"):
        assert result[name] == pytest.approx(expected[name], abs=1e-6)
    assert result["aupro"] == pytest.approx(expected["aupro"]["0.3"], abs=1e-6)
    narrow = pixel_metrics(maps, masks, limit=0.05)
    assert narrow["aupro"] == pytest.approx(expected["aupro"]["0.05"], abs=1e-6)


def test_pixel_metrics_agree_with_scikit_learn_on_many_ties_and_mixed_sizes() -> None:
    rng = np.random.default_rng(0)
    shapes = [(30, 40), (25, 25), (7, 90)]
    maps = [rng.integers(0, 12, shape).astype(np.float32) for shape in shapes]
    masks = [(each + rng.normal(0, 4, each.shape)) > 10 for each in maps]
    masks[2][:] = False
    flat = np.concatenate([each.ravel() for each in maps])
    truth = np.concatenate([each.ravel() for each in masks])
    result = pixel_metrics(maps, masks)
    assert result["pixel_auroc"] == pytest.approx(roc_auc_score(truth, flat), abs=1e-12)
    assert result["pixel_ap"] == pytest.approx(average_precision_score(truth, flat), abs=1e-12)
    image_level = image_metrics(truth, flat)
    assert result["pixel_f1_max"] == pytest.approx(image_level["image_f1_max"], abs=1e-12)
    assert result["pixel_f1_max_threshold"] == image_level["image_f1_max_threshold"]


def test_aupro_weighs_regions_alike_and_joins_diagonals() -> None:
    mask = np.zeros((10, 10), bool)
    mask[0, 0] = mask[1, 1] = True  # one region of 2, by its corner
    mask[4:8, 4:8] = True  # one of 16
    large_only = np.where(mask, 0.0, 0.5)
    large_only[4:8, 4:8] = 1.0
    # The large region is covered at no false positive and the small one only at the very end:
    # the curve stands at 1/2 throughout.
    assert pixel_metrics([large_only], [mask])["aupro"] == pytest.approx(0.5)
    # Half of the small region as well: 3/4. Apart, its pixels would give 2/3.
    half = large_only.copy()
    half[0, 0] = 1.0
    assert pixel_metrics([half], [mask])["aupro"] == pytest.approx(0.75)
    assert pixel_metrics([mask.astype(float)], [mask])["aupro"] == pytest.approx(1.0)


def test_aupro_is_linear_between_thresholds() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:5, 0] = True
    # One score everywhere: the curve is the diagonal, so its area up to 0.3 is 0.3 / 2.
    result = pixel_metrics([np.ones((10, 10))], [mask], limit=0.3)
    assert result["aupro"] == pytest.approx(0.15)
    assert result["pixel_auroc"] == pytest.approx(0.5)
    assert result["pixel_ap"] == pytest.approx(0.05)


def test_pixel_metrics_of_one_class_are_undefined() -> None:
    maps = np.zeros((2, 4, 4), np.float32)
    for masks in (np.zeros((2, 4, 4), bool), np.ones((2, 4, 4), bool)):
        result = pixel_metrics(maps, masks)
        assert len(result) == 5
        assert all(np.isnan(value) for value in result.values())


def test_pixel_metrics_refuse_what_does_not_fit() -> None:
    maps, masks = np.zeros((2, 4, 4), np.float32), np.ones((2, 4, 4), bool)
    with pytest.raises(OptionError, match="2 maps and 1 masks"):
        pixel_metrics(maps, masks[:1])
    with pytest.raises(OptionError, match="mask 0"):
        pixel_metrics(maps, masks[:, :3])
    with pytest.raises(OptionError, match="mask 0 is uint8"):
        pixel_metrics(maps, masks.astype(np.uint8))  # type: ignore[arg-type]  # the error is the point
    with pytest.raises(OptionError, match="map 1"):
        pixel_metrics(np.stack([maps[0], maps[1] + np.inf]), masks)
    with pytest.raises(OptionError, match="limit"):
        pixel_metrics(maps, masks, limit=0.0)


def test_masks_stored_as_jpeg_keep_their_defects_only(tmp_path: Path) -> None:
    truth = np.zeros((64, 96), bool)
    truth[20:40, 30:60] = True
    cv2.imwrite(
        str(tmp_path / "m.jpg"), truth.astype(np.uint8) * 255, [cv2.IMWRITE_JPEG_QUALITY, 60]
    )
    noisy = cv2.imread(str(tmp_path / "m.jpg"), cv2.IMREAD_GRAYSCALE)
    assert np.count_nonzero(noisy) > np.count_nonzero(truth)
    assert np.array_equal(read_mask(tmp_path / "m.jpg", (64, 96)), truth)


def test_masks_in_colour_in_one_bit_and_in_class_numbers(tmp_path: Path) -> None:
    truth = np.zeros((8, 9), bool)
    truth[2:4, 3:7] = True
    Image.fromarray(truth).save(tmp_path / "bits.png")
    Image.fromarray(np.repeat(truth[..., None].astype(np.uint8) * 255, 3, 2)).save(
        tmp_path / "colour.png"
    )
    Image.fromarray(truth.astype(np.uint8) * 3).save(tmp_path / "classes.png")
    assert np.array_equal(read_mask(tmp_path / "bits.png", (8, 9)), truth)
    assert np.array_equal(read_mask(tmp_path / "colour.png", (8, 9)), truth)
    assert np.array_equal(read_mask(tmp_path / "classes.png", (8, 9), threshold=1), truth)


def test_masks_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    with pytest.raises(DatasetError, match="no such mask"):
        read_mask(path, (8, 9))
    path.write_bytes(b"not a picture")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_mask(path, (8, 9))
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(path)
    with pytest.raises(DatasetError, match="9x8 pixels and its image 8x9"):
        read_mask(path, (9, 8))
    Image.fromarray(np.zeros((8, 9), np.uint16)).save(path)
    with pytest.raises(DatasetError, match="8 bits"):
        read_mask(path, (8, 9))
