"""Principal components of patch features, from sums that can be added to and taken from.

Lendering, Akdag and Bondarev, "SubspaceAD", CVPR 2026 (arXiv 2602.23013): features of good parts
lie near a linear subspace, and what lies outside of it is anomalous.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["Moments", "Subspace"]


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of a set of vectors, in float64.

    Attributes
    ----------
    count : int
        n.
    mean : Tensor of shape (D,), float64
    scatter : Tensor of shape (D, D), float64
        Sum of (x - mean)(x - mean)'; the covariance is this divided by n - 1.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dim: int, device: torch.device | None = None) -> Self:
        """Of no vector at all."""
        zeros = torch.zeros(dim, dtype=torch.float64, device=device)
        return cls(0, zeros, zeros.new_zeros((dim, dim)))

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Of features (N, D)."""
        rows = features.double()
        mean = rows.mean(0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def plus(self, other: Self) -> Self:
        """Of both sets together (Chan, Golub and LeVeque, 1979, eq. 2.1, for vectors)."""
        count = self.count + other.count
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        between = torch.outer(gap, gap) * (self.count * other.count / count)
        return type(self)(count, mean, self.scatter + other.scatter + between)

    def minus(self, other: Self) -> Self:
        """Of what is left when a part of the set is taken out."""
        count = self.count - other.count
        mean = self.mean + (self.mean - other.mean) * (other.count / count)
        gap = other.mean - mean
        between = torch.outer(gap, gap) * (count * other.count / self.count)
        return type(self)(count, mean, self.scatter - other.scatter - between)


@dataclass(frozen=True)
class Subspace:
    """The span of the leading principal components.

    Attributes
    ----------
    mean : Tensor of shape (D,), float32
    basis : Tensor of shape (D, D), float32
        All components as columns, by falling variance; their signs mean nothing.
    eigenvalues : Tensor of shape (D,), float64
        Variances along them.
    kept : int
        k: how many of them span the subspace.
    """

    mean: Tensor
    basis: Tensor
    eigenvalues: Tensor
    kept: int

    @classmethod
    def of(cls, moments: Moments, variance: float = 0.99) -> Self:
        """The smallest subspace that explains a share of the variance.

        Parameters
        ----------
        moments : Moments
        variance : float
            On (0, 1); the paper's is 0.99.
        """
        values, vectors = torch.linalg.eigh(moments.scatter / max(moments.count - 1, 1))
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        share = values.cumsum(0) / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
        kept = int((share < variance).sum()) + 1
        # A direction must be left over, or every residual would be 0.
        kept = max(1, min(kept, len(values) - 1))
        basis = vectors.float().contiguous()
        return cls(moments.mean.float(), basis, values, kept)

    def residual(self, features: Tensor) -> Tensor:
        """Squared distance (N,) of features (N, D) from the subspace.

        The energy along the components that were left out is that of the residual,
        |x - mean - C C' (x - mean)|^2, without the difference of two large numbers.
        """
        outside = (features - self.mean) @ self.basis[:, self.kept :]
        return outside.square().sum(-1)

    def reconstruct(self, features: Tensor) -> Tensor:
        """Features (N, D) projected onto the subspace."""
        components = self.basis[:, : self.kept]
        return self.mean + (features - self.mean) @ components @ components.T
