"""Where predictions go: the terminal, or a folder of JSON lines, CSV, pictures and maps.

A sink takes predictions and imports nothing that makes them.
"""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offnominal.atomic import replacing, write_atomically
from offnominal.errors import ImageError, OptionError
from offnominal.pictures import beside

if TYPE_CHECKING:
    from offnominal.prediction import Prediction

__all__ = ["KINDS", "Printer", "ResultWriter", "Sink", "parse_save"]

KINDS = ("overlay", "map", "mask", "json", "csv")
_COLUMNS = (
    "image", "score", "threshold", "is_anomalous", "p_value", "height", "width",
    "regions", "left", "top", "region_width", "region_height", "area", "peak", "error",
)  # fmt: skip


def _mask(prediction: "Prediction") -> NDArray[np.uint8]:
    limit = prediction.region_threshold
    assert limit is not None, "refused before the run"
    return ((prediction.anomaly_map > limit) * 255).astype(np.uint8)


_PICTURES: dict[str, tuple[str, Callable[["Prediction"], NDArray[Any]]]] = {
    "overlay": (".png", lambda prediction: beside(prediction.image, prediction.overlay())),
    "map": (".tiff", lambda prediction: prediction.anomaly_map),  # 32-bit float
    "mask": (".png", _mask),
}


def parse_save(text: str) -> frozenset[str]:
    """Kinds of output as ``--save`` takes them; one that is unknown raises an OptionError."""
    kinds = frozenset(part.strip() for part in text.split(",") if part.strip())
    if not kinds or kinds - set(KINDS):
        raise OptionError(f"--save {text}: choose from {','.join(KINDS)}")
    return kinds


class Sink:
    """Counts what it is given, and those without a threshold to tell by as undecided."""

    def __init__(self) -> None:
        self.rows = self.anomalous = self.undecided = 0
        self.done: set[str] = set()  # images of earlier runs

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
        line = _json_line(prediction.as_row())
        if not self.as_json:
            verdict = {True: "REJECT", False: "ok", None: "-"}[prediction.is_anomalous]
            line = f"{verdict:<7}{prediction.score:<10.4g}{prediction.source}"
        print(line, flush=True)
        super().write(prediction)


class ResultWriter(Sink):
    """Writes a folder of results, one image at a time, so that a stop loses nothing.

    JSON lines are always written: they are what ``resume`` reads, and what the CSV is made of when
    a run ends, in whatever way. Images that could not be read are tried again on resuming.

    Parameters
    ----------
    folder : Path
    kinds : frozenset of str
        Some of :data:`KINDS`.
    images : list of Path
        All images of the run; their common folder is taken off the names of pictures.
    run : dict
        What the results depend on, to tell on resuming that it is the same.
    resume, overwrite : bool
        What to do with earlier results; neither: an :class:`OptionError` is raised.
    """

    def __init__(
        self,
        folder: Path,
        kinds: frozenset[str],
        images: list[Path],
        run: dict[str, Any],
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.kinds = kinds
        self._names = _picture_names(images)
        self._lines, marker = folder / "results.jsonl", folder / "run.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(f"-o {folder}: cannot be made ({error.strerror})") from error
        rows: list[dict[str, Any]] = []
        if self._lines.exists() and not overwrite:
            same = marker.exists() and json.loads(marker.read_text("utf-8")) == run
            if not (resume and same):
                wrong = "its results are of another model or other options"
                told = wrong if resume else "holds results already; --resume goes on with them"
                raise OptionError(f"-o {folder}: {told}; --overwrite starts afresh")
            rows = [row for row in self._written() if "score" in row]
        write_atomically(marker, (json.dumps(run, indent=1) + "\n").encode())
        write_atomically(self._lines, "".join(_json_line(row) + "\n" for row in rows).encode())
        self.done = {row["image"] for row in rows}
        self.anomalous = sum(bool(row.get("is_anomalous")) for row in rows)
        self._json = self._lines.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file, and make the CSV of it."""
        self._json.close()
        if "csv" not in self.kinds:
            return
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, _COLUMNS)
        table.writeheader()
        table.writerows(_flat(row) for row in self._written())
        write_atomically(self.folder / "results.csv", text.getvalue().encode())

    def write(self, prediction: "Prediction") -> None:
        """Write one prediction: its pictures first, so that a row means that they are there."""
        row = prediction.as_row()
        for kind in [kind for kind in _PICTURES if kind in self.kinds]:
            suffix, picture = _PICTURES[kind]
            row[kind] = f"{kind}s/{self._names[Path(prediction.source)]}{suffix}"
            target = self.folder / row[kind]
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as temporary:  # PNG's quickest compression
                Image.fromarray(picture(prediction)).save(temporary, suffix[1:], compress_level=1)
        self._append(row)
        super().write(prediction)

    def write_error(self, error: ImageError) -> None:
        """Write that an image could not be read."""
        self._append({"image": error.source, "error": error.reason})

    def _append(self, row: dict[str, Any]) -> None:
        self._json.write(_json_line(row) + "\n")
        self._json.flush()

    def _written(self) -> Iterator[dict[str, Any]]:
        """Rows that are there; a line cut short by a stop is passed over."""
        with self._lines.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


def _picture_names(images: list[Path]) -> dict[Path, str]:
    """Names below the output folder, without suffix unless two images would share one."""
    full = {path: path.absolute() for path in images}
    common = Path(os.path.commonpath([p.parent for p in full.values()])) if full else Path()
    names = {path: whole.relative_to(common) for path, whole in full.items()}
    stems = Counter(name.with_suffix("") for name in names.values())
    return {
        path: (name.with_suffix("") if stems[name.with_suffix("")] == 1 else name).as_posix()
        for path, name in names.items()
    }


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row for the CSV: of the regions, their number and the one with the highest peak."""
    flat = {name: row.get(name) for name in _COLUMNS}
    if (regions := row.get("regions")) is not None:
        flat["regions"] = len(regions)
        for first in regions[:1]:
            names = ("left", "top", "region_width", "region_height")
            flat |= dict(zip(names, first["box"], strict=True))
            flat |= {"area": first["area"], "peak": first["peak"]}
    return flat
