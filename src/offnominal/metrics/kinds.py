"""Figures of each class of defect, and which class was taken for which."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from offnominal.errors import OptionError
from offnominal.metrics.image import image_metrics

__all__ = ["GOOD", "UNNAMED", "confusion", "kind_figures"]

GOOD = "good"
"""What images without a defect are called in :func:`confusion`, and those that passed."""
UNNAMED = "(no class)"
"""What rejected images are called there whose class was not told."""


def kind_figures(
    labels: Sequence[int],
    defects: Sequence[str],
    scores: Sequence[float],
    decisions: Sequence[bool | None],
    said: Sequence[str | None] | None = None,
) -> list[dict[str, Any]]:
    """One row for each class of defect: its images against all the good ones.

    Parameters
    ----------
    labels : sequence of int
        0 for a good image, 1 for a defective one.
    defects : sequence of str
        The class of each defective image; what stands beside a good one is not read.
    scores : sequence of float
        Image scores; larger is more anomalous.
    decisions : sequence of bool or None
        Whether each image was rejected; None without a threshold.
    said : sequence of str or None, or None
        The class that was told of each image; None: no class was told of any.

    Returns
    -------
    list of dict
        In the order of the classes' names: ``kind``; ``images``; ``image_auroc``, ``image_ap`` and
        ``image_miss_at_1%`` as :func:`~offnominal.metrics.image.image_metrics` has them;
        ``misses``, the share of its images that passed; and ``named``, the share of its rejected
        images whose class was told right, where any class that the images have was told. What is
        not defined is nan.

    Raises
    ------
    OptionError
        If the lengths differ, or scores and labels are not such as ``image_metrics`` takes.
    """
    _check_lengths(labels, defects, scores, decisions, said)
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    kinds = {name for name, label in zip(defects, labels, strict=True) if label}
    known = said is not None and not kinds.isdisjoint(said)
    rows = []
    for kind in sorted(kinds):
        own = [n for n, name in enumerate(defects) if labels[n] and name == kind]
        chosen = np.concatenate([np.flatnonzero(truth == 0), np.array(own, dtype=int)])
        found = image_metrics(truth[chosen], values[chosen])
        passed = [decisions[n] is False for n in own]
        decided = decisions[own[0]] is not None
        caught = [n for n in own if decisions[n]]
        right = [said is not None and said[n] == kind for n in caught]
        rows.append(
            {
                "kind": kind,
                "images": len(own),
                **{name: found[name] for name in ("image_auroc", "image_ap", "image_miss_at_1%")},
                "misses": sum(passed) / len(own) if decided else math.nan,
                "named": sum(right) / len(caught) if caught and known else math.nan,
            }
        )
    return rows


def confusion(
    labels: Sequence[int],
    defects: Sequence[str],
    decisions: Sequence[bool | None],
    said: Sequence[str | None],
) -> dict[str, Any] | None:
    """How many images of each class were taken for which.

    Parameters are those of :func:`kind_figures`.

    Returns
    -------
    dict or None
        ``truth``, the names of the rows: ``good``, then the classes of defects; ``said``, those of
        the columns: ``good`` (passed), then all classes that were told or are there, and
        ``(no class)`` where a rejected image has none; ``counts``, a list of rows of whole numbers.
        None where nothing was decided, or no class that the images have was told of any: what knows
        "defect" alone tells no scratch from a dent.
    """
    _check_lengths(labels, defects, decisions, said)
    truth = [name if label else GOOD for name, label in zip(defects, labels, strict=True)]
    if None in decisions or {*truth}.isdisjoint(kind for kind in said if kind):
        return None
    told = [
        (kind or UNNAMED) if rejected else GOOD
        for kind, rejected in zip(said, decisions, strict=True)
    ]
    kinds = sorted({*truth, *told} - {GOOD, UNNAMED})
    rows = [name for name in (GOOD, *kinds) if name in truth]
    columns = [GOOD, *kinds, *([UNNAMED] if UNNAMED in told else [])]
    pairs = list(zip(truth, told, strict=True))
    counts = [[pairs.count((row, column)) for column in columns] for row in rows]
    return {"truth": rows, "said": columns, "counts": counts}


def _check_lengths(*columns: Sequence[Any] | None) -> None:
    lengths = {len(column) for column in columns if column is not None}
    if len(lengths) > 1:
        told = ", ".join(map(str, sorted(lengths)))
        raise OptionError(f"columns of {told} images: give one value for each image")
