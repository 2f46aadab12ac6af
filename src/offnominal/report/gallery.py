"""The gallery: which images of a cell are worth a look, and their pictures."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
import numpy.typing as npt
import torch

from offnominal.benchmark.store import FinishedCell
from offnominal.datasets.masks import read_mask
from offnominal.errors import DatasetError, ImageError
from offnominal.images import read_image
from offnominal.pictures import colour_map, overlay
from offnominal.report.page import Outcome, card, outlined
from offnominal.scoring import anomaly_map

__all__ = ["Choice", "choose", "make_cards"]

Floats = npt.NDArray[np.float32]

_LARGEST = 224  # longest side of a picture, in pixels: two fit side by side on a phone
_BUDGET = 20_000_000  # bytes of pictures in a page


@dataclass(frozen=True)
class Choice:
    """An image to show, and why."""

    cell: FinishedCell
    index: int  #: its row in the cell's scores
    outcome: Outcome
    rank: int  #: 0 for the worst, or the most typical, of its kind in its category
    limit: float  #: the score above which an image counts as rejected
    own: bool  #: `limit` is the detector's own threshold

    def value(self, column: str) -> Any:
        """A column of the scores, at this image."""
        return self.cell.scores[column][self.index]


def choose(cell: FinishedCell, each: int = 4, typical: int = 2) -> list[Choice]:
    """The worst misses and false alarms of a cell, and the typical hits of each kind of defect.

    A miss is the worse the lower it scores, a false alarm the higher. A typical hit is one whose
    score is next to the median of those of its kind. Without a threshold of its own, the one with
    the best F1 on these very images stands in. There are `each` misses and false alarms at most,
    and `typical` hits of each kind of defect.
    """
    scores = cell.scores["score"]
    thresholds = [value for value in cell.scores["threshold"] if value is not None]
    best_f1 = cell.metrics["figures"].get("image_f1_max_threshold", float("nan"))
    limit = thresholds[0] if thresholds else best_f1
    misses: list[int] = []
    alarms: list[int] = []
    hits: dict[str, list[int]] = {}
    columns = (cell.scores[name] for name in ("label", "is_anomalous", "defect"))
    for row, (label, decision, defect) in enumerate(zip(*columns, strict=True)):
        rejected = scores[row] >= limit if decision is None else decision
        if rejected and label:
            hits.setdefault(defect, []).append(row)
        elif rejected or label:
            (misses if label else alarms).append(row)
    kinds: list[tuple[Outcome, list[int]]] = [
        ("miss", sorted(misses, key=lambda row: scores[row])[:each]),
        ("false alarm", sorted(alarms, key=lambda row: -scores[row])[:each]),
    ]
    for _, found in sorted(hits.items()):
        middle = statistics.median(scores[row] for row in found)
        near = sorted((abs(scores[row] - middle), row) for row in found)
        kinds.append(("hit", [row for _, row in near[:typical]]))
    return [
        Choice(cell, row, outcome, rank, limit, bool(thresholds))
        for outcome, rows in kinds
        for rank, row in enumerate(rows)
    ]


def make_cards(
    choices: Sequence[Choice],
    data: Path | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> tuple[list[dict[str, Any]], list[str], int]:
    """Pictures of chosen images, the foremost of every category first, as many as a page takes.

    Parameters
    ----------
    choices : sequence of Choice
    data : Path or None
        Where the data set lies now, if it has moved.
    progress : callable or None
        Called with the stage and the number of images done.

    Returns
    -------
    cards : list of dict
        Values for the template, in the order of `choices`.
    gone : list of str
        Images that could not be read, and why.
    left_out : int
        Choices for which the page had no room.
    """
    cards: dict[int, dict[str, Any]] = {}
    gone: list[str] = []
    spent = left_out = 0
    several = len({choice.cell.settings["dataset"] for choice in choices}) > 1
    # By rank first: where the page is full, every category has lost its least telling ones.
    for done, place in enumerate(sorted(range(len(choices)), key=lambda p: (choices[p].rank, p))):
        if spent > _BUDGET:
            left_out = len(choices) - done
            break
        try:
            cards[place] = _show(choices[place], data, several)
        except (ImageError, DatasetError) as error:
            gone.append(str(error))
            continue
        spent += sum(len(source) for _, source in cards[place]["pictures"])
        if progress:
            progress("gallery", done + 1)
    _patch_scores.cache_clear()
    return [card for _, card in sorted(cards.items())], gone, left_out


@lru_cache(maxsize=32)
def _patch_scores(folder: Path) -> list[Floats]:
    try:
        return FinishedCell(folder, {}, {}, {}).patch_scores()
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise DatasetError(f"{folder / 'patch_scores.npz'}: damaged ({error})") from error


def _show(choice: Choice, data: Path | None, several: bool) -> dict[str, Any]:
    options = choice.cell.settings["options"]
    sixteen_bit = str(options.get("sixteen_bit") or "range")
    image = read_image(_find(choice, choice.value("image"), data), sixteen_bit)
    height, width = image.shape[:2]
    scale = min(1.0, _LARGEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    heat = _heat(choice, (height, width), (size[1], size[0]))
    low, high, limit = _range(choice.cell, heat)
    truth = None
    if choice.value("mask") is not None:
        path = _find(choice, choice.value("mask"), data)
        mask = read_mask(path, (height, width), choice.value("mask_threshold"))
        if mask.any():
            # Any part of a defect keeps its pixel: a scratch must not vanish in a small picture.
            share = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
            truth = outlined(small, np.asarray(share > 0.05, np.bool_))
    regions = None if limit is None else heat > limit
    # Of several data sets, each card names its own.
    dataset = f"{choice.cell.settings['dataset']}, " if several else ""
    return card(
        dataset + choice.value("category"),
        choice.value("defect"),
        choice.outcome,
        choice.value("score"),
        choice.limit,
        choice.value("p_value"),
        choice.value("image"),
        (small, truth, colour_map(heat, low, high), overlay(small, heat, low, high, regions)),
        first=choice.rank == 0,
        largest=_LARGEST,
        quality=72,
    )


def _find(choice: Choice, name: str, data: Path | None) -> Path:
    """Where a file of the data set lies: under `data`, if it is there, or where it was."""
    moved = data / name if data else None
    return moved if moved and moved.exists() else Path(choice.cell.settings["data"]["root"]) / name


def _heat(choice: Choice, full: tuple[int, int], small: tuple[int, int]) -> Floats:
    """The anomaly map at the picture's size."""
    stored = choice.cell.folder / "maps" / f"{choice.index:05d}.npy"
    if stored.is_file():
        whole = np.load(stored, allow_pickle=False).astype(np.float32)
        reduced = cv2.resize(whole, small[::-1], interpolation=cv2.INTER_AREA)
        return np.asarray(reduced, np.float32)
    options = choice.cell.settings["options"]
    grid = _patch_scores(choice.cell.folder)[choice.index]
    scale = small[0] / full[0]
    cover = None
    if options.get("tile"):
        # Tiles cover whole patches, a little more than the image at the bottom and the right.
        side = choice.cell.run["backbone"]["stride"] * scale
        cover = round(grid.shape[0] * side), round(grid.shape[1] * side)
    # Smoothed at the picture's own scale, which spares the map of a large image.
    sigma = float(options.get("smoothing", 4.0)) * scale
    return np.asarray(anomaly_map(torch.from_numpy(grid), small, sigma, cover).numpy(), np.float32)


def _range(cell: FinishedCell, heat: Floats) -> tuple[float, float, float | None]:
    """Map values drawn as none and as full heat, and where regions begin.

    Around the level that one good test image in twenty exceeds somewhere, so that pictures of one
    cell can be compared, and a miss shows what there was to see even under a threshold that is far
    too high.
    """
    threshold = cell.run.get("pixel_threshold")
    limit = float(threshold["value"]) if threshold else None
    both = zip(cell.scores["map_max"], cell.scores["label"], strict=True)
    peaks = [peak for peak, label in both if label == 0]
    level = float(np.percentile(peaks, 95)) if peaks else limit
    if not level:
        return float(heat.min()), float(heat.max()), limit
    return 0.5 * level, 1.5 * level, limit
