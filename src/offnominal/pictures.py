"""Pictures of results: heat maps, overlays, outlines."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo

from offnominal.atomic import writing
from offnominal.paths import MARK

__all__ = ["beside", "colour_map", "outline", "overlay", "save_picture"]

Image = NDArray[np.uint8]

_GAP = 8  # pixels between two pictures set side by side


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
    bgr = cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(bgr[..., ::-1])


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
    alpha = 0.5 * _level(anomaly_map, low, high)[..., None]
    # From violet to orange: the map's pale end would hide what lies under it.
    heat = colour_map(
        np.minimum(anomaly_map, high), 1.5 * low - 0.5 * high, 1.35 * high - 0.35 * low
    )
    mixed = (image * (1 - alpha) + heat * alpha + 0.5).astype(np.uint8)
    return outline(mixed, regions) if regions is not None else mixed


def outline(
    image: Image, mask: NDArray[np.bool_], colour: tuple[int, int, int] = (0, 230, 255)
) -> Image:
    """A copy of the image with the mask's outline drawn, dark-edged so that it shows anywhere."""
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    width = max(1, round(min(image.shape[:2]) / 250))
    drawn = np.ascontiguousarray(image.copy())
    cv2.drawContours(drawn, contours, -1, (20, 20, 20), width + 2, cv2.LINE_AA)
    cv2.drawContours(drawn, contours, -1, colour, width, cv2.LINE_AA)
    return drawn


def beside(*pictures: Image) -> Image:
    """Pictures of one height set side by side on white."""
    height = pictures[0].shape[0]
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    parts = [pictures[0]]
    for picture in pictures[1:]:
        parts += [gap, picture]
    return np.concatenate(parts, axis=1)


def save_picture(path: Path, picture: NDArray[Any]) -> None:
    """Write a picture, whole or not at all, with the mark that tells it from a picture of a part.

    Parameters
    ----------
    path : Path
        Ends in ``.png`` or ``.tiff``; its folder is there.
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
        else:
            image.save(temporary, "tiff", software=MARK)
