"""The steps of a detector's history: as plain values in a model file, and as versions."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from offnominal.detectors.growing import Version, utc

__all__ = ["plain_step", "versions"]


def plain_step(
    what: str, owners: Iterable[int], references: int, rows: int, when: datetime | None
) -> dict[str, Any]:
    """One step as plain values.

    Parameters
    ----------
    what : str
        As :class:`~offnominal.detectors.growing.Version` has it.
    owners : iterable of int
        Numbers of the images that came or went.
    references, rows : int
        Known images and length of the bank afterwards.
    when : datetime or None
    """
    return {
        "what": what,
        "owners": list(owners),
        "references": references,
        "rows": rows,
        "when": utc(when),
    }


def versions(steps: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> list[Version]:
    """The steps, the first one first, with the names of the images by their numbers."""
    return [
        Version(
            number,
            step["what"],
            tuple(names[owner] for owner in step["owners"]),
            step["references"],
            step["rows"],
            step["when"],
        )
        for number, step in enumerate(steps, start=1)
    ]
