"""SPADE against its formulas, and as a user meets it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from tests.detectors.test_dn2 import SIDE, save_resnet18, stages
from tests.looks import pixels_of
from tests.seeded import save_dinov2_vits14

from offnominal import load
from offnominal.datasets.synthetic import draw_defective, draw_good
from offnominal.detectors.memory_bank import spade
from offnominal.detectors.memory_bank.dn2 import DN2
from offnominal.detectors.memory_bank.spade import SPADE, correspond
from offnominal.errors import OptionError


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_resnet18(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def files(tiles: Path) -> list[Path]:
    """Real images: six good ones, then two more."""
    return sorted((tiles / "train" / "good").iterdir())[::60][:8]


@pytest.fixture(scope="module")
def fitted(resnet18: Path, files: list[Path]) -> SPADE:
    options = {"backbone": "resnet18", "resolution": SIDE, "resize": "square", "neighbours": 3}
    return SPADE(**options, weights=str(resnet18), device="cpu", false_reject=0.2).fit(files[:6])


def like(detector: SPADE, **changes: object) -> SPADE:
    """The same detector with other options, not fitted."""
    other = SPADE(**(detector.options() | changes), device="cpu")
    other.use_network(detector.load_network())
    return other


def joined(weights: Path, file: Path) -> np.ndarray:
    """Features of every position (16, 16, 448), coarser levels repeated, float64."""
    fine, middle, coarse = (each.double().numpy() for each in stages(weights, file)[:3])
    twice = middle.repeat(2, axis=1).repeat(2, axis=2)
    four_times = coarse.repeat(4, axis=1).repeat(4, axis=2)
    return np.concatenate([fine, twice, four_times]).transpose(1, 2, 0)


@pytest.mark.parametrize("correspondences", [1, 4])
@pytest.mark.slow
def test_agrees_with_the_formulas(
    fitted: SPADE, resnet18: Path, files: list[Path], correspondences: int
) -> None:
    vectors = [stages(resnet18, file)[3].mean((1, 2)).double().numpy() for file in files]
    index = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(np.stack(vectors[:6]))
    detector = like(fitted, correspondences=correspondences).fit(files[:6])
    for which in (6, 7):
        distances, [nearest] = index.kneighbors(vectors[which][None])
        gallery = np.concatenate([joined(resnet18, files[i]).reshape(256, -1) for i in nearest])
        queries = joined(resnet18, files[which]).reshape(256, -1)
        squared = np.sort(cdist(queries, gallery, "sqeuclidean"), axis=1)
        wanted = squared[:, :correspondences].mean(1).reshape(16, 16)
        [found] = detector.predict(files[which])
        assert found.score == pytest.approx((distances**2).mean(), rel=1e-5)
        assert found.score == pytest.approx(found.scores.image)
        np.testing.assert_allclose(found.patch_scores, wanted, rtol=1e-4)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that do not divide, of images with different shapes, in one piece and in many."""
    rng = np.random.default_rng(1)

    def pyramid(height: int, width: int) -> list[torch.Tensor]:
        shapes = ((5, height, width), (7, -(-height // 2), -(-width // 2)))
        return [torch.tensor(rng.standard_normal((1, *s)), dtype=torch.float32) for s in shapes]

    def full(levels: list[torch.Tensor]) -> np.ndarray:
        height, width = levels[0].shape[-2:]
        rows, columns = levels[1].shape[-2:]
        up = levels[1][0][:, np.arange(height) * rows // height]
        up = up[:, :, np.arange(width) * columns // width]
        return torch.cat([levels[0][0], up]).flatten(1).T.double().numpy()

    query, others = pyramid(9, 7), [pyramid(6, 11), pyramid(9, 7)]

    def gallery() -> Iterator[list[torch.Tensor]]:
        return iter(others)

    squared = np.sort(cdist(full(query), np.concatenate([full(p) for p in others]), "sqeuclidean"))
    for count in (1, 3):
        wanted = squared[:, :count].mean(1).reshape(9, 7)
        found = correspond(query, gallery(), count)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        monkeypatch.setattr(spade, "_BLOCK", 1000)
        np.testing.assert_allclose(correspond(query, gallery(), count), found, rtol=1e-6)
        monkeypatch.undo()


def test_a_copy_is_at_no_distance(fitted: SPADE, files: list[Path]) -> None:
    """Though its features are large: what is reported is not what products leave of it."""
    [found] = fitted.predict(files[:1])
    assert found.patch_scores.max() == 0


@pytest.mark.slow
def test_leave_one_out_equals_refitting(fitted: SPADE, files: list[Path]) -> None:
    assert fitted.calibration.kind == "leave-one-out"
    for index, file in enumerate(files[:6]):
        [alone] = like(fitted).fit([f for f in files[:6] if f != file]).predict([file])
        assert fitted.calibration.images[index] == pytest.approx(alone.score, rel=1e-6)
        peak = alone.anomaly_map.max()
        assert fitted.calibration.peaks[index] == pytest.approx(peak, rel=1e-5)


@pytest.mark.slow
def test_more_neighbours_than_references(fitted: SPADE, files: list[Path]) -> None:
    """All are searched; then neither the score nor any patch of a reference can fall by itself."""
    detector = like(fitted, neighbours=50).fit(files[:4])
    rest = like(fitted, neighbours=50).fit(files[:3])
    for whole, less in zip(detector.predict(files[4:]), rest.predict(files[4:]), strict=True):
        assert (less.patch_scores >= whole.patch_scores).all()
    scores = like(fitted, neighbours=3).fit(files[:4]).predict(files[4:])
    assert [p.score for p in detector.predict(files[4:])] == [p.score for p in scores]
    assert len(detector.calibration.images) == 4


def test_image_score_is_that_of_the_baseline(fitted: SPADE, files: list[Path]) -> None:
    same = {name: fitted.options()[name] for name in ("backbone", "weights", "resolution")}
    baseline = DN2(**same, resize="square", neighbours=3, device="cpu").fit(files[:6])
    for a, b in zip(fitted.predict(files[6:]), baseline.predict(files[6:]), strict=True):
        assert a.score == pytest.approx(b.score, rel=1e-5)


def test_scored_another_way(fitted: SPADE, files: list[Path]) -> None:
    """Both scores are kept, so the paper's can be had back after the map's."""
    [plain] = fitted.predict(files[6:7])
    by_map = fitted.rescored(aggregate="map-max")
    fresh = like(fitted, aggregate="map-max").fit(files[:6])
    again = by_map.rescore(plain)
    assert again.score == plain.anomaly_map.max()
    assert again.threshold == by_map.threshold.value == fresh.threshold.value
    back = by_map.rescored(aggregate="neighbours", false_reject=0.5)
    assert back.rescore(again).score == plain.score
    assert back.threshold.value < fitted.threshold.value
    with torch.inference_mode():
        pixels = pixels_of(fitted, np.zeros((40, 60, 3), np.uint8))[None]
        for detector in (fitted, by_map):
            [expected] = detector.predict(np.zeros((40, 60, 3), np.uint8))
            scores, _ = detector(pixels, (40, 60))
            assert scores.tolist() == [expected.score]


def test_calibrated_by_other_images(fitted: SPADE, files: list[Path]) -> None:
    detector = like(fitted).fit(files[:5])
    assert detector.calibrate(files) == 5
    assert detector.calibration.images.tolist() == [p.score for p in detector.predict(files[5:])]
    assert not np.isnan(detector.calibration.images).any()


def test_saved_and_loaded(fitted: SPADE, files: list[Path], tmp_path: Path) -> None:
    fitted.save(tmp_path / "part.offn")
    loaded = load(tmp_path / "part.offn", device="cpu")
    assert isinstance(loaded, SPADE)
    for a, b in zip(fitted.predict(files[6:]), loaded.stream(files[6:]), strict=True):
        assert (a.score, a.threshold, a.p_value) == (b.score, b.threshold, b.p_value)
        assert a.pixel_threshold == b.pixel_threshold
        assert np.array_equal(a.anomaly_map, b.anomaly_map)


def test_few_references(fitted: SPADE, files: list[Path]) -> None:
    [found] = like(fitted).fit(files[:1]).predict(files[1:2])
    assert found.score > 0
    assert found.threshold is not None
    pair = like(fitted).fit(files[:2])
    assert len(pair.calibration.images) == 2
    some = like(fitted, calibrate_on=2).fit(files[:5])
    assert len(some.calibration.images) == 2


@pytest.mark.slow
def test_any_backbone_and_shapes_that_differ(tmp_path: Path) -> None:
    """One level gives both the vector and the pyramid; a transformer gives its last four blocks."""
    images = [draw_good("fabric", 0, index) for index in range(3)]
    images[1] = images[1][:, :200]
    damaged, mask, _ = draw_defective("fabric", 0, 0, "stain")
    detector = SPADE(backbone="builtin", resolution=128, device="cpu").fit(images)
    assert len({str(shapes) for shapes in detector.shapes_}) == 2
    [found] = detector.predict(damaged)
    y, x = np.unravel_index(found.anomaly_map.argmax(), found.anomaly_map.shape)
    assert mask[max(0, y - 12) : y + 13, max(0, x - 12) : x + 13].any()
    weights = str(save_dinov2_vits14(tmp_path))
    detector = SPADE(backbone="dinov2_vits14", weights=weights, resolution=56, device="cpu").fit(
        images
    )
    assert detector.load_network().layers == (8, 9, 10, 11)
    assert [len(shapes) for shapes in detector.shapes_] == [3, 3, 3]
    assert np.isfinite(detector.predict(damaged)[0].anomaly_map).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": 0}, "--neighbours 0"),
        ({"correspondences": 0}, "--correspondences 0"),
        ({"calibrate_on": -1}, "--calibrate-on -1"),
        ({"aggregate": "median"}, "--aggregate median"),
        ({"tile": 256}, "--tile 256: spade looks at images as a whole"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SPADE(**options)
