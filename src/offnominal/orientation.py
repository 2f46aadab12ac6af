"""Whether good parts come turned: a test without labels, on a few references.

A part that lies at any angle finds its like among references that were turned. One that always
lies the same way does not, and turned references only give its defects more to resemble.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MOST_TESTED", "OrientationTest", "lone_reference", "mean_distance", "orientation_test"]

MOST_TESTED = 8
"""References that the test looks at, at most."""

_NEARER = 0.9  # of the distance to the others as they are; what chance does not reach
_QUERIES = 512  # patches of a reference that are looked up; a mean needs no more
_ALIKE = 1e-6  # of a squared length, which is what float32 leaves of no distance
_AT_ONCE = 2**14  # rows that they are compared with at a time


@dataclass(frozen=True)
class OrientationTest:
    """What the test found on some references.

    Attributes
    ----------
    turned : bool
        Whether good parts come turned.
    reason : str
        In words.
    references : int
        How many were compared with one another.
    ratio : float
        Mean distance of a reference to the other that is most like it, whichever way that is
        turned, over the same with the others as they are: 1 where turning them brings nothing.
    """

    turned: bool
    reason: str
    references: int
    ratio: float


def mean_distance(queries: Tensor, rows: Tensor) -> float:
    """Mean Euclidean distance of patches (q, D) to the nearest of rows (n, D); inf without rows.

    At most 512 of the patches are looked up, evenly drawn.
    """
    if not len(rows):
        return torch.inf
    if len(queries) > _QUERIES:
        even = torch.linspace(0, len(queries) - 1, _QUERIES, dtype=torch.float64)
        queries = queries[even.round().long().to(queries.device)]
    own = (queries * queries).sum(1)
    nearest = torch.full_like(own, torch.inf)
    for some in rows.split(_AT_ONCE):
        squared = torch.addmm((some * some).sum(1), queries, some.T, alpha=-2)
        nearest = nearest.minimum(squared.amin(1) + own)
    # Patches that are equal come out as far apart as rounding has it.
    nearest = torch.where(nearest > _ALIKE * own, nearest, 0.0)
    return float(nearest.sqrt().mean(dtype=torch.float64))


def lone_reference(turned: bool) -> OrientationTest:
    """A single reference has no other to tell by: what is usual with its backbone is done."""
    reason = "one good image cannot tell; the paper's choice for DINOv2"
    if not turned:
        reason = "one good image cannot tell"
    return OrientationTest(turned, reason, 1, 1.0)


def orientation_test(distances: Tensor) -> OrientationTest:
    """Decide from distances between references whether parts come turned.

    Parameters
    ----------
    distances : Tensor of shape (n, n, angles)
        Of each reference to each other that is turned by each angle, 0 degrees first
        (:func:`mean_distance`); that of a reference to itself means nothing.

    Returns
    -------
    OrientationTest
        Parts come turned if the most similar other reference, whichever way it is turned, is less
        than 0.9 times as far as the most similar one as it is, in the mean over the references.
    """
    count = len(distances)
    own = torch.eye(count, dtype=torch.bool, device=distances.device)
    others = distances.masked_fill(own[..., None], torch.inf)
    upright, turned = others[..., 0].amin(1).mean(), others.amin((1, 2)).mean()
    ratio = float(turned / upright) if upright > 0 else 1.0
    yes = ratio < _NEARER
    reason = "good parts come turned" if yes else "good parts all lie much the same way"
    return OrientationTest(yes, reason, count, ratio)
