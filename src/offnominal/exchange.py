"""Predictions as others take them: tables of pandas, and annotations of COCO."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from offnominal.errors import OptionError
from offnominal.prediction import Prediction
from offnominal.regions import Box, outlines

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["coco", "flat", "predictions_frame"]

_ANOMALY = "anomaly"
_BOX = ("left", "top", "region_width", "region_height")


def predictions_frame(predictions: Iterable[Prediction]) -> "DataFrame":
    """A row for each prediction, with the columns of ``results.csv``.

    Parameters
    ----------
    predictions : iterable of Prediction
        Such as a stream; none is kept.

    Returns
    -------
    pandas.DataFrame
        ``image``, ``score``, ``threshold``, ``is_anomalous`` (nullable boolean), ``p_value``,
        ``height``, ``width``; ``regions``, their number; and of the one with the highest peak
        ``left``, ``top``, ``region_width``, ``region_height``, ``area`` (nullable integers) and
        ``peak``. Where a detector tells classes of defects, ``kind``; a chat model's rows have its
        ``note``.

    Raises
    ------
    OptionError
        Without pandas (``pip install pandas``).
    """
    try:
        import pandas
    except ImportError as error:
        raise OptionError(
            f"predictions_frame needs pandas ({error}): pip install pandas"
        ) from error
    kinds = {
        "image": "str", "score": "float64", "threshold": "float64", "is_anomalous": "boolean",
        "p_value": "float64", "height": "int64", "width": "int64", "regions": "int64",
        **dict.fromkeys((*_BOX, "area"), "Int64"), "peak": "float64",
    }  # fmt: skip
    rows = [flat(one.to_dict()) for one in predictions]
    names = [*kinds, *(each for each in ("kind", "note") if any(each in row for row in rows))]
    return pandas.DataFrame(rows, columns=names).astype(kinds)


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in which only the region with the highest peak is described."""
    regions = row["regions"]
    told = dict(row) | {"regions": len(regions)}
    for first in regions[:1]:
        told |= dict(zip(_BOX, first["box"], strict=True))
        told |= {"area": first["area"], "peak": first["peak"]}
    return told


def coco(
    predictions: Iterable[Prediction], threshold: float | None = None, min_area: int = 1
) -> dict[str, Any]:
    """Regions as a data set in COCO's format, for labelling tools and pycocotools.

    Parameters
    ----------
    predictions : iterable of Prediction
        Such as a stream; none is kept.
    threshold, min_area
        As :meth:`~offnominal.prediction.Prediction.regions` has them.

    Returns
    -------
    dict
        Plain values, for :func:`json.dump`. ``images``: each with ``id`` (from 1), ``file_name``
        (the prediction's source), ``width`` and ``height``, also where it has no region.
        ``annotations``: ``id`` (from 1), ``image_id``, ``category_id`` 1, ``bbox`` (left, top,
        width, height), ``area`` in pixels, ``segmentation`` (polygons along the edges of the
        region's pixels), ``iscrowd`` 0, and ``score``, the region's peak. ``categories``: 1,
        ``anomaly``. Of a detector that finds boxes those, without ``segmentation``, each with its
        class, which is a category from 2.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    numbers = {_ANOMALY: 1}
    for number, one in enumerate(predictions, start=1):
        height, width = one.image.shape[:2]
        images.append({"id": number, "file_name": one.source, "width": width, "height": height})
        for box in _boxes(one, threshold):
            place = numbers.setdefault(box.kind, len(numbers) + 1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": place,
                    "bbox": list(box.box),
                    "area": box.box[2] * box.box[3],
                    "segmentation": [],
                    "iscrowd": 0,
                    "score": box.score,
                }
            )
        for found in one.areas(threshold, min_area) if one.boxes is None else ():
            corner = found.region.box[:2]
            polygons = [(path + corner).ravel() for path in outlines(found.mask)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": list(found.region.box),
                    "area": found.region.area,
                    "segmentation": [path.tolist() for path in polygons],
                    "iscrowd": 0,
                    "score": found.region.peak,
                }
            )
    categories = [
        {"id": number, "name": name, "supercategory": _ANOMALY} for name, number in numbers.items()
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _boxes(prediction: Prediction, threshold: float | None) -> list[Box]:
    """The boxes of a prediction above a threshold, where its detector finds such."""
    if threshold is None:
        return list(prediction.boxes or ())
    return [one for one in prediction.scores.boxes or () if one.score > threshold]
