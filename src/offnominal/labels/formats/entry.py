"""What a file of annotations says of an image, before anything is checked against the image."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from offnominal.text import brief

__all__ = ["Box", "Drawn", "Entry", "Points", "Problem", "Row", "Tell", "box_around", "read_row"]

Points = NDArray[np.float64]
Box = tuple[float, float, float, float]
"""Left, top, width, height."""


class Problem(NamedTuple):
    """Something in a file of annotations that does not fit.

    Attributes
    ----------
    where : str
        File and entry.
    what : str
        What does not fit.
    remedy : str
        What a user can do.
    """

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


@dataclass(frozen=True, eq=False)
class Drawn:
    """One marked place, as a file has it.

    Attributes
    ----------
    where : str
        File and entry, for messages.
    kind : str
        Class; empty where the file names none.
    box : (left, top, width, height), or None
    polygons : tuple of float64 array of shape (n, 2)
        Their union counts.
    mask : bool array of shape (H, W), or None
    shares : bool
        Whether box and polygons are shares of the image's sides, not pixels.
    """

    where: str
    kind: str
    box: Box | None = None
    polygons: tuple[Points, ...] = ()
    mask: NDArray[np.bool_] | None = None
    shares: bool = False


@dataclass
class Entry:
    """What a file says of one image.

    Attributes
    ----------
    where : str
        File and entry, for messages.
    names : tuple of str
        What the image may be called, with or without folders; the surest first.
    size : (H, W), or None
        Of the image, as the file says.
    drawn : list of Drawn
    kinds : tuple of str
        Classes of the image as a whole, where the file says any.
    folder : Path or None
        Of a file that is about this image alone: images of one name are told apart by it.
    """

    where: str
    names: tuple[str, ...]
    size: tuple[int, int] | None = None
    drawn: list[Drawn] = field(default_factory=list)
    kinds: tuple[str, ...] = ()
    folder: Path | None = None


Tell = Callable[[Problem], None]


def box_around(points: Points) -> Box:
    """The upright box around points (n, 2)."""
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return left, top, right - left, bottom - top


class Row(BaseModel):
    """Part of a file; numbers may stand for names, and infinities for nothing."""

    model_config = ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False)


AnyRow = TypeVar("AnyRow", bound=Row)


def read_row(model: type[AnyRow], value: Any, where: str, tell: Tell) -> AnyRow | None:
    """A part of a file as it must be; None, and a problem told, where it is not."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        # Of what may have several forms, pydantic names the one that it tried.
        place = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
        got = "" if first["type"] == "missing" else f", not {brief(repr(first['input']), 60)}"
        what = f"{place or 'entry'}: {first['msg'].lower()}{got}"
        tell(Problem(where, what, "correct it, or export the annotations again"))
        return None
