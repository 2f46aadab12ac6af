"""How rows are stored: as float32, float16, or 8-bit integers with a scale for each row.

What is stored is the truth: a search is exact among the decoded rows. Decoding is element-wise
and rounds once, so the same row decodes to the same bits everywhere.

Before a row becomes integers it is turned, so that its values are about equally large: one scale
then fits all of them. All rows and queries are turned alike, which changes no distance.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from offnominal.errors import OptionError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}
# What a bank knows of a row beside its features: the format, and the smallest value.
COLUMNS = {
    "reference": (torch.int32, -1),
    "view": (torch.int16, 0),
    "patch": (torch.int32, 0),
    "counts": (torch.bool, 0),
    "loo_distance": (torch.float32, 0),
    "loo_reference": (torch.int32, -2),
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
    values : Tensor
        (N, D) float32, float16 or int8.
    scale : Tensor or None
        (N,) float32, of int8 rows: a row is its integers times its scale.
    """

    values: Tensor
    scale: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> Tensor:
        """A stretch of rows (n, D) float32; of float32 rows no copy."""
        if self.scale is None:
            return self.values[part].float()
        return self.values[part].float().mul_(self.scale[part][:, None])

    def take(self, index: Tensor) -> Tensor:
        """A copy of the rows ``index`` (n,) int64, as (n, D) float32."""
        picked = self.values.index_select(0, index).float()
        if self.scale is None:
            return picked
        return picked.mul_(self.scale.index_select(0, index)[:, None])


def encode(features: Tensor, storage: str) -> tuple[Tensor, Tensor | None]:
    """Rows as they are stored, and their scales.

    Parameters
    ----------
    features : Tensor
        (n, D), any float dtype, finite.
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
    features = features.float()
    if storage == "int8":
        features = turn(features)
        scale = features.abs().amax(1) / _LEVELS
        # A row of zeros, or of values so small that their scale is rounded to zero.
        divisor = torch.where(scale > 0, scale, 1)
        coded = (features / divisor[:, None]).round_().clamp_(-_LEVELS, _LEVELS)
        # Of all scales for these integers, that with the least squared error: what is lost is
        # then at right angles to the row, and distances to its neighbours change less. In
        # float64, so that the order of the sums cannot be seen in the result.
        across = (features.double() * coded).sum(1)
        best = (across / coded.double().square().sum(1).clamp_(min=1)).float()
        # To 12 binary places: a row that was taken back, and so is off by the last digits of
        # float32, is then stored with the same bits again.
        best = ((best.view(torch.int32) + (1 << 10)) & -(1 << 11)).view(torch.float32)
        return coded.to(torch.int8), torch.where(scale > 0, best, scale)
    if storage == "fp16" and len(features):
        largest = float(features.abs().amax())
        if largest > torch.finfo(torch.float16).max:
            raise OptionError(
                f"storage: fp16 holds values up to 65504, and these features reach {largest:.3g}; "
                "use int8 or fp32"
            )
    return features.to(DTYPES[storage]), None


def as_stored(features: Tensor, storage: str) -> Tensor:
    """Features (n, D) as a bank would give them back, (n, D) float32.

    References are looked up as the bank keeps them. What is compared with the bank must be
    rounded alike, or its scores would not be drawn as theirs are.
    """
    stored = StoredRows(*encode(features, storage))[:]
    return turn_back(stored) if storage == "int8" else stored


def check_features(x: Tensor, name: str, dim: int) -> None:
    """Raise an OptionError unless ``x`` (n, dim) are finite floats; of any length if dim is 0."""
    fits = x.ndim == 2 and x.shape[1] > 0 and x.shape[1] == (dim or x.shape[1])
    if not fits or not x.is_floating_point():
        raise OptionError(
            f"{name}: a {x.dtype} tensor of shape {tuple(x.shape)}; "
            f"this bank takes floats of shape (n, {dim or 'dim'})"
        )
    if len(x) and not torch.linalg.vector_norm(x.float(), dim=1).amax() < NORM_LIMIT:
        raise OptionError(
            f"{name}: values must be finite, with norms below {NORM_LIMIT:.0e}; "
            "check the images and the backbone's weights"
        )


def check_columns(columns: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
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
                f"memory bank: {name} is {column.dtype} of shape {tuple(column.shape)}; "
                f"this bank takes {like[name].dtype} of shape {shape}"
            )
        # Written so that NaN is refused as well.
        lowest = COLUMNS.get(name, (None, 0))[1]
        if name != "rows" and not bool((column >= lowest).all()):
            raise OptionError(f"memory bank: {name} must be at least {lowest} everywhere")
    stored = StoredRows(rows, columns.get("scale"))
    for start in range(0, n, _BLOCK):
        refuse_infinite(torch.linalg.vector_norm(stored[start : start + _BLOCK], dim=1))


def refuse_infinite(norms: Tensor) -> None:
    """Raise an OptionError unless all these norms of rows are finite and not too large."""
    if not norms.amax() < NORM_LIMIT:
        raise OptionError(
            f"memory bank: rows must be finite with norms below {NORM_LIMIT:.0e}; "
            "check the features or the file they were loaded from"
        )


def turn(rows: Tensor) -> Tensor:
    """Turn vectors (n, D) float32, all alike, so that large values are spread over many.

    Signs are changed in a fixed irregular way, and a Walsh-Hadamard transform mixes as many values
    as the largest power of two that divides the length. It consists of sums of two numbers, in a
    fixed order: the same bits on any machine.
    """
    return _mix(rows * _signs(rows))


def turn_back(rows: Tensor) -> Tensor:
    """Undo :func:`turn`, but for the rounding of float32."""
    return _mix(rows) * _signs(rows)


def _signs(rows: Tensor) -> Tensor:
    """±1 for each value of a row, (D,)."""
    parity = [(i * _GOLDEN & 0xFFFFFFFF).bit_count() & 1 for i in range(rows.shape[1])]
    return 1 - 2 * torch.tensor(parity, dtype=rows.dtype, device=rows.device)


def _mix(rows: Tensor) -> Tensor:
    count, dim = rows.shape
    size = dim & -dim
    # Values of a block lie apart, so that each has some of every feature level.
    mixed = rows.reshape(count, size, dim // size)
    half = 1
    while half < size:
        pairs = mixed.view(count, size // (2 * half), 2, half, dim // size)
        one, other = pairs.unbind(2)
        mixed = torch.stack([one + other, one - other], 2)
        half *= 2
    turned: Tensor = mixed.reshape(count, dim) * size**-0.5
    return turned
