"""Building an index of a bank's rows, tuned until its recall is what was asked for.

The bank is read in pieces. What is held beside the index is a training sample of at most
32 rows per list, 200 MB for a million rows of length 384.

IVF: Sivic and Zisserman, "Video Google", ICCV 2003. Product quantisation: Jégou, Douze and Schmid,
"Product Quantization for Nearest Neighbor Search", TPAMI 2011. HNSW: Malkov and Yashunin,
"Efficient and Robust Approximate Nearest Neighbor Search Using Hierarchical Navigable Small World
Graphs", TPAMI 2020. Library: Douze et al., "The Faiss library", 2024 (arXiv 2401.08281).
"""

import math
import sys
from typing import Any

import torch
from torch import Tensor

from offnominal.errors import OptionError
from offnominal.memory.bank import MemoryBank
from offnominal.memory.index import FaissIndex, rows_for_faiss
from offnominal.memory.index_choice import LEAST_ROWS, Kind, SearchChoice, load_faiss
from offnominal.memory.index_tune import Progress, draw_references, hold_back, tune

__all__ = ["build_index", "follow_bank", "update_index"]

_CHUNK = 2**14  # rows that are read at once
_PER_LIST = 32  # training rows per list
_ROUNDS = 10  # of k-means
_LINKS = 16  # of a node of the graph; twice that at the bottom


def build_index(
    bank: MemoryBank,
    choice: SearchChoice,
    seed: int = 0,
    neighbours: int = 1,
    progress: Progress | None = None,
) -> FaissIndex | None:
    """Build the index that ``choice`` asks for and tune it; the bank is left as it is.

    Parameters
    ----------
    bank : MemoryBank
        Rows of at least two owners.
    choice : SearchChoice
    seed : int
        Of the training sample, the clusters and the queries. The same seed, rows and number of
        threads give the same index.
    neighbours : int
        How many nearest rows the detector uses; the recall counts all of them.
    progress : callable or None
        Called with "index" and the number of rows that are in it, then with "recall" and the
        number of settings tried.

    Returns
    -------
    FaissIndex or None
        None for exact search.

    Raises
    ------
    OptionError
        If FAISS is not installed, the bank is too small or of one image, or the recall cannot be
        reached.
    """
    choice = choice.settled(len(bank), bank.rows.device)
    if choice.kind == "exact":
        return None
    if len(bank) < LEAST_ROWS:
        raise OptionError(
            f"--search {choice}: {len(bank)} rows are too few for an index, which takes "
            f"{LEAST_ROWS} or more; leave --search out: exact search is quicker"
        )
    faiss = load_faiss()
    draw = torch.Generator().manual_seed(seed)
    away = draw_references(bank, draw)
    rest = (~away).nonzero()[:, 0]
    if len(rest) < max(neighbours, LEAST_ROWS // 2) or len(rest) == len(bank):
        raise OptionError(
            f"--search {choice}: the recall is measured with images that are held back at first, "
            "so it takes two images or more of about a size; add images, or leave --search out"
        )
    with torch.no_grad():
        held = hold_back(bank, away, ~away, neighbours, draw)
        made = _trained(faiss, bank, rest, choice.kind, seed)
        index = FaissIndex(choice.kind, made, neighbours, choice.recall)
        _fill(index, bank, rest, progress)
        index.built = len(bank)
        reached = tune(bank, index, held, progress)
        if reached is None:
            _fill(index, bank, away.nonzero()[:, 0], progress)
    if reached is not None:
        raise OptionError(
            f"--search {choice}: out of reach: at its most thorough setting the index found "
            f"{reached:.4f} of the nearest rows of {index.queries} held-back queries; ask for "
            "less, take another kind, or leave --search out"
        )
    return index


def update_index(
    bank: MemoryBank,
    choice: SearchChoice,
    seed: int = 0,
    neighbours: int = 1,
    progress: Progress | None = None,
) -> None:
    """Set ``bank.index`` to what ``choice`` asks for: after a fit, a step of growth, or a load.

    Where there is no index yet, it is built. Where there is one, rows that were added are first
    searched as those of new images, the settings are raised where the recall is not reached, and
    then the rows are taken in. If no setting reaches it, or the bank has changed by half since the
    index was trained, it is built anew. An index on disk takes no rows in: until it is built anew,
    the bank searches new rows exactly.

    Parameters
    ----------
    bank, choice, seed, neighbours, progress
        As for :func:`build_index`.

    Raises
    ------
    OptionError
        As :func:`build_index`.
    """
    index = bank.index
    if isinstance(index, FaissIndex) and not index.outgrown(len(bank)):
        if index.on_disk or len(index) == len(bank):
            return
        draw = torch.Generator().manual_seed(seed)
        fresh = torch.arange(len(bank), device=bank.rows.device) >= len(index)
        with torch.no_grad():
            held = hold_back(bank, fresh, ~fresh, index.neighbours, draw)
            if tune(bank, index, held, progress, index.effort, index.named) is None:
                _fill(index, bank, fresh.nonzero()[:, 0], progress)
                return
    bank.index = build_index(bank, choice, seed, neighbours, progress)


def follow_bank(bank: MemoryBank, index: FaissIndex, owner: Tensor) -> FaissIndex | None:
    """Bring an index up to date with a bank from which images went, or into which some came back.

    Images go and come whole, and their rows stay in the order of the images' numbers. Rows at the
    end are left to :func:`update_index`, which tunes the index with them first.

    Parameters
    ----------
    bank : MemoryBank
        As it is now.
    index : FaissIndex
        Of the bank as it was.
    owner : Tensor
        (N,) int32: the column ``owner`` of the bank as it was.

    Returns
    -------
    FaissIndex or None
        The same one; None where it has to be built anew: nothing is left of it, or rows came back
        among those of lists on disk.
    """
    stayed = torch.isin(bank.owner, owner).nonzero()[:, 0]
    kept = torch.isin(owner, bank.owner)
    if not len(stayed) or len(stayed) != int(kept.sum()):
        return None
    places = torch.full((len(owner),), -1, device=owner.device)
    places[kept] = stayed
    if torch.equal(places[: len(index)], torch.arange(len(index), device=owner.device)):
        return index
    index.renumber(places)
    assert index.rows is not None
    known = torch.zeros(len(bank), dtype=torch.bool)
    known[torch.from_numpy(index.rows[index.rows >= 0]).long()] = True
    if not known.any() or (index.on_disk and not known[: len(index)].all()):
        return None
    if not known[: len(index)].all():
        _fill(index, bank, (~known).nonzero()[:, 0].to(bank.rows.device), None)
    return index


def _trained(faiss: Any, bank: MemoryBank, rest: Tensor, kind: Kind, seed: int) -> Any:
    """An index without a row, trained with some of ``rest`` (n,)."""
    made, wanted = _empty(faiss, kind, len(bank), bank.dim, seed)
    draw = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(rest), generator=draw)[:wanted].sort().values
    made.train(rows_for_faiss(bank.take(rest[sample.to(rest.device)])))
    return made


def _fill(index: FaissIndex, bank: MemoryBank, rows: Tensor, progress: Progress | None) -> None:
    """Put rows ``rows`` (n,) of the bank into the index."""
    for part in torch.split(rows, _CHUNK):
        index.add_as(bank.take(part), part.cpu().numpy())
        if progress:
            progress("index", len(index))


def _empty(faiss: Any, kind: Kind, rows: int, dim: int, seed: int) -> tuple[Any, int]:
    """An untrained index, and how many rows to train it with."""
    byte = faiss.ScalarQuantizer.QT_8bit
    if kind == "hnsw":
        return faiss.IndexHNSWSQ(dim, byte, _LINKS), 2**15
    if kind == "disk" and sys.platform == "win32":
        raise OptionError("--search disk: FAISS has no lists on disk on Windows; use ivfpq or ivf")
    # About three times the root: more lists make training long, fewer make each of them long.
    lists = 2 ** round(math.log2(3 * math.sqrt(rows)))
    lists = min(lists, 2 ** int(math.log2(rows / _PER_LIST)))
    cells = faiss.IndexFlatL2(dim)
    if kind == "ivfpq":
        # Four numbers to a byte, or the next length that divides the row.
        parts = next(m for m in range(max(1, dim // 4), 0, -1) if dim % m == 0)
        made = faiss.IndexIVFPQ(cells, dim, lists, parts, 8)
        # Its table would take many times the room of the codes, and saves no time here.
        made.use_precomputed_table = -1
        made.pq.cp.niter = _ROUNDS
        made.pq.cp.seed = seed
        made.pq.cp.min_points_per_centroid = 1
        made.pq.cp.max_points_per_centroid = _PER_LIST
    else:
        made = faiss.IndexIVFScalarQuantizer(cells, dim, lists, byte)
    made.cp.niter = _ROUNDS
    made.cp.seed = seed
    # FAISS would print a warning below 39 points per list.
    made.cp.min_points_per_centroid = 1
    return made, _PER_LIST * lists
