"""How well image scores tell good from defective: AUROC, AP and F1-max."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from offnominal.errors import OptionError

__all__ = ["image_metrics"]


def image_metrics(
    labels: Sequence[int] | npt.NDArray[np.generic],
    scores: Sequence[float] | npt.NDArray[np.generic],
) -> dict[str, float]:
    """Image-level AUROC, average precision and best F1, on the scores as they are.

    Parameters
    ----------
    labels : array-like of shape (n,)
        0 for a good image, 1 for a defective one.
    scores : array-like of shape (n,)
        Image scores of any range; larger is more anomalous. They are neither clamped nor squashed.

    Returns
    -------
    dict of str to float
        ``image_auroc``, ``image_ap`` and ``image_f1_max`` in [0, 1], and
        ``image_f1_max_threshold``, in units of the scores: rejecting every image whose score is at
        least this gives that F1. All four are nan when the images are all good or all defective.

    Raises
    ------
    OptionError
        If the lengths differ, a label is neither 0 nor 1, or a score is not finite.
    """
    truth = np.asarray(labels).ravel()
    values = np.asarray(scores, dtype=np.float64).ravel()
    if truth.shape != values.shape:
        raise OptionError(
            f"labels has {truth.size} entries and scores has {values.size}: "
            "give one score for each label"
        )
    if not np.isin(truth, (0, 1)).all():
        raise OptionError("labels holds something other than 0 (good) and 1 (defective)")
    if not np.isfinite(values).all():
        raise OptionError(
            f"scores: {np.count_nonzero(~np.isfinite(values))} of {values.size} are not finite; "
            "find the images they belong to, or leave those images out and report them"
        )
    truth = truth.astype(bool)
    names = ("image_auroc", "image_ap", "image_f1_max", "image_f1_max_threshold")
    if not truth.any() or truth.all():
        return dict.fromkeys(names, float("nan"))
    precision, recall, thresholds = precision_recall_curve(truth, values)
    # The last point of the curve (recall 0) has no threshold.
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    best = int(np.argmax(f1[:-1]))
    figures = (
        roc_auc_score(truth, values),
        average_precision_score(truth, values),
        f1[best],
        thresholds[best],
    )
    return dict(zip(names, map(float, figures), strict=True))
