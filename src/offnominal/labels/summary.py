"""What annotations of a data set say, in numbers, and what does not fit."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from offnominal.datasets.report import Finding, Labels
from offnominal.datasets.sample import Sample
from offnominal.labels.formats.entry import Problem
from offnominal.labels.gather import Boxes, Classes, label_samples

__all__ = ["check_labels"]

_MOST = 20  # problems that are told one by one


def check_labels(
    read: Sequence[tuple[Sample, tuple[int, int]]], boxes: Boxes | None, classes: Classes | None
) -> tuple[Labels, list[Finding]]:
    """What is known of defective images (H, W), and what does not fit.

    Parameters
    ----------
    read : sequence of (Sample, (H, W))
        Those that can be read.
    boxes : path, several, or None
    classes : {"by-folder"} or None
        Without it the annotations name the classes.
    """
    problems: list[Problem] = []
    samples = [sample if classes else replace(sample, defect="") for sample, _ in read]
    labelled, notes = label_samples(samples, boxes, problems.append)
    masks = {str(sample.mask) for sample, _ in read}
    told = [str(problem) for problem in problems if problem.where not in masks]
    findings = [Finding("note", note, 0, (), "") for note in notes]
    if told:
        action = "they are left out here, and `fit` refuses them"
        what = "annotations that do not fit"
        findings.append(Finding("error", what, len(told), tuple(told[:_MOST]), action))
    sides = []
    for one, (_, size) in zip(labelled, read, strict=True):
        for mark in one.marks:
            rows, columns = np.nonzero(mark.where(size))
            sides.append(int(max(np.ptp(rows), np.ptp(columns))) + 1)
    exact = [any(mark.exact for mark in one.marks) for one in labelled]
    unmarked = sum(not one.marks for one in labelled)
    return (
        Labels(
            dict(sorted(Counter(kind for one in labelled for kind in one.kinds).items())),
            dict(sorted(Counter(mark.kind for one in labelled for mark in one.marks).items())),
            sum(exact),
            len(labelled) - sum(exact) - unmarked,
            unmarked,
            (min(sides), int(np.median(sides)), max(sides)) if sides else None,
        ),
        findings,
    )
