"""Random projection: fewer dimensions, distances nearly kept."""

import torch
from torch import Tensor

from offnominal.errors import OptionError

_BLOCK = 2**14


def random_projection(rows: Tensor, dim: int, seed: int = 0) -> Tensor:
    """Multiply rows by a Gaussian matrix, which keeps squared distances on average.

    Johnson and Lindenstrauss (1984); with independent entries of variance 1/dim the squared
    distance of a pair keeps its mean and has a relative standard deviation of √(2/dim).

    Parameters
    ----------
    rows : Tensor
        (N, D) float32.
    dim : int
        Length of a projected row, at least 1.
    seed : int
        Of the matrix, which is drawn on the CPU: the same on every device.

    Returns
    -------
    Tensor
        (N, dim) float32; ``rows`` itself where ``dim`` is not below D.

    Raises
    ------
    OptionError
        If ``dim`` is below 1.
    """
    if dim < 1:
        raise OptionError(f"project: {dim} is not a number of dimensions; give 1 or more, or None")
    if dim >= rows.shape[1]:
        return rows
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows.shape[1], dim, generator=generator).to(rows.device) / dim**0.5
    projected = rows.new_empty(len(rows), dim)
    # In blocks, since the rows may be mapped from a file.
    for start in range(0, len(rows), _BLOCK):
        torch.mm(rows[start : start + _BLOCK], matrix, out=projected[start : start + _BLOCK])
    return projected
