"""Digests of large files, remembered: a file that did not change is read once."""

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path

from offnominal.atomic import replacing

__all__ = ["FileDigests"]

_FRESH = 2 * 10**9  # nanoseconds in which a file may change again and keep its time


class FileDigests:
    """SHA-256 of files by path, size and time of change.

    Parameters
    ----------
    folder : Path
        Where a small file for each is kept; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def digest(self, path: Path) -> str | None:
        """The digest of a file's content, or None if it cannot be read."""
        try:
            whole = path.resolve()
            state = whole.stat()
            known = [str(whole), state.st_size, state.st_mtime_ns]
            named = hashlib.sha256(str(whole).encode()).hexdigest()[:32]
            place = self.folder / f"{named}.json"
            with suppress(OSError, ValueError, TypeError):
                *there, digest = json.loads(place.read_bytes())
                if there == known and isinstance(digest, str):
                    return digest
            with whole.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None
        if time.time_ns() - state.st_mtime_ns > _FRESH:
            with suppress(OSError):  # a folder that is to be read only
                self.folder.mkdir(parents=True, exist_ok=True)
                with replacing(place) as temporary:
                    temporary.write_text(json.dumps([*known, digest]))
        return digest
