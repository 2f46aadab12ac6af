"""Which patches belong to the object, and whether that can be told at all.

The mask is that of AnomalyDINO (Damm et al., 2024, section 3.2): the first principal component of
an image's own patch features separates object from background. It fails on textures and close-ups,
so a masking test decides once, on the first reference, whether to use it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offnominal.labelling import label

__all__ = [
    "MaskMode",
    "MaskingTest",
    "Morphology",
    "first_component",
    "foreground_mask",
    "masking_test",
]

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
MaskMode = Literal["auto", "on", "off"]
Morphology = Literal["2d", "reference"]

_BORDER = 0.2  # the centre is what lies inside this share of each side
_CENTRE_SHARE = 0.35  # of the centre the object must keep, else the sign is turned
_ALIKE = 1e-6  # of the largest entry, which is what float32 leaves of no difference
_BASIS, _ROUNDS = 8, 12  # vectors and steps of the search for the first component
_CLOSE = 1e-6  # of the largest eigenvalue

# The masking test. Each limit is loose on its own; together they leave objects before a background.
_COVERAGE = (0.03, 0.80)  # share of the patches that an object takes
_FRAME = 0.15  # share of the outermost patches that an object may touch
_LARGEST = 0.80  # share of the mask in its largest connected piece
_SEPARATION = 0.75  # between-class share of the component's variance; a Gaussian has 0.64


def first_component(tokens: Floats) -> Floats:
    """Scores of patch features on their first principal component.

    Parameters
    ----------
    tokens : float32 array of shape (N, D)
        Patch features of one image, not L2-normalised.

    Returns
    -------
    float32 array of shape (N,)
        Its sign is that which makes the largest absolute entry of the direction positive, as
        scikit-learn's PCA has it. 0 where the features are all alike, as those of a blank image.
    """
    centred = tokens - tokens.mean(0, dtype=np.float64).astype(np.float32)
    if np.abs(centred).max() <= _ALIKE * np.abs(tokens).max():
        return np.zeros(len(centred), np.float32)
    if centred.shape[0] < centred.shape[1]:
        # The smaller Gram matrix has the same leading direction.
        axis = centred.T @ _leading(centred @ centred.T)
        axis /= max(float(np.linalg.norm(axis)), 1e-12)
    else:
        axis = _leading(centred.T @ centred)
    component: Floats = centred @ (axis * np.sign(axis[np.abs(axis).argmax()]))
    return component


def _leading(symmetric: Floats) -> Floats:
    """The eigenvector of the largest eigenvalue.

    Found by subspace iteration with Rayleigh-Ritz steps (Saad, Numerical Methods for Large
    Eigenvalue Problems, 2nd ed., 2011, section 5.2), which takes a few products where an object
    stands out; where it takes more, all eigenvectors are computed.
    """
    basis = symmetric @ np.random.RandomState(0).standard_normal((len(symmetric), _BASIS)).astype(
        np.float32
    )
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(basis)[0]
        image = symmetric @ basis
        values, turn = np.linalg.eigh(basis.T @ image)
        vector, moved = basis @ turn[:, -1], image @ turn[:, -1]
        if np.linalg.norm(moved - values[-1] * vector) <= _CLOSE * values[-1]:
            nearest: Floats = moved / np.linalg.norm(moved)  # a step nearer than it was
            return nearest
        basis = image
    try:
        vectors = np.linalg.eigh(symmetric).eigenvectors
    except np.linalg.LinAlgError:  # many alike, as of an image that is blank but for little
        vectors = np.linalg.eigh(symmetric.astype(np.float64)).eigenvectors
    leading: Floats = vectors[:, -1].astype(np.float32)
    return leading


def foreground_mask(
    tokens: Floats,
    grid: tuple[int, int],
    threshold: float | None = 10.0,
    morphology: Morphology = "2d",
) -> Mask:
    """Mask of the patches that belong to the object.

    Parameters
    ----------
    tokens : float32 array of shape (gh * gw, D)
        Patch features of one image, not L2-normalised.
    grid : (gh, gw)
    threshold : float or None
        Where the first component separates object and background; 10 is the paper's, for DINOv2's
        normalised tokens. None: Otsu's threshold, for backbones of another scale.
    morphology : {"2d", "reference"}
        Dilation and closing by 3 x 3 on the grid. ``reference``: along the patches in raster order,
        as the released code runs them (it hands OpenCV the mask as a column).

    Returns
    -------
    bool array of shape (gh, gw)
    """
    raw = _raw_mask(first_component(tokens), grid, threshold)
    shape = grid if morphology == "2d" else (grid[0] * grid[1], 1)
    mask = _dilate(raw.reshape(shape))  # enlarge slightly
    mask = ~_dilate(~_dilate(mask))  # then close small holes
    return mask.reshape(grid)


def _raw_mask(component: Floats, grid: tuple[int, int], threshold: float | None) -> Mask:
    """Threshold the component, its sign chosen by the centre test."""
    if threshold is None:
        high = (component > _otsu(component)).reshape(grid)
        # Neither side of Otsu's threshold is special: the object is the one nearer the centre.
        return ~high if _share(_centre(high)) < _share(high) else high
    high = (component > threshold).reshape(grid)
    low = (-component > threshold).reshape(grid)
    centre = _centre(high)
    return low if centre.sum() <= centre.size * _CENTRE_SHARE else high


def _share(mask: Mask) -> float:
    return float(mask.mean()) if mask.size else float("nan")


def _centre(mask: Mask) -> Mask:
    rows, columns = mask.shape
    return mask[
        int(rows * _BORDER) : int(rows * (1 - _BORDER)),
        int(columns * _BORDER) : int(columns * (1 - _BORDER)),
    ]


def _dilate(mask: Mask) -> Mask:
    """By 3 x 3; beyond the border there is nothing."""
    down = mask.copy()
    down[1:] |= mask[:-1]
    down[:-1] |= mask[1:]
    wide = down.copy()
    wide[:, 1:] |= down[:, :-1]
    wide[:, :-1] |= down[:, 1:]
    return wide


def _between_classes(component: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sorted values, and the between-class variance of a cut behind each of them."""
    values = np.sort(component.astype(np.float64))
    n = values.size
    count = np.arange(1, n, dtype=np.float64)
    total = values.cumsum()
    below, above = total[:-1] / count, (total[-1] - total[:-1]) / (n - count)
    return values, count * (n - count) / n**2 * np.square(above - below)


def _otsu(component: Floats) -> np.float32:
    """The exact Otsu threshold: half way between the two values that the best cut parts."""
    if len(component) < 2:
        return np.float32(component.max())
    values, between = _between_classes(component)
    best = between.argmax()
    return np.float32((values[best] + values[best + 1]) / 2)


@dataclass(frozen=True)
class MaskingTest:
    """What the masking test found on one reference.

    Attributes
    ----------
    passed : bool
        Whether the mask separates an object from a background.
    reason : str
        In words.
    coverage, frame, largest, separation : float
        The four measures, each on [0, 1].
    """

    passed: bool
    reason: str
    coverage: float
    frame: float
    largest: float
    separation: float


def masking_test(
    tokens: Floats, grid: tuple[int, int], threshold: float | None = 10.0
) -> MaskingTest:
    """Decide without ground truth whether the mask separates an object from a background.

    The paper looks at the mask of one reference and decides by eye. Here four things must hold:

    - the object takes a sensible share of the image (``coverage``);
    - it keeps clear of most of the outermost patches (``frame``): close-ups and textures do not;
    - it is one piece (``largest``): speckle on a texture is not;
    - the first component really has two groups (``separation``, Otsu's criterion): a lighting
      gradient does not.

    Parameters
    ----------
    tokens : float32 array of shape (gh * gw, D)
        Patch features of the first reference, not rotated, not L2-normalised.
    grid : (gh, gw)
    threshold : float or None
        As in :func:`foreground_mask`.
    """
    component = first_component(tokens)
    mask = foreground_mask(tokens, grid, threshold)
    coverage = float(mask.mean())
    edge = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    frame = float(edge.mean())
    labels, count = label(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    largest = float(areas.max() / areas.sum()) if count else 0.0
    variance = float(component.astype(np.float64).var())
    separation = float(_between_classes(component)[1].max()) / variance if variance > 0 else 0.0

    if coverage < _COVERAGE[0]:
        reason = "no object stands out"
    elif coverage > _COVERAGE[1] or frame > _FRAME:
        reason = "the object fills the frame"
    elif largest < _LARGEST:
        reason = "the mask falls into pieces"
    elif separation < _SEPARATION:
        reason = "object and background do not part clearly"
    else:
        reason = "an object stands clear of its background"
    passed = reason.startswith("an object")
    return MaskingTest(passed, reason, coverage, frame, largest, separation)
