"""A folder of results: claimed by one run, never written outside of, never over foreign files."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from offnominal.atomic import write_atomically
from offnominal.cli.picture_names import picture_names
from offnominal.cli.writer import KINDS, Sink, readable
from offnominal.errors import ImageError, OptionError
from offnominal.exchange import flat
from offnominal.paths import RESULTS_MARK, is_own, stamp
from offnominal.pictures import save_picture
from offnominal.text import cell, json_line

if TYPE_CHECKING:
    from offnominal.prediction import Prediction

__all__ = ["ResultWriter", "parse_save"]

PAGE = "index.html"
_COLUMNS = (
    "image", "score", "threshold", "is_anomalous", "p_value", "height", "width",
    "regions", "left", "top", "region_width", "region_height", "area", "peak", "kind",
    "missing_points",
    "error",
)  # fmt: skip
_PICTURES_AS = 2  # version of what pictures look like: those of another are not gone on with
_HELD = "holds results already; --resume goes on with them, --overwrite starts afresh"


def _mask(prediction: "Prediction") -> NDArray[np.uint8]:
    limit = prediction.region_threshold
    assert limit is not None, "refused before the run"
    return ((prediction.anomaly_map > limit) * 255).astype(np.uint8)


_PICTURES: dict[str, tuple[str, Callable[["Prediction"], NDArray[Any]]]] = {
    "overlay": (".png", lambda prediction: prediction.picture()),
    "map": (".tiff", lambda prediction: prediction.anomaly_map),  # 32-bit float
    "mask": (".png", _mask),
    "thumbnail": (".jpg", lambda prediction: prediction.thumbnail()),  # what the page shows
}

# What lies in the folder of each kind: of a cloud its points and the page that turns them.
_SUFFIXES: dict[str, tuple[str, ...]] = {kind: (suffix,) for kind, (suffix, _) in _PICTURES.items()}
_SUFFIXES["cloud"] = (".ply", ".html")


_Picture = Annotated[str | None, Field(pattern="^(overlays|maps|masks|thumbnails|clouds)/")]
_Side = Annotated[int, Field(ge=1)]


class _Region(BaseModel):
    box: tuple[int, int, int, int]
    area: int
    peak: float = Field(allow_inf_nan=False)
    peak_at: tuple[int, int]


class _Row(BaseModel):
    """What a line of an earlier run must say to count as done, and to be shown."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    image: str
    score: float
    threshold: float | None
    is_anomalous: bool | None
    p_value: float | None = None
    height: _Side
    width: _Side
    regions: list[_Region]
    file: str = ""
    overlay: _Picture = None
    map: _Picture = None
    mask: _Picture = None
    thumbnail: _Picture = None
    cloud: _Picture = None
    missing_points: int | None = None


def parse_save(text: str) -> frozenset[str]:
    """Kinds of output as ``--save`` takes them; one that is unknown raises an OptionError."""
    kinds = frozenset(part.strip() for part in text.split(",") if part.strip())
    if not kinds or kinds - set(KINDS):
        raise OptionError(f"--save {text}: choose from {','.join(KINDS)}")
    return kinds | {"thumbnail"} if "page" in kinds else kinds


def check_free(folder: Path, resume: bool, overwrite: bool) -> None:
    """Raise an OptionError if results cannot go into a folder, as far as that is seen at once."""
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"-o {folder}: is a file; name a folder for the results")
    lines = folder / "results.jsonl"
    ours = _read_run(folder / "run.json") is not None
    if ours and not (resume or overwrite) and lines.is_file() and lines.stat().st_size:
        raise OptionError(f"-o {folder}: {_HELD}")


class ResultWriter(Sink):
    """Writes a folder of results, one image at a time, so that a stop loses nothing.

    JSON lines are always written: they are what ``resume`` reads, and what the CSV and the page are
    made of when a run ends, in whatever way. Images that could not be read are tried again on
    resuming. While it is open no other run can write into the folder.

    Parameters
    ----------
    folder : Path
    kinds : frozenset of str
        As :func:`parse_save` gives them.
    images : list of Path
        All images of the run; their common folder is taken off the names of pictures.
    run : dict
        What the results depend on, to tell on resuming that it is the same.
    resume, overwrite : bool
        What to do with earlier results; neither: an :class:`OptionError` is raised.
    about : sequence of (str, str)
        What the results are made with, for the page: titles and words.

    Raises
    ------
    OptionError
        Also while it writes: where a file cannot be written, is not the program's own, or was
        taken away since.
    """

    def __init__(
        self,
        folder: Path,
        kinds: frozenset[str],
        images: list[Path],
        run: dict[str, Any],
        resume: bool = False,
        overwrite: bool = False,
        about: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__()
        self.folder = folder
        self.about = list(about)
        self.page = folder / PAGE if "page" in kinds else None
        self.kinds = kinds
        if any(image.absolute().parent == folder.absolute() for image in images):
            told = "holds images that are to be scored; name a folder of its own for the results"
            raise OptionError(f"-o {folder}: {told}")
        self._lines, marker = folder / "results.jsonl", folder / "run.json"
        run = run | {"pictures": _PICTURES_AS}
        self._lock = FileLock(folder / "run.lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._inside = os.path.realpath(folder)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            told = "another run is writing into it; wait for it, or name another folder"
            raise OptionError(f"-o {folder}: {told}") from error
        except OSError as error:
            reason = error.strerror or error
            raise OptionError(f"-o {folder}: cannot be written into ({reason})") from error
        try:
            if self.page and os.path.lexists(self.page) and not _is_results(self.page):
                told = "no page of results that `predict` wrote; name another folder with -o"
                raise OptionError(f"{self.page}: {told}")
            asked = {str(image) for image in images}
            # Another picture under the same name is not the one that was scored.
            rows = [row for row in self._earlier(marker, run, resume, overwrite)
                    if _name(row) not in asked or row.get("file") == stamp(_name(row))]  # fmt: skip
            taken = {"/".join(str(row[kind]).split("/")[1:]).rpartition(".")[0]
                     for row in rows for kind in _SUFFIXES if kind in row}  # fmt: skip
            self.done = {_name(row) for row in rows}
            self._names = picture_names([one for one in images if str(one) not in self.done], taken)
            self._check_targets()
            write_atomically(marker, (json.dumps(run, indent=1) + "\n").encode())
            write_atomically(self._lines, "".join(json_line(row) + "\n" for row in rows).encode())
            self._json = self._lines.open("ab", buffering=0)
        except BaseException:
            self._lock.release()
            raise
        mine = [row["is_anomalous"] for row in rows if _name(row) in asked]
        self.anomalous = sum(decision is True for decision in mine)
        self.undecided = sum(decision is None for decision in mine)

    def _check_targets(self) -> None:
        """Raise an OptionError, before any work is done, if a picture cannot go where it is to."""
        for kind in [kind for kind in _SUFFIXES if kind in self.kinds]:
            if os.path.lexists(self.folder / f"{kind}s"):
                for name in self._names.values():
                    for suffix in _SUFFIXES[kind]:
                        self._target(f"{kind}s/{name}{suffix}")

    def _earlier(
        self, marker: Path, run: dict[str, Any], resume: bool, overwrite: bool
    ) -> list[dict[str, Any]]:
        """Rows of an earlier run that this one goes on with, if all that is there is ours."""
        known = _read_run(marker)
        there = [name for name in ("run.json", "results.jsonl", "results.csv")
                 if os.path.lexists(self.folder / name)]  # fmt: skip
        if there and known is None and not (self._lines.exists() and overwrite):
            told = f"holds {there[0]} of something else, or a damaged one; name another folder"
            raise OptionError(f"-o {self.folder}: {told}, or take it away")
        if overwrite:
            self._clear()
        if overwrite or not self._lines.exists() or not self._lines.stat().st_size:
            return []
        if not (resume and known == run):
            wrong = "its results are of another model or other options"
            told = f"{wrong}; --overwrite starts afresh" if resume else _HELD
            raise OptionError(f"-o {self.folder}: {told}")
        rows = {_name(row): row for row in self._written() if "score" in row}
        return list(rows.values())

    def _clear(self) -> None:
        """Take away what an earlier run drew, lest it be taken for this one's."""
        (self.folder / "results.csv").unlink(missing_ok=True)
        if _is_results(self.folder / PAGE):
            (self.folder / PAGE).unlink()
        for kind, suffixes in _SUFFIXES.items():
            for file in (self.folder / f"{kind}s").rglob("*"):
                if file.suffix in suffixes and is_own(file):
                    file.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, and make the CSV and the page of it."""
        try:
            self._check()
            if "csv" in self.kinds:
                text = io.StringIO(newline="")
                table = csv.DictWriter(text, _COLUMNS)
                table.writeheader()
                table.writerows(_flat(row) for row in self._written())
                write_atomically(self.folder / "results.csv", text.getvalue().encode())
            if self.page:
                from offnominal.report.inspection import write_inspection

                rows = [row | {"name": _name(row)} for row in self._written()]
                write_inspection(self.folder, rows, self.about)
        finally:
            self._json.close()
            self._lock.release()

    def write(self, prediction: "Prediction") -> None:
        """Write one prediction: its pictures first, so that a row means that they are there."""
        self._check()
        row = prediction.to_dict() | {"file": stamp(prediction.source)}
        for kind in [kind for kind in _PICTURES if kind in self.kinds]:
            suffix, picture = _PICTURES[kind]
            row[kind] = f"{kind}s/{self._names[Path(prediction.source)]}{suffix}"
            save_picture(self._place(row[kind]), picture(prediction))
        if "cloud" in self.kinds:
            row["cloud"] = f"clouds/{self._names[Path(prediction.source)]}.ply"
            _write_cloud(prediction, self._place(row["cloud"]))
            self._target(row["cloud"].removesuffix(".ply") + ".html")
        self._append(row)
        super().write(prediction)

    def write_error(self, error: ImageError) -> None:
        """Write that an image could not be read."""
        self._check()
        self._append({"image": error.source, "error": error.reason})

    def _place(self, name: str) -> Path:
        """A target whose folder is there."""
        target = self._target(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise OptionError(f"{target.parent}: cannot be made ({reason})") from error
        return target

    def _target(self, name: str) -> Path:
        """Where a picture goes, if that is inside the folder and nothing of the user's."""
        target = self.folder / name
        real = os.path.realpath(target.parent)
        if os.path.commonpath([real, self._inside]) != self._inside:
            raise OptionError(f"{target.parent}: leads out of {self.folder}; take the link away")
        if os.path.lexists(target) and not is_own(target):
            raise OptionError(f"{target}: not drawn by Offnominal; name another folder with -o")
        return target

    def _check(self) -> None:
        """Raise an OptionError if what was written is no longer there."""
        try:
            now, ours = self._lines.stat(), os.fstat(self._json.fileno())
            kept = (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino)
            if kept and ours.st_size >= self._json.tell():
                return
        except OSError:
            pass
        raise OptionError(
            f"{self._lines}: was taken away or cut short during the run; its results are lost, "
            "score the images again"
        )

    def _append(self, row: dict[str, Any]) -> None:
        rest = json_line(readable(row)).encode() + b"\n"
        try:
            while rest:  # a disk that fills takes a part
                rest = rest[self._json.write(rest) :]
        except OSError as error:
            raise OptionError(
                f"{self._lines}: cannot be written ({error.strerror}); what was written before is "
                "kept, and --resume goes on from there"
            ) from error

    def _written(self) -> Iterator[dict[str, Any]]:
        """Rows that are there; what a stop cut short or nobody here wrote is passed over."""
        with self._lines.open("rb") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    _name(row), json_line(row)  # what cannot be written again was not written here
                    if "score" in row:
                        _Row.model_validate(row, strict=False)
                    elif not (isinstance(row["image"], str) and isinstance(row["error"], str)):
                        continue
                except (AttributeError, ValueError, TypeError, KeyError, RecursionError):
                    continue
                yield row


def _write_cloud(prediction: "Prediction", path: Path) -> None:
    """The points of a scan with their scores, and the page that turns them beside it."""
    scores, points = prediction.point_scores, prediction.points
    if points is None or scores is None:
        raise OptionError(
            f"--save cloud: {prediction.source} is a picture and has no points; leave cloud out"
        )
    from offnominal.captions import Verdict
    from offnominal.report.clouds import write_cloud_page
    from offnominal.scans.cloud import write_ply
    from offnominal.scans.scan import Scan

    seen = prediction.scan
    colour = prediction.image if seen is None else Scan.of(seen).colour
    write_ply(path, points, scores, colour, prediction.colour_range)
    verdict = Verdict(prediction.is_anomalous, prediction.score, prediction.threshold)
    write_cloud_page(
        path.with_suffix(".html"), Scan(points, colour), scores, prediction.source,
        ": ".join(verdict.words()) + ".", prediction.colour_range, prediction.pixel_threshold,
    )  # fmt: skip


def _name(row: dict[str, Any]) -> str:
    """The image of a row as it was named."""
    raw = row.get("image_bytes")
    return os.fsdecode(bytes.fromhex(raw)) if isinstance(raw, str) else str(row["image"])


def _is_results(page: Path) -> bool:
    """Whether a page is one of results, and neither a report, a demonstration nor the user's."""
    return is_own(page) and RESULTS_MARK.encode() in page.read_bytes()[:256]


def _read_run(marker: Path) -> dict[str, Any] | None:
    """What an earlier run depended on; None where there was none, or it cannot be told."""
    try:
        run = json.loads(marker.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(run, dict) and any(isinstance(run.get(k), str) for k in ("model", "method"))
    return run if ours else None


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row for the CSV: of the regions, their number and the one with the highest peak."""
    told = flat(row) if "regions" in row else row
    return {name: cell(told.get(name)) for name in _COLUMNS}
