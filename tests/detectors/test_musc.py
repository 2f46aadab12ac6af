"""MuSc against its formulas, and as a user meets it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from tests.looks import pixels_of
from tests.seeded import CLIP_TINY, save_clip, save_dinov2_vits14
from torch import Tensor

from offnominal.datasets.synthetic import draw_defective, draw_good
from offnominal.detectors.batch.musc import MuSc, aligned_map
from offnominal.detectors.batch.mutual import mutual_scores, rescored_by_neighbours
from offnominal.errors import NotFittedError, OptionError
from offnominal.scoring import anomaly_map


def drawn(*shapes: tuple[int, int], channels: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, channels, generator=generator) + 0.2 for shape in shapes]


def by_the_formula(
    features: list[Tensor], owners: list[int], side: int, share: float
) -> list[Tensor]:
    """Scores in float64, one direction and one neighbourhood at a time."""
    units = []
    for each in features:
        mean = F.avg_pool2d(each.double().permute(2, 0, 1), side, stride=1, padding=side // 2)
        units.append(F.normalize(mean.flatten(1).T, dim=1))
    scores = []
    for one, unit in enumerate(units):
        nearest = []
        for image in set(owners) - {owners[one]}:
            others = [u for u, owner in zip(units, owners, strict=True) if owner == image]
            distances = (unit[:, None] - torch.cat(others)[None]).norm(dim=2)
            nearest.append(distances.amin(1))
        kept = int(share * len(nearest))
        smallest = torch.stack(nearest).sort(0).values[:kept]
        scores.append(smallest.mean(0).reshape(features[one].shape[:2]))
    return scores


@pytest.mark.parametrize("memory", [2**30, 2**12, 1])
@pytest.mark.parametrize(
    ("shapes", "owners", "share"),
    [
        ([(6, 5)] * 6, [0, 1, 2, 3, 4, 5], 0.3),
        ([(6, 5), (4, 9), (4, 9), (6, 5), (3, 3)], [0, 1, 2, 3, 4], 0.5),
        ([(4, 4)] * 7 + [(5, 4)], [0, 0, 1, 2, 2, 3, 4, 4], 1.0),
    ],
    ids=["one size", "several sizes", "tiles"],
)
def test_scores_are_those_of_the_formula(
    shapes: list[tuple[int, int]], owners: list[int], share: float, memory: int
) -> None:
    features = drawn(*shapes)
    sides = (1, 3, 5)
    found = mutual_scores(features, owners, sides, share, memory)
    for index, side in enumerate(sides):
        wanted = by_the_formula(features, owners, side, share)
        for scores, own in zip(found, wanted, strict=True):
            np.testing.assert_allclose(scores[index], own, rtol=0, atol=2e-6)


def test_progress_ends_with_all_of_the_work() -> None:
    told: list[float] = []
    mutual_scores(drawn(*[(3, 3)] * 5), [0, 1, 2, 3, 4], progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1


def test_rescoring_is_the_mean_over_the_most_alike() -> None:
    angles = np.deg2rad([0, 1, 3, 90, 91.5, 200])
    tokens = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    scores = np.array([2.0, 7.0, 4.0, 3.0, 3.5, 6.0])
    relative = (scores - 2) / 5
    cosines = tokens @ tokens.T
    # The last one points away from all others, which a group of three cannot change.
    groups = [[0, 1, 2], [1, 0, 2], [2, 1, 0], [3, 4, 2], [4, 3, 2], [5]]
    wanted = [
        (cosines[i, group] * relative[group]).clip(0).sum() / cosines[i, group].clip(0).sum()
        for i, group in enumerate(groups)
    ]
    found = rescored_by_neighbours(torch.tensor(scores), torch.tensor(tokens), [3])
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    both = rescored_by_neighbours(torch.tensor(scores), torch.tensor(tokens), [1, 3])
    np.testing.assert_allclose(both, (relative + wanted) / 2, atol=1e-12)


def test_equal_scores_stay_equal() -> None:
    found = rescored_by_neighbours(torch.ones(5), torch.randn(5, 3), [1, 2])
    assert found.tolist() == [0] * 5


# -- as a user meets it -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch() -> list[np.ndarray]:
    """Nine good pieces of fabric, and a defective one."""
    good = [draw_good("fabric", 1, index) for index in range(9)]
    bad, _, _ = draw_defective("fabric", 1, 0)
    return [*good, bad]


def small(**options: Any) -> MuSc:
    return MuSc(**({"backbone": "builtin", "resolution": 96, "device": "cpu"} | options))


@pytest.mark.parametrize("aggregate", ["rscin", "map-max", "top1"])
def test_the_odd_one_comes_first(batch: list[np.ndarray], aggregate: str) -> None:
    found = small(aggregate=aggregate).predict(batch)
    scores = [prediction.score for prediction in found]
    assert int(np.argmax(scores)) == 9
    assert all(p.threshold is None and p.is_anomalous is None for p in found)
    if aggregate == "rscin":
        assert min(scores) >= 0
        assert max(scores) <= 1


def test_another_aggregate_needs_no_second_run(batch: list[np.ndarray]) -> None:
    detector = small()
    found = detector.predict(batch)
    for aggregate in ("rscin", "map-max", "max"):
        wanted = small(aggregate=aggregate).predict(batch)
        other = detector.rescored(aggregate=aggregate)
        assert [other.rescore(p).score for p in found] == [p.score for p in wanted]


def test_two_batches_do_not_mix(batch: list[np.ndarray]) -> None:
    detector = small()
    first = detector.predict(batch)
    detector.predict(batch[:6])
    again = detector.predict(batch)
    assert [p.score for p in again] == [p.score for p in first]


def test_small_batches_are_refused_with_the_reason(batch: list[np.ndarray]) -> None:
    with pytest.raises(OptionError, match=r"batch of 4 .* 0.3 of the other images.* needs 5"):
        small().predict(batch[:4])
    with pytest.raises(OptionError, match="needs 3 or more"):
        small(share=0.5, rscin="1").predict(batch[:2])
    assert len(small().predict(batch[:5])) == 5
    with pytest.raises(OptionError, match="rscin 1,8,9: a group of 9"):
        small(rscin="1,8,9").predict(batch[:8])
    assert len(small(rscin="1,8,9").predict(batch[:9])) == 9


def test_nothing_is_fitted_or_saved(batch: list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nothing to fit"):
        small().fit(batch)
    with pytest.raises(NotFittedError, match="nothing to save"):
        small().save(tmp_path / "x.offn")


@pytest.mark.slow
def test_images_of_several_sizes_and_tiles() -> None:
    images = [draw_good("fabric", 1, index)[: 200 + 8 * index] for index in range(6)]
    for options in ({"resize": "short"}, {"tile": 128, "resolution": None}):
        for image, prediction in zip(images, small(**options).predict(images), strict=True):
            assert prediction.anomaly_map.shape == image.shape[:2]
            assert np.isfinite(prediction.patch_scores).all()


def test_levels_of_a_pyramid(mobilenet: Path, batch: list[np.ndarray]) -> None:
    """The coarser level's scores are enlarged to the finer one's grid."""
    detector = small(backbone=None, weights=str(mobilenet))
    found = detector.predict(batch)
    levels: list[list[Tensor]] = [[], []]
    for image in batch:
        maps = detector.levels(pixels_of(detector, image)[None]).maps
        for level, each in zip(levels, maps, strict=True):
            level.append(F.layer_norm(each[0], each.shape[1:]).permute(1, 2, 0))
    fine, coarse = (torch.stack(mutual_scores(level, range(10))).mean(1) for level in levels)
    larger = F.interpolate(coarse[None], fine.shape[1:], mode="bilinear")[0]
    scores = np.stack([prediction.patch_scores for prediction in found])
    np.testing.assert_allclose(scores, (fine + larger) / 2, atol=1e-6)


def test_map_of_the_released_code_or_of_other_methods(batch: list[np.ndarray]) -> None:
    size = batch[0].shape[:2]
    for options in ({}, {"align_corners": False}, {"smoothing": 3.0}):
        found = small(**options).predict(batch)[9]
        scores = found.patch_scores
        if options == {"align_corners": False}:
            wanted = anomaly_map(scores, size, 0)
        else:
            wanted = aligned_map(scores, size)
        apart = np.abs(found.anomaly_map - wanted).max()
        assert (apart > 1e-3) if "smoothing" in options else (apart == 0)


def test_the_papers_network(tmp_path: Path) -> None:
    weights = str(save_clip(tmp_path, CLIP_TINY, quick_gelu=True))
    detector = MuSc(weights=weights, device="cpu")
    network: Any = detector.load_network()
    assert MuSc().backbone is None
    assert MuSc.default_backbone == "open_clip:ViT-L-14-336"
    assert network.layers == (0, 1, 2, 3)
    assert (network.positions, network.activation) == ("bicubic", "gelu")
    pixels = torch.rand(1, 3, 64, 64)
    summary = detector.levels(pixels, norm=False).summary[0]
    token = detector._class_token(summary)
    np.testing.assert_allclose(token, F.normalize(network.embed(pixels)[0], dim=0), atol=1e-6)
    # Without the last block there is no class token that could be projected.
    middle: Any = MuSc(weights=weights, layers=[0, 2], activation=None, device="cpu")
    assert middle.load_network().activation == "quickgelu"
    assert middle._class_token(summary).shape == (network.width,)


def test_resolution_and_tokens_of_dinov2(tmp_path: Path) -> None:
    detector = MuSc(backbone="dinov2_vits14", weights=str(save_dinov2_vits14(tmp_path)))
    network = detector.load_network()
    assert network.layers == (2, 5, 8, 11)
    assert detector.default_resolution(network) == 518
    token = torch.tensor([3.0, 4.0])
    assert detector._class_token(token).tolist() == [3, 4], "as the released code has it"
    detector.unit_tokens = True
    np.testing.assert_allclose(detector._class_token(token), [0.6, 0.8])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbourhoods": "1,2"}, "odd"),
        ({"neighbourhoods": ""}, "whole numbers"),
        ({"share": 0}, "above 0"),
        ({"share": 1.5}, "above 0"),
        ({"rscin": "0,1"}, "from 1"),
        ({"rscin": "many"}, "whole numbers"),
        ({"aggregate": "best"}, "choose rscin"),
        ({"activation": "relu"}, "gelu"),
        ({"positions": "cubic"}, "bicubic"),
        ({"search_memory": 0}, "--search-memory 0"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        MuSc(**options)


@pytest.mark.slow
def test_real_tiles_with_a_real_network(tiles: Path, mobilenet: Path) -> None:
    """A lot of good magnetic tiles and some damaged ones: clearly better than guessing."""
    kinds = sorted((tiles / "test").iterdir())
    bad = [f for kind in kinds if kind.name != "good" for f in sorted(kind.iterdir())[::25]]
    lot = [*sorted((tiles / "test" / "good").iterdir())[::4], *bad]
    found = MuSc(weights=str(mobilenet), resolution=96, device="cpu").predict(lot)
    labels = [file.parent.name != "good" for file in lot]
    assert roc_auc_score(labels, [prediction.score for prediction in found]) > 0.7
