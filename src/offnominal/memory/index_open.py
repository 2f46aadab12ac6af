"""Opening FAISS' bytes from a file without trust: its code follows the numbers in them blindly.

Sizes are checked before the first search, and so is every link of a graph. Numbers of rows in the
lists are checked as they come out of a search.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offnominal.errors import ModelFileError
from offnominal.memory.index_choice import load_faiss

__all__ = ["CLASSES", "open_faiss"]

#: FAISS' type of each kind of index.
CLASSES = {
    "ivf": "IndexIVFScalarQuantizer",
    "disk": "IndexIVFScalarQuantizer",
    "ivfpq": "IndexIVFPQ",
    "hnsw": "IndexHNSWSQ",
}


def open_faiss(
    source: Path | npt.NDArray[np.uint8], kind: str, entries: int, dim: int, damaged: str
) -> Any:
    """Open an index and check that it is what it should be.

    Parameters
    ----------
    source : Path or uint8 array of shape (n,)
        A file, whose lists are mapped into memory, or the bytes of an index.
    kind : str
        One of `CLASSES`.
    entries, dim : int
        How many rows it should hold, and their length.
    damaged : str
        Beginning of the messages.

    Raises
    ------
    ModelFileError
    """
    faiss = load_faiss()
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    try:
        with _at_most(faiss, size):
            if isinstance(source, Path):
                made = faiss.read_index(str(source), faiss.IO_FLAG_MMAP)
            else:
                # The table would take many times the room of the codes, and saves no time here.
                made = faiss.deserialize_index(source, faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
    except (RuntimeError, MemoryError) as error:
        raise ModelFileError(
            f"{damaged}, or written by a newer FAISS than the {faiss.__version__} that is "
            "installed; run `pip install -U faiss-cpu`, or fit anew"
        ) from error
    if not _sound(faiss, made, kind, entries, dim):
        raise ModelFileError(f"{damaged}: it is not what its header says; fit it anew")
    return made


@contextmanager
def _at_most(faiss: Any, size: int) -> Iterator[None]:
    """Let no array that is read exceed ``size`` bytes: a damaged length could ask for anything."""
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):
        yield  # older versions
        return
    before = faiss.get_deserialization_vector_byte_limit()
    faiss.set_deserialization_vector_byte_limit(size)
    try:
        yield
    finally:
        faiss.set_deserialization_vector_byte_limit(before)


def _sound(faiss: Any, made: Any, kind: str, entries: int, dim: int) -> bool:
    """Whether an index has the type, the sizes and, of a graph, the links that it should."""
    same = (type(made).__name__, made.ntotal, made.d) == (CLASSES[kind], entries, dim)
    if not same or made.metric_type != faiss.METRIC_L2 or not made.is_trained:
        return False
    if kind != "hnsw":
        lists, cells = faiss.downcast_InvertedLists(made.invlists), made.quantizer
        wanted = "OnDiskInvertedLists" if kind == "disk" else "ArrayInvertedLists"
        return (
            type(lists).__name__ == wanted
            and lists.nlist == made.nlist == cells.ntotal
            and (cells.d, lists.code_size) == (dim, made.code_size)
            and sum(map(lists.list_size, range(made.nlist))) == entries
        )
    return _sound_graph(faiss, made, entries, dim)


def _sound_graph(faiss: Any, made: Any, entries: int, dim: int) -> bool:
    """Whether no link of the graph leads out of it: FAISS follows them without a look."""
    graph, storage = made.hnsw, faiss.downcast_index(made.storage)
    links = faiss.vector_to_array(graph.neighbors)
    first = faiss.vector_to_array(graph.offsets).astype(np.int64)
    levels = faiss.vector_to_array(graph.levels)
    ends = faiss.vector_to_array(graph.cum_nneighbor_per_level)
    sizes = (storage.ntotal, storage.d, len(levels), len(first))
    if sizes != (entries, dim, entries, entries + 1):
        return False
    if not 1 <= levels.min() <= levels.max() < len(ends):
        return False
    if first[0] != 0 or first[-1] != len(links) or (np.diff(first) != ends[levels]).any():
        return False
    if not -1 <= links.min() <= links.max() < entries or not 0 <= graph.entry_point < entries:
        return False
    if not 0 <= graph.max_level < levels[graph.entry_point]:
        return False
    for level in range(1, int(levels.max())):
        nodes = first[:-1][levels > level]
        to = links[nodes[:, None] + np.arange(ends[level], ends[level + 1])]
        if (levels[to[to >= 0]] <= level).any():
            return False
    return True
