"""A folder of results: claimed by one run, never written outside of, never over foreign files."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from offnominal.atomic import write_atomically
from offnominal.cli.drawn import SUFFIXES, check_target, draw, place
from offnominal.cli.picture_names import picture_names
from offnominal.cli.rows import PAGE, RESULTS, name_of, read_rows, write_tables
from offnominal.cli.writer import KINDS, Sink, readable
from offnominal.errors import ImageError, OptionError
from offnominal.paths import RESULTS_MARK, is_own, stamp
from offnominal.text import json_line

if TYPE_CHECKING:
    from offnominal.prediction import Prediction

__all__ = ["ResultWriter", "parse_save"]
PICTURES_AS = 2  # version of what pictures look like: those of another are not gone on with
HELD = "holds results already; --resume goes on with them, --overwrite starts afresh"


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
    lines = folder / RESULTS
    ours = read_run(folder / "run.json") is not None
    if ours and not (resume or overwrite) and lines.is_file() and lines.stat().st_size:
        raise OptionError(f"-o {folder}: {HELD}")


def claim(folder: Path) -> FileLock:
    """Make a folder and keep it to this run; or raise an OptionError. To be released."""
    lock = FileLock(folder / "run.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        told = "another run is writing into it; wait for it, or name another folder"
        raise OptionError(f"-o {folder}: {told}") from error
    except OSError as error:
        reason = error.strerror or error
        raise OptionError(f"-o {folder}: cannot be written into ({reason})") from error
    return lock


def check_ours(folder: Path, overwrite: bool) -> None:
    """Raise an OptionError if what has the names of results in a folder is not the program's."""
    there = [name for name in ("run.json", RESULTS, "results.csv")
             if os.path.lexists(folder / name)]  # fmt: skip
    ours = read_run(folder / "run.json") is not None
    if there and not ours and not ((folder / RESULTS).exists() and overwrite):
        told = f"holds {there[0]} of something else, or a damaged one; name another folder"
        raise OptionError(f"-o {folder}: {told}, or take it away")


def check_page(page: Path) -> None:
    """Raise an OptionError if a file is there that is no page of results."""
    if os.path.lexists(page) and not _is_results(page):
        told = "no page of results that `predict` wrote; name another folder with -o"
        raise OptionError(f"{page}: {told}")


def clear(folder: Path) -> None:
    """Take away what an earlier run drew, lest it be taken for this one's."""
    (folder / "results.csv").unlink(missing_ok=True)
    if _is_results(folder / PAGE):
        (folder / PAGE).unlink()
    for kind, suffixes in SUFFIXES.items():
        for file in (folder / f"{kind}s").rglob("*"):
            if file.suffix in suffixes and is_own(file):
                file.unlink(missing_ok=True)


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
        self._lines, marker = folder / RESULTS, folder / "run.json"
        run = run | {"pictures": PICTURES_AS}
        self._lock = claim(folder)
        self._inside = os.path.realpath(folder)
        try:
            if self.page:
                check_page(self.page)
            asked = {str(image) for image in images}
            # Another picture under the same name is not the one that was scored.
            rows = [row for row in self._earlier(marker, run, resume, overwrite)
                    if (name := name_of(row)) not in asked
                    or row.get("file") == stamp(name)]  # fmt: skip
            taken = {"/".join(str(row[kind]).split("/")[1:]).rpartition(".")[0]
                     for row in rows for kind in SUFFIXES if kind in row}  # fmt: skip
            self.done = {name_of(row) for row in rows}
            self._names = picture_names([one for one in images if str(one) not in self.done], taken)
            self._check_targets()
            write_atomically(marker, (json.dumps(run, indent=1) + "\n").encode())
            write_atomically(self._lines, "".join(json_line(row) + "\n" for row in rows).encode())
            self._json = self._lines.open("ab", buffering=0)
        except BaseException:
            self._lock.release()
            raise
        mine = [row["is_anomalous"] for row in rows if name_of(row) in asked]
        self.anomalous = sum(decision is True for decision in mine)
        self.undecided = sum(decision is None for decision in mine)

    def _check_targets(self) -> None:
        """Raise an OptionError, before any work is done, if a picture cannot go where it is to."""
        for kind in [kind for kind in SUFFIXES if kind in self.kinds]:
            if os.path.lexists(self.folder / f"{kind}s"):
                for name in self._names.values():
                    for suffix in SUFFIXES[kind]:
                        check_target(self.folder, self._inside, f"{kind}s/{name}{suffix}")

    def _earlier(
        self, marker: Path, run: dict[str, Any], resume: bool, overwrite: bool
    ) -> list[dict[str, Any]]:
        """Rows of an earlier run that this one goes on with, if all that is there is ours."""
        known = read_run(marker)
        check_ours(self.folder, overwrite)
        if overwrite:
            clear(self.folder)
        if overwrite or not self._lines.exists() or not self._lines.stat().st_size:
            return []
        if not (resume and known == run):
            wrong = "its results are of another model or other options"
            told = f"{wrong}; --overwrite starts afresh" if resume else HELD
            raise OptionError(f"-o {self.folder}: {told}")
        rows = {name_of(row): row for row in read_rows(self._lines) if "score" in row}
        return list(rows.values())

    def close(self) -> None:
        """Close the file, and make the CSV and the page of it."""
        try:
            self._check()
            rows = partial(read_rows, self._lines)
            write_tables(self.folder, self.kinds, rows, self.about)
        finally:
            self._json.close()
            self._lock.release()

    def write(self, prediction: "Prediction") -> None:
        """Write one prediction: its pictures first, so that a row means that they are there."""
        self._check()
        row = prediction.to_dict() | {"file": stamp(prediction.source)}
        name = self._names[Path(prediction.source)]
        row |= draw(prediction, self.kinds, name, partial(place, self.folder, self._inside))
        self._append(row)
        super().write(prediction)

    def write_error(self, error: ImageError) -> None:
        """Write that an image could not be read."""
        self._check()
        self._append({"image": error.source, "error": error.reason})

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


def _is_results(page: Path) -> bool:
    """Whether a page is one of results, and neither a report, a demonstration nor the user's."""
    return is_own(page) and RESULTS_MARK.encode() in page.read_bytes()[:256]


def read_run(marker: Path) -> dict[str, Any] | None:
    """What an earlier run depended on; None where there was none, or it cannot be told."""
    try:
        run = json.loads(marker.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(run, dict) and any(isinstance(run.get(k), str) for k in ("model", "method"))
    return run if ours else None
