"""The defective regions of a mask, and their classes by size."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offnominal.labelling import components

__all__ = ["SIZE_CLASSES", "Defects", "by_size", "find_defects", "join"]

SIZE_CLASSES = (
    ("tiny", 0.0, 1e-4),
    ("small", 1e-4, 1e-3),
    ("medium", 1e-3, 1e-2),
    ("large", 1e-2, 1e-1),
    ("very large", 1e-1, 1.0),
)
"""Name, lower (inclusive) and upper (exclusive, but for the last) share of the image's area."""

_UPPER = np.array([upper for _, _, upper in SIZE_CLASSES[:-1]])


@dataclass(frozen=True)
class Defects:
    """The defective pixels of one or more images and the regions they belong to.

    Attributes
    ----------
    scores : float array of shape (n,)
        Scores of the defective pixels, in the map's own precision.
    region : int array of shape (n,)
        Which region each belongs to, from 0.
    areas : int array of shape (r,)
        Pixels in each region.
    classes : int array of shape (r,)
        Index into :data:`SIZE_CLASSES`.
    peaks : float64 array of shape (r,)
        Largest score in each region.
    """

    scores: npt.NDArray[np.floating]
    region: npt.NDArray[np.int32]
    areas: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    peaks: npt.NDArray[np.float64]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = (self.scores, self.region, self.areas, self.classes, self.peaks)
        return sum(array.nbytes for array in arrays)


def find_defects(
    anomaly_map: npt.NDArray[np.floating], mask: npt.NDArray[np.bool_]
) -> Defects | None:
    """The 8-connected regions of one mask; None where nothing is defective."""
    if not mask.any():
        return None
    labels, areas, _ = components(mask)
    region = labels[mask] - 1
    scores = anomaly_map[mask]
    peaks = np.full(len(areas), -np.inf)
    np.maximum.at(peaks, region, scores.astype(np.float64))
    classes = np.searchsorted(_UPPER, areas / mask.size, side="right")
    return Defects(scores, region, areas.astype(np.int64), classes, peaks)


def join(parts: list[Defects]) -> Defects:
    """Several images' defects as one, the regions numbered on; `parts` holds at least one."""
    starts = np.cumsum([0] + [len(part.areas) for part in parts])
    numbered = [
        part.region + np.int32(start) for part, start in zip(parts, starts[:-1], strict=True)
    ]
    return Defects(
        np.concatenate([part.scores for part in parts]),
        np.concatenate(numbered),
        np.concatenate([part.areas for part in parts]),
        np.concatenate([part.classes for part in parts]),
        np.concatenate([part.peaks for part in parts]),
    )


def by_size(
    counts: npt.NDArray[np.int64],
    sums: dict[float, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]],
    defined: bool,
) -> list[dict[str, object]]:
    """The table of :meth:`PixelMetrics.regions`.

    Parameters
    ----------
    counts : int array of shape (c,)
        Regions of each size class.
    sums : dict of float to two float64 arrays of shape (c,)
        For each false-positive rate, the regions' overlaps summed, and how many are found.
    defined : bool
        Whether there are good pixels, without which there are no false-positive rates.
    """
    table: list[dict[str, object]] = []
    for number, (name, lower, upper) in enumerate(SIZE_CLASSES):
        count = int(counts[number])
        row: dict[str, object] = {"name": name, "lower": lower, "upper": upper, "regions": count}
        for rate, both in sums.items():
            for key, total in zip(("recall", "found"), both, strict=True):
                # Weights of 1 / area add up to a region but for rounding.
                mean = min(float(total[number]) / count, 1.0) if count and defined else float("nan")
                row[f"{key}_at_{100 * rate:g}%"] = mean
        table.append(row)
    return table
