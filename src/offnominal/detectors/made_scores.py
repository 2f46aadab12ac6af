"""Scores of pictures that are made of the references: altered copies, and synthetic defects."""

from collections.abc import Callable, Iterable
from itertools import cycle, islice

import numpy as np

from offnominal.detectors.options import Progress
from offnominal.extras import needs
from offnominal.good_scores import CalibrationScores, Rule
from offnominal.scoring import Scores, Size, size_of
from offnominal.synthesis.sizes import CELLS, PER_CELL, make_defect

__all__ = ["copy_scores", "defect_scores"]

_TRIES = 4  # for a defect to come to lie on the part

# Scores an image, uint8 (H, W, 3), where it is asked to as if a reference had never been learned.
Score = Callable[..., Scores]


def copy_scores(image: np.ndarray, score: Score, judged: Rule) -> CalibrationScores:
    """Of altered copies of an only reference, by what was learned from it."""
    from offnominal.synthesis.copies import altered_copies

    copies = altered_copies(image)
    found = {name: (score(copy), size_of(copy)) for name, copy in copies.items()}
    images = {name: judged(*pair)[0] for name, pair in found.items()}
    # What was learned in turned views is no nearer to other parts for knowing this turn.
    del found["turned" if images["turned"] < images["brighter"] else "mirrored"]
    pairs = [pair for pair in found.values() if np.isfinite(pair[0].patches).all()]
    return CalibrationScores.measured("copies", pairs, judged)


def defect_scores(
    numbers: Iterable[int],
    original: Callable[[int], np.ndarray],
    score: Score,
    judged: Rule,
    alone: bool,
    progress: Progress | None,
) -> CalibrationScores:
    """Of 48 synthetic defects, numbered by :data:`~offnominal.synthesis.sizes.CELLS`.

    Parameters
    ----------
    numbers : iterable of int
        The references that they are made on, each as if it had not been learned.
    original : callable
        Gives the image of a reference, which the next ones are then made of.
    score, judged : callable
        What an image's scores are, and how they are summed up.
    alone : bool
        Whether there is no other reference to score by.
    progress : callable or None
    """
    pairs: list[tuple[Scores, Size]] = []
    cells: list[int] = []
    for draw, number in enumerate(islice(cycle(sorted(numbers)), PER_CELL)):
        image = original(number)
        for place, cell in enumerate(CELLS):
            for turn in range(_TRIES):
                made, mask = make_defect(image, cell, draw + turn * PER_CELL)
                if not mask.any():  # a blank image has no defect to be made of it
                    break
                scores = score(made) if alone else score(made, without=number)
                if _looked_at(scores, mask):
                    pairs.append((scores, size_of(made)))
                    cells.append(place)
                    break
        if progress:
            progress("synthetic", len(CELLS) * (draw + 1))
    return CalibrationScores.measured("defects", pairs, judged, cells)


def _looked_at(scores: Scores, mask: np.ndarray) -> bool:
    """Whether some of a defect lies where patches count: beside the part it is none."""
    cv2 = needs("cv2", "fit", "a check with synthetic defects")
    if not np.isfinite(scores.patches).all():
        return False
    if scores.window is not None:  # a crop was looked at, or tiles
        return True
    rows, columns = scores.patches.shape
    there = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA) > 0
    return bool(scores.patches[there].any())
