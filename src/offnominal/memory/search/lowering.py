"""The coreset's comparison of many rows with many others, in PyTorch."""

import numpy as np
import torch
from numpy.typing import NDArray

from offnominal.memory.search.bound import bound, product_dtype
from offnominal.memory.search.cutting import batches
from offnominal.memory.search.exact import exact_distances
from offnominal.memory.search.stored import StoredTensors

Floats = NDArray[np.float32]

# Exact comparisons per row above which the bounds of a short number format are too loose.
_CROWDED = 4


def lowered(
    far: Floats, rows: Floats, others: Floats, centre: Floats, precision: str, at_once: int
) -> tuple[Floats, str]:
    """As :func:`offnominal.memory.search.arrays.lowered`, and the precision for the next time.

    A matrix product with a bounded error rules out the pairs that cannot lower anything.
    """
    # Autocast would change the format of the products under the bounds' feet.
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        best, block, centres = (torch.tensor(each) for each in (far, rows, others))
        dtype = product_dtype(precision, block.device)
        middle = torch.tensor(centre)
        everyone = torch.arange(len(block))
        bounds = bound(StoredTensors(centres), block, [(0, len(centres))], middle, dtype, 1)
        near = bounds.maxima[:, 0]
        # The most promising of each row first: it rules out most of the others.
        largest, which = near.max(1)
        who = (largest >= bounds.threshold(best, everyone)[:, 0]).nonzero()[:, 0]
        which = which[who]
        best[who] = torch.minimum(best[who], exact_distances(block[who], centres[which]))
        near[who, which] = -torch.inf
        left, which = (near[who] >= bounds.threshold(best[who], who)).nonzero().unbind(1)
        if len(left) > _CROWDED * len(block) and dtype != torch.float32:
            return lowered(best.numpy(), rows, others, centre, "fp32", at_once)
        for some in batches(len(left), at_once):
            row, column = who[left[some]], which[some]
            exact = exact_distances(block[row], centres[column])
            best.scatter_reduce_(0, row, exact, "amin")
        return best.numpy(), precision
