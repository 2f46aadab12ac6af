"""CFM: the loss, the map, and a bump that colour does not foresee."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.looks_of_scans import BUMP, sheet

from offnominal import load
from offnominal.detectors.reconstruction.crossmodal import CFM, product_map
from offnominal.errors import BackboneError, ImageError, OptionError
from offnominal.scans.scan import Scan


@pytest.fixture(scope="module")
def fitted() -> CFM:
    detector = CFM(backbone="builtin+fpfh", resolution=64, steps=60, batch=2, device="cpu")
    return detector.fit([sheet(seed) for seed in range(8)])


@pytest.mark.slow
def test_a_bump_that_colour_does_not_foresee_is_found(fitted: CFM, tmp_path: Path) -> None:
    assert fitted.losses[-1]["total"] < 0.8 * fitted.losses[0]["total"]
    assert fitted.leave_one_out == "none"
    assert fitted.threshold is not None
    assert fitted.threshold.kind == "conformal"
    good, bad = fitted.predict([sheet(100), sheet(100, bump=2e-3)])
    assert bad.score > 1.05 * good.score
    ratio = bad.anomaly_map / good.anomaly_map.clip(1e-6)
    assert ratio[BUMP].mean() > 1.2 * np.delete(ratio, range(20, 44), axis=0).mean()
    fitted.save(tmp_path / "part.offn")
    [again] = load(tmp_path / "part.offn", device="cpu").predict([sheet(100, bump=2e-3)])
    assert again.score == bad.score
    assert np.array_equal(again.patch_scores, bad.patch_scores)


def test_places_without_points_are_no_part_of_the_loss_and_score_nothing(fitted: CFM) -> None:
    scan = sheet(100)
    scan.points[:32] = np.nan
    [found] = fitted.predict([scan])
    # A score reaches 19 pixels by all means, and half a patch by interpolation.
    assert not found.patch_scores[: 32 - 19 - 4 - 1].any()
    assert found.patch_scores[40:].all()
    measured = torch.ones(1, 4, 4)
    measured[:, :2] = 0
    map_ = product_map(torch.ones(1, 4, 4), 4 * torch.ones(1, 4, 4), measured, 160)
    assert map_.shape == (1, 160, 160)
    assert not map_[0, :40].any()
    assert map_[0, 130, 80] == pytest.approx(2, rel=1e-5), "the product of the distances"


def test_distances_are_of_directions(fitted: CFM) -> None:
    pixels = fitted.images(fitted.sized(sheet(3).as_array())[None], [0]).pixels([0])
    features, _ = fitted.frozen(pixels)
    geometry, colour = fitted.distances(features)
    rows = (features[0].flatten(1).T - fitted.mean_) / fitted.deviation_
    split = fitted.load_network().parts[0]
    unit = torch.nn.functional.normalize
    wanted = unit(fitted.to_geometry(rows[:, :split])) - unit(rows[:, split:])
    torch.testing.assert_close(geometry.flatten(), wanted.square().sum(1), atol=1e-5, rtol=1e-4)
    assert colour.min() >= 0
    assert colour.max() <= 4 + 1e-5


def test_what_it_cannot_take_is_refused() -> None:
    with pytest.raises(BackboneError, match="one network of colour and one of points"):
        CFM(backbone="fpfh", device="cpu", steps=1, resolution=64).fit([sheet(0), sheet(1)])
    with pytest.raises(BackboneError, match="one network of colour and one of points"):
        CFM(backbone="builtin", device="cpu", steps=1).fit([sheet(0), sheet(1)])
    with pytest.raises(OptionError, match="modality"):
        CFM(backbone="builtin+fpfh", modality="depth")
    with pytest.raises(OptionError, match="--augment flips"):
        CFM(backbone="builtin+fpfh", augment="flips")
    with pytest.raises(OptionError, match="--choose"):
        CFM(backbone="builtin+fpfh", choose=True)
    cloud = Scan(sheet(0).points.reshape(1, -1, 3))
    with pytest.raises(ImageError, match="cloud without"):
        CFM(backbone="builtin+fpfh", device="cpu", steps=1).fit([cloud, cloud])
