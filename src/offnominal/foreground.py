"""Which patches belong to the object, and whether that can be told at all.

The mask is that of AnomalyDINO (Damm et al., 2024, section 3.2): the first principal component of
an image's own patch features separates object from background. It fails on textures and close-ups,
so a masking test decides once, on the first reference, whether to use it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "MaskMode",
    "MaskingTest",
    "Morphology",
    "first_component",
    "foreground_mask",
    "masking_test",
]

MaskMode = Literal["auto", "on", "off"]
Morphology = Literal["2d", "reference"]

_BORDER = 0.2  # the centre is what lies inside this share of each side
_CENTRE_SHARE = 0.35  # of the centre the object must keep, else the sign is turned
_KERNEL = 3
_ALIKE = 1e-6  # of the largest entry, which is what float32 leaves of no difference

# The masking test. Each limit is loose on its own; together they leave objects before a background.
_COVERAGE = (0.03, 0.80)  # share of the patches that an object takes
_FRAME = 0.15  # share of the outermost patches that an object may touch
_LARGEST = 0.80  # share of the mask in its largest connected piece
_SEPARATION = 0.75  # between-class share of the component's variance; a Gaussian has 0.64


def first_component(tokens: Tensor) -> Tensor:
    """Scores of patch features on their first principal component.

    Parameters
    ----------
    tokens : Tensor of shape (N, D), float32
        Patch features of one image, not L2-normalised.

    Returns
    -------
    Tensor of shape (N,), float32
        Its sign is that which makes the largest absolute entry of the direction positive, as
        scikit-learn's PCA has it. 0 where the features are all alike, as those of a blank image.
    """
    centred = tokens - tokens.mean(0)
    if centred.abs().max() <= _ALIKE * tokens.abs().max():
        return centred.new_zeros(len(centred))
    if centred.shape[0] < centred.shape[1]:
        # The smaller Gram matrix has the same leading direction.
        axis = F.normalize(centred.T @ _leading(centred @ centred.T), dim=0)
    else:
        axis = _leading(centred.T @ centred)
    return centred @ (axis * torch.sign(axis[axis.abs().argmax()]))


def _leading(symmetric: Tensor) -> Tensor:
    """The eigenvector of the largest eigenvalue."""
    try:
        vectors: Tensor = torch.linalg.eigh(symmetric).eigenvectors
    except RuntimeError:  # LinAlgError: many alike, as of an image that is blank but for little
        vectors = torch.linalg.eigh(symmetric.double()).eigenvectors.to(symmetric)
    return vectors[:, -1]


def foreground_mask(
    tokens: Tensor,
    grid: tuple[int, int],
    threshold: float | None = 10.0,
    morphology: Morphology = "2d",
) -> Tensor:
    """Mask of the patches that belong to the object.

    Parameters
    ----------
    tokens : Tensor of shape (gh * gw, D), float32
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
    Tensor of shape (gh, gw), bool
    """
    raw = _raw_mask(first_component(tokens), grid, threshold)
    shape = grid if morphology == "2d" else (grid[0] * grid[1], 1)
    mask = raw.reshape(1, 1, *shape).float()
    mask = _dilate(mask)  # enlarge slightly
    mask = -_dilate(-_dilate(mask))  # then close small holes
    return mask.reshape(grid) > 0.5


def _raw_mask(component: Tensor, grid: tuple[int, int], threshold: float | None) -> Tensor:
    """Threshold the component, its sign chosen by the centre test."""
    if threshold is None:
        high = (component > _otsu(component)).reshape(grid)
        # Neither side of Otsu's threshold is special: the object is the one nearer the centre.
        turn = _centre(high).float().mean() < high.float().mean()
        return torch.where(turn, ~high, high)
    high = (component > threshold).reshape(grid)
    low = (-component > threshold).reshape(grid)
    centre = _centre(high)
    return torch.where(centre.sum() <= centre.numel() * _CENTRE_SHARE, low, high)


def _centre(mask: Tensor) -> Tensor:
    rows, columns = mask.shape
    return mask[
        int(rows * _BORDER) : int(rows * (1 - _BORDER)),
        int(columns * _BORDER) : int(columns * (1 - _BORDER)),
    ]


def _dilate(mask: Tensor) -> Tensor:
    return F.max_pool2d(mask, _KERNEL, stride=1, padding=_KERNEL // 2)


def _between_classes(component: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted values, and the between-class variance of a cut behind each of them."""
    values = component.double().sort().values
    n = values.numel()
    count = torch.arange(1, n, device=values.device, dtype=torch.float64)
    total = values.cumsum(0)
    below, above = total[:-1] / count, (total[-1] - total[:-1]) / (n - count)
    return values, count * (n - count) / n**2 * (above - below) ** 2


def _otsu(component: Tensor) -> Tensor:
    """The exact Otsu threshold: half way between the two values that the best cut parts."""
    if len(component) < 2:
        return component.max()
    values, between = _between_classes(component)
    best = between.argmax()
    return ((values[best] + values[best + 1]) / 2).to(component.dtype)


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
    tokens: Tensor, grid: tuple[int, int], threshold: float | None = 10.0
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
    tokens : Tensor of shape (gh * gw, D), float32
        Patch features of the first reference, not rotated, not L2-normalised.
    grid : (gh, gw)
    threshold : float or None
        As in :func:`foreground_mask`.
    """
    import cv2

    component = first_component(tokens)
    mask = foreground_mask(tokens, grid, threshold).cpu().numpy()
    coverage = float(mask.mean())
    edge = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    frame = float(edge.mean())
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest = float(areas.max() / areas.sum()) if count > 1 else 0.0
    variance = float(component.double().var(correction=0))
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
