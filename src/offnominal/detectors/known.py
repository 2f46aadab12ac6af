"""Known defects on top of a detector of good parts: a bank of their patches beside its scores.

The classes of the nearest defects name what an image shows. The few labels are not trusted to do
more than they are seen to do: scores change, by a :class:`~offnominal.detectors.known_layer.Layer`,
only if defects that were left out of it gained by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from offnominal.detectors.known_layer import Layer
from offnominal.good_scores import CalibrationScores
from offnominal.labels.labelled import Labelled
from offnominal.scoring import Scores, Size
from offnominal.tensors import to_numpy

__all__ = ["KnownDefect", "KnownDefects", "boxes_of", "defective_rows", "rows_of"]

Floats = NDArray[np.float32]

_MOST_ROWS = 32  # of one image: a large defect must not outnumber the others
_UNMARKED = 5  # patches of an image of which nobody said where its defect is
_COVERED = 0.5  # share of a patch that a mask covers, from which it shows the defect
_POWER = 4.0  # of inverse distances, by which classes are weighed
_LEAST = 1e-4  # distance that counts: below it, engines differ in their rounding


class KnownDefect(BaseModel):
    """A defective image: name, digest of its pixels, classes, and whether it is marked."""

    model_config = ConfigDict(extra="forbid", strict=True)

    file: str
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    kinds: list[str] = Field(min_length=1)
    marked: bool


class _Facts(BaseModel):
    """What a model file says of known defects, beside their patches."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kinds: list[str] = Field(min_length=1)
    defects: list[KnownDefect] = Field(min_length=1)
    floor: float = Field(le=0)
    gain: float | None = Field(ge=-1, le=1)
    scored_by: tuple[str, float]
    before: dict[str, Any] | None


@dataclass(eq=False)
class KnownDefects:
    """Patches of known defects, and how far they are trusted.

    Attributes
    ----------
    rows : float32 array of shape (m, D)
        Their features, of any length.
    defect, kind : int32 array of shape (m,)
        Whose patch each is, and the number of its class.
    boxes : int32 array of shape (m, 4)
        Where it lies in that image: left, top, width and height in pixels.
    kinds : list of str
        Names of the classes, sorted.
    defects : list of KnownDefect
    floor : float
        What scores are counted from: 0, or the lowest of good ones where that is below 0.
    gain : float or None
        By how much the share of good images that a defect scores above grows with a layer that did
        not learn from it; None: too few defective parts or good images to tell.
    layer : Layer or None
        What changes scores; None where the gain is not sure.
    scores : float64 array of shape (d,)
        Image score of each defect by a layer without it.
    scored_by : tuple
        The ``aggregate`` and ``smoothing`` that those are by.
    before : CalibrationScores or None
        Scores of the references without the layer; None where there is none.
    """

    rows: Floats
    defect: NDArray[np.int32]
    kind: NDArray[np.int32]
    boxes: NDArray[np.int32]
    kinds: list[str]
    defects: list[KnownDefect]
    floor: float = 0.0
    gain: float | None = None
    layer: Layer | None = field(default=None, repr=False)
    scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    scored_by: tuple[str, float] = ("", 0.0)
    before: CalibrationScores | None = field(default=None, repr=False)

    def left_out(self, aggregate: str, smoothing: float) -> dict[str, float]:
        """Scores of the defects by their digests, each by a layer without it.

        Nothing if they were scored by another aggregate or smoothing.
        """
        if self.scored_by != (aggregate, smoothing):
            return {}
        pairs = zip(self.defects, self.scores.tolist(), strict=True)
        return {one.digest: score for one, score in pairs}

    def near(self, rows: Floats) -> Floats:
        """Cosine distances (n, m) of patches, float32 (n, D), to every known one."""
        # In double precision: of small distances single precision leaves too few digits for another
        # engine to come to the same.
        found: Floats = np.maximum(1 - _unit(rows) @ _unit(self.rows).T, 0).astype(np.float32)
        return found

    def judged(self, scores: Scores, features: Any) -> Scores:
        """Scores of an image, changed by the layer, and its classes.

        Parameters
        ----------
        scores : Scores
            Of the detector alone.
        features : array or tensor of shape (D, gh, gw)
            Of its patches, on the grid of the scores.
        """
        rows = rows_of(features)
        near = self.near(rows)
        each = np.stack([near[:, self.kind == n].min(1) for n in range(len(self.kinds))])
        flat = scores.patches.ravel()
        worst = np.argsort(-flat, kind="stable")[: max(1, flat.size // 100)]
        weight = (np.maximum(each[:, worst], _LEAST).astype(np.float64) ** -_POWER).sum(1)
        shares = dict(zip(self.kinds, (weight / weight.sum()).tolist(), strict=True))
        if self.layer is not None:
            scores = self.layer.weighed(scores, rows.max(0), self.floor)
        return scores._replace(kinds=shares)

    # -- as a model file has them -------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """All that is no array, as plain values."""
        return _Facts(
            kinds=self.kinds, defects=self.defects, floor=self.floor, gain=self.gain,
            scored_by=self.scored_by, before=self.before.facts() if self.before else None,
        ).model_dump(mode="json")  # fmt: skip

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays, by names that begin with ``known.``."""
        own: dict[str, NDArray[Any]] = {}
        for name in ("rows", "defect", "kind", "boxes", "scores"):
            own[name] = getattr(self, name)
        layer = self.layer.arrays() if self.layer else {}
        own |= {f"layer.{name}": array for name, array in layer.items()}
        before = self.before.arrays() if self.before else {}
        own |= {f"before.{name}": array for name, array in before.items()}
        return {f"known.{name}": array for name, array in own.items()}

    @classmethod
    def of(cls, facts: Any, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """What the two above gave.

        Raises
        ------
        KeyError, ValueError
            If they do not belong together.
        """
        told = _Facts.model_validate(facts)
        own = {name.removeprefix("known."): array for name, array in arrays.items()}
        rows, defect, kind = own["rows"], own["defect"], own["kind"]
        if rows.dtype != np.float32 or rows.ndim != 2 or not np.isfinite(rows).all():
            raise ValueError("rows of known defects are no features")
        for column, count in ((defect, len(told.defects)), (kind, len(told.kinds))):
            if column.dtype != np.int32 or {*column.tolist()} != {*range(count)}:
                raise ValueError("rows of known defects are of others than it says")
            if column.shape != (len(rows),):
                raise ValueError("rows of known defects are incomplete")
        scores, boxes = own["scores"], own["boxes"]
        if boxes.shape != (len(rows), 4) or boxes.dtype != np.int32:
            raise ValueError("rows of known defects are nowhere")
        if (boxes[:, :2] < 0).any() or (boxes[:, 2:] < 1).any():
            raise ValueError("rows of known defects lie outside of their images")
        if scores.shape != (len(told.defects),) or scores.dtype != np.float64:
            raise ValueError("scores of known defects are not one for each")
        if not np.isfinite(scores).all():
            raise ValueError("scores of known defects are not finite")
        before = None
        if told.before is not None:
            names = ("patches", "images", "peaks")
            kept = {name: own[f"before.{name}"] for name in names}
            before = CalibrationScores.from_file(kept, told.before)
        layer = None
        if before is not None:
            three = {name: own[f"layer.{name}"] for name in ("mean", "scale", "weight")}
            layer = Layer.of(three, rows.shape[1])
        elif any(name.startswith("layer.") for name in own):
            raise ValueError("scores before known defects are missing")
        about = (told.kinds, told.defects, told.floor, told.gain, layer)
        return cls(rows, defect, kind, boxes, *about, scores, told.scored_by, before)


def rows_of(features: Any) -> Floats:
    """Features (D, gh, gw), a tensor or an array, as rows (gh * gw, D)."""
    plain = to_numpy(features)
    found: Floats = np.ascontiguousarray(plain.reshape(len(plain), -1).T, dtype=np.float32)
    return found


def _unit(rows: Floats) -> NDArray[np.float64]:
    """Rows (n, D) of length 1."""
    plain = rows.astype(np.float64)
    found: NDArray[np.float64] = plain / np.maximum(np.linalg.norm(plain, axis=1), 1e-12)[:, None]
    return found


def defective_rows(one: Labelled, scores: Scores, size: Size) -> list[tuple[int, str]]:
    """Places in a grid of patch scores (gh, gw) that show an image's defects, with their classes.

    Those that exact marks cover by half or more, or most; otherwise the most anomalous ones, inside
    the boxes where there are any. At most 32 of each mark, spread evenly.
    """
    found: list[tuple[int, str]] = []
    flat = scores.patches.ravel()
    top, left, high, wide = scores.window or (0, 0, *size)
    for mark, pixels in zip(one.marks, one.drawn(size), strict=True):
        seen = pixels[top : top + high, left : left + wide]
        covered = _shares(seen, scores.patches.shape).ravel()
        if not covered.any():
            continue
        if mark.exact:
            places = np.flatnonzero(covered >= min(_COVERED, float(covered.max())))
            if len(places) > _MOST_ROWS:
                places = places[np.linspace(0, len(places) - 1, _MOST_ROWS).astype(int)]
        else:
            places = _highest(np.where(covered > 0, flat, -np.inf), int((covered > 0).sum()))
        found += [(int(place), mark.kind) for place in places]
    return found or [(int(place), kind) for place in _highest(flat) for kind in one.kinds]


def _highest(flat: Floats, most: int = _UNMARKED) -> NDArray[np.intp]:
    """Places of the five highest patch scores, or of fewer."""
    return np.argsort(-flat, kind="stable")[: min(_UNMARKED, most)]


def boxes_of(places: Sequence[int], scores: Scores, size: Size) -> NDArray[np.int32]:
    """Where patches lie in an image (H, W): left, top, width and height of each, (n, 4)."""
    (top, left, high, wide), (rows, columns) = scores.window or (0, 0, *size), scores.patches.shape
    y, x = np.divmod(np.asarray(places), columns)
    corners = np.stack([left + x * wide / columns, top + y * high / rows,
                        left + (x + 1) * wide / columns, top + (y + 1) * high / rows])  # fmt: skip
    edges = np.array([size[1], size[0]] * 2)[:, None]
    inside = np.clip(corners.round().astype(int), 0, edges)
    start = np.minimum(inside[:2], edges[:2] - 1)
    return np.concatenate([start, np.maximum(inside[2:] - start, 1)]).T.astype(np.int32)


def _shares(pixels: NDArray[np.bool_], grid: Sequence[int]) -> Floats:
    """Share of each patch (gh, gw), laid over an image (H, W), that is marked."""
    sums = np.pad(pixels.cumsum(0).cumsum(1, dtype=np.float64), ((1, 0), (1, 0)))
    for axis in (0, 1):  # between whole pixels the sums grow linearly
        edges = np.linspace(0, pixels.shape[axis], grid[axis] + 1)
        below = np.minimum(edges.astype(int), pixels.shape[axis] - 1)
        part = (edges - below).reshape((-1, 1) if axis == 0 else (1, -1))
        low, high = (np.take(sums, below + step, axis) for step in (0, 1))
        sums = np.diff(low + part * (high - low), axis=axis)
    found: Floats = (sums * np.prod(grid) / pixels.size).astype(np.float32)
    return found
