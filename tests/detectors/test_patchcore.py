"""PatchCore: its features, its scores, its thresholds, on synthetic and on real parts."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from tests.looks import pixels_of
from torch import Tensor

from offnominal import Detector, load, load_backbone
from offnominal.backbones.base import Backbone, Levels
from offnominal.backbones.locally_aware import locally_aware
from offnominal.datasets.synthetic import draw_defective, draw_good
from offnominal.detectors.memory_bank.patchcore import PatchCore
from offnominal.errors import OptionError
from offnominal.images import read_image
from offnominal.memory import MemoryBank
from offnominal.scoring import Scores

# Short features and a small crop: what is tested does not depend on either.
FULL = {"backbone": "builtin", "coreset": 1, "dim": 48, "crop": 160, "device": "cpu"}


def images_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".jpg"))


def plain(levels: list[Tensor], patch: int, level_dim: int, dim: int) -> Tensor:
    """The released code's order: cut patches out, align them, average, join, average."""
    grid = levels[0].shape[-2:]
    pooled = []
    for level in levels:
        patches = F.unfold(level, patch, padding=patch // 2).unflatten(2, level.shape[-2:])
        aligned = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
        pooled.append(F.adaptive_avg_pool1d(aligned.flatten(2).mT, level_dim))
    joined = F.adaptive_avg_pool1d(torch.stack(pooled, 2).flatten(2), dim)
    return joined.mT.unflatten(2, grid)


@pytest.mark.parametrize(
    "channels", [(512, 1024), (128, 256), (32, 96), (59,), (7, 5, 3), (64, 128, 256)]
)
@pytest.mark.parametrize(("patch", "level_dim", "dim"), [(3, 1024, 1024), (5, 256, 96), (1, 8, 9)])
def test_features_are_those_of_the_plain_order(
    channels: tuple[int, ...], patch: int, level_dim: int, dim: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(10, 14), (5, 7), (3, 4)]
    levels = [
        torch.randn(2, count, *size, generator=generator)
        for count, size in zip(channels, sizes, strict=False)
    ]
    found = locally_aware(levels, patch, level_dim, dim)
    assert found.shape == (2, dim, 10, 14)
    wanted = plain(levels, patch, level_dim, dim)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)
    by_pixel = [level.contiguous(memory_format=torch.channels_last) for level in levels]
    again = locally_aware(by_pixel, patch, level_dim, dim)
    torch.testing.assert_close(again, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_scores_are_nearest_distances_weighted_by_the_neighbourhood(parts: Path) -> None:
    """Eq. 6 and 7 written out, on all pairs."""
    files = images_of(parts / "fabric" / "train")[:3]
    detector = PatchCore(**FULL, reweight_neighbours=4).fit(files[:2])
    [found] = detector.predict(files[2])
    features = detector.embedded(pixels_of(detector, read_image(files[2])).numpy())
    bank = detector.bank.rows.astype(float)
    query = detector.rows(features).astype(float)
    distance = np.sqrt(((query[:, None] - bank[None]) ** 2).sum(-1))
    nearest = distance.min(1)
    np.testing.assert_allclose(found.patch_scores.ravel(), nearest, rtol=1e-5)
    assert found.patch_scores.shape == features.shape[1:]
    worst = nearest.argmax()
    star = distance[worst].argmin()
    around = ((bank - bank[star]) ** 2).sum(-1).argsort(kind="stable")[:4]
    weight = 1 - np.exp(nearest[worst]) / np.exp(distance[worst][around]).sum()
    assert found.score == pytest.approx(weight * nearest[worst], rel=1e-5)
    assert 0 < weight < 1


def test_released_code_takes_the_plain_maximum_of_squares(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")[:3]
    [paper] = PatchCore(**FULL).fit(files[:2]).predict(files[2])
    [code] = PatchCore(**FULL, reweight=False, distance="squared").fit(files[:2]).predict(files[2])
    np.testing.assert_allclose(code.patch_scores, paper.patch_scores**2, rtol=1e-5)
    assert code.score == code.patch_scores.max()


def test_several_neighbours_are_averaged(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")[:3]
    detector = PatchCore(**FULL, neighbours=3).fit(files[:2])
    [found] = detector.predict(files[2])
    pixels = pixels_of(detector, read_image(files[2])).numpy()
    distances = cdist(detector.rows(detector.embedded(pixels)), detector.bank.rows)
    wanted = np.sort(distances)[:, :3].mean(1)
    np.testing.assert_allclose(found.patch_scores.ravel(), wanted, rtol=1e-3)


@pytest.mark.slow
def test_coreset_keeps_a_share_of_real_rows(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")[:4]
    options = FULL | {"crop": 0}
    full = PatchCore(**options).fit(files)
    thin = PatchCore(**options | {"coreset": 0.1}).fit(files)
    assert len(thin.bank) == len(full.bank) // 10
    known = {row.tobytes() for row in full.bank.rows}
    assert all(row.tobytes() in known for row in thin.bank.rows)
    assert (np.diff(thin.bank.reference) >= 0).all(), "an image's rows lie together"
    damaged, mask, _ = draw_defective("fabric", 5, 0, "hole")
    [bad] = thin.predict([damaged])
    good = thin.predict([draw_good("fabric", 5, i, split="test") for i in range(3)])
    assert bad.score > max(p.score for p in good)
    y, x = np.unravel_index(bad.anomaly_map.argmax(), bad.anomaly_map.shape)
    assert mask[max(0, y - 12) : y + 13, max(0, x - 12) : x + 13].any()


def test_leave_one_out_equals_refitting_without_the_reference(parts: Path) -> None:
    """With the whole bank it is exact, weight and all."""
    files = images_of(parts / "fabric" / "train")[:4]
    detector = PatchCore(**FULL).fit(files)
    assert detector.calibration.kind == "leave-one-out"
    for index, file in enumerate(files):
        rest = [f for f in files if f != file]
        [alone] = PatchCore(**FULL).fit(rest).predict(file)
        assert detector.calibration.images[index] == pytest.approx(alone.score, rel=1e-6)
        assert detector.calibration.peaks[index] == pytest.approx(alone.anomaly_map.max(), rel=1e-5)


class Watched(PatchCore):
    """Keeps the models that references are scored by, and what they say of another picture."""

    def score_reference(self, number: int, kept: object) -> Scores:
        features = self.embedded(pixels_of(self, draw_good("fabric", 9, number)).numpy())
        found = self.compare(features, without=number).patches
        model = self.without(number)
        entries = model.bank.take(slice(None)).copy()
        self.seen = getattr(self, "seen", {}) | {number: (entries, found)}
        self.patches = self._all.take(slice(None)).copy(), self._all.reference.copy()
        return super().score_reference(number, kept)


@pytest.mark.parametrize("changes", [{}, {"storage": "int8", "project": 16}])
def test_with_a_coreset_a_reference_is_scored_where_its_gaps_are_filled(
    parts: Path, changes: dict[str, object]
) -> None:
    """Without its entries, and every other patch as near to one as to the coreset's."""
    files = images_of(parts / "fabric" / "train")[:4]
    options = FULL | {"coreset": 0.02, "crop": 96, "reweight": False} | changes
    detector = Watched(**options).fit(files)
    patches, reference = detector.patches

    def reach(entries: np.ndarray, wanted: np.ndarray) -> float:
        bank = MemoryBank(storage=detector.storage)
        bank.add(entries)
        return float(bank.search(wanted)[0].max())

    bank, filled = detector.bank, 0
    radius = reach(bank.take(slice(None)), patches)
    for number in range(4):
        entries, _ = detector.seen[number]
        kept = bank.take(np.flatnonzero(bank.reference != number))
        others = patches[reference != number]
        assert np.array_equal(entries[: len(kept)], kept)
        assert reach(entries, others) <= radius
        filled += len(entries) - len(kept)
        assert (reach(kept, others) > radius) == (len(entries) > len(kept))
    assert filled > 0
    for place, number in enumerate(detector.calibration.numbers):
        own = patches[reference == number]
        wanted = reach(detector.seen[number][0], own) ** 0.5
        assert detector.calibration.images[place] == pytest.approx(wanted, rel=1e-6)


def test_other_pictures_are_scored_by_the_model_that_does_not_know_a_reference(
    parts: Path,
) -> None:
    files = images_of(parts / "fabric" / "train")[:3]
    detector = Watched(**FULL | {"coreset": 0.1, "crop": 96}).fit(files)
    for number in range(3):
        entries, found = detector.seen[number]
        model = detector.twin({})
        model.bank.add(entries)
        features = detector.embedded(pixels_of(detector, draw_good("fabric", 9, number)).numpy())
        assert np.array_equal(model.compare(features).patches, found)


def test_a_reference_never_meets_its_own_rows(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")[:4]
    detector = PatchCore(**FULL | {"coreset": 0.2}, reweight=False).fit(files)
    for score, found in zip(detector.calibration.images, detector.stream(files), strict=True):
        assert score > found.score


def test_saved_and_loaded_it_is_the_same(parts: Path, tmp_path: Path) -> None:
    files = images_of(parts / "fabric" / "train")[:3]
    detector = PatchCore(**FULL | {"coreset": 0.5, "neighbours": 2}).fit(files)
    detector.save(tmp_path / "part.offn")
    again = load(tmp_path / "part.offn", device="cpu")
    assert again.options() == detector.options()
    assert np.array_equal(again.calibration.images, detector.calibration.images)
    for one, two in zip(detector.predict(files), again.predict(files), strict=True):
        assert one.score == two.score
        assert np.array_equal(one.anomaly_map, two.anomaly_map)
        assert one.p_value == two.p_value


def test_fit_is_deterministic(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")[:3]
    options = FULL | {"coreset": 0.1}
    one, two = (PatchCore(**options).fit(files).bank.rows for _ in range(2))
    assert np.array_equal(one, two)


def test_the_crop_is_the_middle_and_nothing_else_is_judged(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")[:2]
    detector = PatchCore(backbone="builtin", coreset=1, resolution=256, crop=128)
    detector.fit(files)
    image = draw_good("fabric", 3, 0)[:200]
    rows, columns = image.shape[:2]
    assert rows < columns
    assert pixels_of(detector, image).shape == (3, 128, 128)
    [found] = detector.predict([image])
    assert found.anomaly_map.shape == (rows, columns)
    top, left = np.array(np.nonzero(found.anomaly_map)).min(1)
    bottom, right = np.array(np.nonzero(found.anomaly_map)).max(1) + 1
    side = rows // 2  # half of the shorter side, in the middle
    assert (top, bottom) == pytest.approx((rows // 4, rows // 4 + side), abs=1)
    assert (left, right) == pytest.approx(((columns - side) / 2, (columns + side) / 2), abs=1)
    outside = image.copy()
    outside[: rows // 4 - 8] = 255
    assert detector.predict([outside])[0].score == pytest.approx(found.score, rel=0.2)
    whole = PatchCore(backbone="builtin", coreset=1, crop=0).fit(files)
    assert (whole.predict([image])[0].anomaly_map > 0).all()
    assert whole.predict([outside])[0].score > 1.5 * whole.predict([image])[0].score


@pytest.mark.parametrize("changes", [{"aggregate": "top5"}, {"smoothing": 0.0}])
def test_rescored_is_a_fit_with_other_options(parts: Path, changes: dict[str, object]) -> None:
    files = images_of(parts / "fabric" / "train")[:4]
    first = PatchCore(**FULL).fit(files[:3])
    other = first.rescored(**changes)
    wanted = PatchCore(**FULL, **changes).fit(files[:3])
    assert np.array_equal(other.calibration.images, wanted.calibration.images)
    assert np.array_equal(other.calibration.peaks, wanted.calibration.peaks)
    [rescored] = [other.rescore(one) for one in first.predict(files[3])]
    [predicted] = wanted.predict(files[3])
    assert rescored.score == predicted.score
    assert np.array_equal(rescored.anomaly_map, predicted.anomaly_map)


@pytest.mark.parametrize("how", ["max", "top1", "map-max"])
def test_forward_gives_the_scores_that_predict_gives(parts: Path, how: str) -> None:
    files = images_of(parts / "fabric" / "train")
    detector = PatchCore(**FULL, aggregate=how).fit(files[:2])
    [found] = detector.predict(files[3])
    image = read_image(files[3])
    with torch.inference_mode():
        pixels = pixels_of(detector, image)[None]
        scores, patch_scores = detector(pixels, (image.shape[0], image.shape[1]))
    assert scores.tolist() == pytest.approx([found.score], rel=1e-6)
    assert np.array_equal(patch_scores[0].numpy(), found.patch_scores)


def test_calibrate_keeps_the_weight(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")
    detector = PatchCore(**FULL, reweight_neighbours=3).fit(files[:2])
    detector.calibrate(files[2:5])
    scores = [found.score for found in detector.predict(files[2:5])]
    assert detector.calibration.images.tolist() == pytest.approx(scores, rel=1e-6)
    assert detector.calibration.kind == "held-out"


def test_tiles_cover_the_whole_image(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")[:3]
    detector = PatchCore(**FULL, tile=160).fit(files[:2])
    [found] = detector.predict(files[2])
    assert (found.anomaly_map > 0).all()


class Two(Backbone):
    """The same network at two levels, as a stand-in for one with levels of any length."""

    def __init__(self) -> None:
        super().__init__()
        inner = load_backbone("builtin")
        self.inner = inner
        self.name, self.digest, self.resize = "two", "two", inner.resize
        self.dim, self.stride, self.multiple = inner.dim, inner.stride, 2 * inner.multiple

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.inner(pixels)
        return features

    def levels(self, pixels: Tensor, norm: bool = True) -> Levels:
        fine = self(pixels)
        return Levels([fine, F.avg_pool2d(fine, 2)], fine.mean((2, 3)))


def test_any_backbone_with_any_levels(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")[:3]
    detector = PatchCore(coreset=1, device="cpu")
    detector.use_network(Two())
    detector.fit(files[:2])
    assert detector.bank.rows.shape[1] == 2 * 59, "the levels of a narrow network as they are"
    assert np.isfinite(detector.predict(files[2])[0].score)


@pytest.mark.parametrize(
    ("channels", "options", "length"),
    [
        ((32, 96), {}, 128),
        ((512, 1024), {}, 1024),
        ((512,), {}, 512),
        ((512, 512), {}, 1024),
        ((32, 96), {"level_dim": 1024}, 1024),
        ((32, 96), {"dim": 100}, 100),
    ],
)
def test_lengths_are_the_papers_for_wide_networks_and_the_levels_own_for_narrow_ones(
    channels: tuple[int, ...], options: dict[str, int], length: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(1, count, 4, 4, generator=generator) for count in channels]
    found = locally_aware(levels, **options)
    assert found.shape[1] == length
    means = torch.cat([F.avg_pool2d(level, 3, 1, 1) for level in levels], 1)
    if sum(channels) < 1024 and not options:
        torch.testing.assert_close(found, means)
    if sum(channels) >= 1024:
        torch.testing.assert_close(found, locally_aware(levels, 3, 1024, 1024))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coreset": 0}, "--coreset 0"),
        ({"coreset": 1.5}, "--coreset 1.5"),
        ({"distance": "cosine"}, "distance 'cosine'"),
        ({"crop": -1}, "--crop -1"),
        ({"patch": 4}, "patch 4"),
        ({"neighbours": 0}, "--neighbours 0"),
        ({"reweight_neighbours": 1}, "reweight-neighbours 1"),
        ({"aggregate": "median"}, "--aggregate median"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PatchCore(**options)


def test_a_crop_smaller_than_a_patch_is_refused(parts: Path) -> None:
    with pytest.raises(OptionError, match="crop 4"):
        PatchCore(**FULL | {"crop": 4}).fit(images_of(parts / "fabric" / "train")[:2])


def test_a_lone_reference_gives_a_guess(parts: Path) -> None:
    detector: Detector = PatchCore(**FULL).fit(images_of(parts / "fabric" / "train")[:1])
    assert detector.threshold is not None
    assert (detector.threshold.kind, detector.calibration.kind) == ("guess", "copies")


@pytest.mark.slow
def test_real_tiles_with_a_real_network(tiles: Path, mobilenet: Path) -> None:
    """Sixteen good magnetic tiles, then a share of the test set: clearly better than guessing."""
    detector = PatchCore(weights=str(mobilenet), crop=0, resize="square", resolution=160)
    detector.fit(images_of(tiles / "train")[::48][:16])
    assert detector.load_network().name.startswith("mobilenetv2_100")
    test = images_of(tiles / "test")[::14]
    scores = [prediction.score for prediction in detector.stream(test)]
    assert roc_auc_score([f.parent.name != "good" for f in test], scores) > 0.65


def test_a_thin_coreset_promises_nothing_before_it_is_calibrated(parts: Path) -> None:
    files = images_of(parts / "fabric" / "train")
    whole = PatchCore(**FULL, false_reject=0.3).fit(files[:4])
    assert whole.threshold is not None
    assert whole.threshold.kind == "conformal"
    thin = PatchCore(**FULL | {"coreset": 0.2}, false_reject=0.3).fit(files[:4])
    assert thin.threshold is not None
    assert thin.pixel_threshold is not None
    assert thin.threshold.kind == thin.pixel_threshold.kind == "approximate"
    assert "offnominal calibrate" in str(thin.threshold)
    thin.calibrate(images_of(parts / "fabric" / "test" / "good"))
    assert thin.threshold.kind == "conformal"
