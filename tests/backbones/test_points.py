"""Features of points, and joined ones: what is missing, what is refused, what each part gets."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from offnominal import PatchCore, load_backbone
from offnominal.backbones.joined import JoinedBackbone
from offnominal.backbones.points import PointFeatures
from offnominal.engines.choose import settle
from offnominal.errors import BackboneError, OptionError
from offnominal.scans.voxels import default_voxel, voxels


def dome(size: int = 48, seed: int = 0, dent: float = 0.0, noise: float = 5e-5) -> NDArray[Any]:
    """A dome with waves, as large as a hand and half a metre away."""
    x, y = (np.mgrid[:size, :size][::-1] - (size - 1) / 2) * (0.04 / size)
    z = 0.5 - 0.018 * np.sqrt(1 - (x**2 + y**2) / 0.03**2) + 6e-4 * np.sin(300 * x)
    z += dent * np.exp(-((x - 0.008) ** 2 + y**2) / 0.003**2)
    z += np.random.default_rng(seed).normal(0, noise, x.shape)
    return np.stack([x, y, z], 2)


def turned(points: NDArray[Any], degrees: Any) -> NDArray[Any]:
    """About an axis through its middle, by as many degrees as the axis is long."""
    middle = points.mean((0, 1))
    turn = Rotation.from_rotvec(degrees, degrees=True).as_matrix()
    return np.asarray((points - middle) @ turn.T + middle)


def pixels_of(points: NDArray[Any], colour: bool = False) -> torch.Tensor:
    found = torch.from_numpy(np.moveaxis(points.astype(np.float32), -1, 0).copy())[None]
    if not colour:
        return found
    drawn = torch.rand(1, 3, *found.shape[2:], generator=torch.Generator().manual_seed(0))
    return torch.cat([drawn, found], 1)


def test_what_was_not_measured_is_no_feature() -> None:
    network = load_backbone("fpfh")
    points = dome()
    whole = network(pixels_of(points))
    assert whole.shape == (1, 33, 6, 6)
    assert torch.isfinite(whole).all()
    points[16:24, 16:24] = np.nan  # a patch
    points[:4, 40:48] = np.nan  # half of one
    holed = network(pixels_of(points))[0]
    around = [holed[:, row, column] for row, column in ((1, 2), (3, 2), (2, 1), (2, 3))]
    assert min(float((holed[:, 2, 2] - one).norm()) for one in around) == 0
    assert float((holed[:, 0, 5] - whole[0, :, 0, 5]).norm()) < 0.3 * float(whole.std() * 33**0.5)
    sums = holed.reshape(3, 11, -1).sum(1)
    torch.testing.assert_close(sums, torch.full_like(sums, 200.0), rtol=1e-4, atol=1e-2)
    released = load_backbone("fpfh-released")(pixels_of(points))
    assert float(released[0, :, 2, 2].sum()) < 300, "zeros count there"
    assert network.digest != load_backbone("fpfh-released").digest


@pytest.mark.slow
def test_orienting_finds_dents_in_parts_that_lie_turned() -> None:
    """Ten good parts and ten with a dent of 0.4 mm, turned by up to 30 degrees about any axis."""

    def part(seed: int, dent: float = 0.0) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        axis = rng.normal(size=3)
        axis *= rng.uniform(-30, 30) / np.linalg.norm(axis)
        return pixels_of(turned(dome(96, seed, dent, noise=1e-4), axis))

    told = {}
    for orient in (True, False):
        network = PointFeatures()
        network.orient = orient

        def rows(*which: Any, network: PointFeatures = network) -> torch.Tensor:
            features: torch.Tensor = network(part(*which))
            return features[0].flatten(1).T

        bank = torch.cat([rows(seed) for seed in range(4)])
        good, bad = (
            np.array([torch.cdist(rows(seed, dent), bank).min(1).values.max() for seed in seeds])
            for dent, seeds in ((0.0, range(10, 20)), (4e-4, range(30, 40)))
        )
        told[orient] = float(np.mean(bad[:, None] > good))  # AUROC
    assert told[True] > told[False] + 0.1, told


def test_clouds_are_brought_to_one_density() -> None:
    points = dome(64).reshape(1, -1, 3)
    side = default_voxel(points[0])
    assert side == pytest.approx(3 * 0.04 / 64, rel=0.3)
    centres, index = voxels(points[0], side)
    assert len(centres) < points.shape[1] / 4
    assert index.shape == (points.shape[1],)
    features = PointFeatures()(pixels_of(centres[None]))
    assert features.shape == (1, 33, 1, len(centres))
    # Twice as dense, and the features stay near: nearer than those of other places are.
    more = voxels(dome(90).reshape(-1, 3), side)[0]
    denser = PointFeatures()(pixels_of(more[None]))[0, :, 0]
    near = torch.cdist(denser.T[::3], features[0, :, 0].T).min(1).values.median()
    apart = torch.pdist(features[0, :, 0].T[::5]).median()
    assert near < 0.25 * apart
    with pytest.raises(OptionError, match="metres"):
        voxels(points[0] * 1e9, side)
    with pytest.raises(OptionError, match="in one place"):
        default_voxel(np.ones((5, 3)))


def test_joined_parts() -> None:
    joined = load_backbone("builtin+fpfh")
    assert isinstance(joined, JoinedBackbone)
    assert (joined.name, joined.parts, joined.dim) == ("builtin+fpfh", (59, 33), 92)
    assert (joined.resolution, joined.resize, joined.takes_points) == (224, "square", True)
    assert joined.mean == load_backbone("builtin").mean
    pixels = pixels_of(dome(), colour=True)
    features = joined(pixels)
    torch.testing.assert_close(features[:, :59], load_backbone("builtin")(pixels[:, :3]))
    torch.testing.assert_close(features[:, 59:], load_backbone("fpfh")(pixels))
    scaled = joined.scaled([2.0, 0.5])
    torch.testing.assert_close(scaled(pixels)[:, :59], 2 * features[:, :59])
    torch.testing.assert_close(scaled.levels(pixels).maps[0][:, 59:], 0.5 * features[:, 59:])
    torch.testing.assert_close(joined(pixels), features)  # the first is as it was
    assert scaled.digest == joined.digest != load_backbone("fpfh+builtin").digest
    with pytest.raises(OptionError, match="3 scales"):
        joined.scaled([1, 1, 1])
    with pytest.raises(BackboneError, match="six channels"):
        joined(pixels[:, 3:])
    pixels[:, :3] = torch.nan
    with pytest.raises(BackboneError, match="has none"):
        joined(pixels)


def test_joined_pictures_have_their_own_colours() -> None:
    """Two networks that were trained with other means, on grids of other strides."""
    first, second = load_backbone("builtin"), load_backbone("builtin-aligned")
    second.mean, second.std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    second.stride = 16  # as it says; the grid is what it gives
    joined = JoinedBackbone([first, second])
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(each)[:, None, None] for each in (second.mean, second.std))
    wanted = second((pixels - mean) / std)
    torch.testing.assert_close(joined(pixels)[:, 59:], wanted, rtol=1e-4, atol=1e-5)
    assert not joined.takes_points


def test_what_is_refused() -> None:
    for name, options, told in (
        ("builtin+", {}, "on each side"),
        ("builtin+fpfh", {"weights": "a.pth"}, "1 for 0 networks"),
        ("builtin+fpfh", {"layers": [1]}, "no part"),
        ("fpfh", {"weights": "a.pth"}, "neither"),
        ("resnet18+fpfh", {"weights": "a.pth,b.pth"}, "2 for 1 networks"),
    ):
        with pytest.raises(OptionError, match=told):
            load_backbone(name, **options)
    network = load_backbone("fpfh")
    with pytest.raises(BackboneError, match="multiples of 8"):
        network(pixels_of(dome(44)))
    with pytest.raises(BackboneError, match="two points"):
        network(torch.full((1, 3, 16, 16), torch.nan))
    with pytest.raises(BackboneError, match="3 or 6 channels"):
        network(torch.zeros(1, 4, 16, 16))


def test_torch_alone_runs_points() -> None:
    pixels = pixels_of(dome(), colour=True)[0].numpy()
    detector = PatchCore(backbone="builtin+fpfh", device="cpu", engine="auto")
    assert settle(detector, pixels).name == "torch"
    named = PatchCore(backbone="fpfh", device="cpu", engine="onnxruntime")
    with pytest.raises(OptionError, match="run by torch alone"):
        settle(named, pixels)
