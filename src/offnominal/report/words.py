"""Figures and settings in words, and numbers as they are printed."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from offnominal.text import printable

__all__ = ["METRICS", "Metric", "count", "difference", "heading", "join", "not_pretrained"]
__all__ += ["percent", "setting_words", "spread"]


class Metric(NamedTuple):
    """How a figure is called, what it means in plain words, and whether higher is better."""

    heading: str
    meaning: str
    higher: bool = True


_CHANCE = "the chance that a defective image scores higher than a good one; 0.5 is guessing"
_AUPRO = (
    "how much of each defect is covered, small ones as much as large, while few good pixels are"
)
_MISSED = "defective images passed when {} of good ones are rejected"
_REJECTED = "good test images above the threshold that the detector set itself"

METRICS = {
    "image_auroc": Metric("Image AUROC", _CHANCE),
    "image_ap": Metric("Image AP", "precision averaged over all thresholds, counting images"),
    "image_f1_max": Metric("Image F1-max", "balance of caught and false alarms at the best limit"),
    "pixel_auroc": Metric("Pixel AUROC", "the same chance, for a defective and a good pixel"),
    "pixel_ap": Metric("Pixel AP", "precision averaged over all thresholds, counting pixels"),
    "pixel_f1_max": Metric("Pixel F1-max", "balance of found and false pixels at the best limit"),
    "aupro": Metric("AUPRO", _AUPRO),
    "aupro_0.05": Metric("AUPRO 5 %", "the same, while at most 5 % of the good pixels are covered"),
    "image_miss_at_0.1%": Metric("Missed at 0.1 %", _MISSED.format("0.1 %"), False),
    "image_miss_at_1%": Metric("Missed at 1 %", _MISSED.format("1 %"), False),
    "image_miss_at_5%": Metric("Missed at 5 %", _MISSED.format("5 %"), False),
    "false_rejects": Metric("False rejects", _REJECTED, False),
    "misses": Metric("Misses", "defective images below that threshold", False),
}

_HEADINGS = {
    "shots": "Good images",
    "dataset": "Data set",
    "sampling": "References",
    "false_reject": "False-reject rate",
    "lr": "Learning rate",
    "untrained": "Weights",
    "defects": "Labelled defects",
    "marked": "Masks",
    "tested": "Tested on",
    "set_aside": "Defects set aside",
}
_TESTED = {"all": "all kinds", "known": "known kinds", "left out": "the kind left out"}


def percent(value: float) -> str:
    """A share of 1 in percent, one decimal."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def spread(mean: float, std: float) -> str:
    """Mean and standard deviation of shares, in percent; without a deviation, the mean."""
    return percent(mean) if math.isnan(std) else f"{percent(mean)} ± {100 * std:.1f}"


def difference(points: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{round(points, 1) or 0:+.1f}".replace("-", "−")


def heading(name: str) -> str:
    """The name of a figure, a setting, a category or a file, in words that begin large."""
    if name in METRICS:
        return METRICS[name].heading
    words = printable(name).replace("_", " ").strip()
    return _HEADINGS.get(name, words[:1].upper() + words[1:])


def setting_words(axis: str, value: Any, *, alone: bool = False) -> str:
    """A setting's value as it is printed.

    Parameters
    ----------
    axis : str
        The setting, such as ``shots`` or ``rotations``.
    value : object
        A plain value.
    alone : bool
        The setting's name is not beside it, so that the value must speak for itself.
    """
    if axis == "untrained":
        return "not pretrained" if value else "pretrained"
    if axis == "tested":
        return _TESTED.get(value, printable(str(value)))
    if axis == "marked" and alone:
        return "with masks" if value else "without masks"
    if axis == "defects" and alone:
        return f"{value or 'no'} defect{'' if value == 1 else 's'}"
    if axis == "shots":
        words = {None: "all", 0: "no" if alone else "none"}.get(value, str(value))
        return f"{words} image{'' if value == 1 else 's'}" if alone else words
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, list | tuple):
        text = ", ".join(map(str, value))
    text = {"True": "yes", "False": "no", "None": "default"}.get(text, text)
    named = not alone or axis in ("method", "dataset", "backbone")
    # In figures too, which no template escapes.
    return printable(text if named else f"{axis.replace('_', ' ')} {text}")


def count(number: int, what: str) -> str:
    """A number of things, such as ``1,725 images``."""
    plural = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{number:,} {what if number == 1 else plural}"


def join(words: Sequence[str]) -> str:
    """A list in a sentence."""
    *others, last = words or [""]
    return f"{', '.join(others)} and {last}" if others else last


def not_pretrained(what: str, why: str) -> str:
    """The note at the top of a page, where figures say nothing of a method."""
    return (
        f"The weights of {what} were not pretrained ({why}). The figures made with them say "
        "nothing about the method, only that the program runs; they are compared with nothing."
    )
