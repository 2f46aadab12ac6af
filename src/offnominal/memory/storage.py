"""How rows are stored: as float32, float16, or 8-bit integers with a scale for each row.

What is stored is the truth: a search is exact among the decoded rows. Decoding is element-wise
and rounds once, so the same row decodes to the same bits everywhere.

Before a row becomes integers it is turned, so that its values are about equally large: one scale
then fits all of them. All rows and queries are turned alike, which changes no distance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import OptionError

DTYPES: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
}
# What a bank knows of a row beside its features: the format, and the smallest value.
COLUMNS: dict[str, tuple[np.dtype[Any], int]] = {
    "reference": (np.dtype(np.int32), -1),
    "view": (np.dtype(np.int16), 0),
    "patch": (np.dtype(np.int32), 0),
    "counts": (np.dtype(np.bool_), 0),
    "loo_distance": (np.dtype(np.float32), 0),
    "loo_reference": (np.dtype(np.int32), -2),
}
# Beyond this norm the square of a distance leaves the range of float32.
NORM_LIMIT = 1e18
_LEVELS = 127
_BLOCK = 2**16  # rows that are checked at once
_GOLDEN = 0x9E3779B1


@dataclass(frozen=True)
class StoredRows:
    """Rows that are decoded where they are read.

    Attributes
    ----------
    values : array of shape (N, D), float32, float16 or int8
    scale : float32 array of shape (N,) or None
        Of int8 rows: a row is its integers times its scale.
    """

    values: NDArray[Any]
    scale: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        """A stretch of rows (n, D) float32; of float32 rows no copy."""
        rows = self.values[part].astype(np.float32, copy=False)
        if self.scale is not None:
            rows *= self.scale[part, None]
        return rows

    def take(self, index: NDArray[np.integer]) -> NDArray[np.float32]:
        """A copy of the rows ``index`` (n,), as (n, D) float32."""
        picked = self.values.take(index, axis=0).astype(np.float32, copy=False)
        if self.scale is not None:
            picked *= self.scale.take(index)[:, None]
        return picked


def encode(
    features: NDArray[np.floating], storage: str
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Rows as they are stored, and their scales.

    Parameters
    ----------
    features : array of shape (n, D), any float dtype, finite
    storage : {"fp32", "fp16", "int8"}

    Returns
    -------
    tuple
        (n, D) rows, and (n,) float32 scales if they are int8. Of an int8 row, which is turned,
        the largest absolute value becomes ±127; each is off by about 1/254 of that one at most.

    Raises
    ------
    OptionError
        If a value does not fit: float16 ends at 65504.
    """
    rows = features.astype(np.float32, copy=False)
    if storage == "int8":
        rows = turn(rows)
        scale = np.abs(rows).max(1) / np.float32(_LEVELS)
        # A row of zeros, or of values so small that their scale is rounded to zero.
        divisor = np.where(scale > 0, scale, np.float32(1))
        coded = np.clip(np.rint(rows / divisor[:, None]), -_LEVELS, _LEVELS)
        # Of all scales for these integers, that with the least squared error: what is lost is
        # then at right angles to the row, and distances to its neighbours change less. In
        # float64, so that the order of the sums cannot be seen in the result.
        across = (rows.astype(np.float64) * coded).sum(1)
        square = np.square(coded, dtype=np.float64).sum(1)
        best = (across / np.maximum(square, 1)).astype(np.float32)
        # To 12 binary places: a row that was taken back, and so is off by the last digits of
        # float32, is then stored with the same bits again.
        best = ((best.view(np.int32) + (1 << 10)) & -(1 << 11)).view(np.float32)
        return coded.astype(np.int8), np.where(scale > 0, best, scale)
    if storage == "fp16" and len(rows):
        largest = float(np.abs(rows).max())
        if largest > float(np.finfo(np.float16).max):
            raise OptionError(
                f"storage: fp16 holds values up to 65504, and these features reach {largest:.3g}; "
                "use int8 or fp32"
            )
    return rows.astype(DTYPES[storage], copy=False), None


def new_columns(
    features: NDArray[np.floating],
    storage: str,
    reference: int,
    view: int,
    patch: NDArray[np.integer] | None,
    counts: NDArray[np.bool_] | bool | None,
) -> dict[str, NDArray[Any]]:
    """What a bank keeps of rows that come, by name; see :meth:`MemoryBank.add`.

    Raises
    ------
    OptionError
        If a shape or type is another, or a value does not fit.
    """
    n = features.shape[:1]
    patch = np.arange(len(features)) if patch is None else patch
    counts = counts if isinstance(counts, np.ndarray) else np.full(n, bool(counts))
    for name, column, kinds, wanted in (
        ("patch", patch, "iu", "integers"),
        ("counts", counts, "b", "truth values"),
    ):
        if column.shape != n or column.dtype.kind not in kinds:
            raise OptionError(
                f"{name}: {column.dtype} of shape {column.shape}; "
                f"give {len(features)} {wanted}, one for each row"
            )
    if not 0 <= view <= np.iinfo(np.int16).max:
        raise OptionError(f"view: {view} is not from 0 to 32767")
    rows, scale = encode(features, storage)
    return {
        "rows": rows,
        **({} if scale is None else {"scale": scale}),
        "reference": np.full(n, reference),
        "view": np.full(n, view),
        "patch": patch,
        "counts": counts,
        "loo_distance": np.full(n, np.inf),
        "loo_reference": np.full(n, -1),
    }


def as_stored(features: NDArray[np.floating], storage: str) -> NDArray[np.float32]:
    """Features (n, D) as a bank would give them back, (n, D) float32.

    References are looked up as the bank keeps them. What is compared with the bank must be
    rounded alike, or its scores would not be drawn as theirs are.
    """
    stored = StoredRows(*encode(features, storage))[:]
    return turn_back(stored) if storage == "int8" else stored


def check_features(x: NDArray[Any], name: str, dim: int) -> None:
    """Raise an OptionError unless ``x`` (n, dim) are finite floats; of any length if dim is 0."""
    if not isinstance(x, np.ndarray):
        raise OptionError(f"{name}: a {type(x).__name__}; this bank takes NumPy arrays")
    fits = x.ndim == 2 and x.shape[1] > 0 and x.shape[1] == (dim or x.shape[1])
    if not fits or x.dtype.kind != "f":
        raise OptionError(
            f"{name}: {x.dtype} of shape {x.shape}; "
            f"this bank takes floats of shape (n, {dim or 'dim'})"
        )
    if len(x) and not lengths(x).max() < NORM_LIMIT:
        raise OptionError(
            f"{name}: values must be finite, with norms below {NORM_LIMIT:.0e}; "
            "check the images and the backbone's weights"
        )


def check_columns(columns: Mapping[str, NDArray[Any]], like: Mapping[str, NDArray[Any]]) -> None:
    """Raise an OptionError unless ``columns`` can take the place of those of a bank."""
    if odd := like.keys() ^ columns.keys():
        raise OptionError(
            f"memory bank: the columns {', '.join(sorted(odd))} are missing or unknown here; "
            "check the file that they were loaded from, and that it was saved with this storage"
        )
    rows = columns["rows"]
    n, dim = (*rows.shape, 0, 0)[:2]
    for name, column in columns.items():
        shape = (n, like["rows"].shape[1] or dim) if name == "rows" else (n,)
        if column.dtype != like[name].dtype or column.shape != shape:
            raise OptionError(
                f"memory bank: {name} is {column.dtype} of shape {column.shape}; "
                f"this bank takes {like[name].dtype} of shape {shape}"
            )
        # Written so that NaN is refused as well.
        lowest = COLUMNS.get(name, (None, 0))[1]
        if name != "rows" and not (column >= lowest).all():
            raise OptionError(f"memory bank: {name} must be at least {lowest} everywhere")
    stored = StoredRows(rows, columns.get("scale"))
    for start in range(0, n, _BLOCK):
        with np.errstate(over="ignore", invalid="ignore"):  # which is refused
            block = stored[start : start + _BLOCK]
        refuse_infinite(lengths(block).max())


def lengths(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Norms (n,) of rows (n, D), in float32 at least; infinite beyond its range."""
    wide = rows.astype(np.float32) if rows.dtype == np.float16 else rows
    with np.errstate(over="ignore", invalid="ignore"):
        norms: NDArray[np.floating] = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return norms


def refuse_infinite(largest: Any) -> None:
    """Raise an OptionError unless the largest norm of some rows is finite and not too large."""
    if not largest < NORM_LIMIT:
        raise OptionError(
            f"memory bank: rows must be finite with norms below {NORM_LIMIT:.0e}; "
            "check the features or the file they were loaded from"
        )


def turn(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn vectors (n, D) float32, all alike, so that large values are spread over many.

    Signs are changed in a fixed irregular way, and a Walsh-Hadamard transform mixes as many values
    as the largest power of two that divides the length. It consists of sums of two numbers, in a
    fixed order: the same bits on any machine.
    """
    return _mix(rows * _signs(rows.shape[1]))


def turn_back(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Undo :func:`turn`, but for the rounding of float32."""
    return _mix(rows) * _signs(rows.shape[1])


@lru_cache(4)
def _signs(dim: int) -> NDArray[np.float32]:
    """±1 for each value of a row, (dim,)."""
    parity = [(i * _GOLDEN & 0xFFFFFFFF).bit_count() & 1 for i in range(dim)]
    return 1 - 2 * np.array(parity, np.float32)


def _mix(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    count, dim = rows.shape
    size = dim & -dim
    # Values of a block lie apart, so that each has some of every feature level.
    mixed = np.ascontiguousarray(rows)
    half = 1
    while half < size:
        pairs = mixed.reshape(count, size // (2 * half), 2, half * (dim // size))
        mixed = np.empty_like(pairs)
        np.add(pairs[:, :, 0], pairs[:, :, 1], out=mixed[:, :, 0])
        np.subtract(pairs[:, :, 0], pairs[:, :, 1], out=mixed[:, :, 1])
        half *= 2
    return mixed.reshape(count, dim) * np.float32(size**-0.5)
