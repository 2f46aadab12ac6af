"""How work over many rows is cut into pieces, and which rows stand for all of them."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Spans = list[tuple[int, int]]
"""First row and end of each stretch of rows, ascending."""


def batches(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    """Cut a range into slices of at most ``size``."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def sample(size: int, count: int) -> NDArray[np.int64]:
    """About ``count`` numbers, ascending, below ``size``, spread evenly but not regularly.

    Rows come in pictures of equally many patches, so a regular step could meet the same corner
    of every picture.
    """
    if count >= size:
        return np.arange(size)
    golden = (5**0.5 - 1) / 2
    place = np.arange(count) * golden % 1
    return np.unique((place * size).astype(np.int64))
