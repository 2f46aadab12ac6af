"""The images that a detector knows, and the steps by which it came to know them."""

import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NotRequired, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # the one that pydantic takes before Python 3.12

from offnominal.calibration import Threshold
from offnominal.checks import meant
from offnominal.errors import ImageError, OptionError
from offnominal.scoring import Size

if TYPE_CHECKING:  # `info` and `history` read no image, nor wait for what does
    from offnominal.images import ImageSource

__all__ = ["Change", "Reference", "References", "Sample", "Standing", "Step", "Version"]

What = Literal["fit", "add", "forget", "undo", "compact", "calibrate"]
Rescored = Literal["affected", "all", "kept", "none"]

_DIGEST = 64  # hexadecimal digits
_SHORT_DIGEST = 8  # the fewest that are taken for the beginning of one


@dataclass
class Reference:
    """One image that a detector learned from.

    Attributes
    ----------
    file : str
        As it was named when it was learned from.
    digest : str
        Of its pixels.
    size : (H, W)
    active : bool
        False once it was forgotten, until an undo.
    category : str
        Of the part, where a model knows several; else empty.
    """

    file: str
    digest: str
    size: Size
    active: bool = True
    category: str = ""

    @classmethod
    def of(cls, source: "ImageSource", image: np.ndarray) -> Self:
        """The reference that an image, uint8 (H, W, 3), makes."""
        from offnominal.images import content_digest, describe

        return cls(describe(source), content_digest(image), (image.shape[0], image.shape[1]))


@dataclass(frozen=True)
class Version:
    """One step in what a detector knows.

    Attributes
    ----------
    number : int
        1 for the first.
    what : {"fit", "add", "forget", "compact", "calibrate"}
    images : tuple of str
        Names of the images that were learned from, added or forgotten; none of a calibration.
    references : int
        How many images it knew afterwards.
    rows : int
        Rows of its bank that count afterwards.
    when : str or None
        UTC, as ``2026-03-01T09:30:00Z``, if it was given: a model file that is made again from the
        same images is the same to the byte, so no clock is asked.
    threshold : float or None
        Of a calibration: the threshold that it set; None where the good images set none.
    good : int or None
        Of a calibration: how many good images it had; 0 where somebody set the threshold.
    """

    number: int
    what: str
    images: tuple[str, ...]
    references: int
    rows: int
    when: str | None
    threshold: float | None = None
    good: int | None = None


@dataclass
class Step:
    """A :class:`Version` as a model file has it: with the numbers of the images.

    Of a calibration, ``before`` is what it took the place of; None where that is not kept.
    """

    what: What
    numbers: list[int]
    references: int
    rows: int
    when: str | None
    threshold: float | None = None
    good: int | None = None
    before: Mapping[str, Any] | None = None


class Standing(NamedTuple):
    """How many references and rows a detector knows, and its threshold."""

    references: int
    rows: int
    threshold: Threshold | None


@dataclass(frozen=True)
class Change:
    """What a step changed.

    Attributes
    ----------
    what : {"add", "forget", "undo", "compact"}
    images : tuple of str
        Names of the images that came or went.
    known : tuple of str
        Names of those that were left out because the detector knows their pixels already.
    references, rows : (int, int)
        Before and after.
    threshold : (Threshold or None, Threshold or None)
        Before and after.
    rescored : {"affected", "all", "kept", "none"}
        How the other references were scored anew. ``affected``: exactly, by comparing their patches
        with the rows that came, or anew where the nearest row went. ``all``: every one, exactly.
        ``kept``: not, since the bank holds a part of their patches only; their scores are
        approximate. ``none``: there was nothing to score, or held-out images set the thresholds.
    """

    what: What
    images: tuple[str, ...]
    known: tuple[str, ...]
    references: tuple[int, int]
    rows: tuple[int, int]
    threshold: tuple[Threshold | None, Threshold | None]
    rescored: Rescored = "none"

    @classmethod
    def between(
        cls,
        before: Standing,
        after: Standing,
        what: What,
        images: Iterable[str],
        known: Iterable[str],
        rescored: Rescored,
    ) -> Self:
        """What leads from one standing to another."""
        return cls(
            what,
            tuple(images),
            tuple(known),
            (before.references, after.references),
            (before.rows, after.rows),
            (before.threshold, after.threshold),
            rescored,
        )


_Count = Annotated[int, Field(ge=0, lt=2**40)]
_Length = Annotated[int, Field(ge=1, lt=2**20)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _PlainReference(TypedDict):
    file: str
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: tuple[_Length, _Length]
    active: Annotated[bool, Field(strict=True)]
    category: NotRequired[Annotated[str, Field(max_length=200)]]


class _Before(TypedDict):
    """The rate that was asked for, and the threshold that was set by hand, if any."""

    false_reject: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"]
    by_hand: _Finite | None


class _PlainStep(TypedDict):
    what: What
    numbers: list[_Count]
    references: _Count
    rows: _Count
    when: str | None
    threshold: NotRequired[_Finite]
    good: NotRequired[_Count]
    before: NotRequired[_Before]


class _Plain(TypedDict):
    """What a model file says of its references."""

    known: list[_PlainReference]
    steps: list[_PlainStep]


class References(list[Reference]):
    """The images that a detector learned from, by their numbers, and the steps of its history."""

    def __init__(self, known: Iterable[Reference] = (), steps: Iterable[Step] = ()) -> None:
        super().__init__(known)
        self.steps = list(steps)

    @property
    def active(self) -> list[int]:
        """Numbers of those that were not forgotten."""
        return [number for number, one in enumerate(self) if one.active]

    def names(self, numbers: Iterable[int]) -> tuple[str, ...]:
        """Files of some of them."""
        return tuple(self[number].file for number in numbers)

    def take_in(
        self, images: "Iterable[tuple[ImageSource, np.ndarray]]", copies: list[str]
    ) -> "Iterator[tuple[int, np.ndarray, ImageSource]]":
        """Number images on their way, and note them.

        Exact copies of active references, and of one another, are left out; their names join
        ``copies``.
        """
        digests = {one.digest for one in self if one.active}
        for source, image in images:
            reference = Reference.of(source, image)
            if reference.digest in digests:
                copies.append(reference.file)
                continue
            digests.add(reference.digest)
            self.append(reference)
            yield len(self) - 1, image, source

    def find(
        self, image: "ImageSource", read: Callable[["ImageSource"], NDArray[Any]] | None = None
    ) -> int:
        """Number of the active reference that a name, a digest or an image stands for.

        ``read`` reads an image as the detector does; None: as pictures are read.

        Raises
        ------
        OptionError
            If there is none, listing the nearest names, or several.
        """
        from offnominal.images import content_digest, describe, read_image

        known = self.active

        def named(test: Any) -> list[int]:
            return [number for number in known if test(self[number])]

        name = str(image) if isinstance(image, str | Path) else describe(image)
        found: list[int] = []
        if isinstance(image, str | Path):
            found = named(lambda one: one.file == name)
            if (
                not found
                and _SHORT_DIGEST <= len(name) <= _DIGEST
                and set(name) <= set(string.hexdigits)
            ):
                found = named(lambda one: one.digest.startswith(name.lower()))
        if not found:
            try:
                digest = content_digest((read or read_image)(image))
                found = named(lambda one: one.digest == digest)
            except ImageError:
                if not isinstance(image, str | Path):
                    raise
        if not found and isinstance(image, str | Path):
            wanted = Path(name).parts  # the end of a path, by whole folders
            found = named(lambda one: Path(one.file).parts[-len(wanted) :] == wanted)
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{self[n].file} ({self[n].digest[:12]})" for n in found[:10])
            raise OptionError(
                f"{name}: stands for {len(found)} references; name one by its whole path or its "
                f"digest: {listed}"
            )
        near = meant(Path(name).name, (Path(self[number].file).name for number in known))
        raise OptionError(
            f"{name}: not among the {len(known)} references; {near}`offnominal history` lists "
            "what a model knows"
        )

    # -- history ------------------------------------------------------------------------------

    def note(
        self,
        what: What,
        numbers: Iterable[int],
        rows: int,
        when: datetime | None = None,
        **calibration: Any,
    ) -> None:
        """Write a step into the history; a time without a time zone is local time."""
        told = None if when is None else when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.steps.append(Step(what, list(numbers), len(self.active), rows, told, **calibration))

    def history(self) -> list[Version]:
        """The steps in words, the first one first."""
        return [
            Version(
                number,
                step.what,
                self.names(step.numbers),
                step.references,
                step.rows,
                step.when,
                step.threshold,
                step.good,
            )
            for number, step in enumerate(self.steps, start=1)
        ]

    def plain(self) -> dict[str, Any]:
        """Plain values, for a model file."""
        steps = [
            {key: value for key, value in vars(step).items() if value is not None or key == "when"}
            for step in self.steps
        ]
        return {"known": [vars(one) for one in self], "steps": steps}

    @classmethod
    def from_plain(cls, values: Any) -> Self:
        """What :meth:`plain` gave.

        Raises
        ------
        ValueError
            If it is anything else, or a step speaks of a reference that there is not.
        """
        told = TypeAdapter(_Plain).validate_python(values)
        known = [Reference(**one) for one in told["known"]]
        steps = [Step(**step) for step in told["steps"]]
        if any(number not in range(len(known)) for step in steps for number in step.numbers):
            raise ValueError("its history speaks of references that it does not hold")
        return cls(known, steps)


class Sample(dict[int, Any]):
    """A uniform sample of a stream of unknown length (Vitter, 1985, algorithm R); 0: all of it."""

    def __init__(self, limit: int, seed: int) -> None:
        super().__init__()
        self.limit = limit
        self._draw = np.random.default_rng(seed)

    def offer(self, number: int, value: Any) -> None:
        """Take the next value of the stream, or not."""
        if self.limit and len(self) == self.limit:
            out = int(self._draw.integers(number + 1))
            if out >= self.limit:
                return
            del self[list(self)[out]]
        self[number] = value
