"""SoftPatch: its outlier values, what it leaves out, and what that is good for."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from tests.looks import pixels_of

from offnominal import load, load_backbone
from offnominal.datasets.synthetic import draw_defective, draw_good
from offnominal.detectors.memory_bank.patchcore import PatchCore
from offnominal.detectors.memory_bank.softpatch import (
    SoftPatch,
    gaussian_distance,
    local_outlier_factor,
    nearest,
)
from offnominal.errors import OptionError
from offnominal.scoring import Scores

SMALL = {"backbone": "builtin", "coreset": 1, "dim": 48, "crop": 160, "device": "cpu"}


@pytest.fixture(scope="module")
def positions() -> np.ndarray:
    """Four positions, twenty images, one of which is odd at the first position."""
    drawn = np.random.default_rng(0).standard_normal((4, 20, 16), np.float32)
    drawn[0, 7] += 4
    return drawn


def test_local_outlier_factor_is_scikit_learns(positions: np.ndarray) -> None:
    found = local_outlier_factor(positions, 5)
    for one, values in zip(positions, found, strict=True):
        wanted = -LocalOutlierFactor(n_neighbors=5).fit(one).negative_outlier_factor_
        np.testing.assert_allclose(values, wanted, rtol=1e-5)
    assert found.argmax() == 7


def test_nearest_is_the_distance_to_another_image(positions: np.ndarray) -> None:
    for one, values in zip(positions, nearest(positions), strict=True):
        wanted = NearestNeighbors(n_neighbors=1).fit(one).kneighbors()[0][:, 0]
        np.testing.assert_allclose(values, wanted, rtol=1e-5)


def test_gaussian_is_the_mahalanobis_distance(positions: np.ndarray) -> None:
    for one, values in zip(positions, gaussian_distance(positions), strict=True):
        fitted = EmpiricalCovariance().fit(one.astype(float))
        covariance = fitted.covariance_ * 20 / 19 + 0.01 * np.eye(16)
        centred = one.astype(float) - fitted.location_
        wanted = np.sqrt((centred @ np.linalg.inv(covariance) * centred).sum(1))
        np.testing.assert_allclose(values, wanted, rtol=1e-5)


def test_copies_stay_finite() -> None:
    copies = np.ones((2, 6, 3), np.float32)
    assert np.isfinite(local_outlier_factor(copies, 2)).all()
    assert np.isfinite(gaussian_distance(copies)).all()


@pytest.fixture(scope="module")
def spoiled() -> tuple[list[np.ndarray], np.ndarray]:
    """Eleven good fabrics and one with a stain, and where the stain is."""
    damaged, mask, _ = draw_defective("fabric", 5, 0, "stain")
    return [*(draw_good("fabric", 5, i) for i in range(11)), damaged], mask


@pytest.mark.parametrize("how", ["lof", "nearest", "gaussian"])
@pytest.mark.slow
def test_defects_in_training_do_not_become_normal(
    spoiled: tuple[list[np.ndarray], np.ndarray], how: str
) -> None:
    """The stained image was learned from, and its stain is still found; PatchCore has lost it."""
    images, mask = spoiled
    options = SMALL | {"crop": 0, "resolution": 128}
    soft = SoftPatch(**options, discriminator=how).fit(images)
    hard = PatchCore(**options, reweight=False).fit(images)
    assert len(soft.bank) == pytest.approx(0.85 * len(hard.bank), rel=0.01)
    [kept] = hard.predict([images[-1]])
    assert kept.score == pytest.approx(0, abs=1e-3)
    [found] = soft.predict([images[-1]])
    others = soft.predict(images[:-1])
    assert found.score > max(one.score for one in others)
    y, x = np.unravel_index(found.anomaly_map.argmax(), found.anomaly_map.shape)
    assert mask[max(0, y - 16) : y + 17, max(0, x - 16) : x + 17].any()


@pytest.mark.slow
def test_distances_are_multiplied_by_the_nearest_entrys_weight(
    spoiled: tuple[list[np.ndarray], np.ndarray],
) -> None:
    images, _ = spoiled
    soft = SoftPatch(**SMALL).fit(images)
    plain = SoftPatch(**SMALL, soft=False).fit(images)
    assert np.array_equal(soft.bank.rows, plain.bank.rows)
    assert len(soft.weights_) == len(soft.bank)
    image = draw_good("fabric", 5, 0, split="test")
    features = soft.embedded(pixels_of(soft, image).numpy())
    _, index = soft.bank.search(soft.rows(features))
    weights = soft.weights_[index[:, 0]].reshape(features.shape[1:])
    [one], [other] = soft.predict([image]), plain.predict([image])
    np.testing.assert_allclose(one.patch_scores, other.patch_scores * weights, rtol=1e-5)
    assert one.score == one.patch_scores.max()


def test_nothing_removed_and_no_weights_is_patchcore(
    spoiled: tuple[list[np.ndarray], np.ndarray],
) -> None:
    images = spoiled[0][:4]
    soft = SoftPatch(**SMALL | {"coreset": 0.2}, noise=0, soft=False).fit(images)
    hard = PatchCore(**SMALL | {"coreset": 0.2}, reweight=False).fit(images)
    assert np.array_equal(soft.bank.rows, hard.bank.rows)
    assert np.array_equal(soft.calibration.images, hard.calibration.images)


def test_what_fills_a_references_gaps_has_its_own_weight(
    spoiled: tuple[list[np.ndarray], np.ndarray],
) -> None:
    class Watched(SoftPatch):
        def score_reference(self, number: int, kept: object) -> Scores:
            model = self.without(number)
            entries = np.flatnonzero(self.bank.reference != number)
            nonlocal filled
            filled += len(model.bank) - len(entries)
            for row, weight in zip(
                model.bank.rows[len(entries) :], model.weights_[len(entries) :], strict=True
            ):
                same = (self._all.rows == row).all(1)
                assert weight in self._outlier_values[same]
                assert number not in self._all.reference[same]
            assert np.array_equal(model.weights_[: len(entries)], self.weights_[entries])
            return super().score_reference(number, kept)

    filled = 0
    soft = Watched(**SMALL | {"coreset": 0.02, "crop": 96}).fit(spoiled[0][:4])
    assert filled > 0
    assert len(soft.calibration) == 4


@pytest.mark.slow
def test_contamination_leaves_the_defective_out_of_the_threshold(
    spoiled: tuple[list[np.ndarray], np.ndarray],
) -> None:
    images, _ = spoiled
    every = SoftPatch(**SMALL, false_reject=0.1).fit(images)
    clean = SoftPatch(**SMALL, false_reject=0.1, contamination=0.1).fit(images)
    assert (len(every.calibration.images), len(clean.calibration.images)) == (12, 11)
    assert every.calibration.images.argmax() == 11, "the stained one scores highest"
    assert np.array_equal(clean.calibration.images, every.calibration.images[:11])
    assert clean.rescored(aggregate="top5").calibration.images.shape == (11,)


def test_saved_and_loaded_it_is_the_same(
    spoiled: tuple[list[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    images = spoiled[0]
    detector = SoftPatch(**SMALL | {"coreset": 0.1}).fit(images[:5])
    detector.save(tmp_path / "part.offn")
    again = load(tmp_path / "part.offn", device="cpu")
    assert again.options() == detector.options()
    [one], [two] = detector.predict([images[-1]]), again.predict([images[-1]])
    assert one.score == two.score
    assert np.array_equal(one.anomaly_map, two.anomaly_map)


def test_images_of_different_shapes_are_refused() -> None:
    images = [draw_good("fabric", 5, 0), draw_good("fabric", 5, 1)[:150]]
    with pytest.raises(OptionError, match="different grids"):
        SoftPatch(**SMALL | {"crop": 0}, resize="short").fit(images)
    with pytest.raises(OptionError, match="at least 2"):
        SoftPatch(**SMALL).fit(images[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discriminator": "svm"}, "discriminator 'svm'"),
        ({"noise": 1}, "--noise 1"),
        ({"contamination": -0.1}, "--contamination -0.1"),
        ({"lof_neighbours": 0}, "--lof-neighbours 0"),
        ({"tile": 256}, "--tile"),
        ({"coreset": 2}, "--coreset 2"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SoftPatch(**options)


@pytest.mark.slow
def test_real_tiles_with_defects_among_them(tiles: Path, mobilenet: Path) -> None:
    """Six of 51 references are defective: PatchCore calls them normal, SoftPatch still does not."""
    good = sorted((tiles / "train" / "good").iterdir())[::16][:45]
    defects = [
        sorted((tiles / "test" / kind).iterdir())[number]
        for kind, number in (
            ("break", 0),
            ("break", 10),
            ("crack", 0),
            ("crack", 10),
            ("fray", 0),
            ("fray", 10),
        )
    ]
    clean = sorted((tiles / "test" / "good").iterdir())[::12]
    network = load_backbone(weights=mobilenet)
    found = []
    for kind in (PatchCore, SoftPatch):
        options = {"crop": 0, "resize": "square", "resolution": 96, "calibrate_on": 1}
        detector = kind(**options, coreset=0.25, device="cpu")
        detector.use_network(network)
        detector.fit([*good, *defects])
        scores = [one.score for one in detector.stream([*clean, *defects])]
        found.append(roc_auc_score([False] * len(clean) + [True] * 6, scores))
    assert found[0] < 0.2
    assert found[1] > 0.5
