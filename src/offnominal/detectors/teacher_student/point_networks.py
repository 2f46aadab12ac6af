"""3D-ST's networks and losses, as plain modules and functions of points and their neighbours.

Bergmann and Sattlegger, "Anomaly Detection in 3D Point Clouds using Deep Geometric Descriptors",
WACV 2023 (arXiv 2202.11660), sections 3.1 and 4.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor, nn

__all__ = ["Decoder", "PointNetwork", "chamfer", "farthest", "graph_of", "receptive_field"]
__all__ = [*__all__, "interpolated", "spacing", "student_loss"]

_SLOPE, _DECODER_SLOPE = 0.2, 0.05  # of the leaky rectifiers
_HIDDEN = 128
_NEAREST = 3  # points that a value is interpolated from


class SharedMLP(nn.Sequential):
    """One layer, the same for each point."""

    def __init__(self, taken: int, given: int) -> None:
        super().__init__(nn.Linear(taken, given), nn.LeakyReLU(_SLOPE))


class Aggregation(nn.Module):
    """Local feature aggregation: what lies around a point, and what is known of that.

    Of each neighbour the vector to it and its length, seen through a layer, beside its own
    features; the mean over the neighbours. It gives twice as many features as it takes.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.geometry = SharedMLP(4, dim)

    def forward(self, features: Tensor, around: Tensor, graph: Tensor) -> Tensor:
        """Features (N, 2 d), from (N, d), vectors and lengths (N, k, 4), and neighbours (N, k)."""
        theirs = features.index_select(0, graph.flatten()).view(*graph.shape, -1)  # faster than []
        return torch.cat([self.geometry(around).mean(1), theirs.mean(1)], dim=1)


class Block(nn.Module):
    """A residual block: two aggregations between layers, beside a layer alone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.narrow = SharedMLP(dim, dim // 4)
        self.first, self.second = Aggregation(dim // 4), Aggregation(dim // 2)
        self.last, self.beside = SharedMLP(dim, dim), SharedMLP(dim, dim)

    def forward(self, features: Tensor, around: Tensor, graph: Tensor) -> Tensor:
        """Features (N, d) of the same shape."""
        found = self.first(self.narrow(features), around, graph)
        sums: Tensor = self.last(self.second(found, around, graph)) + self.beside(features)
        return sums


class PointNetwork(nn.Module):
    """The teacher's and the student's network: a descriptor of each point of a cloud.

    It knows vectors between points only, so it does not notice where a cloud lies, nor the order of
    its points.

    Parameters
    ----------
    dim : int
        Length of a descriptor, a multiple of 4; 64 in the paper.
    blocks : int
        Residual blocks; 4 in the paper. A descriptor sees twice as many steps from neighbour to
        neighbour.
    """

    def __init__(self, dim: int = 64, blocks: int = 4) -> None:
        super().__init__()
        self.dim = dim
        self.blocks = nn.ModuleList([Block(dim) for _ in range(blocks)])
        self.head = nn.Sequential(SharedMLP(dim, dim), nn.Linear(dim, dim))

    def forward(self, points: Tensor, graph: Tensor) -> Tensor:
        """Descriptors (N, d) of points (N, 3), whose neighbours are (N, k)."""
        vectors = points[:, None] - points[graph]
        around = torch.cat([vectors, vectors.norm(dim=2, keepdim=True)], dim=2)
        features = points.new_zeros(len(points), self.dim)
        for block in self.blocks:
            features = block(features, around, graph)
        found: Tensor = self.head(features)
        return found


class Decoder(nn.Sequential):
    """What a descriptor says of the points around it: (B, m, 3) of (B, d)."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(
            nn.Linear(dim, _HIDDEN), nn.LeakyReLU(_DECODER_SLOPE),
            nn.Linear(_HIDDEN, _HIDDEN), nn.LeakyReLU(_DECODER_SLOPE),
            nn.Linear(_HIDDEN, 3 * count), nn.Unflatten(1, (count, 3)),
        )  # fmt: skip


def graph_of(points: NDArray[np.float32], neighbours: int) -> NDArray[np.int64]:
    """The nearest other points (N, k) of points (N, 3)."""
    _, found = cKDTree(points).query(points, min(neighbours + 1, len(points)))
    nearest: NDArray[np.int64] = found[:, 1:].astype(np.int64)
    return nearest


def spacing(points: Tensor, graph: Tensor) -> Tensor:
    """Mean distance of points (N, 3) from their neighbours (N, k), which becomes 1."""
    apart: Tensor = (points[:, None] - points[graph]).norm(dim=2)
    return apart.mean()


def receptive_field(graph: Tensor, start: int, steps: int) -> Tensor:
    """Numbers of the points that a descriptor depends on: so many steps away or fewer."""
    seen = torch.zeros(len(graph), dtype=torch.bool, device=graph.device)
    seen[start] = True
    for _ in range(steps):
        seen[graph[seen].flatten()] = True
    return seen.nonzero()[:, 0]


def chamfer(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared distance of each point of a cloud (n, 3) from the other's nearest, both ways."""
    between = torch.cdist(one, other).square()
    return between.amin(1).mean() + between.amin(0).mean()


def farthest(points: NDArray[np.float32], count: int, seed: int) -> NDArray[np.intp]:
    """Places of points (N, 3) that lie far from one another, the first drawn at random.

    Each next one is the farthest from those before. Of more than four times as many points a random
    part of that size is looked at, so that large scans take no longer.
    """
    rng = np.random.default_rng(seed)
    some = rng.permutation(len(points))[: 4 * count]
    if len(some) <= count:
        return np.sort(some)
    part = np.ascontiguousarray(points[some].T)
    near = np.full(len(some), np.inf, np.float32)
    chosen = np.zeros(count, np.intp)
    for place in range(1, count):
        apart = part - part[:, chosen[place - 1], None]
        np.minimum(near, np.einsum("ij,ij->j", apart, apart), out=near)
        chosen[place] = near.argmax()
    return some[chosen]


def interpolated(
    places: NDArray[np.float32], values: NDArray[np.float32], wanted: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Values (M,) at points (M, 3) from those (N,) at others (N, 3), by inverse squared distances.

    Of the three nearest.
    """
    apart, near = cKDTree(places).query(wanted, _NEAREST)
    weights = 1 / np.maximum(apart, 1e-9) ** 2
    found: NDArray[np.float32] = ((values[near] * weights).sum(1) / weights.sum(1)).astype("f4")
    return found


def student_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of descriptors (N, d), the teacher's standardised."""
    return F.mse_loss(student, teacher, reduction="sum") / len(student)
