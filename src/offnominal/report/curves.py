"""One category's scores and curves: histogram, ROC, precision against recall, overlap."""

import math
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


def cell_figure(cell: FinishedCell) -> "Figure":
    """Histogram of scores with the threshold, and the ROC, PR and PRO curves of one cell."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with style():
        figure = Figure(figsize=(10.6, 2.25), layout=ConstrainedLayoutEngine(w_pad=0.1))
        histogram, roc, pr, pro = figure.subplots(1, 4, width_ratios=[1.5, 1, 1, 1])
        _histogram(histogram, cell)
        _curves(roc, cell, "roc", "false-positive rate", "true-positive rate")
        _curves(pr, cell, "pr", "recall", "precision")
        _curves(pro, cell, "pro", "false-positive rate of pixels", "overlap with defects")
        pro.set(xlim=(-0.006, _PRO_LIMIT), xticks=[0, 0.1, 0.2, 0.3])
        if roc.lines:
            figures = cell.metrics["figures"]
            at = figures.get("false_rejects", math.nan), 1 - figures.get("misses", math.nan)
            # Where guessing lies, and where the detector's own threshold stands.
            roc.plot([0, 1], [0, 1], color=SOFT, lw=0.8, ls=":", zorder=1)
            if not any(map(math.isnan, at)):
                ring: Any = {"mfc": SHEET, "mec": INK, "mew": 1.4, "clip_on": False, "zorder": 5}
                roc.plot(*at, "o", ms=7, label="threshold", **ring)
            roc.legend(loc="lower right", borderaxespad=0.3)
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

    scores, labels = np.asarray(cell.scores["score"], float), np.asarray(cell.scores["label"])
    limits = [value for value in cell.scores["threshold"] if value is not None][:1]
    # A single far outlier must not press all the others into one bar.
    low, last, high = np.percentile(scores, [0, 99, 100])
    cut = last + 0.35 * (last - np.percentile(scores, 1))
    edges = np.linspace(low, min(high, max([cut, *limits])) or 1.0, 33)
    shown = np.minimum(scores, edges[-1])
    for label, colour, alpha, name in ((0, GOOD, 0.85, "good"), (1, WRONG, 0.6, "defective")):
        mine = shown[labels == label]
        axes.hist(mine, edges.tolist(), color=colour, alpha=alpha, label=name, lw=0)
    for limit in limits:
        axes.axvline(limit, color=INK, lw=1.2, ls=(0, (4, 2.5)), label=f"threshold {limit:.3g}")
    axes.set_xlabel("image score" + (" (last bar: and above)" if high > edges[-1] else ""))
    axes.set_ylabel("images")
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    above: Any = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.2}
    axes.legend(ncols=3, columnspacing=1, handlelength=1, **above)


def _curves(axes: "Axes", cell: FinishedCell, name: str, x: str, y: str) -> None:
    curves = cell.metrics.get("curves") or {}
    for kind, colour, line in (("image", SERIES[0], "-"), ("pixel", SERIES[4], "--")):
        curve = (curves.get(kind) or {}).get(name)
        if curve and curve["x"]:
            axes.plot(curve["x"], curve["y"], color=colour, ls=line, label=f"{kind}s")
    if not axes.lines:
        axes.text(0.5, 0.5, "not measured", ha="center", color=SOFT, transform=axes.transAxes)
    axes.set(title=name.upper(), xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    axes.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
