"""Regions of an anomaly map: connected areas above a threshold, their masks and their outlines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import OptionError
from offnominal.labelling import components

if TYPE_CHECKING:
    from supervision import Detections

__all__ = ["Area", "Box", "Region", "as_detections", "boxes_as_detections", "find_areas"]
__all__ += ["outlines"]

Outline = NDArray[np.int32]


class Box(NamedTuple):
    """A defect that a method found as a whole, in image coordinates.

    Attributes
    ----------
    box : (left, top, width, height), in pixels
    kind : str
        Its class.
    score : float
        How sure the method is, on [0, 1].
    """

    box: tuple[float, float, float, float]
    kind: str
    score: float


@dataclass(frozen=True)
class Region:
    """A connected area of an anomaly map above the pixel threshold, in image coordinates.

    Attributes
    ----------
    box : (left, top, width, height), in pixels
    area : int
        In pixels.
    peak : float
        The map's largest value inside.
    peak_at : (x, y), in pixels
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    peak_at: tuple[int, int]


@dataclass(frozen=True)
class Area:
    """A region and its pixels.

    Attributes
    ----------
    region : Region
    mask : bool array of shape (height, width)
        Within its box.
    """

    region: Region
    mask: NDArray[np.bool_]

    def whole_mask(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The mask (H, W) within an image of this size."""
        left, top, width, height = self.region.box
        mask = np.zeros(size, bool)
        mask[top : top + height, left : left + width] = self.mask
        return mask


def find_areas(anomaly_map: NDArray[np.float32], threshold: float, min_area: int) -> list[Area]:
    """Connected areas (8-connected) of a map (H, W) above a threshold, the highest peak first."""
    labels, areas, boxes = components(anomaly_map > threshold)
    found = []
    for index in np.flatnonzero(areas >= min_area):
        area = int(areas[index])
        left, top, width, height = (int(v) for v in boxes[index])
        window = np.s_[top : top + height, left : left + width]
        mask = labels[window] == index + 1
        inside = np.where(mask, anomaly_map[window], -np.inf)
        y, x = divmod(int(inside.argmax()), width)
        peak = float(inside[y, x])
        region = Region((left, top, width, height), area, peak, (left + x, top + y))
        found.append(Area(region, mask))
    return sorted(found, key=lambda one: -one.region.peak)


def as_detections(areas: Sequence[Area], size: tuple[int, int]) -> "Detections":
    """Regions of an image (H, W) as supervision has them.

    Raises
    ------
    OptionError
        Without supervision.
    """
    kind = _detections()
    if not areas:
        return kind.empty()
    boxes = np.array([one.region.box for one in areas], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return kind(
        xyxy=boxes,
        mask=np.stack([one.whole_mask(size) for one in areas]),
        confidence=np.array([one.region.peak for one in areas], np.float32),
        class_id=np.zeros(len(areas), int),
        data={"class_name": np.array(["anomaly"] * len(areas))},
    )


def boxes_as_detections(boxes: Sequence[Box], names: Sequence[str]) -> "Detections":
    """Boxes as supervision has them, their classes numbered as they are listed.

    Raises
    ------
    OptionError
        Without supervision.
    """
    kind = _detections()
    if not boxes:
        return kind.empty()
    corners = np.array([one.box for one in boxes], np.float32)
    corners[:, 2:] += corners[:, :2]
    return kind(
        xyxy=corners,
        confidence=np.array([one.score for one in boxes], np.float32),
        class_id=np.array([names.index(one.kind) for one in boxes]),
        data={"class_name": np.array([one.kind for one in boxes])},
    )


def _detections() -> "type[Detections]":
    try:
        from supervision import Detections
    except ImportError as error:
        raise OptionError(
            f"to_supervision needs supervision ({error}): pip install 'supervision>=0.31'"
        ) from error
    # Named with its type: where supervision is not installed, all of it is Any.
    kind: type[Detections] = Detections
    return kind


def outlines(mask: NDArray[np.bool_]) -> list[Outline]:
    """Polygons (n, 2) of x and y that run along the edges of a mask's pixels, holes cut out.

    Filled, they give the mask again, a single pixel as well as all others; through the centres of
    the outermost pixels they would not. A hole joins the polygon around it by a slit of no width.
    """
    inside = np.pad(mask, 1)
    labels = components(inside).labels.ravel()
    found: dict[int, Outline] = {}
    # The first edge of a region from above lies on its outside, those of its holes come later.
    for pixel, path in _paths(inside):
        component = int(labels[pixel])
        found[component] = _joined(found[component], path) if component in found else path
    return list(found.values())


def _paths(inside: NDArray[np.bool_]) -> Iterator[tuple[int, Outline]]:
    """A pixel (its place in row-major order) and the path along the edges that it is part of.

    The outermost pixels are all outside. Pixels that touch at a corner belong together, so there
    a path goes over to the other one. It has the pixels to its right, and is told by its corners.
    """
    width = inside.shape[1]
    flat = inside.ravel()
    ahead, left = np.array([1, width, -1, -width]), np.array([-width, 1, width, -1])
    end = (1, width + 1, width, 0)  # where an edge goes to: corners are to the upper left of pixels
    # An edge is one of four directions on a pixel; of each, the next one.
    pixels = np.flatnonzero(flat)
    edges, after = [], []
    for way in range(4):
        here = pixels[~flat[pixels + left[way]]]
        straight, over = here + ahead[way], here + ahead[way] + left[way]
        turned = np.where(flat[straight], 4 * straight + way, 4 * here + (way + 1) % 4)
        edges.append(4 * here + way)
        after.append(np.where(flat[over], 4 * over + (way - 1) % 4, turned))
    following = dict(
        zip(np.concatenate(edges).tolist(), np.concatenate(after).tolist(), strict=True)
    )
    for first in edges[0].tolist():
        corners, edge = [], first
        while edge in following:
            then = following.pop(edge)
            if then % 4 != edge % 4:
                corners.append(edge // 4 + end[edge % 4])
            edge = then
        if corners:
            yield first // 4, np.array([divmod(c, width)[::-1] for c in corners], np.int32) - 1


def _joined(outer: Outline, hole: Outline) -> Outline:
    """One path around a polygon and a hole in it, by way of where they come close."""
    at = int(np.abs(outer - hole[0]).sum(1).argmin())
    return np.concatenate([outer[: at + 1], hole, hole[:1], outer[at:]])
