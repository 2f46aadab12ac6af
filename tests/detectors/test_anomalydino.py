"""AnomalyDINO as a user meets it, on synthetic and on real parts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from tests.looks import pixels_of
from tests.seeded import save_dinov2_vits14

from offnominal import AnomalyDINO, BatchedAnomalyDINO, Detector, load
from offnominal.datasets.synthetic import draw_defective, draw_good
from offnominal.detectors.features import FeatureDetector
from offnominal.errors import ImageError, NotFittedError, OptionError
from offnominal.images import read_image

SMALL = {"backbone": "builtin", "resolution": 128}


def images_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".jpg"))


@pytest.fixture(scope="module")
def fabric(fabric_model: Path) -> Detector:
    return load(fabric_model, device="cpu")


def test_defects_score_higher_and_are_found_in_place(fabric: Detector) -> None:
    good = [draw_good("fabric", 5, i, split="test") for i in range(4)]
    damaged, mask, _ = draw_defective("fabric", 5, 0, "stain")
    [bad] = fabric.predict([damaged])
    assert bad.is_anomalous
    assert bad.score > max(p.score for p in fabric.predict(good))
    assert bad.anomaly_map.shape == damaged.shape[:2]
    assert bad.anomaly_map.dtype == np.float32
    y, x = np.unravel_index(bad.anomaly_map.argmax(), bad.anomaly_map.shape)
    near = np.s_[max(0, y - 12) : y + 13, max(0, x - 12) : x + 13]
    assert mask[near].any()
    region = bad.regions()[0]
    left, top, width, height = region.box
    assert region.peak == pytest.approx(bad.anomaly_map.max())
    assert left <= region.peak_at[0] < left + width
    assert top <= region.peak_at[1] < top + height
    assert mask[top : top + height, left : left + width].any()
    assert bad.overlay().shape == damaged.shape


def test_regions_are_areas_above_the_threshold(fabric: Detector) -> None:
    [found] = fabric.predict([draw_defective("fabric", 5, 1, "hole")[0]])
    limit = float(np.quantile(found.anomaly_map, 0.97))
    regions = found.regions(limit)
    assert sum(region.area for region in regions) == (found.anomaly_map > limit).sum()
    assert [r.peak for r in regions] == sorted((r.peak for r in regions), reverse=True)
    assert found.regions(limit, min_area=10**6) == []


def test_a_rejection_always_says_where(fabric: Detector) -> None:
    [found] = fabric.predict([draw_defective("fabric", 5, 1, "hole")[0]])
    peak = float(found.anomaly_map.max())
    plain = replace(found, threshold=0.0, pixel_threshold=0.5 * peak)
    assert plain.region_threshold == 0.5 * peak
    above = replace(found, threshold=0.0, pixel_threshold=2 * peak)
    assert above.regions()[0].peak == pytest.approx(peak)
    assert sum(r.area for r in above.regions()) == (found.anomaly_map > 0.75 * peak).sum()
    passed = replace(found, threshold=1e9, pixel_threshold=2 * peak)
    assert passed.regions() == []


def test_same_answer_from_path_array_and_pil(fabric: Detector, parts: Path) -> None:
    path = images_of(parts / "fabric" / "test")[0]
    with Image.open(path) as opened:
        results = [
            *fabric.predict([path]),
            *fabric.predict(str(path)),
            *fabric.predict(np.asarray(opened)),
            *fabric.predict(opened),
        ]
    assert len({result.score for result in results}) == 1
    assert all(np.array_equal(r.anomaly_map, results[0].anomaly_map) for r in results)


def test_result_does_not_depend_on_neighbours_in_the_stream(fabric: Detector, parts: Path) -> None:
    """Images of different shapes are not stretched to the first one's."""
    files = [images_of(parts / look / "test")[0] for look in ("fabric", "part")]
    together = list(fabric.stream(files))
    for file, found in zip(files, together, strict=True):
        [alone] = fabric.predict([file])
        assert alone.score == found.score
        assert found.anomaly_map.shape == read_image(file).shape[:2]
        assert np.array_equal(alone.anomaly_map, found.anomaly_map)


def test_fit_is_deterministic(parts: Path, tmp_path: Path) -> None:
    files = images_of(parts / "fabric" / "train")[:3]
    for name in ("a", "b"):
        AnomalyDINO(**SMALL, rotations="0,90").fit(files).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_leave_one_out_equals_refitting_without_the_reference(parts: Path) -> None:
    """One masked search, the same as n refits: its own patches and rotations are left out."""
    files = images_of(parts / "fabric" / "train")[:4]
    options = SMALL | {"rotations": "0,180", "normalize": "none", "mask": "off"}
    detector = AnomalyDINO(**options).fit(files)
    assert detector.calibration.kind == "leave-one-out"
    for index, file in enumerate(files):
        rest = [f for f in files if f != file]
        [alone] = AnomalyDINO(**options).fit(rest).predict([file])
        assert detector.calibration.images[index] == pytest.approx(alone.score, rel=1e-6)
        assert detector.calibration.peaks[index] == pytest.approx(alone.anomaly_map.max(), rel=1e-5)


def test_leave_one_out_with_masked_references(parts: Path) -> None:
    files = images_of(parts / "part" / "train")[:3]
    options = SMALL | {"rotations": "none", "normalize": "l2", "mask": "on"}
    detector = AnomalyDINO(**options, mask_references=True).fit(files)
    full = AnomalyDINO(**options).fit(files)
    assert len(detector.bank) < len(full.bank)
    for index, file in enumerate(files):
        rest = [f for f in files if f != file]
        [alone] = AnomalyDINO(**options, mask_references=True).fit(rest).predict([file])
        assert detector.calibration.images[index] == pytest.approx(alone.score, rel=1e-5)


def test_calibrate_on_limits_the_references_scored(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")
    some = AnomalyDINO(**SMALL, rotations="none", calibrate_on=3).fit(files)
    every = AnomalyDINO(**SMALL, rotations="none", calibrate_on=0).fit(files)
    assert (len(some.calibration.images), len(every.calibration.images)) == (3, len(files))
    assert set(some.calibration.images.tolist()) < set(every.calibration.images.tolist())


def test_copies_count_once(parts: Path, tmp_path: Path) -> None:
    """A copy would score nothing against its twin and pull the threshold down."""
    files = images_of(parts / "fabric" / "train")[:4]
    copy = tmp_path / "copy.png"
    copy.write_bytes(files[0].read_bytes())
    once = AnomalyDINO(**SMALL, rotations="none").fit(files)
    twice = AnomalyDINO(**SMALL, rotations="none").fit([*files, copy])
    assert (twice.copies, len(twice.references)) == (1, 4)
    assert np.array_equal(twice.calibration.images, once.calibration.images)
    fresh = images_of(parts / "fabric" / "test" / "good")
    assert twice.calibrate([*fresh, fresh[0], copy]) == 2
    assert len(twice.calibration.images) == len(fresh)


def test_a_fit_that_broke_off_is_no_fit(parts: Path, tmp_path: Path) -> None:
    bad = tmp_path / "empty.png"
    bad.touch()
    detector = AnomalyDINO(**SMALL, rotations="none")
    with pytest.raises(ImageError):
        detector.fit([*images_of(parts / "fabric" / "train")[:2], bad])
    with pytest.raises(NotFittedError):
        detector.predict(images_of(parts / "fabric" / "test")[:1])


def test_one_reference_gives_scores_and_a_guess(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")
    detector = AnomalyDINO(**SMALL, rotations="none").fit(files[:1])
    [found] = detector.predict(files[1:2])
    assert found.score > 0
    assert detector.threshold is not None
    assert detector.threshold.kind == "guess"
    assert found.is_anomalous == (found.score > detector.threshold.value)
    assert found.p_value is None


def test_calibrate_uses_unseen_images_only(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")
    detector = AnomalyDINO(**SMALL, rotations="none").fit(files[:2])
    before = detector.threshold
    skipped = detector.calibrate(files, false_reject=0.2)
    assert skipped == 2
    assert detector.calibration.kind == "held-out"
    assert len(detector.calibration.images) == len(files) - 2
    assert before is not None
    assert detector.threshold is not None
    assert (before.count, detector.threshold.count) == (2, len(files) - 2)
    assert detector.threshold.kind == "conformal"
    with pytest.raises(OptionError, match="2 of those given are among its references"):
        detector.calibrate(files[:2])


def test_bad_images_are_reported_or_raised(fabric: Detector, parts: Path, tmp_path: Path) -> None:
    bad = tmp_path / "empty.png"
    bad.touch()
    files = [*images_of(parts / "fabric" / "test")[:2], bad]
    with pytest.raises(ImageError, match=r"empty\.png"):
        fabric.predict(files)
    errors: list[ImageError] = []
    found = list(fabric.stream([bad, *files], on_error=errors.append))
    assert len(found) == 2
    assert [error.source for error in errors] == [str(bad), str(bad)]
    with pytest.raises(OptionError, match="no image to learn from"):
        AnomalyDINO(backbone="builtin").fit([bad], on_error=errors.append)


@pytest.mark.slow
def test_tiles_leave_no_seam(parts: Path) -> None:
    """A texture larger than a tile: the map shows no step where tiles meet."""
    strip = np.concatenate([draw_good("fabric", 1, i) for i in range(3)], axis=1)
    detector = AnomalyDINO(backbone="builtin", tile=256, rotations="none").fit([strip])
    [found] = detector.predict([np.ascontiguousarray(strip[:, ::-1])])
    assert found.anomaly_map.shape == strip.shape[:2]
    assert found.patch_scores.shape == (40, 120)
    steps = np.abs(np.diff(found.anomaly_map, axis=1)).mean(0)
    assert steps.max() < 8 * np.median(steps)
    [same] = detector.predict([strip])
    assert same.score < found.score


def test_masked_background_scores_nothing(parts: Path) -> None:
    files = images_of(parts / "part" / "train")
    detector = AnomalyDINO(backbone="builtin", rotations="none").fit(files)
    assert detector.masks_, "the masking test must find the part before its background"
    [found] = detector.predict(files[:1])
    kept = found.patch_scores.shape[0] * found.patch_scores.shape[1]
    assert 0.05 * kept < (detector.foreground(_features(detector, files[0]))).sum() < 0.7 * kept
    picture = detector.foreground_picture(read_image(files[0]))
    assert picture.shape[1] > 3 * 400
    assert picture.shape[0] > 320, "words above the pictures"


def _features(detector: AnomalyDINO, file: Path) -> np.ndarray:
    return detector.embedded(detector.views(read_image(file))[0].pixels)


def test_neighbours_are_averaged(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")
    options = SMALL | {"rotations": "none", "normalize": "l2"}
    detector = AnomalyDINO(**options, neighbours=3).fit(files[:2])
    features = _features(detector, files[2])
    queries = features.reshape(len(features), -1).T
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    wanted = np.sort(1 - queries @ detector.bank.rows.T)[:, :3].mean(1)
    [found] = detector.predict(files[2:3])
    np.testing.assert_allclose(found.patch_scores.ravel(), wanted, atol=1e-5)
    assert found.patch_scores.shape == features.shape[1:]


@pytest.mark.parametrize("how", ["top1", "max", "map-max", "mean", "quantile99"])
def test_forward_gives_the_scores_that_predict_gives(parts: Path, how: str) -> None:
    files = images_of(parts / "fabric" / "train")
    detector = AnomalyDINO(**SMALL, rotations="none", aggregate=how).fit(files[:2])
    [found] = detector.predict(files[3:4])
    image = read_image(files[3])
    with torch.inference_mode():
        pixels = pixels_of(detector, image)[None]
        scores, patch_scores = detector(pixels, (image.shape[0], image.shape[1]))
    assert scores.tolist() == pytest.approx([found.score], rel=1e-6)
    assert np.array_equal(patch_scores[0].numpy(), found.patch_scores)
    if how == "map-max":
        assert found.score == found.anomaly_map.max()


def test_batched_ranks_the_odd_one_first(parts: Path) -> None:
    good = images_of(parts / "fabric" / "train")
    bad = next((parts / "fabric" / "test" / "stain").iterdir())
    found = BatchedAnomalyDINO(backbone="builtin").predict([*good, bad])
    assert max(found, key=lambda p: p.score).source == str(bad)
    with pytest.raises(OptionError, match="at least two"):
        BatchedAnomalyDINO(backbone="builtin").predict(good[:1])
    with pytest.raises(OptionError, match="nothing to fit"):
        BatchedAnomalyDINO(backbone="builtin").fit(good)


def test_batched_takes_the_papers_resolution_with_dinov2_only(tmp_path: Path) -> None:
    weights = str(save_dinov2_vits14(tmp_path))
    image = draw_good("fabric", 0, 0)
    detector = BatchedAnomalyDINO(weights=weights)
    assert pixels_of(detector, image).shape == (3, 672, 672)
    assert detector.resolution is None, "an option keeps the value that it was given"
    assert pixels_of(AnomalyDINO(weights=weights), image).shape == (3, 448, 448)
    small = BatchedAnomalyDINO(backbone="builtin")
    assert pixels_of(small, image).shape == (3, 256, 256)


def test_progress_is_told_of_every_stage(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")[:3]
    told: list[tuple[str, int]] = []

    def progress(stage: str, done: int) -> None:
        told.append((stage, done))

    detector = AnomalyDINO(**SMALL, rotations="none").fit(files, progress=progress)
    assert told == [*(("features", n) for n in (1, 2, 3)), *(("threshold", n) for n in (1, 2, 3))]
    told.clear()
    list(detector.stream(files, progress=progress))
    assert told == [("predict", n) for n in (1, 2, 3)]
    told.clear()
    list(BatchedAnomalyDINO(backbone="builtin").stream(files, progress=progress))
    assert told == [*(("features", n) for n in (1, 2, 3)), *(("predict", n) for n in (1, 2, 3))]


def test_a_mask_that_leaves_nothing_is_said(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")[:2]
    detector = AnomalyDINO(
        **SMALL, rotations="none", mask="on", mask_references=True, mask_threshold=1e9
    )
    with pytest.raises(OptionError, match="--mask-references"):
        detector.fit(files)


def test_a_detector_without_its_methods_cannot_be_made() -> None:
    class Half(Detector):
        def learn(self, number: int, image: np.ndarray) -> None:
            pass

    with pytest.raises(TypeError, match=r"score.*score_reference"):
        Half()

    class WithoutCompare(FeatureDetector):
        method = "without-compare"

    with pytest.raises(TypeError, match="compare"):
        WithoutCompare()


def test_not_fitted() -> None:
    with pytest.raises(NotFittedError, match="call fit"):
        AnomalyDINO(backbone="builtin").predict(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "maybe"}, "mask 'maybe'"),
        ({"rotations": "sometimes"}, "rotations"),
        ({"neighbours": 0}, "--neighbours 0"),
        ({"aggregate": "median"}, "--aggregate median"),
        ({"precision": "int8"}, "precision"),
        ({"resize": "long"}, "resize"),
        ({"false_reject": 0}, "--false-reject 0"),
        ({"sixteen_bit": "9"}, "sixteen"),
        ({"smoothing": -1}, "smoothing"),
        ({"mask": "on", "tile": 256}, "--mask on"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        AnomalyDINO(**options)


def test_options_are_plain_and_complete() -> None:
    detector = AnomalyDINO(rotations=[0, 90], layers=[3])
    assert detector.options()["rotations"] == (0, 90)
    assert "device" not in detector.options()
    assert AnomalyDINO(**detector.options()).options() == detector.options()


@pytest.mark.slow
def test_real_tiles_with_a_real_network(tiles: Path, mobilenet: Path) -> None:
    """Sixteen good magnetic tiles, then a share of the test set: clearly better than guessing."""
    detector = AnomalyDINO(weights=str(mobilenet), rotations="none", resolution=128)
    detector.fit(images_of(tiles / "train")[::48][:16])
    assert not detector.masks_, "a tile fills the frame"
    test = images_of(tiles / "test")[::14]
    scores = [prediction.score for prediction in detector.stream(test)]
    assert roc_auc_score([f.parent.name != "good" for f in test], scores) > 0.8
