"""Where predictions go: the terminal, or a folder of JSON lines, CSV, pictures and maps.

A sink takes predictions and imports nothing that makes them.
"""

import csv
import json
import os
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from offnominal.atomic import replacing, write_atomically
from offnominal.errors import ImageError, OptionError
from offnominal.pictures import beside

if TYPE_CHECKING:
    from offnominal.detectors.prediction import Prediction

__all__ = ["KINDS", "Printer", "ResultWriter", "parse_save"]

KINDS = ("overlay", "map", "mask", "json", "csv")
_FOLDERS = {"overlay": ("overlays", ".png"), "map": ("maps", ".tiff"), "mask": ("masks", ".png")}
_COLUMNS = (
    "image", "score", "threshold", "is_anomalous", "p_value", "height", "width",
    "regions", "left", "top", "region_width", "region_height", "area", "peak", "error",
)  # fmt: skip


def parse_save(text: str) -> frozenset[str]:
    """Kinds of output as ``--save`` takes them.

    Raises
    ------
    OptionError
        If one is unknown.
    """
    kinds = frozenset(part.strip() for part in text.split(",") if part.strip())
    unknown = kinds - set(KINDS)
    if unknown or not kinds:
        raise OptionError(f"--save {text}: choose from {','.join(KINDS)}")
    return kinds


class _Sink:
    """Counts what it is given.

    Attributes
    ----------
    rows : int
        Predictions of this run.
    anomalous, undecided : int
        Those among them that are, and those without a threshold to tell by; a folder's
        ``anomalous`` counts earlier runs too.
    done : set of str
        Images of earlier runs.
    """

    def __init__(self) -> None:
        self.rows = self.anomalous = self.undecided = 0
        self.done: set[str] = set()

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to do."""

    def _count(self, prediction: "Prediction") -> None:
        self.rows += 1
        self.anomalous += prediction.is_anomalous is True
        self.undecided += prediction.is_anomalous is None


class Printer(_Sink):
    """Prints predictions to stdout, as lines of JSON or for a person."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def write(self, path: Path, prediction: "Prediction") -> None:
        """Print one prediction."""
        if self.as_json:
            print(_json_line(prediction.as_row()), flush=True)
        else:
            verdict = {True: "REJECT", False: "ok", None: "-"}[prediction.is_anomalous]
            print(f"{verdict:<7}{prediction.score:<10.4g}{prediction.source}", flush=True)
        self._count(prediction)

    def write_error(self, error: ImageError) -> None:
        """Nothing: errors are for stderr."""


class ResultWriter(_Sink):
    """Writes a folder of results, one image at a time, so that a stop loses nothing.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.
    kinds : frozenset of str
        Some of :data:`KINDS`. JSON lines are always written: they are what ``resume`` reads.
    images : list of Path
        All images of the run; their common folder is taken off the names of pictures.
    run : dict
        What the results depend on, to tell on resuming that it is the same.
    resume : bool
        Go on where an earlier run stopped. Images that could not be read are tried again.
    overwrite : bool
        Start afresh over earlier results.

    Raises
    ------
    OptionError
        If there are earlier results and neither was asked for, or they are of another model.
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
        lines, marker = folder / "results.jsonl", folder / "run.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(f"-o {folder}: cannot be made ({error.strerror})") from error
        rows: list[dict[str, Any]] = []
        if lines.exists() and not overwrite:
            if not resume:
                raise OptionError(
                    f"-o {folder}: holds results already; --resume goes on with them, --overwrite "
                    "starts afresh"
                )
            if not marker.exists() or json.loads(marker.read_text("utf-8")) != run:
                raise OptionError(
                    f"-o {folder}: its results are of another model or other options; choose "
                    "another folder, or --overwrite"
                )
            rows = _whole_rows(lines)
        write_atomically(marker, (json.dumps(run, indent=1) + "\n").encode())
        write_atomically(lines, "".join(_json_line(row) + "\n" for row in rows).encode())
        self.done = {row["image"] for row in rows}
        self.anomalous = sum(bool(row.get("is_anomalous")) for row in rows)
        self._json: IO[str] = lines.open("a", encoding="utf-8")
        self._csv: IO[str] | None = None
        if "csv" in kinds:
            self._csv = (folder / "results.csv").open("w", encoding="utf-8", newline="")
            self._table = csv.DictWriter(self._csv, _COLUMNS)
            self._table.writeheader()
            for row in rows:
                self._table.writerow(_flat(row))

    def __exit__(self, *exception: object) -> None:
        """Close the files."""
        self._json.close()
        if self._csv is not None:
            self._csv.close()

    def write(self, path: Path, prediction: "Prediction") -> None:
        """Write one prediction: its pictures first, so that a row means that they are there."""
        row = prediction.as_row()
        for kind in ("overlay", "map", "mask"):
            if kind in self.kinds:
                target = self._target(kind, path)
                _save_picture(_picture(kind, prediction), target)
                row[kind] = target.relative_to(self.folder).as_posix()
        self._append(row)
        self._count(prediction)

    def write_error(self, error: ImageError) -> None:
        """Write that an image could not be read."""
        self._append({"image": error.source, "error": error.reason})

    def _append(self, row: dict[str, Any]) -> None:
        self._json.write(_json_line(row) + "\n")
        self._json.flush()
        if self._csv is not None:
            self._table.writerow(_flat(row))
            self._csv.flush()

    def _target(self, kind: str, path: Path) -> Path:
        subfolder, suffix = _FOLDERS[kind]
        target = self.folder / subfolder / (self._names[path] + suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _picture(kind: str, prediction: "Prediction") -> Image.Image:
    if kind == "overlay":
        return Image.fromarray(beside(prediction.image, prediction.overlay()))
    if kind == "map":
        return Image.fromarray(prediction.anomaly_map)  # 32-bit float
    limit = prediction.region_threshold
    assert limit is not None, "refused before the run"
    return Image.fromarray(((prediction.anomaly_map > limit) * 255).astype(np.uint8))


def _save_picture(picture: Image.Image, target: Path) -> None:
    form, options = ("TIFF", {}) if target.suffix == ".tiff" else ("PNG", {"compress_level": 1})
    with replacing(target) as temporary:
        picture.save(temporary, form, **options)


def _picture_names(images: list[Path]) -> dict[Path, str]:
    """Names below the output folder, without suffix unless two images would share one."""
    full = {path: path.absolute() for path in images}
    common = Path(os.path.commonpath([p.parent for p in full.values()])) if full else Path()
    relative = {path: whole.relative_to(common) for path, whole in full.items()}
    stems = Counter(name.with_suffix("") for name in relative.values())
    return {
        path: (name.with_suffix("") if stems[name.with_suffix("")] == 1 else name).as_posix()
        for path, name in relative.items()
    }


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run that need no second try; a line cut short by a stop is dropped."""
    rows = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "score" in row:
            rows.append(row)
    return rows


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row for the CSV: of the regions, their number and the one with the highest peak."""
    flat = {name: row.get(name) for name in _COLUMNS}
    regions = row.get("regions")
    if regions is None:
        return flat
    flat["regions"] = len(regions)
    if regions:
        first = regions[0]
        names = ("left", "top", "region_width", "region_height")
        flat |= dict(zip(names, first["box"], strict=True))
        flat |= {"area": first["area"], "peak": first["peak"]}
    return flat
