"""Masks of defects that are made: every pixel that changed, and no other."""

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["exact"]

_VISIBLE = 4.0  # grey levels that are left when grain is smoothed away
_GRAIN = 1.2  # pixels, deviation of the Gaussian that does so
_GAP = 5  # pixels between two pieces that are one
_SPECK = 8  # pixels of the smallest piece that is kept


def exact(
    image: NDArray[np.uint8], made: NDArray[np.uint8], on: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Keep what shows of a change, take the rest back, and say which pixels differ.

    A generator knows where it worked, which is more than what changed: blending fades towards its
    edge, and one grain in place of another is nothing that an inspector sees. A change shows where
    4 grey levels of it are left in some channel when it is smoothed by a Gaussian of 1.2 pixels, in
    pieces of 8 pixels or more. What changed in gaps of up to 5 pixels between belongs to it.

    Parameters
    ----------
    image, made : uint8 array of shape (H, W, 3)
        Before and after.
    on : bool array of shape (H, W) or None
        Where a change may be, as on the object; None: everywhere.

    Returns
    -------
    made : uint8 array of shape (H, W, 3)
        The image itself wherever the mask is False.
    mask : bool array of shape (H, W)
        True exactly where ``made`` differs from ``image``.
    """
    difference = made.astype(np.float32) - image
    smooth = cv2.GaussianBlur(difference, (0, 0), _GRAIN, borderType=cv2.BORDER_REFLECT)
    shows = (np.abs(smooth).max(-1) >= _VISIBLE).astype(np.uint8)
    differs = np.abs(difference).max(-1)
    # Pixels that came out alike by chance, amid others that did not, belong to the defect.
    touched = cv2.morphologyEx((differs > 0).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3)))
    closed = cv2.morphologyEx(shows, cv2.MORPH_CLOSE, np.ones((_GAP, _GAP)))
    shows = ((closed > 0) & (touched > 0)).astype(np.uint8)
    if on is not None:
        shows[~on] = 0
    count, labels, stats, _ = cv2.connectedComponentsWithStats(shows)
    large = stats[:count, cv2.CC_STAT_AREA] >= _SPECK
    large[0] = False
    mask = np.asarray(large[labels], np.bool_)
    kept = np.where(mask[..., None], made, image)
    # One level, which nobody sees, and the mask has no pinholes where nothing would differ.
    alike = mask & (differs == 0)
    kept[alike] = np.where(image[alike] < 128, image[alike] + 1, image[alike] - 1)
    return kept, mask
