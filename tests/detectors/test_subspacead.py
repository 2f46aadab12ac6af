"""SubspaceAD: its sums against recomputation, and the detector on drawn and real parts."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from tests.looks import pixels_of
from tests.seeded import save_dinov2_vits14

from offnominal import load, modelfile
from offnominal.datasets.synthetic import draw_good
from offnominal.detectors.batch.subspacead_batched import BatchedSubspaceAD
from offnominal.detectors.distribution.subspacead import SubspaceAD, reference_angles
from offnominal.detectors.subspace import Moments, Subspace
from offnominal.errors import ImageError, NotFittedError, OptionError
from offnominal.modelfile import read_header
from offnominal.scoring import Scores, network_map

SMALL = {"backbone": "builtin", "resolution": 96, "rotations": "none", "device": "cpu"}


def images_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".jpg"))


@pytest.fixture(scope="module")
def fabrics(parts: Path) -> list[Path]:
    return images_of(parts / "fabric" / "train")


def some_features(seed: int, count: int, dim: int = 12) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, dim)) @ np.diag(0.6 ** np.arange(dim))
    return torch.from_numpy((5 + mixed).astype(np.float32))


# -- the sums and the subspace ----------------------------------------------------------------


def test_moments_add_and_take_away() -> None:
    first, second = some_features(0, 40), some_features(1, 25) + 3
    both = Moments.of(torch.cat([first, second]))
    added = Moments.of(first).plus(Moments.of(second))
    left = both.minus(Moments.of(second))
    for found, wanted in ((added, both), (left, Moments.of(first))):
        assert found.count == wanted.count
        torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.scatter, wanted.scatter, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(
        both.scatter / (both.count - 1), np.cov(torch.cat([first, second]).double().T), rtol=1e-9
    )


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99])
def test_subspace_is_scikit_learns(variance: float) -> None:
    features, fresh = some_features(0, 200), some_features(2, 30) * 1.5
    found = Subspace.of(Moments.of(features), variance)
    wanted = PCA(n_components=variance, svd_solver="full").fit(features.double().numpy())
    assert found.kept == wanted.n_components_
    np.testing.assert_allclose(
        found.eigenvalues[: found.kept], wanted.explained_variance_, rtol=1e-8
    )
    rebuilt = wanted.inverse_transform(wanted.transform(fresh.double().numpy()))
    np.testing.assert_allclose(found.reconstruct(fresh), rebuilt, atol=1e-5)
    residual = ((fresh.numpy() - rebuilt) ** 2).sum(1)
    np.testing.assert_allclose(found.residual(fresh), residual, rtol=1e-4, atol=1e-6)


def test_a_flat_spectrum_leaves_a_direction_over() -> None:
    """With few equal directions 99 % takes all of them, and every residual would be nothing."""
    flat = torch.from_numpy(np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32))
    found = Subspace.of(Moments.of(flat), 0.99)
    assert found.kept == 3
    assert found.residual(flat).mean() > 0.1


def test_identical_patches_have_a_subspace() -> None:
    found = Subspace.of(Moments.of(torch.full((20, 5), 2.0)), 0.99)
    assert found.residual(torch.full((1, 5), 2.0)).item() == 0
    assert found.residual(torch.full((1, 5), 3.0)).item() > 0


@pytest.mark.parametrize("grid", [(24, 24), (7, 11)])
def test_reference_map_is_opencvs(grid: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).random(grid).astype(np.float32)
    rows, columns = 14 * grid[0], 14 * grid[1]
    large = cv2.resize(scores, (columns, rows), interpolation=cv2.INTER_LINEAR)
    wanted = cv2.GaussianBlur(large, (3, 3), 4)
    found = network_map(scores, 14)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# -- the detector -----------------------------------------------------------------------------


def test_image_score_is_the_top_percent_of_the_map(fabrics: list[Path]) -> None:
    detector = SubspaceAD(**SMALL).fit(fabrics[:2])
    [found] = detector.predict(fabrics[3])
    rows, columns = found.patch_scores.shape
    heat = network_map(found.patch_scores, 8)
    assert heat.shape == (8 * rows, 8 * columns)
    largest = np.sort(heat.ravel())[-int(0.01 * heat.size) :]
    assert found.score == pytest.approx(largest.mean(), rel=1e-5)
    top1 = detector.rescored(aggregate="top1")
    assert top1.rescore(found).score == pytest.approx(
        np.sort(found.patch_scores.ravel())[-int(0.01 * rows * columns) :].mean(), rel=1e-5
    )
    assert detector.rescored(aggregate="map-top100").rescore(found).score == pytest.approx(
        heat.mean(), rel=1e-5
    )


@pytest.mark.parametrize("nearest", [0.0, 0.5])
def test_leave_one_out_equals_refitting_without_the_reference(
    fabrics: list[Path], nearest: float
) -> None:
    """Taking a reference's sums away is the same as never having seen it or its rotations."""
    options = SMALL | {"rotations": "0,90", "nearest": nearest}
    detector = SubspaceAD(**options).fit(fabrics[:4])
    assert detector.calibration.kind == "leave-one-out"
    assert len(detector.calibration.images) == 4
    for index in range(4):
        rest = [file for file in fabrics[:4] if file != fabrics[index]]
        [alone] = SubspaceAD(**options).fit(rest).predict(fabrics[index])
        assert detector.calibration.images[index] == pytest.approx(alone.score, rel=1e-4)
        assert detector.calibration.peaks[index] == pytest.approx(alone.anomaly_map.max(), rel=1e-4)


class Spoiled(SubspaceAD):
    """Scores, after every reference, another picture by the subspace that does not know it."""

    def score_reference(self, number: int, kept: object) -> Scores:
        found = super().score_reference(number, kept)
        features = self.embed(pixels_of(self, draw_good("fabric", 9, number)))
        self.others = getattr(self, "others", {})
        self.others[number] = self.compare(features, without=number).patches.numpy()
        return found


def test_other_pictures_are_scored_without_a_reference(fabrics: list[Path]) -> None:
    detector = Spoiled(**SMALL, nearest=0.5).fit(fabrics[:3])
    for number in range(3):
        rest = [file for file in fabrics[:3] if file != fabrics[number]]
        [wanted] = (
            SubspaceAD(**SMALL, nearest=0.5).fit(rest).predict(draw_good("fabric", 9, number))
        )
        np.testing.assert_allclose(detector.others[number], wanted.patch_scores, rtol=1e-3)


@pytest.mark.parametrize("nearest", [0.0, 0.5])
def test_adding_is_fitting_at_once(fabrics: list[Path], nearest: float) -> None:
    options = SMALL | {"rotations": "random2", "nearest": nearest}
    grown, whole = SubspaceAD(**options).fit(fabrics[:2]), SubspaceAD(**options).fit(fabrics[:5])
    [before] = grown.predict(fabrics[5])
    threshold_scores = grown.calibration.images
    change = grown.add([fabrics[1], *fabrics[2:5], fabrics[2]])
    assert (change.references, len(change.known), change.rescored) == ((2, 5), 2, "kept")
    assert grown.references == whole.references
    assert (grown.count_, grown.kept_) == (whole.count_, whole.kept_)
    torch.testing.assert_close(grown.mean_, whole.mean_, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grown.scatter_, whole.scatter_, rtol=1e-8, atol=1e-8)
    [a], [b] = grown.predict(fabrics[5]), whole.predict(fabrics[5])
    np.testing.assert_allclose(a.patch_scores, b.patch_scores, rtol=1e-3, atol=1e-5)
    assert a.score != before.score
    # Each added image was scored by all others; the earlier ones keep their scores.
    assert grown.calibration.images.tolist()[:2] == threshold_scores.tolist()
    np.testing.assert_allclose(
        grown.calibration.images[2:], whole.calibration.images[2:], rtol=1e-4
    )
    assert grown.rescored(aggregate="max").calibration.images.shape == (5,)


def test_an_addition_that_breaks_off_leaves_the_detector_as_it_was(
    fabrics: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "empty.png"
    bad.touch()
    detector = SubspaceAD(**SMALL, nearest=0.3).fit(fabrics[:2])
    [before] = detector.predict(fabrics[5])
    state = (len(detector.references), len(detector.bank))
    with pytest.raises(ImageError):
        detector.add([fabrics[2], bad])
    [after] = detector.predict(fabrics[5])
    assert (len(detector.references), len(detector.bank)) == state
    assert np.array_equal(before.patch_scores, after.patch_scores)
    assert detector.add([fabrics[2], bad], on_error=lambda error: None).references == (2, 3)
    with pytest.raises(NotFittedError):
        SubspaceAD(**SMALL).add([fabrics[0]])


def test_adding_to_a_loaded_detector(fabrics: list[Path], tmp_path: Path) -> None:
    SubspaceAD(**SMALL).fit(fabrics[:3]).save(tmp_path / "a.offn")
    loaded = load(tmp_path / "a.offn", device="cpu")
    assert isinstance(loaded, SubspaceAD)
    loaded.add(fabrics[3:5])
    whole = SubspaceAD(**SMALL).fit(fabrics[:5])
    np.testing.assert_allclose(
        loaded.predict(fabrics[5])[0].patch_scores,
        whole.predict(fabrics[5])[0].patch_scores,
        rtol=1e-3,
        atol=1e-5,
    )
    assert len(loaded.calibration.images) == 5
    assert loaded.rescored(aggregate="max").calibration.images.shape == (5,)


def test_held_out_scores_stay_and_are_told(fabrics: list[Path]) -> None:
    detector = SubspaceAD(**SMALL).fit(fabrics[:2])
    detector.calibrate(fabrics[3:6])
    before = detector.calibration.images.tolist()
    assert detector.calibration_note is None
    assert detector.add([fabrics[2]]).rescored == "none"
    assert detector.calibration.images.tolist() == before
    assert "2 references, not 3" in str(detector.calibration_note)


@pytest.mark.parametrize("nearest", [0.0, 0.5])
def test_saved_detector_predicts_the_same_bits(
    fabrics: list[Path], tmp_path: Path, nearest: float
) -> None:
    detector = SubspaceAD(**SMALL | {"rotations": "random2"}, nearest=nearest).fit(fabrics[:3])
    detector.save(tmp_path / "a.offn")
    loaded = load(tmp_path / "a.offn", device="cpu")
    assert isinstance(loaded, SubspaceAD)
    for a, b in zip(detector.stream(fabrics[3:]), loaded.stream(fabrics[3:]), strict=True):
        assert (a.score, a.threshold, a.pixel_threshold) == (
            b.score,
            b.threshold,
            b.pixel_threshold,
        )
        assert np.array_equal(a.anomaly_map, b.anomaly_map)
    assert loaded.options() == detector.options() | {"backbone": "builtin"}


def test_file_and_time_do_not_grow_with_the_references(fabrics: list[Path], tmp_path: Path) -> None:
    sizes = []
    for count in (2, 5):
        path = tmp_path / f"{count}.offn"
        SubspaceAD(**SMALL).fit(fabrics[:count]).save(path)
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
        sizes.append({name: shape for name, shape in shapes.items() if "calibration" not in name})
    assert sizes[0] == sizes[1]
    assert sizes[0]["scatter_"] == (59, 59)
    assert sizes[0]["bank.rows"][0] == 0


def test_options_and_the_number_of_components_are_in_the_file(
    fabrics: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.offn"
    SubspaceAD(**SMALL, variance=0.9).fit(fabrics[:2]).save(path)
    header = read_header(path)
    assert header["options"]["variance"] == 0.9
    assert header["learned"]["kept_"] > 0
    header["learned"]["kept_"] = 1
    modelfile.write(tmp_path / "b.offn", header, modelfile.read(path, header))
    first, second = (
        load(tmp_path / name, device="cpu").predict(fabrics[3])[0].score
        for name in ("a.offn", "b.offn")
    )
    assert second > first, "fewer components explain less"


def test_random_rotations_are_reproducible(fabrics: list[Path]) -> None:
    options = SMALL | {"rotations": "random2"}
    first, again = SubspaceAD(**options).fit(fabrics[:2]), SubspaceAD(**options).fit(fabrics[:2])
    other = SubspaceAD(**options, seed=1).fit(fabrics[:2])
    assert torch.equal(first.basis_, again.basis_)
    assert not torch.equal(first.basis_, other.basis_)
    plain = SubspaceAD(**SMALL).fit(fabrics[:2])
    assert first.count_ == 3 * plain.count_


def test_angles_follow_from_the_seed_and_the_reference() -> None:
    angles = [reference_angles("random30", seed, number) for seed in (0, 1) for number in (0, 1)]
    assert len(set(angles)) == 4
    assert angles[1] == reference_angles("random30", 0, 1)
    for each in angles:
        assert len(each) == 31
        assert each[0] == 0
        assert all(0 <= angle < 345 for angle in each)
    assert reference_angles("0,90", 0, 5) == (0, 90)


def test_calibrate_on_bounds_the_references_scored(fabrics: list[Path]) -> None:
    every = SubspaceAD(**SMALL, calibrate_on=0).fit(fabrics[:6])
    some = SubspaceAD(**SMALL, calibrate_on=3).fit(fabrics[:6])
    assert (len(every.calibration.images), len(some.calibration.images)) == (6, 3)
    assert set(some.calibration.images.tolist()) < set(every.calibration.images.tolist())


def test_one_reference_gives_scores_and_a_guess(fabrics: list[Path]) -> None:
    detector = SubspaceAD(**SMALL | {"rotations": "random4"}).fit(fabrics[:1])
    [found] = detector.predict(fabrics[1])
    assert found.score > 0
    assert detector.threshold is not None
    assert detector.threshold.kind == "guess"


@pytest.mark.slow
def test_tiles_cover_large_images(fabrics: list[Path]) -> None:
    detector = SubspaceAD(backbone="builtin", tile=64, rotations="none").fit(fabrics[:2])
    [found] = detector.predict(fabrics[2])
    assert found.anomaly_map.shape == found.image.shape[:2]
    assert len(detector.calibration.images) == 2


@pytest.mark.slow
def test_blocks_of_a_transformer(tmp_path: Path, fabrics: list[Path]) -> None:
    small = {"backbone": "dinov2_vits14", "weights": str(save_dinov2_vits14(tmp_path))}
    detector = SubspaceAD(**small, resolution=70, rotations="none").fit(fabrics[:1])
    assert detector.load_network().layers == (3, 4, 5, 6)
    assert detector.mean_.shape == (384,)
    pixels = pixels_of(detector, np.zeros((70, 70, 3), np.uint8))
    with torch.inference_mode():
        blocks = [SubspaceAD(**small, layers=[block]).embed(pixels) for block in (3, 4, 5, 6)]
        found = detector.embed(pixels)
        both = SubspaceAD(**small, layers=[3, 4], fusion="concat").embed(pixels)
    torch.testing.assert_close(found, torch.stack(blocks).mean(0), rtol=1e-4, atol=1e-4)
    assert both.shape == (768, 5, 5)


def test_defaults_are_the_papers() -> None:
    options = SubspaceAD.option_defaults()
    wanted = {
        "variance": 0.99,
        "rotations": "random30",
        "rotation_border": "black",
        "aggregate": "map-top1",
        "resize": "square",
        "nearest": 0.0,
    }
    assert {name: options[name] for name in wanted} == wanted
    detector = SubspaceAD(variance=0.9, rotations=[0, 10], smoothing=2.0)
    assert SubspaceAD(**detector.options()).options() == detector.options()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance": 1.0}, "--variance 1.0"),
        ({"rotations": "sometimes"}, "rotations"),
        ({"rotation_border": "white"}, "rotation_border"),
        ({"nearest": 2}, "--nearest 2"),
        ({"calibrate_on": -1}, "--calibrate-on -1"),
        ({"aggregate": "map-top0"}, "--aggregate map-top0"),
        ({"fusion": "sum"}, "fusion"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SubspaceAD(**options)


# -- the batched form -------------------------------------------------------------------------


def test_batch_is_scored_by_its_own_subspace(fabrics: list[Path]) -> None:
    options = {name: SMALL[name] for name in ("backbone", "resolution", "device")}
    batch = BatchedSubspaceAD(**options).predict(fabrics[:4])
    fitted = SubspaceAD(**SMALL).fit(fabrics[:4]).predict(fabrics[:4])
    without = BatchedSubspaceAD(**options, leave_own_out=True).predict(fabrics[:4])
    for index, (own, other, alone) in enumerate(zip(batch, fitted, without, strict=True)):
        np.testing.assert_allclose(own.patch_scores, other.patch_scores, rtol=1e-4, atol=1e-6)
        assert own.threshold is None
        rest = [file for file in fabrics[:4] if file != fabrics[index]]
        [wanted] = SubspaceAD(**SMALL).fit(rest).predict(fabrics[index])
        assert alone.score == pytest.approx(wanted.score, rel=1e-4)


def test_batch_needs_two_images_and_learns_nothing(fabrics: list[Path]) -> None:
    detector = BatchedSubspaceAD(backbone="builtin", resolution=96)
    with pytest.raises(OptionError, match="two readable"):
        detector.predict(fabrics[:1])
    with pytest.raises(OptionError, match="nothing to fit"):
        detector.fit(fabrics[:2])


# -- on real parts ----------------------------------------------------------------------------


@pytest.mark.slow
def test_real_tiles_with_a_real_network(tiles: Path, mobilenet: Path) -> None:
    """Sixteen good magnetic tiles, then a share of the test set: clearly better than guessing."""
    detector = SubspaceAD(weights=str(mobilenet), rotations="none", resolution=128)
    detector.fit(images_of(tiles / "train")[::48][:16])
    test = images_of(tiles / "test")[::14]
    scores = [prediction.score for prediction in detector.stream(test)]
    assert roc_auc_score([f.parent.name != "good" for f in test], scores) > 0.7
