"""Densities of embeddings: a shrunk Gaussian, and one kernel for each."""

import math

import torch
from torch import Tensor

__all__ = ["kernel_density", "mahalanobis", "pushed_off_zero", "shrunk_gaussian"]

_LEAST = 1e-12  # variance, where all vectors are the same


def shrunk_gaussian(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and whitening of a Gaussian whose covariance is shrunk towards a sphere.

    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
    2004, lemma 3.2 and equation 14: with S the covariance of N vectors and m the mean of its
    eigenvalues, ``(1 - s) S + s m I``, where s is chosen by how much S would vary with the sample.

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
    size = scatter.trace() / dim
    away = scatter.square().sum() - dim * size**2  # of S from m I
    varies = (rows.square().sum(1).square().mean() - scatter.square().sum()) / count
    share = (varies / away).clamp(0, 1) if away > 0 else torch.ones_like(away)
    sphere = (share * size).clamp(min=_LEAST) * torch.eye(dim, dtype=rows.dtype, device=rows.device)
    factor = torch.linalg.cholesky((1 - share) * scatter + sphere)
    whitening = torch.linalg.solve_triangular(factor, torch.eye(dim).to(factor), upper=False)
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
