"""One category's scores and curves: histogram, ROC, precision against recall, overlap."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from offnominal.benchmark.store import FinishedCell
from offnominal.report.drawing import GOOD, INK, SERIES, SHEET, SOFT, WRONG, style
from offnominal.report.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["cell_figure", "cell_words"]

_PRO_LIMIT = 0.3  # the curve is integrated up to here (Bergmann et al., 2021, section 5)
_IMAGE, _PIXEL = SERIES[0], SERIES[4]


def cell_figure(cell: FinishedCell) -> "Figure":
    """Histogram of scores with the threshold, and the ROC, PR and PRO curves of one cell."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with style():
        figure = Figure(figsize=(10.6, 2.25), layout=ConstrainedLayoutEngine(w_pad=0.1))
        axes = figure.subplots(1, 4, width_ratios=[1.5, 1, 1, 1])
        _histogram(axes[0], cell)
        curves = cell.metrics.get("curves") or {}
        rates = "false-positive rate", "true-positive rate"
        _curves(axes[1], curves, "roc", *rates)
        _roc(axes[1], cell.metrics["figures"])
        _curves(axes[2], curves, "pr", "recall", "precision")
        _curves(axes[3], curves, "pro", "false-positive rate of pixels", "overlap with defects")
        axes[3].set(xlim=(-0.006, _PRO_LIMIT), xticks=[0, 0.1, 0.2, 0.3])
    return figure


def cell_words(cell: FinishedCell) -> str:
    """What the figure says, in a sentence or two."""
    figures = cell.metrics["figures"]
    labels, decisions = cell.scores["label"], cell.scores["is_anomalous"]
    told = [f"{labels.count(0):,} good, {labels.count(1):,} defective."]
    if cell.unscored:
        told.append(f"{cell.unscored:,} more got no score.")
    if None in decisions:
        told.append("No threshold of its own: too few good images were known.")
    else:
        decided = list(zip(labels, decisions, strict=True))
        rejected, missed = decided.count((0, True)), decided.count((1, False))
        kind = (cell.run.get("threshold") or {}).get("kind", "")
        told.append(
            f"At its own threshold{f' ({kind})' if kind else ''}: {rejected:,} good rejected, "
            f"{missed:,} defective missed."
        )
    auroc, ap = (figures.get(name, math.nan) for name in ("image_auroc", "image_ap"))
    if not math.isnan(auroc):
        told.append(f"Image AUROC {percent(auroc)}, AP {percent(ap)}.")
    return " ".join(told)


def _histogram(axes: "Axes", cell: FinishedCell) -> None:
    from matplotlib.ticker import MaxNLocator

    scores = np.asarray(cell.scores["score"], np.float64)
    labels = np.asarray(cell.scores["label"])
    thresholds = [value for value in cell.scores["threshold"] if value is not None]
    limit = float(np.median(thresholds)) if thresholds else math.nan
    low, high = float(scores.min()), float(scores.max())
    # A single far outlier must not press all the others into one bar.
    cut = float(np.percentile(scores, 99)) + 0.35 * float(np.ptp(np.percentile(scores, [1, 99])))
    edges = np.linspace(low, min(high, max(cut, limit if thresholds else cut)) or 1.0, 33)
    shown = np.minimum(scores, edges[-1])
    kinds = ((0, GOOD, 0.85, "good"), (1, WRONG, 0.6, "defective"))
    for label, colour, alpha, name in kinds:
        axes.hist(
            shown[labels == label], edges.tolist(), color=colour, alpha=alpha, label=name, lw=0
        )
    if thresholds:
        axes.axvline(limit, color=INK, lw=1.2, ls=(0, (4, 2.5)), label=f"threshold {limit:.3g}")
    axes.set_xlabel("image score" + (" (last bar: and above)" if high > edges[-1] else ""))
    axes.set_ylabel("images")
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=3,
        columnspacing=1,
        handlelength=1,
        borderaxespad=0.2,
    )


def _curves(axes: "Axes", curves: Mapping[str, Any], name: str, x: str, y: str) -> None:
    for kind, colour, line in (("image", _IMAGE, "-"), ("pixel", _PIXEL, "--")):
        curve = (curves.get(kind) or {}).get(name)
        if curve and curve["x"]:
            axes.plot(curve["x"], curve["y"], color=colour, ls=line, label=f"{kind}s")
    if not axes.lines:
        axes.text(0.5, 0.5, "not measured", ha="center", color=SOFT, transform=axes.transAxes)
    axes.set(title=name.upper(), xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    axes.set_xticks([0, 0.5, 1])
    axes.set_yticks([0, 0.5, 1])


def _roc(axes: "Axes", figures: Mapping[str, float]) -> None:
    """Where guessing lies, and where the detector's own threshold stands."""
    drawn = bool(axes.lines)
    axes.plot([0, 1], [0, 1], color=SOFT, lw=0.8, ls=":", zorder=1)
    at = figures.get("false_rejects", math.nan), 1 - figures.get("misses", math.nan)
    if not any(map(math.isnan, at)):
        ring: Any = {"mfc": SHEET, "mec": INK, "mew": 1.4, "clip_on": False, "zorder": 5}
        axes.plot(*at, "o", ms=7, label="threshold", **ring)
    if drawn:
        axes.legend(loc="lower right", borderaxespad=0.3)
