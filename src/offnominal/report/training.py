"""The page of a training: how the loss fell, what it was made of, and under what settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offnominal.report.drawing import SOFT, series, style, svg
from offnominal.report.page import write
from offnominal.report.words import heading, not_pretrained, setting_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["intervals", "write_training_page"]

Row = Sequence[float]
"""Epoch and step, both from 1, then total, image, focal, dice abnormal, dice normal."""

_PARTS = {
    "image": ("Images", "cross-entropy of whole images, good or defective; 0.69 is guessing"),
    "focal": ("Maps, focal", "how wrong pixels are, those that are easy counted little"),
    "dice_abnormal": (
        "Maps, Dice of defects",
        "1 less the overlap of the map with the defects; good images, which have none, count "
        "nearly 1 whatever their maps",
    ),
    "dice_normal": ("Maps, Dice of good areas", "the same for what is free of defects"),
}


def write_training_page(
    path: Path,
    title: str,
    history: Sequence[Row],
    means: Sequence[Mapping[str, float]],
    settings: Mapping[str, Any],
    parts: Sequence[str],
    formula: str,
    untrained: str = "",
    steps: int = 0,
) -> Path:
    """Write one HTML file that opens from disk without a network.

    Parameters
    ----------
    path : Path
        Replaced in one step.
    title : str
        Heading of the page.
    history : sequence of rows
        One row a step, with the parts of the loss.
    means : sequence of mappings
        Means over the steps of each epoch, by part.
    settings : mapping
        What it was trained with, as plain values.
    parts : sequence of str
        Names of the parts that the loss was made of.
    formula : str
        How, in a sentence; empty where it is the one part itself.
    untrained : str
        Why the page says nothing of the method: the weights of its network are not pretrained.
        Empty if nothing is known against them.
    steps : int
        Where the rows are :func:`intervals` of a training of so many steps; 0: they are epochs.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    OptionError
        If the file cannot be written.
    """
    words = _headline(means, steps)
    heads = ["total", *parts] if len(parts) > 1 else ["total"]
    ends = [f"{number * steps // len(means):,}" if steps else str(number)
            for number in range(1, len(means) + 1)]  # fmt: skip
    rows = [([end], [_loss(mean[part]) for part in heads])
            for end, mean in zip(ends, means, strict=True)]  # fmt: skip
    return write(
        path,
        "training.html.j2",
        title,
        words,
        warning=not_pretrained("its network", untrained) if untrained else "",
        figure=svg(_figure(history, means, heads[1:], steps), words) if means else "",
        each="Up to step" if steps else "Epoch",
        heads=["Loss", *(_named(part)[0] for part in heads[1:])],
        rows=rows,
        key=[named for part in parts if (named := _named(part))[1]],
        formula=formula,
        settings=[(heading(k), setting_words(k, v)) for k, v in settings.items()],
    )


def intervals(history: Sequence[Mapping[str, float]], parts: int = 20) -> list[dict[str, float]]:
    """Rows of single steps, counted anew as steps of so many equal parts of the training."""
    parts = min(parts, len(history))
    rows, before = [], (0, 0)
    for number, row in enumerate(history):
        part = number * parts // len(history) + 1
        before = (part, before[1] + 1 if part == before[0] else 1)
        rows.append({**row, "epoch": part, "step": before[1]})
    return rows


def _named(part: str) -> tuple[str, str]:
    """A part's heading, and what it is; empty where its name says it."""
    return _PARTS.get(part, (part.replace("_", " ").capitalize(), ""))


def _headline(means: Sequence[Mapping[str, float]], steps: int) -> str:
    if not means:
        return "Nothing has been trained yet: all is as it was drawn."
    first, last = means[0]["total"], means[-1]["total"]
    if steps:
        change = "fell" if last < first else "did not fall: it went"
        return (
            f"Over {steps:,} steps the loss {change} from {first:.3g}, the mean over the first "
            f"{steps // len(means):,}, to {last:.3g}, the mean over the last."
        )
    if len(means) == 1:
        return f"After one epoch; the mean loss of its steps was {first:.3f}."
    change = "fell" if last < first else "did not fall: it went"
    return (
        f"Over {len(means)} epochs the loss {change} from {first:.3f}, the mean over the first, to "
        f"{last:.3f}, the mean over the last."
    )


def _figure(
    history: Sequence[Row], means: Sequence[Mapping[str, float]], parts: Sequence[str], steps: int
) -> "Figure":
    """The loss of each step, its means, and those of its parts, in the middle of their epochs."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(9.2, 3.1))
        axes = figure.subplots()
        width = steps / len(means) if steps else 1
        last = {int(row[0]): row[1] for row in history}  # the last step of each epoch
        x = [width * (row[0] - 1 + (row[1] - 0.5) / last[int(row[0])]) for row in history]
        y = [row[2] for row in history]
        axes.plot(x, y, color=SOFT, lw=0.7, alpha=0.55, label="each step")
        middle = [width * (epoch + 0.5) for epoch in range(len(means))]
        labels = {"total": "mean" if steps else "mean of an epoch"} | {
            part: _named(part)[0] for part in parts
        }
        for number, (part, label) in enumerate(labels.items()):
            colour, marker, _ = series(number)
            values = [each[part] for each in means]
            axes.plot(middle, values, color=colour, marker=marker, label=label)
        axes.set(title="Loss", xlabel="steps" if steps else "epochs", xlim=(0, width * len(means)))
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.grid(axis="x", visible=False)
        axes.locator_params(axis="x", integer=True)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _loss(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"
