"""Losses of images and maps, held to plain formulas in 64 bits."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from offnominal.training.losses import (
    Padding,
    Window,
    cosine_distance,
    gms,
    msgms,
    ssim,
    whole_map_cosine_distance,
)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    one, other = np.random.default_rng(0).random((2, 2, 3, 24, 20))
    return torch.from_numpy(one), torch.from_numpy(0.6 * one + 0.4 * other)


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_ssim(pair: tuple[torch.Tensor, torch.Tensor], window: Window, padding: Padding) -> None:
    mode = "constant" if padding == "zeros" else "mirror"

    def mean(x: np.ndarray) -> np.ndarray:
        if window == "uniform":
            return ndimage.uniform_filter(x, 11, mode=mode, axes=(-2, -1))
        return ndimage.gaussian_filter(x, 1.5, radius=5, mode=mode, axes=(-2, -1))

    x, y = (image.numpy() for image in pair)
    m, n, c1, c2 = mean(x), mean(y), 0.02**2, 0.06**2
    v, w, c = mean(x * x) - m * m, mean(y * y) - n * n, mean(x * y) - m * n
    expected = (2 * m * n + c1) * (2 * c + c2) / ((m * m + n * n + c1) * (v + w + c2))
    found = ssim(*pair, window, padding, span=2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert ssim(pair[0], pair[0]).min().item() == pytest.approx(1)


def test_gradient_magnitudes(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    def gradient(image: torch.Tensor) -> np.ndarray:
        grey = image.numpy().mean(1)
        both = [[ndimage.prewitt(one, axis, mode="nearest") / 3 for one in grey] for axis in (0, 1)]
        return np.hypot(*np.array(both))

    g, h = (gradient(image) for image in pair)
    expected = (2 * g * h + 0.0026) / (g * g + h * h + 0.0026)
    np.testing.assert_allclose(gms(*pair)[:, 0], expected, rtol=1e-6)
    flat = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    scales = msgms(flat, torch.rand(1, 3, 16, 16))
    assert [tuple(each.shape[2:]) for each in scales] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    sum(each.mean() for each in scales).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_cosine_distances() -> None:
    one = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(1, 2, 1, 2)
    other = torch.tensor([[3.0, 1.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)
    assert cosine_distance(one, other).flatten().tolist() == pytest.approx([0, 1])
    assert whole_map_cosine_distance(one, other).item() == pytest.approx(1 - 3 / 50**0.5)
