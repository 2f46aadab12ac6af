"""Losses that several methods share: pure functions of tensors, with their maps."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "cosine_distance",
    "focal_loss",
    "gms",
    "ms_ssim",
    "msgms",
    "ssim",
    "whole_map_cosine_distance",
]

_SMOOTH = 1e-5  # keeps the focal loss's logarithm finite
_GAMMA = 2.0  # Lin et al., "Focal Loss for Dense Object Detection", 2017, section 3.2
_WINDOW = 11  # of multi-scale SSIM
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # powers of its scales
_GMS_C = 0.0026  # Xue et al., 2014, for values on [0, 1]

Window = Literal["gaussian", "uniform"]
Padding = Literal["zeros", "reflect"]


def ssim(
    one: Tensor,
    other: Tensor,
    window: Window = "gaussian",
    padding: Padding = "reflect",
    size: int = 11,
    span: float | Tensor = 1.0,
) -> Tensor:
    """Structural similarity at each pixel and in each channel, at most 1.

    ``(2 m n + C1) (2 c + C2) / ((m^2 + n^2 + C1) (v + w + C2))`` of local means m and n, variances
    v and w and covariance c, with C1 = (0.01 L)^2 and C2 = (0.03 L)^2 (Wang, Bovik, Sheikh and
    Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004,
    equation 13). ``1 - ssim(...).mean()`` is the loss.

    Parameters
    ----------
    one, other : Tensor of shape (B, C, H, W), floating
        Sides above half the window.
    window : {"gaussian", "uniform"}
        What local means are taken with; the Gaussian has a deviation of 1.5 pixels, as in Wang et
        al. and DRAEM; Bergmann et al. (2019) take the plain mean.
    padding : {"zeros", "reflect"}
        What lies around the image. Zeros, as in DRAEM's code, darken both images at the rim alike.
    size : int
        Side of the window, odd.
    span : float or scalar Tensor
        L, the range of values.

    Returns
    -------
    Tensor of shape (B, C, H, W)
    """
    luminance, structure = _ssim_factors(one, other, window, padding, size, span)
    return luminance * structure


def _ssim_factors(
    one: Tensor, other: Tensor, window: Window, padding: Padding, size: int, span: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The factors of :func:`ssim`: of the means, and of contrast and structure."""
    # In full precision even under autocast: variances are small differences of large numbers.
    with torch.autocast(one.device.type, enabled=False):
        full = torch.promote_types(one.dtype, torch.float32)
        x, y = one.to(full), other.to(full)
        down, across = (_local_means(x, side, window, padding, size) for side in x.shape[-2:])
        # All five local means in one go.
        m, n, mm, nn, mn = down @ torch.stack([x, y, x * x, y * y, x * y]) @ across.T
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    means, squares = m * n, m.square() + n.square()
    luminance = (2 * means + c1) / (squares + c1)
    return luminance, (2 * (mn - means) + c2) / (mm + nn - squares + c2)


def _local_means(like: Tensor, side: int, window: Window, padding: Padding, size: int) -> Tensor:
    """Matrix (side, side) that takes local means along one side.

    As a product, a window of 11 costs a fifth of what a convolution of single channels does on a
    CPU, most of all in the backward pass.
    """
    row = like.new_full((size,), 1 / size)
    if window == "gaussian":
        place = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
        row = torch.exp(-place.square() / (2 * 1.5**2))
        row = row / row.sum()
    each = torch.eye(side, dtype=like.dtype, device=like.device)[:, None]
    mode = "constant" if padding == "zeros" else "reflect"
    return F.conv1d(F.pad(each, (size // 2,) * 2, mode=mode), row[None, None])[:, 0].T


def ms_ssim(one: Tensor, other: Tensor, span: float = 1.0) -> Tensor:
    """Structural similarity at several scales, of each image: (B, C, H, W) to (B,), at most 1.

    The product of contrast and structure at five scales, each half the one before by mean pooling,
    and of the local means at the last one, to the powers that Wang, Simoncelli and Bovik give
    ("Multi-scale structural similarity for image quality assessment", 2003, equation 7). Images
    below 176 pixels have as many scales as are 11 pixels or more, with powers that add up to 1.

    Parameters
    ----------
    one, other : Tensor of shape (B, C, H, W), floating
    span : float
        L, the range of values.
    """
    count = sum(min(one.shape[-2:]) >> scale >= _WINDOW for scale in range(len(_SCALES)))
    powers = torch.tensor(_SCALES[:count], device=one.device)
    found = []
    for scale in range(count):
        if scale:
            one, other = F.avg_pool2d(one, 2), F.avg_pool2d(other, 2)
        luminance, structure = _ssim_factors(one, other, "gaussian", "reflect", _WINDOW, span)
        found.append((luminance * structure if scale == count - 1 else structure).mean((2, 3)))
    # A negative factor has no such power, and the root of 0 no slope.
    each = torch.stack(found, dim=-1).clamp(min=1e-4) ** (powers / powers.sum())
    return each.prod(-1).mean(1)


def gms(one: Tensor, other: Tensor) -> Tensor:
    """Gradient magnitude similarity at each pixel, on (0, 1].

    ``(2 g h + c) / (g^2 + h^2 + c)`` of both images' gradient magnitudes g and h by Prewitt's
    filters, of the mean over channels (Xue, Zhang, Mou and Bovik, "Gradient Magnitude Similarity
    Deviation", 2014, equation 4).

    Parameters
    ----------
    one, other : Tensor of shape (B, C, H, W), floating
        Values on [0, 1].

    Returns
    -------
    Tensor of shape (B, 1, H, W)
    """
    g, h = (_gradient(image.mean(1, keepdim=True)) for image in (one, other))
    return (2 * g * h + _GMS_C) / (g.square() + h.square() + _GMS_C)


def _gradient(grey: Tensor) -> Tensor:
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    columns = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
    across, down = rows[..., :-2] - rows[..., 2:], columns[..., :-2, :] - columns[..., 2:, :]
    # The root's slope at 0 is infinite.
    return ((across.square() + down.square()) / 9 + 1e-12).sqrt()


def msgms(one: Tensor, other: Tensor, scales: int = 4) -> list[Tensor]:
    """:func:`gms` at several scales, each half the one before by mean pooling.

    Zavrtanik, Kristan and Skocaj, "Reconstruction by inpainting for visual anomaly detection",
    Pattern Recognition 112, 2021, section 3.2, who use four. The loss is the mean over scales of
    ``1 - gms``.

    Parameters
    ----------
    one, other : Tensor of shape (B, C, H, W), floating
        Values on [0, 1].
    scales : int

    Returns
    -------
    list of Tensor of shape (B, 1, H / 2^n, W / 2^n)
    """
    found = []
    for scale in range(scales):
        if scale:
            one, other = F.avg_pool2d(one, 2), F.avg_pool2d(other, 2)
        found.append(gms(one, other))
    return found


def focal_loss(normal: Tensor, abnormal: Tensor, truth: Tensor) -> Tensor:
    """Focal loss of a map of two probabilities: mean of ``-(1 - p)^2 log p`` over pixels.

    Lin et al., 2017, eq. 4, with p the probability of what the pixel is.

    Parameters
    ----------
    normal, abnormal : Tensor of shape (B, H, W), float32
        Probabilities, on [0, 1].
    truth : Tensor of shape (B, H, W), float32
        1 where the part is defective, 0 elsewhere.
    """
    # The released codes bound the one-hot truth and add a little to p; both are kept.
    wrong = truth.clamp(_SMOOTH, 1 - _SMOOTH)
    right = (1 - truth).clamp(_SMOOTH, 1 - _SMOOTH)
    p = right * normal + wrong * abnormal + _SMOOTH
    return ((1 - p) ** _GAMMA * -p.log()).mean()


def cosine_distance(one: Tensor, other: Tensor) -> Tensor:
    """One less the cosine of two maps (B, C, H, W) at each position: (B, H, W)."""
    return 1 - F.cosine_similarity(one, other, dim=1)


def whole_map_cosine_distance(one: Tensor, other: Tensor) -> Tensor:
    """One less the cosine between two maps, each as one long vector: (B, C, H, W) to (B,).

    Positions with long vectors weigh more than in the mean of :func:`cosine_distance`.
    """
    return 1 - F.cosine_similarity(one.flatten(1), other.flatten(1), dim=1)
