"""A Gaussian at each position, from running sums, and what each image's distance is without it.

Defard, Setkov, Loesch and Audigier, "PaDiM", 2021 (arXiv 2011.08785), section III.
"""

import torch
from torch import Tensor

from offnominal.errors import OptionError

__all__ = ["PENDING", "RunningGaussians", "left_out"]

_BLOCK = 16 * 2**20  # bytes of matrices that are factorised at once
PENDING = 16  # images whose outer products are added at once: the sums are large to walk through


class RunningGaussians:
    """Mean and scatter at every position, updated image by image in float64.

    Memory: 8 P d^2 bytes, and the pending images. Groups are merged by the update of Chan, Golub
    and LeVeque (1983), which does not lose digits where the mean is far from 0.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.empty(0)
        self._blocks: list[Tensor] = []
        self._pending: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Take samples (b, P, d) of every position."""
        self._pending.append(x)
        if sum(len(each) for each in self._pending) >= PENDING:
            self._flush()

    @property
    def mean(self) -> Tensor:
        """Means of the samples, (P, d) float64."""
        self._flush()
        return self._mean

    def scatter(self) -> Tensor:
        """Sums of outer products of the deviations from the mean, (P, d, d) float64."""
        self._flush()
        return torch.cat(self._blocks)

    def factorise(self, ridge: float) -> Tensor:
        """Inverse Cholesky factors W of the covariances, (P, d, d) float32: W' W is the inverse."""
        positions, dim = self.mean.shape
        result = torch.empty(positions, dim, dim, device=self.mean.device)
        start = 0
        for block in self._blocks:
            result[start : start + len(block)] = _inverse_factor(block, self.count - 1, ridge)
            start += len(block)
        return result

    def prepare_left_out(self, ridge: float) -> None:
        """Replace the scatter by what :meth:`distance_left_out` needs."""
        self._flush()
        for index, block in enumerate(self._blocks):  # one by one: not twice the room
            self._blocks[index] = _inverse_factor(block, self.count - 2, ridge)

    def distance_left_out(self, x: Tensor, own: Tensor) -> Tensor:
        """Mahalanobis distances (P,) of any x (P, d) to the Gaussians of all samples but ``own``.

        ``own`` (P, d) is one of the samples, and may be x itself.
        """
        deviation = own.double() - self.mean
        # From the mean of the others, which lies e / (N - 1) on the other side of the mean.
        difference = x.double() - self.mean + deviation / (self.count - 1)
        pairs = torch.stack([difference, deviation], dim=2)
        parts = torch.split(pairs, [len(block) for block in self._blocks])
        both = torch.cat([torch.bmm(*one) for one in zip(self._blocks, parts, strict=True)])
        return left_out(both[..., 0], both[..., 1], self.count).sqrt()

    def _flush(self) -> None:
        if not self._pending:
            return
        x = torch.cat(self._pending).double()
        self._pending = []
        count, (_, dim) = len(x), x.shape[1:]
        centre = x.mean(0)
        x = x - centre
        if not self._blocks:
            self._mean = torch.zeros_like(centre)
            rows = torch.split(centre, max(1, _BLOCK // (8 * dim * dim)))
            self._blocks = [centre.new_zeros(len(each), dim, dim) for each in rows]
        total = self.count + count
        shift = (centre - self._mean) * (self.count * count / total) ** 0.5
        # The last row merges the two means; it is 0 for the first group.
        x = torch.cat([x, shift[None]])
        parts = torch.split(x.permute(1, 2, 0), [len(block) for block in self._blocks])
        for block, part in zip(self._blocks, parts, strict=True):
            block.baddbmm_(part, part.mT)
        self._mean = self._mean + (centre - self._mean) * (count / total)
        self.count = total


def left_out(x: Tensor, own: Tensor, count: int) -> Tensor:
    """Squared Mahalanobis distances (P,) to the Gaussians of the other N - 1 samples.

    With the mean m and the scatter S of all, and the deviation e = own - m of the one left out:

    - the others' mean is m - e/(N - 1), and f = x - m + e/(N - 1) is what x deviates from it,
    - their scatter is S - N/(N - 1) e e',
    - so their covariance is A - c e e', where A = S/(N - 2) + ridge I is the same for every sample
      and c = N / ((N - 1)(N - 2)).

    With A^-1 = W' W, u = W e and v = W f, Sherman and Morrison's formula gives
    f' (A - c e e')^-1 f = v'v + c (u'v)^2 / (1 - c u'u). Where one sample is left, its scatter is 0
    whatever it is divided by, and N - 2 is taken as 1.

    Parameters
    ----------
    x, own : Tensor of shape (P, d), float64
        v and u; c u'u is below 1, and near it where there are more dimensions than samples.
    count : int
        N, at least 2.
    """
    c = count / ((count - 1) * max(count - 2, 1))
    across = (x * own).sum(1)
    return x.square().sum(1) + c * across.square() / (1 - c * own.square().sum(1))


def _inverse_factor(scatter: Tensor, divisor: int, ridge: float) -> Tensor:
    covariance = scatter / max(divisor, 1)
    covariance.diagonal(dim1=1, dim2=2).add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed.any()):
        raise OptionError(
            f"ridge {ridge}: too small for features of this scale, the covariance cannot be "
            "inverted; give more"
        )
    identity = torch.eye(scatter.shape[1], dtype=scatter.dtype, device=scatter.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    return inverse
