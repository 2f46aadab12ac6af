"""The gallery: which images of a cell are worth a look, and their pictures."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from offnominal.report.html import Picture, embed, outlined
from offnominal.scoring import anomaly_map

__all__ = ["Choice", "Shown", "choose", "make_cards"]

Floats = npt.NDArray[np.float32]

_LARGEST = 224  # longest side of a picture, in pixels: two fit side by side on a phone
_BUDGET = 20_000_000  # bytes of pictures in a page


@dataclass(frozen=True)
class Choice:
    """An image to show, and why.

    Attributes
    ----------
    cell : FinishedCell
    index : int
        Its row in the cell's scores.
    outcome : str
        ``miss``, ``false alarm`` or ``hit``.
    rank : int
        0 for the worst, or the most typical, of its kind in its category.
    limit : float
        The score above which an image counts as rejected.
    own : bool
        Whether `limit` is the detector's own threshold.
    """

    cell: FinishedCell
    index: int
    outcome: str
    rank: int
    limit: float
    own: bool

    def value(self, column: str) -> Any:
        """A column of the scores, at this image."""
        return self.cell.scores[column][self.index]


@dataclass(frozen=True)
class Shown:
    """A card: what the choice says, and the four pictures as data URIs (truth may be empty)."""

    choice: Choice
    image: str
    truth: str
    heat: str
    overlay: str
    aspect: str

    @cached_property
    def size(self) -> int:
        """Bytes that the pictures take in the page."""
        return len(self.image) + len(self.truth) + len(self.heat) + len(self.overlay)


def choose(cell: FinishedCell, each: int = 4, typical: int = 2) -> list[Choice]:
    """The worst misses and false alarms of a cell, and the typical hits of each kind of defect.

    A miss is the worse the lower it scores, a false alarm the higher. A typical hit is one whose
    score is next to the median of those of its kind.

    Parameters
    ----------
    cell : FinishedCell
        Without a threshold of its own, the one with the best F1 on these very images stands in.
    each : int
        Misses, and false alarms, at most.
    typical : int
        Hits of each kind of defect, at most.
    """
    scores, labels = cell.scores["score"], cell.scores["label"]
    thresholds = [value for value in cell.scores["threshold"] if value is not None]
    best_f1 = cell.metrics["figures"].get("image_f1_max_threshold", float("nan"))
    limit = thresholds[0] if thresholds else best_f1
    rejected = [
        score >= limit if decision is None else decision
        for score, decision in zip(scores, cell.scores["is_anomalous"], strict=True)
    ]
    rows = range(len(scores))
    kinds: list[tuple[str, list[int]]] = []
    misses = [row for row in rows if labels[row] == 1 and not rejected[row]]
    kinds.append(("miss", sorted(misses, key=lambda row: scores[row])[:each]))
    alarms = [row for row in rows if labels[row] == 0 and rejected[row]]
    kinds.append(("false alarm", sorted(alarms, key=lambda row: -scores[row])[:each]))
    hits: dict[str, list[int]] = {}
    for row in rows:
        if labels[row] == 1 and rejected[row]:
            hits.setdefault(cell.scores["defect"][row], []).append(row)
    for _, found in sorted(hits.items()):
        middle = statistics.median(scores[row] for row in found)
        near = sorted(found, key=lambda row: abs(scores[row] - middle))
        kinds.append(("hit", near[:typical]))
    return [
        Choice(cell, row, outcome, rank, limit, bool(thresholds))
        for outcome, found in kinds
        for rank, row in enumerate(found)
    ]


def make_cards(
    choices: Sequence[Choice],
    data: Path | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> tuple[list[Shown], list[str], int]:
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
    cards : list of Shown
        In the order of `choices`.
    gone : list of str
        Images that could not be read, and why.
    left_out : int
        Choices for which the page had no room.
    """
    cards: dict[int, Shown] = {}
    gone: list[str] = []
    spent = 0
    patches = _Patches()
    # By rank first: where the page is full, every category has lost its least telling ones. Then
    # by cell, so that the patch scores of one cell at a time are in memory.
    order = sorted(range(len(choices)), key=lambda place: (choices[place].rank, place))
    for done, place in enumerate(order):
        if spent > _BUDGET:
            return _sorted(cards), gone, len(order) - done
        choice = choices[place]
        try:
            card = _show(choice, patches, data)
        except (ImageError, DatasetError) as error:
            gone.append(str(error))
            continue
        cards[place] = card
        spent += card.size
        if progress:
            progress("gallery", done + 1)
    return _sorted(cards), gone, 0


def _sorted(cards: dict[int, Shown]) -> list[Shown]:
    return [card for _, card in sorted(cards.items())]


class _Patches:
    """Patch scores of the cells at hand, not of all."""

    def __init__(self) -> None:
        self._kept: dict[Path, list[Floats]] = {}

    def of(self, choice: Choice) -> Floats:
        folder = choice.cell.folder
        if folder not in self._kept:
            if sum(grid.size for grids in self._kept.values() for grid in grids) > 2e7:
                self._kept.clear()
            try:
                self._kept[folder] = choice.cell.patch_scores()
            except (OSError, ValueError, KeyError, BadZipFile) as error:
                raise DatasetError(f"{folder / 'patch_scores.npz'}: damaged ({error})") from error
        return self._kept[folder][choice.index]


def _show(choice: Choice, patches: _Patches, data: Path | None) -> Shown:
    image = read_image(_find(choice, choice.value("image"), data), _sixteen_bit(choice))
    height, width = image.shape[:2]
    small = _reduced(image)
    heat = _heat(choice, patches, (height, width), (small.shape[0], small.shape[1]))
    low, high, limit = _range(choice.cell, heat)
    truth = ""
    if choice.value("mask") is not None:
        path = _find(choice, choice.value("mask"), data)
        mask = read_mask(path, (height, width), choice.value("mask_threshold"))
        if mask.any():
            truth = _embed(outlined(small, _reduced_mask(mask, small)))
    regions = None if limit is None else heat > limit
    return Shown(
        choice,
        _embed(small),
        truth,
        _embed(colour_map(heat, low, high)),
        _embed(overlay(small, heat, low, high, regions)),
        f"{small.shape[1]} / {small.shape[0]}",
    )


def _embed(picture: Picture) -> str:
    return embed(picture, _LARGEST, 72)


def _find(choice: Choice, name: str, data: Path | None) -> Path:
    """Where a file of the data set lies: under `data`, if it is there, or where it was."""
    root = Path(choice.cell.settings["data"]["root"])
    moved = [] if data is None else [data / name]
    return next((path for path in moved if path.exists()), root / name)


def _sixteen_bit(choice: Choice) -> str:
    return str(choice.cell.settings["options"].get("sixteen_bit") or "range")


def _reduced(image: Picture) -> Picture:
    scale = min(1.0, _LARGEST / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _reduced_mask(mask: npt.NDArray[np.bool_], small: Picture) -> npt.NDArray[np.bool_]:
    size = small.shape[1], small.shape[0]
    # Any part of a defect keeps its pixel: a scratch must not vanish in a small picture.
    share = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(share > 0.05, np.bool_)


def _heat(
    choice: Choice, patches: _Patches, full: tuple[int, int], small: tuple[int, int]
) -> Floats:
    """The anomaly map at the picture's size."""
    stored = choice.cell.folder / "maps" / f"{choice.index:05d}.npy"
    if stored.is_file():
        whole = np.load(stored, allow_pickle=False).astype(np.float32)
        reduced = cv2.resize(whole, small[::-1], interpolation=cv2.INTER_AREA)
        return np.asarray(reduced, np.float32)
    options = choice.cell.settings["options"]
    grid = patches.of(choice)
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
    peaks = [
        peak
        for peak, label in zip(cell.scores["map_max"], cell.scores["label"], strict=True)
        if label == 0
    ]
    level = float(np.percentile(peaks, 95)) if peaks else limit
    if not level:
        return float(heat.min()), float(heat.max()), limit
    return 0.5 * level, 1.5 * level, limit
