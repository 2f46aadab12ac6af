"""What is known of each row beside its features: the image, view and patch it came from."""

import torch
from torch import Tensor

# Formats of the columns, in the bank and in saved files.
PROVENANCE = {"owner": torch.int32, "view": torch.int16, "patch": torch.int32}


def running_numbers(owner: Tensor) -> Tensor:
    """Number the rows of each owner 0, 1, … in their order.

    Parameters
    ----------
    owner : Tensor
        (N,) integers.

    Returns
    -------
    Tensor
        (N,) int32.
    """
    kind, order = owner.sort(stable=True)
    rank = torch.arange(len(kind), device=kind.device) - torch.searchsorted(kind, kind)
    numbers = torch.empty(len(kind), dtype=torch.int32, device=kind.device)
    numbers[order] = rank.int()
    return numbers


def runs(kept: Tensor) -> list[tuple[int, int]]:
    """First row and end of every run of True in ``kept`` (N,) bool."""
    edges = torch.nn.functional.pad(kept.to(torch.int8), (1, 1)).diff().nonzero().flatten()
    steps = edges.tolist()
    return list(zip(steps[::2], steps[1::2], strict=True))


def gaps(spans: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """First row and end of what ascending ``spans`` leave out of the first ``size`` rows."""
    edges = [0, *(edge for span in spans for edge in span), size]
    between = zip(edges[::2], edges[1::2], strict=True)
    return [(start, min(stop, size)) for start, stop in between if start < min(stop, size)]
