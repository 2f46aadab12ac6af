"""The gallery: which images of a cell are worth a look, and their pictures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offnominal.benchmark.files import read_map, read_patch_scores
from offnominal.benchmark.store import FinishedCell
from offnominal.datasets.masks import read_mask
from offnominal.errors import DatasetError, ImageError
from offnominal.images import read_image
from offnominal.paths import is_elsewhere
from offnominal.pictures import colour_map, overlay, resized
from offnominal.report.page import Card, Outcome, show
from offnominal.scoring import anomaly_map

__all__ = ["Choice", "choose", "foremost", "make_cards"]

Floats = npt.NDArray[np.float32]

_SHARPEST = 640  # longest side of a picture, in pixels: what it is enlarged to
_AREA = 60e6  # pixels of one panel over all cards: a page of some 25 MB at most
_MOST = 600  # images in a page, so that it stays one that opens


@dataclass(frozen=True, eq=False)
class Choice:
    """An image to show, and why."""

    cell: FinishedCell
    index: int  #: its row in the cell's scores
    outcome: Outcome
    rank: int  #: 0 for the worst, or the most typical, of its kind in its category
    limit: float  #: the score above which an image counts as rejected

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
    import pandas as pd

    names = ("score", "label", "defect", "threshold", "is_anomalous")
    table = pd.DataFrame({name: cell.scores[name] for name in names})
    best_f1 = cell.metrics["figures"].get("image_f1_max_threshold", float("nan"))
    limit = float(next(iter(table["threshold"].dropna()), best_f1))
    decided, defective = table["is_anomalous"], table["label"] == 1
    rejected = decided.eq(True).where(decided.notna(), table["score"] >= limit)
    scores = table["score"].sort_values(kind="stable")
    kinds: list[tuple[Outcome, pd.Series]] = [
        ("miss", scores[defective & ~rejected][:each]),
        ("false alarm", (-scores)[~defective & rejected].sort_values(kind="stable")[:each]),
    ]
    for _, found in scores[defective & rejected].groupby(table["defect"]):
        near = (found - found.median()).abs().sort_values(kind="stable")
        kinds.append(("hit", near[:typical]))
    return [
        Choice(cell, int(row), outcome, rank, limit)
        for outcome, rows in kinds
        for rank, row in enumerate(rows.index)
    ]


def make_cards(
    choices: Sequence[Choice],
    data: Path | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Cards of chosen images for the template, and what images could not be read, and why.

    `data` is where the data set lies now, if it has moved; `progress` is called with the stage and
    the number of images done.
    """
    cards: list[dict[str, Any]] = []
    gone: list[str] = []
    # Few are sharp when they are enlarged, many are small: the page stays one that opens.
    largest = min(_SHARPEST, math.isqrt(int(_AREA / max(len(choices), 1))))
    several = len({choice.cell.settings["dataset"] for choice in choices}) > 1
    for done, choice in enumerate(choices, 1):
        try:
            card = _card(choice, data, several, largest)
        except (ImageError, DatasetError) as error:
            gone.append(str(error))
            continue
        except (OSError, LookupError, TypeError, ValueError) as error:
            gone.append(f"{choice.cell.folder}: its results are damaged ({error})")
            continue
        cards.append(show(card, largest, 72, foremost=choice.rank == 0))
        if progress:
            progress("gallery", done)
    _patch_scores.cache_clear()
    return cards, gone


def foremost(choices: Sequence[Choice]) -> list[Choice]:
    """As many as a page takes: every category loses its least telling ones first."""
    kept = set(sorted(choices, key=lambda choice: choice.rank)[:_MOST])
    return [choice for choice in choices if choice in kept]


@lru_cache(maxsize=1)
def _patch_scores(folder: Path) -> list[Floats]:
    return read_patch_scores(folder)


def _card(choice: Choice, data: Path | None, several: bool, largest: int) -> Card:
    settings = choice.cell.settings
    sixteen_bit = str(settings["options"].get("sixteen_bit") or "range")
    image = read_image(_find(choice, choice.value("image"), data), sixteen_bit)
    full = image.shape[0], image.shape[1]
    scale = min(1.0, largest / max(full))
    small = max(1, round(full[0] * scale)), max(1, round(full[1] * scale))
    reduced = resized(image, small[::-1])
    heat = _heat(choice, full, small)
    low, high, limit = _range(choice.cell, heat)
    truth = None
    if choice.value("mask") is not None:
        path = _find(choice, choice.value("mask"), data)
        mask = read_mask(path, full, choice.value("mask_threshold"))
        # Any part of a defect keeps its pixel: a scratch must not vanish in a small picture.
        truth = resized(mask.astype(np.float32), small[::-1], exact=True) > 0.05
    # Of several data sets, each card names its own.
    dataset = f"{settings['dataset']}, " if several else ""
    return Card(
        category=dataset + choice.value("category"),
        defect=choice.value("defect"),
        outcome=choice.outcome,
        score=choice.value("score"),
        threshold=choice.limit,
        p_value=choice.value("p_value"),
        image=reduced,
        truth=truth,
        map_picture=colour_map(heat, low, high),
        overlay=overlay(reduced, heat, low, high, None if limit is None else heat > limit),
        name=choice.value("image"),
    )


def _find(choice: Choice, name: str, data: Path | None) -> Path:
    """Where a file of the data set lies: under `data`, if it is there, or where it was."""
    moved = data / name if data else None
    if moved and moved.exists():
        return moved
    place = Path(choice.cell.settings["data"]["root"]) / name
    if is_elsewhere(place):
        raise ImageError(place, "is on another machine, which nobody has named here")
    return place


def _heat(choice: Choice, full: tuple[int, int], small: tuple[int, int]) -> Floats:
    """The anomaly map at the picture's size."""
    stored = choice.cell.folder / "maps" / f"{choice.index:05d}.npy"
    if stored.is_file():
        return resized(read_map(stored), small[::-1], exact=True)
    options, grids = choice.cell.settings["options"], _patch_scores(choice.cell.folder)
    if len(grids) != len(choice.cell.scores["image"]):
        raise DatasetError(
            f"{choice.cell.folder}: patch scores are not of the images; run it again"
        )
    grid = grids[choice.index]
    scale = small[0] / full[0]
    window, network = None, choice.cell.run["backbone"] or {}
    if options.get("tile") or network.get("resize") == "short":
        # Whole patches cover a little more than the image at the bottom and the right.
        side = network["stride"] * scale
        if not options.get("tile"):
            side *= min(full) / network["resolution"]
        rows, columns = (round(patches * side) for patches in grid.shape)
        window = 0, 0, max(rows, small[0]), max(columns, small[1])
    # Smoothed at the picture's own scale, which spares the map of a large image.
    return anomaly_map(grid, small, float(options.get("smoothing", 4.0)) * scale, window)


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
