"""Patch scores to image score and anomaly map."""

import re
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from offnominal.errors import OptionError

__all__ = ["aggregate", "anomaly_map", "check_aggregate"]

_PERCENT = re.compile(r"(top|quantile)(\d+(?:\.\d+)?)")
_BLOCK = 256  # output rows made at once, so that a long side's work grows linearly


def check_aggregate(how: str) -> None:
    """Raise an :class:`OptionError` if ``how`` is no way to aggregate."""
    if how in ("max", "mean", "map-max", "quantile"):
        return
    match = _PERCENT.fullmatch(how)
    if match is None or not 0 < float(match[2]) <= 100:
        raise OptionError(
            f"--aggregate {how}: choose top1 (mean of the top 1 %, or top5 ...), max, map-max "
            f"(maximum of the smoothed map), mean, or quantile99"
        )


def aggregate(patch_scores: Tensor, how: str = "top1") -> Tensor:
    """Image score from patch scores.

    Parameters
    ----------
    patch_scores : Tensor of shape (..., gh, gw)
    how : str
        ``top1``: mean of the 1 % largest, the count rounded down, and the maximum where that leaves
        none (Damm et al., 2024, section 3.1, and its released code); any ``topP`` likewise.
        ``max``, ``mean``, ``quantileP`` (``quantile`` is ``quantile99``).

    Returns
    -------
    Tensor of shape (...)

    Notes
    -----
    ``map-max`` needs the map and is taken from :func:`anomaly_map`.
    """
    flat = patch_scores.flatten(-2)
    if how == "max":
        return flat.amax(-1)
    if how == "mean":
        return flat.mean(-1)
    match = _PERCENT.fullmatch("quantile99" if how == "quantile" else how)
    if match is None:
        raise OptionError(f"--aggregate {how}: not a statistic of patch scores")
    share = float(match[2]) / 100
    if match[1] == "quantile":
        return torch.quantile(flat, share, dim=-1)
    # In double precision 0.01 * 100 is 1, as it is in the reference code.
    count = int(flat.shape[-1] * share)
    return flat.topk(max(count, 1), dim=-1).values.mean(-1)


def anomaly_map(
    patch_scores: Tensor,
    size: tuple[int, int],
    sigma: float = 4.0,
    cover: tuple[int, int] | None = None,
) -> Tensor:
    """Upsample patch scores bilinearly to the image's size and smooth them.

    Both steps are linear and separable, so they are two matrix products with matrices that are
    made once per size. The result is that of OpenCV's bilinear ``resize`` followed by scipy's
    ``gaussian_filter`` (reflected border, cut at 4 sigma).

    Parameters
    ----------
    patch_scores : Tensor of shape (gh, gw), float32
    size : (H, W)
        The image's own size, in pixels.
    sigma : float
        Standard deviation of the Gaussian, in pixels of the image; 0 leaves it out.
    cover : (H', W') or None
        What the grid covers, if it reaches beyond the image at the bottom and the right. None: the
        grid is stretched over the image, as the AnomalyDINO code does after cropping.

    Returns
    -------
    Tensor of shape (H, W), float32
    """
    full = cover or size
    down = _bands(patch_scores.shape[0], full[0], size[0], sigma)
    across = _bands(patch_scores.shape[1], full[1], size[1], sigma)
    device = patch_scores.device
    rows = torch.cat([w.to(device) @ patch_scores[start:stop] for start, stop, w in down])
    parts = [rows[:, start:stop] @ w.to(device).T for start, stop, w in across]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


_Band = tuple[int, int, Tensor]  # input start, input stop, weights (outputs, inputs)


@lru_cache(maxsize=256)
def _bands(grid: int, full: int, size: int, sigma: float) -> list[_Band]:
    """One side's interpolation and smoothing, as blocks of rows without their zero columns."""
    from scipy.ndimage import gaussian_filter1d

    bands: list[_Band] = []
    reach = int(4 * sigma + 0.5)
    for top in range(0, size, _BLOCK):
        bottom = min(top + _BLOCK, size)
        # Rows beyond the block that the Gaussian sees; at a true border they are reflected.
        low, high = max(0, top - reach), min(size, bottom + reach)
        weights, start, stop = _interpolation(grid, full, low, high)
        if sigma > 0:
            weights = gaussian_filter1d(weights, sigma, axis=0, mode="reflect")
        kept = np.ascontiguousarray(weights[top - low : bottom - low], dtype=np.float32)
        bands.append((start, stop, torch.from_numpy(kept)))
    return bands


def _interpolation(grid: int, full: int, low: int, high: int) -> tuple[np.ndarray, int, int]:
    """Bilinear weights of output rows low to high, and which input rows they touch."""
    centre = (np.arange(low, high) + 0.5) * (grid / full) - 0.5
    below = np.floor(centre).astype(int)
    share = centre - below
    first, second = np.clip(below, 0, grid - 1), np.clip(below + 1, 0, grid - 1)
    start, stop = int(first.min()), int(second.max()) + 1
    weights = np.zeros((high - low, stop - start))
    rows = np.arange(high - low)
    np.add.at(weights, (rows, first - start), 1 - share)
    np.add.at(weights, (rows, second - start), share)
    return weights, start, stop
