"""Gaussians of a few samples in many dimensions, at each position, without their covariances.

The covariance of n samples has a rank below n, so nothing of the size D x D is made: with the
deviations X (n, D) from the mean and r = ridge (n - 1), the inverse of the covariance plus the
ridge is ``(I - W' W) / ridge``, where ``W = C^-1 X`` and ``C C' = X X' + r I`` (Woodbury's
identity).
"""

import torch
from torch import Tensor

__all__ = ["distances", "gaussians"]

_BLOCK = 64  # positions that are worked out at once


def gaussians(samples: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Means (P, D) of samples (n, P, D), and the rows W (P, n, D), float32; n from 2 on."""
    mean = samples.mean(0)
    count, positions, dim = samples.shape
    eye = torch.eye(count, dtype=torch.float64, device=samples.device)
    rows = torch.empty(positions, count, dim, device=samples.device)
    for start in range(0, positions, _BLOCK):
        part = slice(start, start + _BLOCK)
        apart = (samples[:, part] - mean[part]).transpose(0, 1).double()
        factor = torch.linalg.cholesky(apart @ apart.mT + ridge * (count - 1) * eye)
        rows[part] = torch.linalg.solve_triangular(factor, apart, upper=False).float()
    return mean, rows


def distances(features: Tensor, mean: Tensor, rows: Tensor, ridge: float) -> Tensor:
    """Mahalanobis distances (P,) of features (P, D)."""
    apart = features - mean
    inside = torch.bmm(rows, apart[..., None])[..., 0]
    squares = apart.square().sum(1) - inside.square().sum(1)
    return (squares.clamp(min=0) / ridge).sqrt()
