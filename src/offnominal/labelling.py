"""Connected components of a mask, in numpy: runs of its rows, joined where they touch."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Components", "components", "label"]


class Components(NamedTuple):
    """The connected components of a mask, in raster order of their first pixels.

    Attributes
    ----------
    labels : int32 array of shape (H, W)
        0 where the mask is False; components from 1.
    areas : int array of shape (n,)
        In pixels.
    boxes : int array of shape (n, 4)
        Left, top, width, height.
    """

    labels: NDArray[np.int32]
    areas: NDArray[np.intp]
    boxes: NDArray[np.intp]


def label(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Labels (H, W) of a mask's 8-connected components, from 1, and how many there are."""
    found = components(mask)
    return found.labels, len(found.areas)


def components(mask: NDArray[np.bool_], corners: bool = True) -> Components:
    """The connected components of a mask, with their areas and boxes.

    Parameters
    ----------
    mask : bool array of shape (H, W)
    corners : bool
        Whether pixels that touch at a corner are connected (8-connected), or only those that share
        an edge (4-connected).
    """
    height, width = mask.shape
    labels = np.zeros((height, width), np.int32)
    # Rows one after another with a pixel of background between them: no run goes over an edge.
    stride = width + 1
    flat = np.zeros(height * stride + 1, np.bool_)
    flat[1:].reshape(height, stride)[:, :width] = mask
    change = np.flatnonzero(flat[1:] != flat[:-1])
    starts, stops = change[::2], change[1::2]  # a run is [start, stop)
    if not len(starts):
        return Components(labels, np.zeros(0, np.intp), np.zeros((0, 4), np.intp))
    # The runs of the row above that a run touches follow one another.
    first = np.searchsorted(stops, starts - stride, "left" if corners else "right")
    last = np.searchsorted(starts, stops - stride, "right" if corners else "left")
    touching = last - first
    below = np.repeat(np.arange(len(starts)), touching)
    above = np.arange(len(below)) + np.repeat(first - np.cumsum(touching) + touching, touching)
    root = _roots(len(starts), below, above)
    heads = np.flatnonzero(root == np.arange(len(starts)))
    component = np.searchsorted(heads, root)  # of each run
    labels[mask] = np.repeat((component + 1).astype(np.int32), stops - starts)
    row, left = np.divmod(starts, stride)
    right = left + stops - starts
    box = np.zeros((len(heads), 4), np.intp)
    box[:, 0], box[:, 1] = width, row[heads]
    np.minimum.at(box[:, 0], component, left)
    np.maximum.at(box[:, 2], component, right)
    np.maximum.at(box[:, 3], component, row + 1)
    box[:, 2:] -= box[:, :2]
    areas = np.bincount(component, stops - starts).astype(np.intp)
    return Components(labels, areas, box)


def _roots(count: int, one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.intp]:
    """Of each of so many nodes the lowest one that pairs of neighbours connect it with."""
    parent = np.arange(count)
    while len(one):
        # A node's parent lies before it, so there are no circles; ties are settled in later rounds.
        low, high = np.minimum(one, other), np.maximum(one, other)
        np.minimum.at(parent, high, low)
        while (parent != (grand := parent[parent])).any():
            parent = grand
        one, other = parent[one], parent[other]
        apart = one != other
        one, other = one[apart], other[apart]
    return parent
