"""MAEDAY as a user meets it, and that a trained network finds what does not belong."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tests.seeded import save_dinov2_vits14
from torch import Tensor

from offnominal.backbones.mae import SHAPES, MaskedAutoencoder, Shape, draw_masks
from offnominal.backbones.timm import TimmBackbone
from offnominal.datasets.synthetic import draw_good
from offnominal.detectors.reconstruction.maeday import MAEDAY, ReconstructionError, blurred
from offnominal.errors import BackboneError, OptionError, WeightsError
from offnominal.images import read_image
from offnominal.sizing import to_pixels

TOY = Shape(4, 48, 3, 4, decoder_dim=32, decoder_depth=2, decoder_heads=4, size=32)
PATCHES = (TOY.size // TOY.patch) ** 2


def toy() -> MaskedAutoencoder:
    torch.manual_seed(0)
    network = MaskedAutoencoder("toy", TOY).eval().requires_grad_(False)
    network.digest = "toy"
    return network


def detector_of(network: MaskedAutoencoder, **options: Any) -> MAEDAY:
    found = MAEDAY(**options, device="cpu")
    found.use_network(network)
    return found.fit()


# -- masks and errors -------------------------------------------------------------------------


def test_masks_cover_the_image_evenly() -> None:
    masks = draw_masks(196, 32, 0.75, 5)
    assert masks.shape == (32, 49)
    assert (masks.diff(dim=1) > 0).all(), "each patch once in a mask"
    assert masks.flatten().bincount(minlength=196).tolist() == [8] * 196
    assert torch.equal(masks, draw_masks(196, 32, 0.75, 5))
    assert not torch.equal(masks, draw_masks(196, 32, 0.75, 6))
    # Where they do not come out even, no patch is seen much more often than another.
    assert draw_masks(100, 10, 0.7, 0).flatten().bincount(minlength=100).max() <= 4


def test_only_hidden_patches_count() -> None:
    """A network that paints zeros: the error is the image's own square."""
    network = toy()
    for name, tensor in network.state_dict().items():
        if name.startswith("decoder_pred"):
            tensor.zero_()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    square = pixels.square().sum(1, keepdim=True)
    for errors in ("hidden", "all"):
        found = ReconstructionError(network, 8, 0.75, errors, 0)(pixels)
        np.testing.assert_allclose(found, square, rtol=1e-5)
    # With one mask some pixels are seen and have no error.
    once = ReconstructionError(network, 1, 0.75, "hidden", 0)
    seen = torch.zeros(PATCHES).index_fill(0, once.kept[0], 1).reshape(8, 8)
    seen = seen.repeat_interleave(4, 0).repeat_interleave(4, 1)
    np.testing.assert_allclose(once(pixels), square * (1 - seen), rtol=1e-5)


def test_many_masks_go_through_in_parts() -> None:
    network, pixels = toy(), torch.randn(1, 3, 32, 32)
    many = ReconstructionError(network, 70, 0.75, "hidden", 0)
    whole = network.reconstruct(pixels, many.kept)[0]
    hidden = torch.ones(70, PATCHES).scatter_(1, many.kept, 0).reshape(70, 8, 8)
    hidden = hidden.repeat_interleave(4, 1).repeat_interleave(4, 2)
    error = ((whole - pixels).square().sum(1) * hidden).sum(0) / hidden.sum(0)
    np.testing.assert_allclose(many(pixels)[0, 0], error, rtol=1e-4, atol=1e-6)


def test_encoder_sees_only_what_is_kept() -> None:
    network, kept = toy(), draw_masks(PATCHES, 1, 0.75, 0)
    pixels = torch.randn(1, 3, 32, 32)
    other = pixels.clone()
    hidden = torch.ones(PATCHES).index_fill(0, kept[0], 0).reshape(8, 8).bool()
    hidden = hidden.repeat_interleave(4, 0).repeat_interleave(4, 1)
    other[:, :, hidden] += 10
    assert torch.equal(network.reconstruct(pixels, kept), network.reconstruct(other, kept))


def test_blur_is_opencvs() -> None:
    heat = torch.rand(1, 1, 20, 30)
    wanted = cv2.GaussianBlur(heat[0, 0].numpy(), (7, 7), 1.4, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(blurred(heat, 1.4)[0, 0], wanted, atol=1e-6)
    assert blurred(heat, 0) is heat


# -- the estimator ----------------------------------------------------------------------------


def test_no_image_is_needed_and_good_ones_give_a_threshold() -> None:
    images = [draw_good("fabric", 1, index) for index in range(6)]
    detector = detector_of(toy(), masks=4, false_reject=0.2)
    [first] = detector.predict(images[0])
    assert first.threshold is None
    assert first.patch_scores.shape == (32, 32)
    assert first.anomaly_map.shape == images[0].shape[:2]
    detector.calibrate(images[1:])
    [again] = detector.predict(images[0])
    assert again.score == first.score
    assert again.threshold is not None
    with pytest.raises(OptionError, match="learns from no image"):
        detector_of(toy()).fit(images)


def test_an_image_scores_the_same_in_any_company() -> None:
    images = [draw_good("fabric", 1, index) for index in range(3)]
    detector = detector_of(toy(), masks=5)
    alone = [detector.predict(image)[0].score for image in images]
    assert [p.score for p in detector.predict(images[::-1])] == alone[::-1]
    assert [p.score for p in detector_of(toy(), masks=5, seed=1).predict(images)] != alone


def test_tiles_cover_larger_images() -> None:
    image = draw_good("fabric", 1, 0)[:100, :90]
    [found] = detector_of(toy(), masks=4, tile=32).predict(image)
    assert found.patch_scores.shape == (100, 92), "of what the tiles cover, a multiple of 4"
    assert found.anomaly_map.shape == (100, 90)


def test_other_sizes_are_refused_with_the_remedy() -> None:
    with pytest.raises(BackboneError, match=r"32 x 32 px, not 64 x 64.*--tile 32"):
        detector_of(toy(), resolution=64).predict(draw_good("fabric", 1, 0))


def test_the_masks_are_part_of_what_a_result_depends_on() -> None:
    digests = {
        detector_of(toy(), **options).load_network().digest
        for options in ({}, {"masks": 4}, {"seed": 1}, {"errors": "all"}, {"mask_ratio": 0.5})
    }
    assert len(digests) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": 1}, "2 or more"),
        ({"mask_ratio": 1.0}, "--mask-ratio 1.0: give above 0 to below 1"),
        ({"errors": "some"}, "hidden"),
        ({"blur": -1}, "--blur -1: give 0 or more"),
        ({"aggregate": "best"}, "top1"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        MAEDAY(**options)


# -- weights ----------------------------------------------------------------------------------


def test_a_released_file_is_read_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The released files hold the state dict under ``model``; here one of a small network."""
    monkeypatch.setitem(SHAPES, "mae_toy", TOY._replace(file="toy"))
    path = tmp_path / "mae_visualize_vit_toy.pth"
    made = toy()
    torch.save({"model": made.state_dict()}, path)
    read = MaskedAutoencoder.load("mae_toy", path)
    assert not any(tensor.requires_grad for tensor in read.parameters())
    pixels, kept = torch.randn(1, 3, 32, 32), draw_masks(PATCHES, 2, 0.75, 0)
    assert read(pixels).shape == (1, 48, 8, 8)
    assert torch.equal(read(pixels), made(pixels))
    assert torch.equal(read.reconstruct(pixels, kept), made.reconstruct(pixels, kept))
    with pytest.raises(WeightsError, match="does not fit mae_vitb16"):
        MaskedAutoencoder.load("mae_vitb16", path)
    encoder = {k: v for k, v in made.state_dict().items() if not k.startswith("decoder")}
    torch.save({"model": encoder}, path)
    with pytest.raises(WeightsError, match=r"has no decoder.*mae_visualize_vit_toy\.pth"):
        MaskedAutoencoder.load("mae_toy", path)


def test_sizes_of_the_released_networks() -> None:
    """Millions of parameters, those of the position tables among them."""
    with torch.device("meta"):
        for name, millions in (("mae_vitb16", 111.9), ("mae_vitl16", 329.5), ("mae_vith14", 657.1)):
            network = MaskedAutoencoder(name, SHAPES[name])
            count = sum(tensor.numel() for tensor in network.parameters())
            assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_what_cannot_be_had_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"https://\S+mae_visualize_vit_large\.pth.*--weights"):
        MaskedAutoencoder.load("mae_vitl16")
    with pytest.raises(BackboneError, match="mae_vitb16"):
        MaskedAutoencoder.load("mae_vits16")
    with pytest.raises(OptionError, match="one level"):
        MaskedAutoencoder.load("mae_vitb16", layers=[1])
    dinov2 = TimmBackbone("dinov2_vits14", save_dinov2_vits14(tmp_path))
    with pytest.raises(BackboneError, match="paints images"):
        MAEDAY(device="cpu").use_network(dinov2)


# -- that it works ----------------------------------------------------------------------------


def crops(files: list[Path], each: int, seed: int) -> list[np.ndarray]:
    """Small pieces of good magnetic tiles, at a quarter of their height or width."""
    generator = np.random.default_rng(seed)
    found = []
    for file in files:
        image = read_image(file)
        scale = 128 / min(image.shape[:2])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for _ in range(each):
            y, x = (int(generator.integers(20, side - 52 + 1)) for side in image.shape[:2])
            found.append(image[y : y + 32, x : x + 32].copy())
    return found


def train(network: MaskedAutoencoder, images: list[np.ndarray], steps: int) -> None:
    """Masked reconstruction, the loss on hidden patches only."""
    network.train().requires_grad_(True)
    pixels = torch.tensor(np.stack([to_pixels(i, network.mean, network.std) for i in images]))
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(steps):
        batch = pixels[torch.randint(len(pixels), (32,), generator=generator)]
        order = torch.rand(32, 1, PATCHES, generator=generator).argsort(-1)
        kept = order[..., : PATCHES // 4]
        hidden = torch.ones(32, PATCHES).scatter_(1, kept[:, 0], 0).reshape(32, 1, 8, 8)
        hidden = hidden.repeat_interleave(4, 2).repeat_interleave(4, 3)
        error: Tensor = (network.reconstruct(batch, kept)[:, 0] - batch).square()
        optimiser.zero_grad()
        (error * hidden).mean().backward()
        optimiser.step()
        schedule.step()
    network.eval().requires_grad_(False)


def with_blemish(image: np.ndarray, seed: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A small ellipse, darker or brighter than the tile, and its centre (x, y)."""
    generator = np.random.default_rng(seed)
    x, y = (int(value) for value in generator.integers(6, 26, 2))
    axes = (int(generator.integers(2, 4)), int(generator.integers(1, 3)))
    shape = np.zeros(image.shape[:2], np.float32)
    cv2.ellipse(shape, (x, y), axes, float(generator.integers(180)), 0, 360, 1.0, -1)
    change = generator.choice([-50, 50]) * shape[..., None]
    return np.clip(image + change, 0, 255).astype(np.uint8), (x, y)


@pytest.mark.slow
def test_a_network_trained_on_good_tiles_finds_blemishes(tiles: Path) -> None:
    good = crops(sorted((tiles / "test" / "good").iterdir())[::4], 1, seed=1)
    bad = [with_blemish(image, seed) for seed, image in enumerate(good)]

    def measured(network: MaskedAutoencoder) -> tuple[float, float]:
        detector = detector_of(network, masks=16)
        of_good = [p.score for p in detector.predict(good)]
        of_bad = detector.predict([image for image, _ in bad])
        labels = [0] * len(good) + [1] * len(bad)
        peaks = [np.unravel_index(p.anomaly_map.argmax(), (32, 32)) for p in of_bad]
        apart = [
            np.hypot(column - x, row - y)
            for (row, column), (_, (x, y)) in zip(peaks, bad, strict=True)
        ]
        score = roc_auc_score(labels, of_good + [p.score for p in of_bad])
        return float(score), float(np.mean(np.array(apart) < 5))

    network = toy()
    untrained, _ = measured(network)
    train(network, crops(sorted((tiles / "train" / "good").iterdir())[::4], 4, seed=0), 100)
    trained, found = measured(network)
    assert trained > 0.8
    assert trained > untrained + 0.2
    assert found > 0.8, "the peak lies on the blemish"
