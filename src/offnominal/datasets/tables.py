"""Tables and lists that name images: read whoever wrote them, and never believed unseen."""

import codecs
import csv
import io
import os
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from offnominal.datasets.reading import counted, such_as
from offnominal.errors import DatasetError
from offnominal.text import brief

__all__ = ["Files", "plain", "read_csv", "read_text"]

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(file: Path, notes: list[str]) -> str:
    """The text of a file in UTF-8, UTF-16, or else the code page of Western Windows, with a note.

    Raises
    ------
    DatasetError
        If it cannot be read, or is no text.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror}); check the file") from error
    # Without a byte order mark, every other byte of what Western languages write is zero.
    odd, even = data[1:200:2].count(0), data[0:200:2].count(0)
    if data.startswith(_UTF16):
        encodings = ["utf-16"]
    elif max(odd, even) > len(data[:200]) / 4:
        encodings = ["utf-16-le" if odd > even else "utf-16-be"]
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        if encoding == "cp1252":
            notes.append(f"{file.name}: is not UTF-8, read as Windows-1252; save it as UTF-8")
        return text
    raise DatasetError(f"{file}: cannot be read as text; save it as UTF-8")


def read_csv(file: Path, notes: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV by the names of its columns, with the number of the line each ends in.

    The separator is a comma, a semicolon or a tab: what a first line ``sep=;`` says, or what the
    names of the columns are separated by. Rows without a value are passed over, and so are empty
    values beyond the last column.

    Raises
    ------
    DatasetError
        If the file is no table, two columns have one name, or a row has more values than columns.
    """
    text = read_text(file, notes)
    lines = text.split("\n")
    skipped = next((n for n, line in enumerate(lines) if line.strip(" \t\r,;")), 0)
    head = lines[skipped].strip()
    delimiter = max(",;\t", key=head.count)
    if head.lower().strip('"').startswith("sep="):
        delimiter = head.strip('"')[4:5] or "\t"
        skipped += 1
    body = io.StringIO("\n".join(lines[skipped:]), newline="")
    table = csv.reader(body, delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=True)
    names: list[str] = []
    where = f"{file}:{skipped + 1}"
    try:
        for values in table:
            where = f"{file}:{skipped + table.line_num}"
            values = [value.strip() for value in values]
            if not any(values):
                continue
            if not names:
                names = values
                if twice := [name for name in names if name and names.count(name) > 1]:
                    raise DatasetError(f"{where}: two columns are called {twice[0]!r}; remove one")
                continue
            if any(values[len(names) :]):
                raise DatasetError(f"{where}: more values than columns; quote values with commas")
            values += [""] * (len(names) - len(values))
            row = dict(zip(names, values, strict=False))
            if lost := row.pop("", ""):
                raise DatasetError(f"{where}: {plain(lost)} is in a column without a name; name it")
            yield skipped + table.line_num, row
    except csv.Error as error:
        last = f"{file}:{skipped + table.line_num}"
        raise DatasetError(f"{last}: no line of a table ({error}); mend or export it") from error


class Files:
    """Finds the files that a table names, each image once, and knows which lie outside.

    Parameters
    ----------
    home : Path
        Folder that relative paths start at.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._seen: dict[str, tuple[str, str]] = {}
        self._outside: list[str] = []
        self._moved = 0
        self._capitals: list[str] = []

    def image(self, text: str, where: str, place: str, moved: bool = False) -> Path:
        """The image at a path, which no earlier row may have named, by another name either.

        ``where`` names file and place for messages; ``place`` is the place alone. ``moved``: paths
        of another machine are looked for by their last parts.
        """
        path = self._find(text, moved)
        if path is None or not path.is_file():
            start = (
                "put meta.json into the data set's folder"
                if moved
                else ("paths start at the manifest's folder")
            )
            thing = "file" if moved else "image"
            raise DatasetError(f"{where}: no such {thing} {self.home / brief(text)}; {start}")
        real = os.path.realpath(path)
        if real in self._seen:
            earlier, name = self._seen[real]
            same = "" if name == text else f", as {name}"
            raise DatasetError(f"{where}: {brief(text)} is in {earlier} too{same}; remove one")
        self._seen[real] = place, text
        return path

    def mask(self, text: str, where: str, moved: bool = False) -> Path:
        """The mask at a path: a file, or a folder of several."""
        path = self._find(text, moved)
        if path is None:
            missing = self.home / brief(text)
            raise DatasetError(f"{where}: no such mask {missing}; leave it empty if there is none")
        return path

    def notes(self) -> list[str]:
        """What to say of paths that lead elsewhere."""
        notes = []
        if self._moved:
            notes.append(f"{self._moved} paths of another machine: found by their last parts")
        if self._capitals:
            notes.append(
                f"{counted(self._capitals, 'path')} in other capitals than the file, "
                f"{such_as(self._capitals)}: found all the same"
            )
        if self._outside:
            notes.append(
                f"{counted(self._outside, 'file')} outside of {self.home}, "
                f"{such_as(self._outside)}: used as named"
            )
        return notes

    def _find(self, text: str, moved: bool) -> Path | None:
        for path in (self.home / spelling for spelling in _spellings(text)):
            if _exists(path):
                if Path(os.path.relpath(path, self.home)).parts[:1] == ("..",):
                    self._outside.append(text)
                return path
        absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
        if moved and absolute:
            parts = (
                PureWindowsPath(text).parts[1:] if "\\" in text else PurePosixPath(text).parts[1:]
            )
            for start in range(1, len(parts)):
                path = self.home.joinpath(*parts[start:])
                if ".." not in parts[start:] and _exists(path):
                    self._moved += 1
                    return path
        if alike := _whatever_capitals(self.home, text.replace("\\", "/")):
            self._capitals.append(text)
        return alike


def _whatever_capitals(home: Path, text: str) -> Path | None:
    """The one file that Windows, where capitals do not matter, would find."""
    found = [home]
    for part in PurePosixPath(text).parts:
        if part in ("..", "/"):
            return None
        inside = [path for folder in found if folder.is_dir() for path in folder.iterdir()]
        found = [path for path in inside if path.name.lower() == part.lower()]
    return found[0] if len(found) == 1 else None


def _spellings(text: str) -> Iterator[str]:
    """A path as other systems may have it; the path itself first."""
    for slashes in [text, text.replace("\\", "/")] if "\\" in text else [text]:
        yield slashes
        if not slashes.isascii():  # accents apart from their letters, or a name of old in one byte
            yield from (unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))
            with suppress(UnicodeEncodeError):
                yield os.fsdecode(slashes.encode("cp1252"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a zero byte: no file can be called so
        return False


def plain(value: Any) -> str:
    """A value for a message, not too long."""
    return brief(repr(value))
