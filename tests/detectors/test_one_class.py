"""Trained one-class methods: their losses by hand, and fits of a few steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tests.parity.trained import batch_of
from tests.seeded import UNTRAINED

from offnominal import load
from offnominal.detectors.one_class.cutpaste import CutPaste
from offnominal.detectors.one_class.deep_svdd import DeepSVDD
from offnominal.detectors.one_class.density import mahalanobis, pushed_off_zero, shrunk_gaussian
from offnominal.detectors.one_class.igd import IGD
from offnominal.detectors.one_class.loe import LOE, contrastive_losses, joint_loss
from offnominal.detectors.one_class.pasting import pasted
from offnominal.detectors.one_class.patch_svdd import PatchSVDD, nearest
from offnominal.detectors.one_class.patch_tasks import PatchEncoder, neighbours, twins
from offnominal.errors import OptionError
from offnominal.training.losses import ms_ssim
from offnominal.training.norms import adapt_norms


@pytest.fixture(scope="module")
def good() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(60, 190, (72, 80, 3), dtype=np.uint8) for _ in range(12)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a residual network of four narrow levels that knows nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path, UNTRAINED)
    return {"backbone": "test_resnet", "weights": str(path)}


CASES: list[tuple[type, dict[str, Any], bool]] = [
    (DeepSVDD, {"resolution": 32, "objective": "soft-boundary", "steps": 10}, False),
    (PatchSVDD, {"resolution": 96, "stride": 16, "rows": 200}, False),
    (CutPaste, {"resolution": 32}, True),
    (CutPaste, {"resolution": 32, "task": "union", "density": "kde", "storage": "fp16"}, True),
    (LOE, {"resolution": 64, "transformations": 3, "patches": 64, "steps": 20}, True),
    (IGD, {"resolution": 64, "width": 0.02}, True),
]


@pytest.mark.parametrize(("kind", "options", "network"), CASES)
@pytest.mark.slow
def test_learns_and_is_the_same_from_a_file(
    kind: Any, options: dict[str, Any], network: bool, good: Any, small: Any, tmp_path: Path
) -> None:
    given = {"steps": 2, "batch": 4, "device": "cpu"} | options | (small if network else {})
    detector = kind(**given).fit(good, synthetic=False)
    assert all(np.isfinite(row["total"]) for row in detector.losses)
    assert detector.threshold is not None
    path = tmp_path / "a.offn"
    detector.save(path)
    [one], [other] = detector.predict(good[0]), load(path, device="cpu").predict(good[0])
    assert np.isfinite(one.score)
    assert one.score == other.score
    np.testing.assert_array_equal(one.patch_scores, other.patch_scores)


def test_a_shrunk_gaussian() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4000, 3) * torch.tensor([1.0, 2, 3]) + 5
    found = mahalanobis(torch.tensor([6.0, 7, 8]), *shrunk_gaussian(rows))
    assert found.item() == pytest.approx(3**0.5, rel=0.05), "of many, next to nothing is shrunk"
    assert mahalanobis(torch.ones(4), *shrunk_gaussian(torch.ones(3, 4))) == 0


def test_a_soft_boundary() -> None:
    torch.manual_seed(0)
    detector = DeepSVDD(objective="soft-boundary", nu=0.25, resolution=8, dim=16, device="cpu")
    detector.make_networks()
    detector.centre_.fill_(0.3)
    detector.rate(0.99)
    batch = batch_of(torch.rand(8, 3, 8, 8))
    squares = detector.squared_distances(batch.pixels).detach()
    first = detector.loss(batch)["total"].item()
    assert first == pytest.approx(squares.mean().item() / 0.25, rel=1e-5), "a radius of 0"
    radius = squares.sqrt().quantile(0.75)
    assert detector.radius_.item() == pytest.approx(radius.item())
    outside = (squares - radius.square()).clamp(min=0).mean() / 0.25
    second = detector.loss(batch)["total"].item()
    assert second == pytest.approx((radius.square() + outside).item(), rel=1e-4)
    assert pushed_off_zero(torch.tensor([0.0, 0.05, -0.05, 2])).tolist() == pytest.approx(
        [0, 0.1, -0.1, 2]
    )


def test_grids_are_what_patches_give_one_by_one() -> None:
    torch.manual_seed(0)
    encoder, pixels = PatchEncoder(), torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        large, small = encoder.grids(pixels, (16, 8))
        torch.testing.assert_close(large[0, :, 2, 1], encoder(pixels[..., 32:, 16:80])[0])
        torch.testing.assert_close(small[0, :, 1, 2], encoder(pixels[..., 8:40, 16:48])[0])
    rows = torch.rand(40, 64)
    expected = torch.cdist(rows[:3], rows[3:]).amin(1)
    torch.testing.assert_close(nearest(rows[:3], rows[3:]), expected)


def test_pairs_lie_where_they_should() -> None:
    rng = np.random.default_rng(0)
    close, around = twins(rng, 500, 192, 64), neighbours(rng, 500, 192, 64)
    moved = np.abs(close.second - close.first)
    assert moved.max() == 2
    assert around.direction is not None
    away = around.second - around.first
    inside = (around.second > 0).all(1) & (around.second < 192).all(1)  # not clipped
    lengths = np.abs(away[inside])
    assert set(lengths[lengths > 0]) == set(range(48, 64))
    assert (away[inside & (around.direction == 4), 0] == 0).all(), "the fifth is to the right"


def test_pasted_images_differ_in_a_small_place(good: list[np.ndarray]) -> None:
    images = torch.from_numpy(np.stack(good).transpose(0, 3, 1, 2))
    for task, most in (("patch", 0.2), ("scar", 0.01), ("union", 0.2)):
        made = pasted(images, task, np.random.default_rng(0))  # type: ignore[arg-type]
        changed = (made != images).any(1).float().mean((1, 2))
        assert 0 < changed.min() <= changed.max() < most


def test_latent_labels() -> None:
    torch.manual_seed(0)
    encoded = torch.randn(6, 4, 8, dtype=torch.float64)
    normal, anomalous = contrastive_losses(encoded)
    unit = encoded / encoded.norm(dim=-1, keepdim=True)
    likeness = torch.exp(unit[0] @ unit[0].T / 0.1)
    shares = [likeness[k, 0] / (likeness[k].sum() - likeness[k, k]) for k in (1, 2, 3)]
    log3 = np.log(3)
    assert normal[0].item() == pytest.approx(-np.mean(np.log(shares)) / log3, rel=1e-4)
    assert anomalous[0].item() == pytest.approx(-np.mean(np.log1p(-np.array(shares))) / log3, 1e-4)

    normal, anomalous = torch.tensor([1.0, 5, 2, 1]), torch.tensor([2.0, 1, 2, 3])
    assert joint_loss(normal, anomalous, 0.0, "hard") == normal.mean()
    assert joint_loss(normal, anomalous, 0.25, "hard") == (1 + 1 + 2 + 1) / 4
    assert joint_loss(normal, anomalous, 0.25, "soft") == (1 + 3 + 2 + 1) / 4


def test_the_players_of_igd_learn_apart(small: dict[str, Any]) -> None:
    torch.manual_seed(0)
    detector = IGD(resolution=64, width=0.02, norms="initial", device="cpu", **small)
    detector.make_networks()
    detector._vectors = torch.rand(4, 96)
    own = [*detector.encoder.parameters(), *detector.decoder.parameters()]
    theirs = list(detector._critic.parameters())
    batch = batch_of(torch.rand(4, 3, 64, 64))
    for part, moves in (("critic", theirs), ("noticed", own), ("reconstruction", own)):
        parts = detector.loss(batch)
        found = torch.autograd.grad(parts[part], own + theirs, allow_unused=True)
        moved = {id(p) for p, g in zip(own + theirs, found, strict=True) if g is not None}
        assert moved == {id(p) for p in moves}, part
    norms = [m for m in detector.decoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    means = [each.running_mean for each in norms]
    assert not any(each is None or each.any() for each in means), "they stay as they were"


def test_similarity_at_several_scales() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 48, 48)
    torch.testing.assert_close(ms_ssim(image, image), torch.ones(2))
    near, far = ms_ssim(image, image + 0.01), ms_ssim(image, torch.rand_like(image))
    assert (far < near).all()


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        (DeepSVDD, {"resolution": 100}, "64, 128"),
        (DeepSVDD, {"dim": 100}, "multiple of 16"),
        (PatchSVDD, {"resolution": 64}, "96 or more"),
        (CutPaste, {"start": "scratch", "weights": "a.pth"}, "give one of the two"),
        (LOE, {"contamination": 1.0}, "to below 1"),
        (IGD, {"resolution": 96}, "multiple of 64"),
    ],
)
def test_options_that_make_no_sense(kind: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        kind(**options)


def test_cutpaste_takes_convolutional_networks(good: list[np.ndarray]) -> None:
    with pytest.raises(OptionError, match="convolutional"):
        CutPaste(backbone="vit_tiny_patch16_224", device="cpu").fit(good)


def test_norms_adapt_and_the_network_computes_the_same() -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0).eval()
    pixels = 3 + 2 * torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        before = network(pixels)
        adapt_norms(network, [pixels])
        torch.testing.assert_close(network(pixels), before, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(network.train()(pixels), before, rtol=1e-2, atol=1e-3)
