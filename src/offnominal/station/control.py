"""Control charts: whether a process is still what it was when it was known to be right.

The exponentially weighted moving average of Roberts ("Control chart tests based on geometric moving
averages", Technometrics 1, 1959): z_i = w x_i + (1 - w) z_(i-1), from z_0 = the centre. Where each
x_i is a mean of n_i values of the standard deviation s, the variance of z_i is

    v_i = w^2 s^2 / n_i + (1 - w)^2 v_(i-1),  v_0 = 0,

which for equal n is his s^2 / n * w / (2 - w) * (1 - (1 - w)^(2 i)): narrow at first, and wider
until the beginning is forgotten. The limits lie `width` times its root from the centre.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Control", "ewma"]

_MATTERS = 0.5  # standard deviations of single values: a smaller shift is no reason to stop a line


@dataclass(frozen=True)
class Control:
    """A control chart.

    Attributes
    ----------
    average, half : float64 arrays of shape (n,)
        The moving average, and how far the limits lie from the centre.
    centre, sigma : float
        Mean and standard deviation of single values when the process was right.
    """

    average: NDArray[np.float64]
    half: NDArray[np.float64]
    centre: float
    sigma: float

    @property
    def outside(self) -> NDArray[np.bool_]:
        """Where the average is beyond its limits, by a shift that matters as well; (n,).

        With many values to a point the limits alone are so narrow that they find what nobody has
        to mend; half a standard deviation of single values is asked for besides.
        """
        away = np.abs(self.average - self.centre)
        found: NDArray[np.bool_] = away > np.maximum(self.half, _MATTERS * self.sigma)
        return found

    @property
    def alarm(self) -> int | None:
        """The first of the points outside that the chart ends with; None: it ends inside.

        All of them lie on one side.
        """
        outside, side = self.outside, np.sign(self.average - self.centre)
        if not len(outside) or not outside[-1]:
            return None
        first = len(outside) - 1
        while first and outside[first - 1] and side[first - 1] == side[-1]:
            first -= 1
        return first

    @property
    def rises(self) -> bool:
        """Whether the last point lies above the centre."""
        return bool(len(self.average) and self.average[-1] > self.centre)


def ewma(
    values: Sequence[float],
    counts: Sequence[int],
    centre: float,
    sigma: float,
    weight: float = 0.2,
    width: float = 3.0,
) -> Control:
    """The control chart of means.

    Parameters
    ----------
    values : sequence of float, n
        Means, in the order of time.
    counts : sequence of int, n
        How many values each is the mean of, 1 or more.
    centre, sigma : float
        Of single values when the process was right; sigma above 0.
    weight : float
        Of the newest mean, on (0, 1].
    width : float
        Of the limits, in standard deviations of the average.
    """
    average, half = np.empty(len(values)), np.empty(len(values))
    last, variance = centre, 0.0
    for place, (value, count) in enumerate(zip(values, counts, strict=True)):
        last = weight * value + (1 - weight) * last
        variance = weight**2 * sigma**2 / count + (1 - weight) ** 2 * variance
        average[place], half[place] = last, width * variance**0.5
    return Control(average, half, centre, sigma)
