"""What is looked for in the history, and places in its list, as links and programs have them."""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field

__all__ = ["Place", "Search"]


class Place(NamedTuple):
    """Where in the order of time an inspection lies."""

    received: datetime
    id: int

    def __str__(self) -> str:
        """As links have it: microseconds of the epoch and the number."""
        return f"{(self.received - _EPOCH) // timedelta(microseconds=1)}-{self.id}"

    @classmethod
    def of(cls, text: str) -> "Place":
        """The place that a link names.

        Raises
        ------
        ValueError
            If it names none.
        """
        match = re.fullmatch(r"(\d{1,17})-(\d{1,18})", text, re.ASCII)
        if match is None:
            raise ValueError("no place in the list; leave it out to begin with the newest")
        return cls(_EPOCH + timedelta(microseconds=int(match[1])), int(match[2]))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _blank(value: Any) -> Any:
    """An empty field of a form is one that was not filled in."""
    return None if value == "" else value


def _when(value: Any) -> Any:
    value = _blank(value)
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
        return date.fromisoformat(value)
    return value


def _placed(value: Any) -> Any:
    return Place.of(value) if isinstance(value, str) and value else _blank(value)


def _plain(text: str | None) -> str | None:
    if text is not None and "\0" in text:
        raise ValueError("a text without the character of code 0")
    return text


_Small = Annotated[Annotated[int, Field(ge=0, lt=2**31)] | None, BeforeValidator(_blank)]
_Score = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, BeforeValidator(_blank)]
# Bounds stand with the text itself: an empty field has become None when they are looked at.
_Text = Annotated[
    Annotated[str, Field(max_length=100)] | None, BeforeValidator(lambda text: _plain(_blank(text)))
]
_Serial = Annotated[
    Annotated[str, Field(max_length=200)] | None, BeforeValidator(lambda text: _plain(_blank(text)))
]
_When = Annotated[
    datetime | date | None,
    BeforeValidator(_when),
    Field(description="a day, or a time; without a zone it is the station's own"),
]
_Place = Annotated[
    Annotated[str, Field(max_length=40)] | None,
    BeforeValidator(lambda text: text and str(_placed(text))),
]


class Search(BaseModel):
    """What is looked for; all that is given has to hold. An empty text is nothing given."""

    product: Annotated[_Small, Field(description="its id")] = None
    since: _When = None
    until: _When = None
    """A day is meant to its end."""
    verdict: Annotated[
        Literal["good", "reject", "not-inspected"] | None, BeforeValidator(_blank)
    ] = None
    label: Annotated[Literal["good", "bad", "none", "any"] | None, BeforeValidator(_blank)] = None
    """What people said; ``none``: nothing yet, ``any``: something."""
    least: _Score = None
    """Scores from here on; of one product, since those of two are not comparable."""
    most: _Score = None
    serial: Annotated[_Serial, Field(description="how it begins")] = None
    source: _Text = None
    version: Annotated[_Small, Field(description="its id")] = None
    kind: Annotated[_Text, Field(description="the kind of defect")] = None
    after: Annotated[_Place, Field(description="older than this place")] = None
    before: Annotated[_Place, Field(description="newer than this place")] = None

    def words(self) -> dict[str, str]:
        """What was given, as a link has it, without a place."""
        given = self.model_dump(exclude_none=True, exclude={"after", "before"})
        return {
            name: value.isoformat() if isinstance(value, date) else str(value)
            for name, value in given.items()
        }
