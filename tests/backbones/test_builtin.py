"""The weight-free backbone: shapes, bits, exposure, colour, and real tiles."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from offnominal.backbones import CATALOGUE, load_backbone
from offnominal.backbones.builtin import Builtin
from offnominal.errors import BackboneError
from offnominal.images import read_image
from offnominal.paths import find_images
from offnominal.sizing import resize_image, to_pixels

BOTH = pytest.mark.parametrize("aligned", [False, True], ids=["builtin", "aligned"])


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


@cache
def tile_pixels(path: Path) -> Tensor:
    net = Builtin()
    # One size for all, which is faster than the shapes that the tiles have.
    image = resize_image(read_image(path), net.resolution, net.multiple, "square")
    return torch.from_numpy(to_pixels(image, net.mean, net.std))[None]


@pytest.fixture(scope="module")
def tile(tiles: Path) -> Tensor:
    return tile_pixels(find_images([tiles / "test" / "crack"])[0])


def random_pixels(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def relative_change(features: Tensor, reference: Tensor) -> float:
    return float((features - reference).norm() / reference.norm())


@BOTH
def test_described_as_in_the_catalogue(aligned: bool) -> None:
    net = Builtin(aligned)
    entry = CATALOGUE[net.name]
    assert (net.dim, net.stride, net.resolution) == (entry.dim, entry.stride, entry.resolution)
    assert net.dim == (158 if aligned else 59)
    assert net.normalize == ("none" if aligned else "standardize")
    assert (net.mean, net.std) == ((0, 0, 0), (1, 1, 1))
    assert net.mask_threshold is None
    assert not net.training
    assert isinstance(load_backbone(net.name), Builtin)


def test_the_two_recipes_have_digests_of_their_own() -> None:
    assert Builtin().digest != Builtin(aligned=True).digest


@BOTH
@pytest.mark.parametrize("size", [(64, 64), (64, 136), (200, 8), (8, 8)])
def test_any_multiple_of_eight(aligned: bool, size: tuple[int, int]) -> None:
    net = Builtin(aligned)
    features = net(random_pixels(2, 3, *size))
    assert features.shape == (2, net.dim, size[0] // 8, size[1] // 8)
    assert features.dtype == torch.float32
    assert features.isfinite().all()


@BOTH
def test_other_sizes_name_the_remedy(aligned: bool) -> None:
    with pytest.raises(BackboneError, match="crop to 96 x 64 or pad to 104 x 72"):
        Builtin(aligned)(random_pixels(1, 3, 100, 70))


@BOTH
def test_same_bits_from_every_instance(aligned: bool, tile: Tensor) -> None:
    first, second = Builtin(aligned), Builtin(aligned)
    assert first.state_dict() == {}
    assert not list(first.parameters())
    assert torch.equal(first(tile), second(tile))


@BOTH
def test_an_image_does_not_depend_on_its_batch(aligned: bool) -> None:
    net, pixels = Builtin(aligned), random_pixels(3, 3, 64, 96)
    torch.testing.assert_close(net(pixels)[1:2], net(pixels[1:2]), rtol=1e-5, atol=1e-5)


@BOTH
@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_constant_images_are_finite_and_uniform(aligned: bool, grey: float) -> None:
    features = Builtin(aligned)(torch.full((1, 3, 64, 64), grey))
    assert features.isfinite().all()
    assert (features - features[..., :1, :1]).abs().max() < 1e-3


@BOTH
@pytest.mark.parametrize("gain", [0.5, 0.8])
def test_exposure_hardly_matters(aligned: bool, gain: float, tile: Tensor) -> None:
    net = Builtin(aligned)
    reference = net(tile)
    darker = relative_change(net(tile * gain), reference)
    blurred = relative_change(net(F.avg_pool2d(tile, 3, 1, 1)), reference)
    assert darker < 0.015
    assert darker < blurred / 3


@BOTH
def test_grey_images_have_no_colour(aligned: bool, tile: Tensor) -> None:
    assert torch.equal(tile[:, 0], tile[:, 2])
    features = Builtin(aligned)(tile)[0]
    if aligned:
        energies, means = features[41:73], features[[74, 75, 77, 78]]
    else:
        energies, means = features[:56].unflatten(0, (4, 14))[:, 6:], features[57:]
    assert means.count_nonzero() == 0
    assert energies.unique().tolist() == [0.0 if aligned else torch.tensor(1e-3).log().item()]


@BOTH
def test_a_change_of_colour_alone_is_seen_where_it_is(aligned: bool) -> None:
    net = Builtin(aligned)
    pixels = torch.full((1, 3, 128, 128), 0.5)
    pixels[:, 0, 48:64, 80:96] += 0.2
    pixels[:, 1, 48:64, 80:96] -= 0.2
    assert torch.allclose(pixels.mean(1), torch.tensor(0.5))
    features = net(pixels)[0]
    change = (features - features[:, :1, :1]).norm(dim=0)
    row, column = divmod(int(change.argmax()), 16)
    assert row in range(5, 9)
    assert column in range(9, 13)


@pytest.mark.parametrize("angle", [0, 90])
def test_stripes_answer_in_their_own_orientation(angle: int) -> None:
    wave = 0.5 + 0.3 * torch.cos(torch.arange(64) * torch.pi / 2)
    stripes = wave.expand(64, 64) if angle == 0 else wave.expand(64, 64).T
    energies = Builtin()(stripes.expand(1, 3, 64, 64))[0, :6, 4, 4]
    assert int(energies.argmax()) == (0 if angle == 0 else 3)


@BOTH
@pytest.mark.slow
def test_exports_to_one_graph(aligned: bool) -> None:
    net, pixels = Builtin(aligned), random_pixels(1, 3, 64, 96)
    graph = torch.export.export(net, (pixels,)).module()
    torch.testing.assert_close(graph(pixels), net(pixels))


@BOTH
@pytest.mark.slow
def test_finds_defects_on_real_tiles(aligned: bool, tiles: Path) -> None:
    net = Builtin(aligned)
    train = find_images([tiles / "train" / "good"])[::48]
    good = find_images([tiles / "test" / "good"])[::6]
    defective = find_images([tiles / "test" / kind for kind in ("break", "fray", "uneven")])[::7]

    def patches(path: Path) -> Tensor:
        features: Tensor = net(tile_pixels(path))
        return features[0].flatten(1).T

    bank = torch.cat([patches(path) for path in train])
    assert len(train) == 16
    centre, scale = torch.zeros(net.dim), torch.ones(net.dim)
    if net.normalize == "standardize":
        deviation = bank.std(0, correction=0)
        centre = bank.mean(0)
        scale = torch.where(deviation > 1e-6, deviation, scale)
    bank = (bank - centre) / scale

    def score(path: Path) -> float:
        distances = torch.cdist((patches(path) - centre) / scale, bank).amin(1)
        return float(distances.topk(10).values.mean())

    labels = [0] * len(good) + [1] * len(defective)
    found = roc_auc_score(labels, np.array([score(path) for path in good + defective]))
    assert found > 0.68
