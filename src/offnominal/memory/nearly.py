"""Squared distances from one query to some rows: quick, and with bounds on their errors."""

import torch
from torch import Tensor

from offnominal.memory.screen import plain_float32
from offnominal.memory.storage import Stored

__all__ = ["nearly"]

_LEVELS, _DIGIT = 127, 128


def nearly(
    rows: Tensor | Stored, norms: Tensor, query: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Bound squared distances from below and from above.

    Parameters
    ----------
    rows : Tensor or Stored
        (N, D) float32, on a CPU that multiplies integers.
    norms : Tensor
        (N,) float32, of the rows, each off by as much as a sum in float32 may be.
    query : Tensor
        (D,) float32.
    index : Tensor
        (n,) int64: which rows.

    Returns
    -------
    tuple of Tensor
        (n,) float64 each.
    """
    norm = norms.index_select(0, index).double()
    own = float(torch.linalg.vector_norm(query.double()))
    if isinstance(rows, Stored) and rows.scale is not None:
        # Two digits of the query: nothing is lost of the rows, and hardly anything of it.
        unit = float(query.abs().amax().clamp(min=2.0**-100)) / (_LEVELS * _DIGIT)
        whole = (query / unit).round()
        high = (whole / _DIGIT).round()
        digits = torch.stack([high, whole - high * _DIGIT], 1).to(torch.int8)
        product = torch._int_mm(rows.rows.index_select(0, index), digits).double()
        scale = rows.scale.index_select(0, index).double() * unit
        value = (product[:, 0] * _DIGIT + product[:, 1]) * scale
        lost = float(torch.linalg.vector_norm(query.double() - whole.double() * unit))
    else:
        value = (rows.index_select(0, index) @ query).double()
        lost = own * (len(query) * 2.0**-23 if plain_float32(query.device) else 2.0**-5)
    squared = norm.square() + own**2 - 2 * value
    error = norm * (2 * lost) + (norm + own).square() * (len(query) * 2.0**-22) + 1e-34
    return squared - error, squared + error
