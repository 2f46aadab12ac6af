"""The plot of scores against the threshold: where each dot stands, for the template to draw."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Outcome", "Scores", "strip_plot"]

Outcome = Literal["hit", "miss", "false alarm", "good"]


@dataclass(frozen=True)
class Scores:
    """All the scores of one category.

    Attributes
    ----------
    category : str
    good, defective : sequence of float
        Scores of the good and of the defective images.
    threshold : float
        Images that score more than this are rejected.
    """

    category: str
    good: Sequence[float]
    defective: Sequence[float]
    threshold: float


def strip_plot(scores: Scores) -> dict[str, Any]:
    """Geometry of the strip plot, in percent of its width and pixels of its height.

    Parameters
    ----------
    scores : Scores

    Returns
    -------
    dict
        ``rows``: for good and defective images the label and the dots as (x in percent, y in
        pixels, outcome); ``threshold``: its x in percent and its text; ``ticks``: (x, text);
        ``words``: the same in a sentence.
    """
    values = [*scores.good, *scores.defective, scores.threshold]
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0

    def across(score: float) -> float:
        return round(2 + 96 * (score - low) / span, 2)

    rows = []
    kinds: tuple[tuple[str, Sequence[float], Outcome, Outcome], ...] = (
        ("Good", scores.good, "good", "false alarm"),
        ("Defective", scores.defective, "miss", "hit"),
    )
    for row, (label, each, below, above) in enumerate(kinds):
        # Dots are spread by the golden ratio, evenly and the same in every run.
        lift = [(position * 0.618034) % 1 for position in range(len(each))]
        dots = [
            (
                across(score),
                round(26 + 44 * row + 22 * (share - 0.5), 1),
                (above if score >= scores.threshold else below).replace(" ", "-"),
            )
            for score, share in zip(sorted(each), lift, strict=True)
        ]
        rows.append({"label": label, "count": len(each), "dots": dots})
    caught = sum(score >= scores.threshold for score in scores.defective)
    rejected = sum(score >= scores.threshold for score in scores.good)
    ticks = [(across(value), f"{value:.6g}") for value in _round_values(low, low + span)]
    return {
        "rows": rows,
        "threshold": (across(scores.threshold), f"{scores.threshold:.3g}"),
        "ticks": ticks,
        "words": (
            f"At the threshold {scores.threshold:.3g}, {caught} of {len(scores.defective)} "
            f"defective images are caught and {rejected} of {len(scores.good)} good images "
            "are rejected."
        ),
    }


def _round_values(low: float, high: float) -> list[float]:
    """Between three and seven round numbers from `low` to `high`."""
    magnitude = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = max(m for m in (1, 2, 5) if m * magnitude <= (high - low) / 3) * magnitude
    first, last = math.ceil(low / step), math.floor(high / step)
    return [number * step for number in range(first, last + 1)]
