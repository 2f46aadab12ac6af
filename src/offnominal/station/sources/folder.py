"""A folder that pictures are put into: inspected in order, then moved away.

A picture's request id is made of its name, size, time and content. A station that is killed between
storing a result and moving the picture finds the picture again, and is given the result that is
there.
"""

import asyncio
import hashlib
import logging
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from watchfiles import awatch

from offnominal.errors import OptionError
from offnominal.paths import FOUND_SUFFIXES
from offnominal.station.sources.handing import Shot, hand_on
from offnominal.station.sources.settings import FolderSettings
from offnominal.station.station import Station

__all__ = ["run"]

log = logging.getLogger(__name__)

# Names of files that are being written, as browsers, copying programs and cameras make them.
_BEING_WRITTEN = (".tmp", ".part", ".partial", ".crdownload", ".filepart", ".writing")
_AT_ONCE = 2  # pictures beyond the workers that are handed on together
_PAUSE = 2.0  # seconds after which something that went wrong is tried again


@dataclass(frozen=True)
class _Seen:
    """A file as it was when it was looked at."""

    path: Path
    size: int
    modified: int

    @classmethod
    def at(cls, path: Path) -> "_Seen | None":
        try:
            stat = path.stat()
        except OSError:
            return None
        return cls(path, stat.st_size, stat.st_mtime_ns)


async def run(station: Station, settings: FolderSettings) -> None:
    """Inspect what is there and what comes, until cancelled."""
    fact = f"source {settings.name}"
    while True:
        try:
            for folder in (settings.folder, _done(settings), _failed(settings)):
                folder.mkdir(parents=True, exist_ok=True)
            station.state.tell(fact, True)
            await _watch(station, settings)
        except* OSError as errors:
            station.state.tell(fact, False, f"{settings.folder}: {errors.exceptions[0]}")
            log.warning("%s: %s", fact, errors.exceptions[0])
        await asyncio.sleep(_PAUSE)


def _done(settings: FolderSettings) -> Path:
    return settings.folder / settings.done  # an absolute one stands for itself


def _failed(settings: FolderSettings) -> Path:
    return settings.folder / settings.failed


async def _watch(station: Station, settings: FolderSettings) -> None:
    limit = asyncio.Semaphore(station.settings.workers + _AT_ONCE)
    under_way: set[Path] = set()

    async def take(seen: _Seen) -> None:
        try:
            await _inspect(station, settings, seen)
        finally:
            under_way.discard(seen.path)
            limit.release()

    async with asyncio.TaskGroup() as group:
        async for whole in _whole_files(settings, under_way):
            for seen in whole:
                await limit.acquire()
                under_way.add(seen.path)
                group.create_task(take(seen))


async def _whole_files(
    settings: FolderSettings, under_way: set[Path]
) -> AsyncIterator[list[_Seen]]:
    """Files that are written to no more, the oldest first; a list for each look that found some."""
    since: dict[_Seen, float] = {}
    changes = awatch(
        settings.folder, recursive=False, debounce=50, step=10, rust_timeout=1000,
        yield_on_timeout=True, force_polling=settings.poll, poll_delay_ms=1000,
    )  # fmt: skip
    looks = aiter(changes)
    while True:
        now = time.monotonic()
        there = await asyncio.to_thread(_look, settings.folder)
        since = {seen: since.get(seen, now) for seen in there if seen.path not in under_way}
        whole = [seen for seen, first in since.items() if now - first >= settings.settle]
        if whole:
            yield sorted(whole, key=lambda seen: (seen.modified, seen.path.name))
        waiting = [first for seen, first in since.items() if seen not in whole]
        if waiting:
            await asyncio.sleep(max(0.01, min(waiting) + settings.settle - now))
        else:
            await anext(looks)


def _look(folder: Path) -> list[_Seen]:
    found = []
    for path in folder.iterdir():
        suffixes = [one.lower() for one in path.suffixes]
        if path.name.startswith((".", "~")) or any(one in _BEING_WRITTEN for one in suffixes):
            continue
        if path.suffix.lower() in FOUND_SUFFIXES and path.is_file():
            seen = _Seen.at(path)
            if seen is not None:
                found.append(seen)
    return found


async def _inspect(station: Station, settings: FolderSettings, seen: _Seen) -> None:
    shot = await asyncio.to_thread(_read, settings, seen, station.settings.upload_bytes)
    if shot is None:
        return  # it changed while it was read: it is looked at again
    try:
        inspection = await hand_on(station, settings, shot)
    except OptionError:
        await asyncio.sleep(_PAUSE)
        return  # it stays, and its turn comes again
    target = _failed(settings) if inspection.verdict == "not-inspected" else _done(settings)
    await asyncio.to_thread(_move, seen.path, target)


def _read(settings: FolderSettings, seen: _Seen, most: int) -> Shot | None:
    content: bytes | None = None
    trouble = ""
    try:
        if seen.size > most:
            trouble = f"{seen.size} bytes, more than the {most} of upload_bytes"
        else:
            content = seen.path.read_bytes()
    except OSError as error:
        trouble = error.strerror or str(error)
    if _Seen.at(seen.path) != seen:
        return None
    told = f"{settings.name}\n{seen.path.name}\n{seen.size}\n{seen.modified}\n".encode()
    digest = hashlib.sha256(told + (content or b"")).hexdigest()
    serial = re.search(settings.serial, seen.path.name) if settings.serial else None
    return Shot(
        id=f"file-{digest}",
        image=content,
        trouble=trouble,
        serial=serial[1] if serial else None,
        meta={"file": seen.path.name},
        received=datetime.now(UTC),
    )


def _move(path: Path, target: Path) -> None:
    """Away, beside what has the same name already."""
    place, number = target / path.name, 1
    while place.exists():
        place, number = target / f"{path.stem}-{number}{path.suffix}", number + 1
    with suppress(FileNotFoundError):  # somebody took it away
        shutil.move(path, place)
