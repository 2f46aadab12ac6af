"""The approximate index of a detector's banks: built at a fit, reported, and kept right afterwards.

References are measured with it as new parts are, each without its own rows: what the index misses
makes both score a little higher, and a threshold from exact distances would be too low. It is not
quite the same, since the index was trained with the reference among the others, so no false-reject
rate is promised.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from offnominal.errors import OptionError
from offnominal.memory.index import FaissIndex
from offnominal.memory.index_build import build_index, follow_bank, update_index
from offnominal.memory.index_choice import AUTO_ROWS, load_faiss, parse_search
from offnominal.memory.index_report import Sampled, measure_index

if TYPE_CHECKING:
    from offnominal.detectors.banked import Banked
    from offnominal.detectors.base import Progress

__all__ = ["build", "check_faiss", "drop_forgotten", "following", "indexes", "report", "update"]


def indexes(detector: "Banked") -> list[FaissIndex]:
    """The indexes that a detector searches by now."""
    found = [bank.index for bank in detector._patch_banks]
    return [index for index in found if isinstance(index, FaissIndex)]


def check_faiss(detector: "Banked") -> None:
    """Raise an :class:`OptionError` before any work is done if an index could not be built."""
    if parse_search(detector.search).kind != "exact":
        load_faiss()


def build(detector: "Banked", progress: "Progress | None") -> None:
    """Build what ``search`` asks for; where that is exact search after all, note why.

    Raises
    ------
    OptionError
        As :func:`offnominal.memory.index_build.build_index`.
    """
    choice = parse_search(detector.search)
    for bank in detector._patch_banks:
        bank.index = build_index(
            bank, choice, neighbours=detector._index_neighbours, progress=progress
        )
    _note(detector)


def report(detector: "Banked", sampled: Sampled, progress: "Progress | None") -> None:
    """Measure on some of the references what the index does to recall, AUROC and scores."""
    if not indexes(detector):
        return

    def score(image: np.ndarray, owner: int) -> float:
        detector._left_out = owner
        try:
            return detector._predict_image("", image).score
        finally:
            detector._left_out = None

    found = measure_index(
        detector._patch_banks, sampled.images, lambda image: image, score, progress=progress
    )
    detector._index_speed = found.speed
    # The same images must give the same file, so no clock may be seen in it.
    detector.index_report_ = asdict(found) | {"speed": None}


@contextmanager
def following(detector: "Banked") -> Iterator[None]:
    """Let the indexes follow the banks, from which rows go or into which some come back here."""
    banks = detector._patch_banks
    before = [(bank.index, bank.owner.clone()) for bank in banks if bank.index is not None]
    yield
    if before:
        with torch.no_grad():
            for bank, (index, owner) in zip(banks, before, strict=True):
                assert isinstance(index, FaissIndex)
                bank.index = follow_bank(bank, index, owner)


def update(detector: "Banked", progress: "Progress | None") -> None:
    """Take in the rows that a step added, and see to it that the recall holds.

    Where it does not, as when too few rows are left, the banks are searched exactly from now on,
    and ``search_note_`` says why.
    """
    choice, why = parse_search(detector.search), None
    try:
        for bank in detector._patch_banks:
            update_index(bank, choice, neighbours=detector._index_neighbours, progress=progress)
    except OptionError as error:
        why = str(error)
    _note(detector, why)


def drop_forgotten(detector: "Banked") -> None:
    """Build indexes anew that still hold rows which were forgotten."""
    for bank in detector._patch_banks:
        if isinstance(bank.index, FaissIndex) and bank.index.faiss.ntotal > len(bank.index):
            bank.index = None
    update(detector, None)


def _note(detector: "Banked", why: str | None = None) -> None:
    """Set ``search_note_``: None with an index in every bank, otherwise why the search is exact."""
    banks = detector._patch_banks
    detector.search_note_ = None
    if detector.search == "exact" or (why is None and len(indexes(detector)) == len(banks)):
        return
    for bank in banks:
        bank.index = None
    detector.index_report_ = None
    if why is None:
        device = detector._device.type
        kind = f"name a kind, as ivf,recall={parse_search(detector.search).recall:g}, to have one"
        why = (
            f"on {device} exact search is quick, and an index would run on the processor; {kind}"
            if device != "cpu"
            else f"an index does not pay with fewer than {AUTO_ROWS:,} patches; {kind}"
        )
    detector.search_note_ = why
