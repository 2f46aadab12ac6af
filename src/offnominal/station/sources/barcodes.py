"""Codes in a picture: bar codes, QR, Data Matrix."""

import cv2
import numpy as np
import zxingcpp

__all__ = ["barcodes"]


def barcodes(image: bytes) -> list[str]:
    """Texts of the codes in a picture's file, in the order in which they are found.

    Nothing is found in what cannot be decoded: whoever judges the picture says so.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:
        return []
    if pixels is None:
        return []
    return [one.text for one in zxingcpp.read_barcodes(np.asarray(pixels)) if one.text]
