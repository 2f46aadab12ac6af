"""Scores of good images, kept so that thresholds follow from them, and of defects made of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from offnominal.calibration import Threshold, choose_threshold, guess
from offnominal.checks import FalseReject
from offnominal.scoring import Scores, Size

__all__ = ["Calibration", "CalibrationScores", "GoodScores"]

Calibration = Literal["none", "leave-one-out", "held-out", "copies", "defects"]
_GONE = -1  # in place of a reference whose number another may get
Rule = Callable[[Scores, Size], tuple[float, float]]


_Length = Annotated[int, Field(ge=1, lt=2**20)]


class _Each(BaseModel):
    """What a model file says of one good image's scores, beside the numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    grid: tuple[_Length, _Length]
    size: tuple[_Length, _Length]
    image: float | None
    weight: float
    window: tuple[int, int, _Length, _Length] | None
    stride: _Length


class _Facts(BaseModel):
    """What a model file says of good images' scores, beside the numbers."""

    model_config = ConfigDict(extra="forbid")

    kind: Calibration
    numbers: list[Annotated[int, Field(ge=0, lt=2**40)]]
    each: list[_Each]


@dataclass(frozen=True, eq=False)
class CalibrationScores:
    """Scores of good images, which thresholds follow from, or of defects made of them.

    Attributes
    ----------
    kind : {"none", "leave-one-out", "held-out", "copies", "defects"}
        Whose they are: nobody's, the references' (each scored without itself), those of other good
        images, of altered copies of an only reference, or of synthetic defects.
    scores : tuple of Scores
    sizes : tuple of (H, W)
        Of the images.
    images, peaks : float64 array of shape (n,)
        Image scores, and the largest values of the maps.
    numbers : tuple of int
        Which references they are of, or which kinds of defect; empty for other images.
    """

    kind: Calibration = "none"
    scores: tuple[Scores, ...] = ()
    sizes: tuple[Size, ...] = ()
    images: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    peaks: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    numbers: tuple[int, ...] = ()
    _chosen: dict[Any, Threshold | None] = field(default_factory=dict, repr=False)

    @classmethod
    def measured(
        cls,
        kind: Calibration,
        pairs: Sequence[tuple[Scores, Size]],
        judged: Rule,
        numbers: Sequence[int] = (),
    ) -> Self:
        """From scores and sizes of images, and a rule that gives image score and peak of each."""
        found = np.array([judged(*pair) for pair in pairs], dtype=np.float64).reshape(-1, 2)
        scores, sizes = tuple(one for one, _ in pairs), tuple(size for _, size in pairs)
        kind = kind if scores else "none"
        return cls(kind, scores, sizes, found[:, 0].copy(), found[:, 1].copy(), tuple(numbers))

    def __len__(self) -> int:
        return len(self.scores)

    def threshold(
        self, what: Literal["images", "peaks"], false_reject: FalseReject, exact: bool
    ) -> Threshold | None:
        """The threshold for a rate; chosen once.

        ``exact`` says whether the references were scored just as if they had never been learned.
        """
        key = (what, false_reject, exact)
        if key not in self._chosen:
            choose = guess if self.kind == "copies" else choose_threshold
            found = choose(getattr(self, what), false_reject)
            promised = exact or self.kind == "held-out"
            if found is not None and found.kind == "conformal" and not promised:
                found = replace(found, kind="approximate")
            self._chosen[key] = found
        return self._chosen[key]

    def of(self, numbers: Sequence[int]) -> "CalibrationScores":
        """Those of some references."""
        wanted = set(numbers)
        at = [place for place, number in enumerate(self.numbers) if number in wanted]
        if len(at) == len(self):
            return self
        return CalibrationScores(
            self.kind if at else "none",
            tuple(self.scores[i] for i in at),
            tuple(self.sizes[i] for i in at),
            self.images[at],
            self.peaks[at],
            tuple(self.numbers[i] for i in at),
        )

    # -- as a model file has them -------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The numbers, for :meth:`from_file`."""
        patches = [one.patches.ravel() for one in self.scores]
        joined = np.concatenate(patches) if patches else np.empty(0, np.float32)
        return {"patches": joined, "images": self.images, "peaks": self.peaks}

    def facts(self) -> dict[str, Any]:
        """The rest as plain values."""
        each = [
            {
                "grid": list(one.patches.shape),
                "size": list(size),
                "image": one.image,
                "weight": one.weight,
                "window": one.window and list(one.window),
                "stride": one.stride,
            }
            for one, size in zip(self.scores, self.sizes, strict=True)
        ]
        return {"kind": self.kind, "numbers": list(self.numbers), "each": each}

    @classmethod
    def from_file(
        cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]
    ) -> "CalibrationScores":
        """What :meth:`arrays` and :meth:`facts` gave.

        Raises
        ------
        ValueError
            If they do not belong together.
        """
        told = _Facts.model_validate(facts)
        each, numbers = told.each, told.numbers
        stops = np.cumsum([one.grid[0] * one.grid[1] for one in each], dtype=int)
        lengths = {len(each), len(arrays["images"]), len(arrays["peaks"])}
        if len(lengths) > 1 or len(arrays["patches"]) != (stops[-1] if len(stops) else 0):
            raise ValueError("its calibration scores are incomplete")
        of_known = told.kind in ("leave-one-out", "defects") or numbers
        if of_known and len(numbers) != len(each):
            raise ValueError("its calibration scores are of other references than it says")
        if (told.kind == "none") != (not each):
            raise ValueError(f"its calibration is said to be {told.kind}")
        for name, dtype in (("patches", np.float32), ("images", np.float64), ("peaks", np.float64)):
            if arrays[name].ndim != 1 or arrays[name].dtype != dtype:
                raise ValueError(f"its calibration scores ({name}) are {arrays[name].dtype}")
            if not np.isfinite(arrays[name]).all():
                raise ValueError("its calibration scores are not finite")
        parts = np.split(arrays["patches"], stops[:-1]) if each else []
        scores = tuple(
            Scores(part.reshape(one.grid), one.image, one.weight, one.window, one.stride)
            for part, one in zip(parts, each, strict=True)
        )
        sizes = tuple(one.size for one in each)
        return cls(told.kind, scores, sizes, arrays["images"], arrays["peaks"], tuple(numbers))


class GoodScores:
    """Both kinds of good images that a detector knows scores of, and which set its thresholds.

    Attributes
    ----------
    references : CalibrationScores
        Of the references, forgotten ones among them.
    held_out : CalibrationScores
        Of images that were given to calibrate with.
    copies : CalibrationScores
        Of altered copies of the first reference, where it was the only one.
    defects : CalibrationScores
        Of synthetic defects on references, each scored as if its reference had not been learned.
    defects_by : list of int
        The references that they were scored by.
    measured_by : list of int
        The references that the held-out ones were scored by.
    in_force : CalibrationScores
        Held-out ones, as long as all references that scored them are there; they stay in force
        while references come. Otherwise those of the references that were not forgotten, or of the
        copies of an only one.
    by_hand : float or None
        A threshold of the image score that somebody set, which goes before what follows from any.
    """

    def __init__(self) -> None:
        self.references = CalibrationScores()
        self.held_out = CalibrationScores()
        self.copies = CalibrationScores()
        self.defects = CalibrationScores()
        self.defects_by: list[int] = []
        self.measured_by: list[int] = []
        self.in_force = CalibrationScores()
        self.by_hand: float | None = None

    def choose(self, active: Sequence[int]) -> None:
        """Settle which scores are in force, after something changed."""
        if len(self.held_out) and set(self.measured_by) <= set(active):
            self.in_force = self.held_out
        else:
            # Of an only reference no other is left that it could have been scored by.
            self.in_force = self.references.of(active if len(active) > 1 else [])
            if not len(self.in_force) and list(active) == [0]:
                self.in_force = self.copies

    def calibrate(self, held_out: CalibrationScores, active: Sequence[int]) -> None:
        """Set the thresholds from held-out images, which the active references scored."""
        self.held_out, self.measured_by, self.by_hand = held_out, list(active), None
        self.choose(active)

    def defects_of(self, active: Sequence[int]) -> CalibrationScores:
        """Scores of synthetic defects, as long as the references are those that gave them."""
        return self.defects if sorted(self.defects_by) == list(active) else CalibrationScores()

    def remeasure(self, judged: Rule, active: Sequence[int]) -> None:
        """Apply another rule to the same scores; what was set by hand was for the old one."""
        self.by_hand = None
        for name in ("references", "held_out", "copies", "defects"):
            old: CalibrationScores = getattr(self, name)
            pairs = list(zip(old.scores, old.sizes, strict=True))
            setattr(self, name, old.measured(old.kind, pairs, judged, old.numbers))
        self.choose(active)

    def drop(self, first: int, active: Sequence[int]) -> None:
        """Give up references from a number on for good; what they measured never counts again."""
        self.references = self.references.of(range(first))
        self.measured_by = [number if number < first else _GONE for number in self.measured_by]
        self.defects_by = [number if number < first else _GONE for number in self.defects_by]
        self.choose(active)

    def renumber(self, new: Mapping[int, int]) -> None:
        """Keep some references, under new numbers, for good."""
        kept = self.references.of(list(new))
        self.references = replace(kept, numbers=tuple(new[n] for n in kept.numbers))
        if self.in_force is not self.held_out:
            self.held_out = CalibrationScores()
        if new.get(0) != 0:
            self.copies = CalibrationScores()
        self.measured_by = [new[n] for n in self.measured_by if n in new]
        self.defects_by = [new.get(n, _GONE) for n in self.defects_by]
        self.choose(list(new.values()))

    def note(self, active: Sequence[int]) -> str | None:
        """What should be known of held-out scores that other references measured."""
        if not len(self.held_out):
            return None
        if self.in_force is not self.held_out:
            return (
                "the held-out images were scored by references that are forgotten, so the "
                "threshold is set from the references again; `offnominal calibrate` sets it anew"
            )
        then, now = len(self.measured_by), len(active)
        if then == now:
            return None
        return (
            f"the held-out images were scored when there were {then} references, not {now}; "
            "`offnominal calibrate` sets the threshold anew"
        )

    # -- as a model file has them -------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The numbers, by names that begin with ``calibration.``."""
        return {
            f"calibration.{kind}.{name}": array
            for kind, scores in self._parts().items()
            for name, array in scores.arrays().items()
        }

    def facts(self) -> dict[str, Any]:
        """The rest as plain values."""
        facts: dict[str, Any] = {kind: scores.facts() for kind, scores in self._parts().items()}
        facts |= {"with": self.measured_by, "defects-with": self.defects_by}
        return facts if self.by_hand is None else facts | {"by-hand": self.by_hand}

    def _parts(self) -> dict[str, CalibrationScores]:
        return {
            "references": self.references,
            "held-out": self.held_out,
            "copies": self.copies,
            "defects": self.defects,
        }

    def restore(self, arrays: dict[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        """Take over what the two above gave; :meth:`choose` settles what is in force.

        Raises
        ------
        KeyError, ValueError
            If they do not belong together.
        """

        def found(part: str, kind: str = "") -> CalibrationScores:
            names = ("patches", "images", "peaks")
            own = {name: arrays[f"calibration.{part}.{name}"] for name in names}
            scores = CalibrationScores.from_file(own, facts[part])
            if scores.kind not in ("none", kind or part):
                raise ValueError(f"its scores of {part} are said to be {scores.kind}")
            return scores

        self.references = found("references", "leave-one-out")
        self.held_out = found("held-out")
        self.copies, self.defects = found("copies"), found("defects")
        self.measured_by = list(map(int, facts["with"]))
        self.defects_by = list(map(int, facts["defects-with"]))
        hand = facts.get("by-hand")
        if hand is not None and (type(hand) not in (int, float) or not math.isfinite(hand)):
            raise ValueError(f"its threshold set by hand is {str(hand)[:40]!r}")
        self.by_hand = None if hand is None else float(hand)
