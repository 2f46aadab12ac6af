"""What an index costs in accuracy, and gains in time, measured on the references.

All references are good, so the AUROC is that between some of them as they are and the same images
with a blemish drawn in. Each is scored without its own rows in the bank, once by exact search and
once by the index. How high the AUROC is says little, since the blemishes are artificial; how much
it changes says what the index does to a score.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offnominal.errors import OptionError
from offnominal.memory.bank import MemoryBank
from offnominal.memory.index import FaissIndex
from offnominal.memory.index_tune import exact_only

__all__ = ["IndexReport", "Sampled", "blemish", "measure_index"]

Picture = npt.NDArray[np.uint8]
S = TypeVar("S")

_MOST = 16
_MOST_BYTES = 256 * 2**20
_TURNS = 3
_TIMED = 512
_AREA = (0.002, 0.02)  # of the image; the lower end is a few patches
_ASPECT = 3.3
_SHIFT = (8, 40)  # grey levels


@dataclass(frozen=True)
class IndexReport:
    """What was measured of an index.

    Attributes
    ----------
    kind : {"ivf", "hnsw", "ivfpq", "disk"}
    setting : str
        In FAISS' own names.
    rows : int
        That it was built from.
    target, recall : float
        Share of the true nearest rows that was asked for, and that was found on held-back queries.
    queries : int
        How many those were.
    speed : float or None
        Time of exact search by that of the index, for the patches of a reference; None where it is
        not told, as in a model file, whose bytes must not depend on a clock.
    images : int
        References that were scored as they are and with a blemish.
    auroc_exact, auroc_approximate : float
        Between the two.
    score_change : float
        Largest change of an image score, as a share of the exact one.
    """

    kind: str
    setting: str
    rows: int
    target: float
    recall: float
    queries: int
    speed: float | None
    images: int
    auroc_exact: float
    auroc_approximate: float
    score_change: float

    @property
    def auroc_change(self) -> float:
        """By how much the index raises (above 0) or lowers the AUROC."""
        return self.auroc_approximate - self.auroc_exact

    def __str__(self) -> str:
        """The report in two sentences, for a terminal."""
        faster = "" if self.speed is None else f", {self.speed:.1f} times as fast as exact search"
        return (
            f"index {self.kind} ({self.setting}) of {self.rows:,} rows: recall {self.recall:.4f} "
            f"on {self.queries} held-back patches (asked for: {self.target:g}){faster}. AUROC of "
            f"{self.images} references against the same with a blemish: "
            f"{self.auroc_approximate:.4f} with the index, {self.auroc_exact:.4f} "
            f"without ({self.auroc_change:+.4f}); image scores changed by up to "
            f"{self.score_change:.1%}"
        )


class Sampled:
    """Evenly spread images of a stream of unknown length: 8 to 16 of them, and at most 256 MiB."""

    def __init__(self) -> None:
        self.images: list[tuple[int, Picture]] = []
        self._step = 1

    def offer(self, number: int, image: Picture) -> None:
        """Keep an image of the stream, number 0, 1, ..., or pass it over."""
        if number % self._step:
            return
        self.images.append((number, image))
        while len(self.images) > 2 and (
            len(self.images) > _MOST or sum(each.nbytes for _, each in self.images) > _MOST_BYTES
        ):
            self._step *= 2
            self.images = [pair for pair in self.images if pair[0] % self._step == 0]


def blemish(image: Picture, generator: np.random.Generator) -> Picture:
    """Copy a part of the image to another place, lighter or darker by some grey levels.

    After CutPaste (Li, Sohn, Yoon and Pfister, CVPR 2021, section 2.2), with smaller parts, 0.2 to
    2 % of the image, so that not all of them are easy to find.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
    generator : numpy.random.Generator

    Returns
    -------
    uint8 array of shape (H, W, 3)
        A new one.
    """
    height, width = image.shape[:2]
    area = generator.uniform(*_AREA) * height * width
    aspect = _ASPECT ** generator.uniform(-1, 1)
    tall = int(np.clip(round((area * aspect) ** 0.5), 1, height))
    wide = int(np.clip(round((area / aspect) ** 0.5), 1, width))
    corners = generator.integers(0, [height - tall + 1, width - wide + 1], (2, 2))
    (top, left), (to_top, to_left) = corners.tolist()
    shift = generator.uniform(*_SHIFT) * generator.choice([-1, 1])
    part = image[top : top + tall, left : left + wide].astype(np.float32) + shift
    blemished = image.copy()
    blemished[to_top : to_top + tall, to_left : to_left + wide] = part.clip(0, 255).round()
    return blemished


def measure_index(
    banks: Sequence[MemoryBank],
    images: Sequence[tuple[int, Picture]],
    look: Callable[[Picture], S],
    score: Callable[[S, int], float],
    seed: int = 0,
    progress: Callable[[str, int], None] | None = None,
) -> IndexReport:
    """Compare the index of a detector's banks with exact search.

    Parameters
    ----------
    banks : sequence of MemoryBank
        Of one detector, all with an index.
    images : sequence of (owner, uint8 array of shape (H, W, 3))
        Some of the references, as :class:`Sampled` keeps them, and their numbers in the banks.
    look : callable
        From an image to whatever ``score`` needs; it is called twice for an image.
    score : callable
        From that and an image's number to the image score, with that image's rows left out of the
        banks; it is called by turns with the index and without.
    seed : int
        Of the blemishes.
    progress : callable or None
        Called with "auroc" and the number of images done.

    Raises
    ------
    OptionError
        If a bank has no index, or there is no image.
    """
    from offnominal.metrics import image_metrics

    indexes = [bank.index for bank in banks if isinstance(bank.index, FaissIndex)]
    if len(indexes) < len(banks) or not banks or not images:
        raise OptionError("measure_index: takes banks that have an index, and at least one image")
    labels: list[int] = []
    exact: list[float] = []
    approximate: list[float] = []
    for done, (owner, image) in enumerate(images, start=1):
        generator = np.random.default_rng([seed, owner])
        for label, picture in enumerate((image, blemish(image, generator))):
            seen = look(picture)
            labels.append(label)
            approximate.append(score(seen, owner))
            with exact_only(*banks):
                exact.append(score(seen, owner))
        if progress:
            progress("auroc", done)
    before, after = np.array(exact), np.array(approximate)
    return IndexReport(
        kind=indexes[0].kind,
        setting="; ".join(dict.fromkeys(index.setting for index in indexes)),
        rows=sum(map(len, indexes)),
        target=indexes[0].target,
        recall=min(index.recall for index in indexes),
        queries=sum(index.queries for index in indexes),
        speed=_speed(banks, images[0][0]),
        images=len(images),
        auroc_exact=image_metrics(labels, exact)["image_auroc"],
        auroc_approximate=image_metrics(labels, approximate)["image_auroc"],
        score_change=float((np.abs(after - before) / np.maximum(np.abs(before), 1e-12)).max()),
    )


def _speed(banks: Sequence[MemoryBank], owner: int) -> float:
    """Time of exact search by that of the index; each the best of some turns, taken by turns."""
    best = [0.0, 0.0]
    for bank in banks:
        index = bank.index
        assert isinstance(index, FaissIndex)
        own = (bank.owner == owner).nonzero()[:, 0]
        queries = bank.take(own[:_TIMED] if len(own) else slice(0, _TIMED))
        spent: tuple[list[float], list[float]] = ([], [])
        for _ in range(_TURNS):
            with exact_only(bank):
                spent[0].append(_timed(bank, queries, index.neighbours, owner))
            spent[1].append(_timed(bank, queries, index.neighbours, owner))
        best = [total + min(times) for total, times in zip(best, spent, strict=True)]
    return best[0] / best[1]


def _timed(bank: MemoryBank, queries: Tensor, neighbours: int, owner: int) -> float:
    start = time.perf_counter()
    bank.search(queries, neighbours, skip=owner)
    if queries.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
