"""Pictures of inspections, drawn from what is stored: thumbnails, heat, outlines; without torch."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from offnominal.images import read_picture
from offnominal.pictures import Image, outline, resized
from offnominal.prediction import Prediction
from offnominal.scoring import Scores, anomaly_map
from offnominal.station.store.tables import Inspection, PatchScores

__all__ = ["SHOWN", "kind_of", "map_of", "thumbnail"]

SHOWN = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "BMP": "image/bmp"}
"""What browsers show, by Pillow's names."""
_LONGEST = 2048  # pixels of a side that is drawn
_SMALL = 320


def kind_of(content: bytes) -> str:
    """The type of a picture's bytes, by its content; ``application/octet-stream`` of any other."""
    try:
        with Pillow.open(io.BytesIO(content), formats=[*SHOWN, "TIFF"]) as image:
            # An MPO is a JPEG with a second picture in it, as some cameras write.
            name = "JPEG" if image.format == "MPO" else image.format or ""
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):
        return "application/octet-stream"
    return SHOWN.get(name) or ("image/tiff" if name == "TIFF" else "application/octet-stream")


def thumbnail(path: Path) -> bytes:
    """A small JPEG of a picture.

    Raises
    ------
    ImageError
        If it cannot be read.
    """
    return _jpeg(_fitted(_read(path), _SMALL), 82)


def map_of(
    path: Path, row: Inspection, scores: PatchScores | None, sigma: float, lines_only: bool
) -> bytes:
    """A picture with the heat of its map laid over it, or with what is wrong outlined, as JPEG.

    Drawn at 2048 pixels of the longer side at most.

    Parameters
    ----------
    path : Path
        The picture's file.
    row : Inspection
    scores : PatchScores or None
        None where there is no map: then it is the picture alone.
    sigma : float
        Smoothing of the map, in pixels of the picture.
    lines_only : bool
        Outlines of what lies above the threshold, without heat.

    Raises
    ------
    ImageError
        If it cannot be read.
    """
    whole = _read(path)
    image = _fitted(whole, _LONGEST)
    if scores is None:
        return _jpeg(image, 90)
    shrink = image.shape[0] / whole.shape[0]
    patches = np.frombuffer(scores.values, "<f4").reshape(scores.rows, scores.columns)
    window = None
    if scores.window:
        top, left, height, width = (max(round(one * shrink), 0) for one in scores.window)
        window = (top, left, max(height, 1), max(width, 1))
    size = (image.shape[0], image.shape[1])
    heat = anomaly_map(patches, size, sigma * shrink, window)
    found = Prediction(
        source="",
        score=row.score if row.score is not None else math.nan,
        anomaly_map=heat,
        scores=Scores(patches, window=window),
        image=image,
        threshold=row.threshold,
        pixel_threshold=row.pixel_threshold,
    )
    if not lines_only:
        return _jpeg(found.overlay(), 90)
    limit = found.region_threshold
    if limit is None or not found.is_anomalous:
        return _jpeg(image, 90)
    return _jpeg(outline(image, heat > limit), 90)


def _read(path: Path) -> Image:
    pixels: NDArray[Any] = read_picture(path).pixels
    return pixels


def _fitted(image: Image, longest: int) -> Image:
    height, width = image.shape[:2]
    shrink = min(1.0, longest / max(height, width))
    return resized(image, (max(1, round(width * shrink)), max(1, round(height * shrink))))


def _jpeg(image: Image, quality: int) -> bytes:
    sink = io.BytesIO()
    Pillow.fromarray(image).save(sink, "jpeg", quality=quality)
    return sink.getvalue()
