"""Where predictions go: something that counts them, and the terminal.

A sink takes predictions and imports nothing that makes them.
"""

import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from offnominal.errors import ImageError, OffnominalError
from offnominal.text import digits, json_line, printable

if TYPE_CHECKING:
    from offnominal.prediction import Prediction

__all__ = ["KINDS", "Printer", "Sink", "readable"]

KINDS = ("overlay", "map", "mask", "cloud", "json", "csv", "page")
"""What a folder of results may hold of an image or of a run, as ``--save`` names it."""


class Sink:
    """Counts what it is given, and those without a threshold to tell by as undecided."""

    def __init__(self) -> None:
        self.rows = self.anomalous = self.undecided = 0
        self.done: set[str] = set()  # images of earlier runs
        self.page: Path | None = None  # where a person looks at the results
        self.about: list[tuple[str, str]] = []  # what they are made with

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            self.close()
        except OffnominalError:
            if error is None:  # otherwise what went wrong first is what matters
                raise

    def close(self) -> None:
        """Nothing more comes."""

    def write(self, prediction: "Prediction") -> None:
        """Take one prediction."""
        self.rows += 1
        self.anomalous += prediction.is_anomalous is True
        self.undecided += prediction.is_anomalous is None

    def write_error(self, error: ImageError) -> None:
        """Take note of an image that could not be read."""


class Printer(Sink):
    """Prints predictions to stdout, as lines of JSON or for a person."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def write(self, prediction: "Prediction") -> None:
        """Print one prediction; errors are for stderr."""
        if self.as_json:
            line = json_line(readable(prediction.to_dict()))
            if "utf" not in (sys.stdout.encoding or "").lower():
                line = json.dumps(json.loads(line))  # in ASCII, which every encoding holds
        else:
            verdict = {True: "REJECT", False: "ok", None: "-"}[prediction.is_anomalous]
            line = f"{verdict:<7}{digits(prediction.score):<15}{printable(prediction.source)}"
        print(line, flush=True)
        super().write(prediction)


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose name every reader of JSON takes; ``image_bytes`` has it to the byte."""
    name: str = row["image"]
    try:
        name.encode()
    except UnicodeEncodeError:
        plain = os.fsencode(name)
        return row | {"image": plain.decode("utf-8", "backslashreplace"),
                      "image_bytes": plain.hex()}  # fmt: skip
    return row
