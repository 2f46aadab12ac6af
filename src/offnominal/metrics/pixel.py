"""How well anomaly maps find the defective pixels: AUROC, AP, F1-max and AUPRO, exact."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from offnominal.errors import DatasetError, OptionError

__all__ = ["pixel_metrics", "read_mask"]

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]

NAMES = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_f1_max_threshold", "aupro")


def read_mask(path: Path, shape: tuple[int, int], threshold: int = 128) -> Bools:
    """Read a ground-truth mask: True where the part is defective.

    Parameters
    ----------
    path : Path
        An image file; colour is reduced to grey.
    shape : tuple of int
        Height and width that the mask must have, those of its image.
    threshold : int, default 128
        Smallest grey level, of 0 to 255, that means defective. Half by default, since masks stored
        as JPEG carry faint noise around their edges; 1 suits masks that hold class numbers.

    Returns
    -------
    bool array of shape (H, W)

    Raises
    ------
    DatasetError
        If the file cannot be read, or its size is not `shape`.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise DatasetError(f"{path}: a mask must hold 8 bits a pixel; convert it to 8 bits")
            grey = np.asarray(picture.convert("L"))
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such mask; check the ground_truth folder") from error
    except (UnidentifiedImageError, OSError) as error:
        raise DatasetError(f"{path}: the mask cannot be read ({error}); export it again") from error
    if grey.shape != tuple(shape):
        raise DatasetError(
            f"{path}: the mask is {grey.shape[1]}x{grey.shape[0]} pixels and its image "
            f"{shape[1]}x{shape[0]}; export the mask at its image's size"
        )
    return grey >= threshold


def pixel_metrics(
    maps: Sequence[Floats] | Floats, masks: Sequence[Bools] | Bools, limit: float = 0.3
) -> dict[str, float]:
    """Pixel-level AUROC, average precision, best F1 and AUPRO over a whole data set, exact.

    All the pixels are sorted once; at its peak this takes about 60 bytes a pixel.

    Parameters
    ----------
    maps : sequence of float arrays, each of shape (H, W)
        Anomaly maps of any range; larger is more anomalous. Sizes may differ between images.
    masks : sequence of bool arrays, each of the shape of its map
        True where defective. An image whose mask is empty adds good pixels only.
    limit : float, default 0.3
        AUPRO integrates over false-positive rates from 0 to this, and divides by it; in (0, 1].

    Returns
    -------
    dict of str to float
        ``pixel_auroc``, ``pixel_ap``, ``pixel_f1_max`` and ``aupro`` in [0, 1], and
        ``pixel_f1_max_threshold`` in units of the maps (pixels at or above it count as defective).
        All are nan when there is no defective pixel, or no good one.

    Raises
    ------
    OptionError
        If a mask does not fit its map, a map holds a value that is not finite, or `limit` is
        outside its range.

    Notes
    -----
    AUPRO is the area under the per-region overlap, averaged over the 8-connected regions of all the
    masks, against the false-positive rate over all good pixels: Bergmann et al., "The MVTec Anomaly
    Detection Dataset", IJCV 2021, section 5. The curve is linear between thresholds, and pixels of
    equal score cross the threshold together.
    """
    if not 0 < limit <= 1:
        raise OptionError(f"limit is {limit}: a false-positive rate in (0, 1], 0.3 as a rule")
    if len(maps) != len(masks):
        raise OptionError(f"there are {len(maps)} maps and {len(masks)} masks: give one for each")
    for position, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
        if anomaly_map.shape != mask.shape or mask.dtype != np.bool_:
            raise OptionError(
                f"mask {position} is {mask.dtype} of shape {mask.shape} and its map has shape "
                f"{anomaly_map.shape}: give a bool mask of the map's shape"
            )
        if not np.isfinite(anomaly_map).all():
            raise OptionError(f"map {position} holds values that are not finite")

    sizes = [_regions(mask) for mask in masks]
    region_count = sum(len(inverse_sizes) - 1 for _, inverse_sizes in sizes)
    pixels = sum(mask.size for mask in masks)
    positives = sum(int(np.count_nonzero(mask)) for mask in masks)
    if positives in (0, pixels):
        return dict.fromkeys(NAMES, float("nan"))

    scores = np.concatenate([np.asarray(anomaly_map).ravel() for anomaly_map in maps])
    order = np.argsort(scores)[::-1]
    scores = scores[order]
    # A threshold takes all the pixels of one score or none: keep the last of each run of equals.
    ends = np.append(np.flatnonzero(scores[1:] != scores[:-1]), pixels - 1)
    weights = np.concatenate([inverse[labels].ravel() for labels, inverse in sizes])[order]
    true_positives = np.cumsum(weights > 0)[ends].astype(np.float64)
    overlap = np.cumsum(weights)[ends] / region_count
    thresholds = scores[ends]
    del scores, order, weights, sizes

    false_positives = ends + 1 - true_positives
    recall = np.append(0.0, true_positives / positives)
    fall_out = np.append(0.0, false_positives / (pixels - positives))
    precision = true_positives / (ends + 1)
    f1 = 2 * true_positives / (ends + 1 + positives)
    best = int(np.argmax(f1))
    # Rounding in the running sum may overshoot 1 by a few units of the last place.
    overlap = np.minimum(np.append(0.0, overlap), 1.0)
    figures = (
        _area_up_to(fall_out, recall, 1.0),
        np.sum(np.diff(recall) * precision),
        f1[best],
        thresholds[best],
        _area_up_to(fall_out, overlap, limit) / limit,
    )
    return dict(zip(NAMES, map(float, figures), strict=True))


def _regions(mask: Bools) -> tuple[npt.NDArray[np.int32], Floats]:
    """Number the 8-connected regions from 1, with 1 / size of each (0 for the good pixels)."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    inverse_sizes = np.zeros(count, np.float64)
    inverse_sizes[1:] = 1.0 / np.bincount(labels.ravel(), minlength=count)[1:]
    return np.asarray(labels, np.int32), inverse_sizes


def _area_up_to(x: Floats, y: Floats, limit: float) -> float:
    """Area under the polyline from x = 0 to `limit`; x ascends and its last entry is 1."""
    inside = int(np.searchsorted(x, limit, side="right"))
    x_in, y_in = x[:inside], y[:inside]
    if inside < len(x):
        share = (limit - x[inside - 1]) / (x[inside] - x[inside - 1])
        x_in = np.append(x_in, limit)
        y_in = np.append(y_in, y[inside - 1] + share * (y[inside] - y[inside - 1]))
    return float(np.sum(np.diff(x_in) * (y_in[1:] + y_in[:-1]) / 2))
