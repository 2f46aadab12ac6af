"""Densities of embeddings: a shrunk Gaussian, and one kernel for each."""

import math

import torch
from torch import Tensor

from offnominal.detectors.shrinkage import shrinkage

__all__ = ["kernel_density", "mahalanobis", "pushed_off_zero", "shrunk_gaussian"]

_LEAST = 1e-12  # variance, where all vectors are the same


def shrunk_gaussian(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and whitening of a Gaussian whose covariance is shrunk towards a sphere.

    See :func:`~offnominal.detectors.shrinkage.shrinkage`.

    Parameters
    ----------
    vectors : Tensor of shape (N, D)

    Returns
    -------
    mean : Tensor of shape (D,), float32
    whitening : Tensor of shape (D, D), float32
        W with ``W' W`` the inverse of the covariance; see :func:`mahalanobis`.
    """
    rows = vectors.double()
    count, dim = rows.shape
    mean = rows.mean(0)
    rows = rows - mean
    scatter = rows.T @ rows / count
    norms, total = rows.square().sum(1), scatter.square().sum()
    kept, added = shrinkage(count, dim, norms, scatter.trace(), total)
    unit = torch.eye(dim).to(scatter)
    factor = torch.linalg.cholesky(kept * scatter + added.clamp(min=_LEAST) * unit)
    whitening = torch.linalg.solve_triangular(factor, unit, upper=False)
    return mean.float(), whitening.float().contiguous()


def mahalanobis(vectors: Tensor, mean: Tensor, whitening: Tensor) -> Tensor:
    """Distances (...,) of vectors (..., D) from the mean, in deviations."""
    with torch.autocast(vectors.device.type, enabled=False):  # directions differ in size by far
        distances: Tensor = torch.linalg.vector_norm((vectors - mean) @ whitening.T, dim=-1)
    return distances


def kernel_density(vectors: Tensor, known: Tensor) -> Tensor:
    """Minus log density (Q,) of vectors (Q, D): a kernel of variance 1 on each known (N, D)."""
    squares = torch.cdist(vectors, known, compute_mode="donot_use_mm_for_euclid_dist").square()
    count, dim = known.shape
    constant = math.log(count) + dim / 2 * math.log(2 * math.pi)
    return constant - torch.logsumexp(-squares / 2, dim=1)


def pushed_off_zero(centre: Tensor, least: float = 0.1) -> Tensor:
    """A centre (D,) whose entries are at least 0.1 from 0, as the released Deep SVDD has it.

    A vector that is 0 everywhere is too easily reached. An entry that is 0 stays so.
    """
    return torch.where(centre.abs() < least, least * centre.sign(), centre)
