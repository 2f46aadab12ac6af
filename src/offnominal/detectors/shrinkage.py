"""How far the covariance of few vectors is drawn towards a sphere."""

import torch
from torch import Tensor

__all__ = ["shrinkage"]


def shrinkage(
    count: int, dim: int, norms: Tensor, trace: Tensor, scatter: Tensor
) -> tuple[Tensor, Tensor]:
    """``1 - r`` and ``r m``: with S the covariance of N vectors, ``(1 - r) S + r m I`` is taken.

    m is the mean of S's eigenvalues, and r is chosen by how much S would vary with the sample
    (Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
    2004, lemma 3.2, equation 14 and section 3.3).

    Parameters
    ----------
    count, dim : int
        N, and the length of the vectors.
    norms : Tensor of shape (N,), float64
        Squared, of the vectors less their mean.
    trace, scatter : Tensor, scalar
        Sum of S's eigenvalues, and of their squares.
    """
    mean = trace / dim
    apart = scatter / dim - mean**2  # of S from m I
    error = (norms.square().sum() / count - scatter) / (dim * count)  # of S
    ratio = torch.where(apart > 0, error / apart.clamp(min=1e-300), 1.0).clamp(0, 1)
    return 1 - ratio, ratio * mean
