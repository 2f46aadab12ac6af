"""Images under an affine map, in numpy: turned references, and pieces cut out at any angle.

The rule is that of OpenCV 5 for 8-bit images (``warpAffine``, bilinear): places and values in
single precision, with the fused multiply-add of processors that have one. So the pixels are the
same to the bit as OpenCV's on such a processor; on others, and in OpenCV 4, which rounds places to
1/32 of a pixel, it is OpenCV that gives other ones.
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Affine", "inverse", "rotation", "through", "warp"]

Affine = NDArray[np.float64]
_ROWS = 16  # of the output that are made at once, so that they stay in the cache
_LANES = 16  # columns that OpenCV takes at once; what is left of a row it rounds otherwise


def rotation(centre: tuple[float, float], angle: float) -> Affine:
    """The map (2, 3) that turns points (x, y) about a centre, by degrees, anticlockwise."""
    radians = angle * (math.pi / 180)
    cosine, sine = math.cos(radians), math.sin(radians)
    x, y = centre
    return np.array(
        [[cosine, sine, (1 - cosine) * x - sine * y], [-sine, cosine, sine * x + (1 - cosine) * y]]
    )


def inverse(matrix: Affine) -> Affine:
    """The map (2, 3) that undoes another."""
    (a, b, x), (c, d, y) = matrix.tolist()
    scale = 1 / (a * d - b * c)
    a, d, b, c = d * scale, a * scale, b * -scale, c * -scale
    return np.array([[a, b, -a * x - b * y], [c, d, -c * x - d * y]])


def through(points: NDArray[np.floating], targets: NDArray[np.floating]) -> Affine:
    """The map (2, 3) that takes three points (3, 2) of x and y to three others."""
    return np.asarray(np.linalg.solve(np.column_stack([points, np.ones(3)]), targets).T)


def warp(
    image: NDArray[np.uint8],
    matrix: Affine,
    size: tuple[int, int],
    border: Literal["mirror", "repeat"] = "mirror",
) -> NDArray[np.uint8]:
    """An image under an affine map, bilinear.

    Parameters
    ----------
    image : uint8 array of shape (H, W) or (H, W, C), C up to 4
    matrix : float64 array of shape (2, 3)
        Takes a place (x, y) of the image to one of the result; pixels' centres are whole numbers.
    size : (width, height)
        Of the result.
    border : {"mirror", "repeat"}
        What lies beyond the image: the image mirrored, without its outermost pixels a second time,
        or these pixels again and again.

    Returns
    -------
    uint8 array of shape (height, width) or (height, width, C)
    """
    height, width = image.shape[:2]
    channels = image.shape[2] if image.ndim == 3 else 1
    # Channels of a pixel are fetched together.
    packed = np.zeros((height, width, 4), np.uint8)
    packed[..., :channels] = image.reshape(height, width, channels)
    pixels = packed.view(np.uint32).ravel()
    back = inverse(matrix).astype(np.float32)
    (first_x, columns), (first_y, lines) = (
        _folded(line, size, length, border)
        for line, length in zip(back, (width, height), strict=True)
    )
    lines *= width
    result = np.empty((size[1], size[0], channels), np.uint8)
    for top in range(0, size[1], _ROWS):
        rows = np.arange(top, min(top + _ROWS, size[1]))
        across, down = (_places(line, rows, size[0]) for line in back)
        left, above = np.floor(across), np.floor(down)
        right_share, lower_share = across - left, down - above
        x, y = left.astype(np.intp) - first_x, above.astype(np.intp) - first_y
        x, next_x, y, next_y = columns[x], columns[x + 1], lines[y], lines[y + 1]
        corners = (y + x, y + next_x, next_y + x, next_y + next_x)
        one, two, three, four = (pixels.take(each).view(np.uint8) for each in corners)
        right_share, lower_share = (each.repeat(4, 1) for each in (right_share, lower_share))
        upper, lower = _between(one, two, right_share), _between(three, four, right_share)
        value = np.rint(_between(upper, lower, lower_share)).astype(np.uint8)
        result[top : top + _ROWS] = value.reshape(*x.shape, 4)[..., :channels]
    return result.reshape(size[1], size[0], *image.shape[2:])


def _places(line: NDArray[np.float32], rows: NDArray[np.intp], width: int) -> NDArray[np.float32]:
    """Where the result's pixels (rows, width) lie along one side of the image."""
    step, slope, shift = line
    start = slope * rows.astype(np.float32)[:, None]
    # In double precision a product of two single ones is exact: fused, it is rounded once.
    products = np.arange(width) * step.astype(np.float64)
    found: NDArray[np.float32] = (products + (start + shift).astype(np.float64)).astype(np.float32)
    rest = width - width % _LANES
    found[:, rest:] = (products[rest:] + start.astype(np.float64)).astype(np.float32) + shift
    return found


def _between(
    one: NDArray[Any], other: NDArray[Any], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Values between two, as if multiplied and added in one."""
    first = one.astype(np.float64)
    apart = other.astype(np.float64)
    apart -= first
    apart *= share
    apart += first
    return apart.astype(np.float32)


def _folded(
    line: NDArray[np.float32], size: tuple[int, int], length: int, border: str
) -> tuple[int, NDArray[np.intp]]:
    """The first place that the result reaches along a side, and where this and the next ones lie.

    Those beyond the border are moved into the image.
    """
    ends = np.array([[0, 0, size[0], size[0]], [0, size[1], 0, size[1]], [1, 1, 1, 1]])
    reached = line.astype(np.float64) @ ends
    first = math.floor(reached.min()) - 1
    places = np.arange(first, math.ceil(reached.max()) + 3)
    if border == "repeat" or length == 1:
        return first, np.clip(places, 0, length - 1)
    turn = 2 * length - 2
    places = np.abs(places) % turn
    return first, np.minimum(places, turn - places)
