"""How well two judges agree, with an interval that says how well that is known."""

import math
from dataclasses import dataclass

__all__ = ["ENOUGH", "Agreement", "interval"]

ENOUGH = 0.95
"""A station is trusted once agreement lies above this, with 97.5 % confidence."""
_Z = 1.959963984540054  # 95 % of a normal distribution lie within


def interval(agreed: int, judged: int) -> tuple[float, float]:
    """The 95 % score interval of a rate (Wilson, 1927, Journal of the ASA 22).

    Returns
    -------
    tuple of float
        Its lower and its upper end, on [0, 1]; (0, 1) where nothing was judged.
    """
    if not judged:
        return 0.0, 1.0
    rate, square = agreed / judged, _Z * _Z
    middle = rate + square / (2 * judged)
    half = _Z * math.sqrt(rate * (1 - rate) / judged + square / (4 * judged * judged))
    whole = 1 + square / judged
    low, high = (middle - half) / whole, (middle + half) / whole
    return max(0.0, low), min(1.0, high)


@dataclass(frozen=True)
class Agreement:
    """Verdicts against what people said of the same parts.

    Attributes
    ----------
    both_good, both_bad : int
        Parts of which both said the same.
    missed : int
        The station said good, a person bad.
    false_alarms : int
        The station said reject, a person good.
    """

    both_good: int = 0
    both_bad: int = 0
    missed: int = 0
    false_alarms: int = 0

    @property
    def judged(self) -> int:
        """How many parts both judged."""
        return self.both_good + self.both_bad + self.missed + self.false_alarms

    @property
    def agreed(self) -> int:
        """Of how many they said the same."""
        return self.both_good + self.both_bad

    @property
    def rate(self) -> float | None:
        """That as a share."""
        return self.agreed / self.judged if self.judged else None

    @property
    def interval(self) -> tuple[float, float]:
        """Of that share, 95 %."""
        return interval(self.agreed, self.judged)

    @property
    def trusted(self) -> bool:
        """Whether even the lower end is above :data:`ENOUGH`; it takes 73 parts at least."""
        return self.interval[0] > ENOUGH

    @property
    def wanting(self) -> int:
        """How many further parts, all agreed on, it takes until then; 0 of one that is trusted."""
        more = 0
        while interval(self.agreed + more, self.judged + more)[0] <= ENOUGH:
            # Steps grow with what is far away; the answer is a guide, to the next tenth.
            more += max(1, more // 20)
        return more
