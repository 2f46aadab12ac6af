"""Pictures of results: heat maps, overlays, outlines."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo

from offnominal.atomic import writing
from offnominal.labelling import components
from offnominal.paths import MARK

__all__ = ["DARK", "colour_map", "outline", "overlay", "resized", "save_picture", "stroked"]

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

DARK: Colour = (20, 20, 20)
_BRIGHT: Colour = (0, 230, 255)
# "inferno" of matplotlib (CC0), 256 times red, green and blue.
_INFERNO = base64.b64decode(
    "AAAEAQAFAQEGAQEIAgEKAgIMAgIOAwIQBAMSBAMUBQQXBgQZBwUbCAUdCQYfCgciCwckDAgmDQgpDgkrEAktEQow"
    "EgoyFAs0FQs3Fgs5GAw8GQw+GwxBHAxDHgxFHwxIIQxKIwxMJAxPJgxRKAtTKQtVKwtXLQtZLwpbMQpcMgpeNApf"
    "NglhOAliOQljOwlkPQllPglmQApnQgpoRApoRQppRwtqSQtqSgxrTAxrTQ1sTw1sUQ5sUg5tVA9tVQ9tVxBuWRBu"
    "WhFuXBJuXRJuXxNuYRNuYhRuZBVuZRVuZxZuaRZuahdubBhubRhubxlucRluchpudBpudRtudxxteBxteh1tfB1t"
    "fR5tfx5sgB9sgiBshCBrhSFrhyFriCJqiiJqjCNpjSNpjyRpkCVokiVokyZnlSZnlydmmCdmmihlmylknSlknypj"
    "oCpjoitioyxhpSxgpi1gqC5fqS5eqy9erTBdrjBcsDFbsTJaszJatDNZtjRYtzVXuTVWujZVvDdUvThTvzlSwDpR"
    "wTpQwztPxDxOxj1Nxz5MyD9LykBKy0FJzEJIzkNHz0RG0EVF0kZE00dD1EhC1UpB10s/2Ew+2U092k4821A73VE6"
    "3lI431M34FU24VY14lc041kz5Fox5Vww5l0v514u6GAt6WEr6mMq62Qp62Yo7Gcm7Wkl7mok72wj724h8G8g8XEf"
    "8XMd8nQc83Yb83gZ9HkY9XsX9X0V9n4U9oAT94IS94QQ+IUP+IcO+IkM+YsL+YwK+Y4J+pAI+pIH+pQH+5YG+5cG"
    "+5kG+5sG+50H/J8H/KEI/KMJ/KUK/KYM/KgN/KoP/KwR/K4S/LAU/LIW/LQY+7Ya+7gd+7of+7wh+74j+sAm+sIo"
    "+sQq+sYt+ccv+cky+cs1+M03+M8699E999NA9tVD9tdG9dlJ9dtM9N1P9N9T9OFW8+Na8+Vd8uZh8uhl8upp8ext"
    "8e1x8e918fF58vJ98vSC8/WG8/aK9PiO9fmS9vqW+Pua+fyd+v2h/P+k"
)


def _level(anomaly_map: NDArray[np.floating], low: float, high: float) -> NDArray[np.float32]:
    span = max(high - low, float(np.finfo(np.float32).tiny))
    level: NDArray[np.float32] = np.clip((anomaly_map - low) / span, 0, 1).astype(np.float32)
    return level


def colour_map(anomaly_map: NDArray[np.floating], low: float, high: float) -> Image:
    """Colours of an anomaly map, dark at ``low`` and below, bright at ``high`` and above.

    Parameters
    ----------
    anomaly_map : array of shape (H, W)
    low, high : float
        In the map's own unit.

    Returns
    -------
    uint8 array of shape (H, W, 3), RGB
    """
    grey = (255 * _level(anomaly_map, low, high) + 0.5).astype(np.uint8)
    coloured = PillowImage.fromarray(grey)
    coloured.putpalette(_INFERNO)
    return np.array(coloured.convert("RGB"))


def overlay(
    image: Image,
    anomaly_map: NDArray[np.floating],
    low: float,
    high: float,
    regions: NDArray[np.bool_] | None = None,
) -> Image:
    """The image with the heat laid over it where the map is above ``low``.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
    anomaly_map : array of shape (H, W)
    low, high : float
        Nothing is laid over at ``low``; the heat covers most of the image at ``high``.
    regions : bool array of shape (H, W) or None
        Pixels to outline.
    """
    alpha = (127.5 * _level(anomaly_map, low, high) + 0.5).astype(np.uint8)
    # From violet to orange: the map's pale end would hide what lies under it.
    heat = colour_map(
        np.minimum(anomaly_map, high), 1.5 * low - 0.5 * high, 1.35 * high - 0.35 * low
    )
    both = (PillowImage.fromarray(one) for one in (heat, image, alpha))
    mixed = np.array(PillowImage.composite(*both))
    return outline(mixed, regions) if regions is not None else mixed


def outline(image: Image, mask: NDArray[np.bool_], colour: Colour = _BRIGHT) -> Image:
    """A copy of the image with the mask's outline drawn, dark-edged so that it shows anywhere."""
    width = max(2, round(max(image.shape[:2]) / 150))  # seen on a phone
    return stroked(image, mask, [(width + 2, DARK), (width, colour)])


def stroked(
    image: Image, mask: NDArray[np.bool_], strokes: Sequence[tuple[float, Colour]]
) -> Image:
    """A copy of the image with lines along the outermost pixels of a mask's regions.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
    mask : bool array of shape (H, W)
        Its holes are not outlined.
    strokes : sequence of (float, colour)
        Widths of lines, in pixels, without the soft pixel at either edge, and their colours, one
        over the other.
    """
    drawn = np.array(image, order="C")
    edge = _edge(mask)
    if not len(edge):
        return drawn
    widest = max(width for width, _ in strokes) / 2 + 1
    reach = int(np.ceil(widest))
    # How far each pixel lies from the line: a round brush on every pixel of it, the rim first.
    height, across = mask.shape[0] + 2 * reach, mask.shape[1] + 2 * reach
    away = np.full(height * across, widest, np.float32)
    places = (edge[:, 0] + reach) * across + edge[:, 1] + reach
    offsets = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T
    distances = np.hypot(*offsets.T)
    for number in np.argsort(-distances, kind="stable"):
        if distances[number] < widest:
            away[places + offsets[number] @ (across, 1)] = distances[number]
    away = away.reshape(height, across)[reach:-reach, reach:-reach]
    near = away < widest
    pixels, distance = drawn[near].astype(np.float32), away[near]
    for width, colour in strokes:
        share = np.clip(width / 2 + 1 - distance, 0, 1)[:, None]
        pixels += share * (np.array(colour, np.float32) - pixels)
    drawn[near] = np.rint(pixels)
    return drawn


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Places (n, 2) of the pixels on the outer edges of a mask's regions: row, column."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros((0, 2), np.intp)
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    outside = components(~np.pad(inside, 1), corners=False).labels == 1  # the first corner's
    whole = ~outside
    beside = outside[:-2, 1:-1] | outside[2:, 1:-1] | outside[1:-1, :-2] | outside[1:-1, 2:]
    found = np.argwhere(whole[1:-1, 1:-1] & beside)
    found += rows[0], columns[0]
    return found


def resized(picture: NDArray[Any], size: tuple[int, int], *, exact: bool = False) -> NDArray[Any]:
    """A picture or a map at another size, without steps or moire.

    Parameters
    ----------
    picture : uint8 array of shape (H, W, 3) or float32 array of shape (H, W)
    size : (width, height)
    exact : bool
        Means of whole pixels, to the map's own values: none is left out, and none counts twice.

    Returns
    -------
    array of shape (height, width, 3) or (height, width), of the same type
    """
    if size == (picture.shape[1], picture.shape[0]):
        return picture
    gap: float | None = 2.0  # halves and thirds first, which is faster and looks the same
    if exact:
        how, gap = PillowImage.Resampling.BOX, None
    elif picture.ndim == 2:
        how = PillowImage.Resampling.BILINEAR  # a map does not overshoot
    elif size[0] < picture.shape[1]:
        how = PillowImage.Resampling.HAMMING
    else:
        how = PillowImage.Resampling.BICUBIC
    return np.array(PillowImage.fromarray(picture).resize(size, how, reducing_gap=gap))


def save_picture(path: Path, picture: NDArray[Any]) -> None:
    """Write a picture, whole or not at all, with the mark that tells it from a picture of a part.

    Parameters
    ----------
    path : Path
        Ends in ``.png``, ``.jpg`` or ``.tiff``; its folder is there.
    picture : uint8 array of shape (H, W, 3) or (H, W), or for TIFF a float32 array (H, W)

    Raises
    ------
    OptionError
        If it cannot be written.
    """
    marked = PngInfo()
    marked.add_text("Software", MARK)
    how: dict[str, Any] = {"pnginfo": marked, "compress_level": 1}  # PNG's quickest
    with writing(path) as temporary:
        image = PillowImage.fromarray(picture)
        if path.suffix.lower() == ".png":
            image.save(temporary, "png", **how)
        elif path.suffix.lower() == ".jpg":
            image.save(temporary, "jpeg", quality=78, comment=MARK)
        else:
            image.save(temporary, "tiff", software=MARK)
