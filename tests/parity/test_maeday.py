"""A masked autoencoder against a plain implementation of its paper; no authors' code exists."""

import math
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from scipy.special import erf
from tests.looks import pixels_of

from offnominal import Prediction
from offnominal.backbones.mae import SHAPES, MaskedAutoencoder, Shape, draw_masks
from offnominal.detectors.reconstruction.maeday import MAEDAY

SMALL = Shape(16, 48, 3, 4, decoder_dim=32, decoder_depth=2, decoder_heads=2, size=64)
Weights = dict[str, np.ndarray]


def seeded(shape: Shape) -> Weights:
    """Weights in the released code's naming, each tensor drawn from a seed of its name."""
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in MaskedAutoencoder("x", shape).state_dict().items()}
    found = {}
    for name, size in shapes.items():
        z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(size)
        if "norm" in name and name.endswith("weight"):
            found[name] = 1 + 0.2 * z
        elif name.endswith("bias"):
            found[name] = 0.1 * z
        elif name.endswith(("pos_embed", "token")):
            found[name] = 0.3 * z
        else:
            found[name] = z / math.sqrt(math.prod(size[1:]))
    return found


def network(weights: Weights, shape: Shape) -> MaskedAutoencoder:
    found = MaskedAutoencoder("small", shape)
    found.load_state_dict({k: torch.from_numpy(v).float() for k, v in weights.items()})
    return found.eval().requires_grad_(False)


# -- the plain implementation: one image, one mask, float64, token by token ---------------------


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def block(w: Weights, name: str, x: np.ndarray, heads: int) -> np.ndarray:
    queries, keys, values = np.split(
        linear(w, f"{name}.attn.qkv", norm(w, f"{name}.norm1", x)), 3, -1
    )
    mixed = []
    split = (np.split(each, heads, -1) for each in (queries, keys, values))
    for q, k, v in zip(*split, strict=True):
        logits = q @ k.T / math.sqrt(q.shape[1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed.append(weights / weights.sum(-1, keepdims=True) @ v)
    x = x + linear(w, f"{name}.attn.proj", np.concatenate(mixed, -1))
    inner = gelu(linear(w, f"{name}.mlp.fc1", norm(w, f"{name}.norm2", x)))
    return x + linear(w, f"{name}.mlp.fc2", inner)


def paint(w: Weights, shape: Shape, image: np.ndarray, kept: list[int]) -> np.ndarray:
    """What the decoder makes of an image (3, h, w) from the patches that it is shown."""
    side, p = shape.size // shape.patch, shape.patch
    corners = [(row * p, column * p) for row in range(side) for column in range(side)]
    kernel = w["patch_embed.proj.weight"].reshape(shape.dim, -1)
    tokens = [w["cls_token"][0, 0] + w["pos_embed"][0, 0]]
    for place in kept:
        y, x = corners[place]
        patch = image[:, y : y + p, x : x + p].reshape(-1)
        own = kernel @ patch + w["patch_embed.proj.bias"]
        tokens.append(own + w["pos_embed"][0, 1 + place])
    encoded = np.stack(tokens)
    for number in range(shape.depth):
        encoded = block(w, f"blocks.{number}", encoded, shape.heads)
    encoded = linear(w, "decoder_embed", norm(w, "norm", encoded))
    shown = dict(zip(kept, encoded[1:], strict=True))
    canvas = [encoded[0], *(shown.get(i, w["mask_token"][0, 0]) for i in range(side * side))]
    x = np.stack(canvas) + w["decoder_pos_embed"][0]
    for number in range(shape.decoder_depth):
        x = block(w, f"decoder_blocks.{number}", x, shape.decoder_heads)
    painted = linear(w, "decoder_pred", norm(w, "decoder_norm", x))[1:]
    found = np.zeros_like(image)
    for (top, left), values in zip(corners, painted, strict=True):
        found[:, top : top + p, left : left + p] = values.reshape(p, p, 3).transpose(2, 0, 1)
    return found


def plain_scores(
    w: Weights, shape: Shape, image: np.ndarray, masks: np.ndarray, hidden_only: bool
) -> np.ndarray:
    side, p = shape.size // shape.patch, shape.patch
    total, times = np.zeros(image.shape[1:]), np.zeros(image.shape[1:])
    for kept in masks:
        error = ((image - paint(w, shape, image, kept.tolist())) ** 2).sum(0)
        counts = np.ones(side * side)
        if hidden_only:
            counts[kept] = 0
        counted = np.kron(counts.reshape(side, side), np.ones((p, p)))
        total += error * counted
        times += counted
    return cv2.GaussianBlur(total / times, (7, 7), 1.4, borderType=cv2.BORDER_REFLECT_101)


# -- agreement ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights() -> Weights:
    return seeded(SMALL)


def test_pictures_are_painted_alike(weights: Weights) -> None:
    images = np.random.default_rng(1).standard_normal((2, 3, 64, 64))
    kept = torch.tensor([[0, 3, 5, 12], [1, 2, 14, 15], [4, 7, 9, 10]])
    found = network(weights, SMALL).reconstruct(torch.from_numpy(images).float(), kept)
    for image, ways in zip(images, found, strict=True):
        for own, painted in zip(kept.tolist(), ways, strict=True):
            np.testing.assert_allclose(painted, paint(weights, SMALL, image, own), atol=1e-4)


def test_each_image_can_have_masks_of_its_own(weights: Weights) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    kept = torch.tensor([[[0, 3], [1, 2]], [[4, 9], [5, 7]]])
    net = network(weights, SMALL)
    both = net.reconstruct(images, kept)
    for image, own, found in zip(images, kept, both, strict=True):
        np.testing.assert_allclose(found, net.reconstruct(image[None], own)[0], atol=1e-5)


@pytest.mark.parametrize("errors", ["hidden", "all"])
def test_scores_and_maps(weights: Weights, tiles: Path, errors: Any) -> None:
    detector = MAEDAY(masks=6, errors=errors, seed=3, device="cpu")
    detector.use_network(network(weights, SMALL))
    file = sorted((tiles / "test" / "blowhole").iterdir())[0]
    found: Prediction = detector.fit().predict(file)[0]
    pixels = pixels_of(detector, found.image)
    masks = draw_masks(16, 6, 0.75, 3).numpy()
    wanted = plain_scores(weights, SMALL, pixels.double().numpy(), masks, errors == "hidden")
    assert wanted.max() > 2 * wanted.min(), "a flat map would agree with anything"
    np.testing.assert_allclose(found.patch_scores, wanted, rtol=1e-4, atol=1e-4)
    assert found.score == pytest.approx(wanted.max(), rel=1e-4)
    assert found.anomaly_map.shape == found.image.shape[:2]


def test_a_released_shape() -> None:
    """ViT-B at its true width and size, with fewer blocks."""
    shape = SHAPES["mae_vitb16"]._replace(depth=2, decoder_depth=2)
    w = seeded(shape)
    image = np.random.default_rng(2).standard_normal((3, 224, 224))
    kept = draw_masks(196, 1, 0.75, 0)
    found = network(w, shape).reconstruct(torch.from_numpy(image).float()[None], kept)
    np.testing.assert_allclose(found[0, 0], paint(w, shape, image, kept[0].tolist()), atol=1e-4)
