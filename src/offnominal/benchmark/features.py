"""Patch features kept on disk, so that cells which see the same pixels share one forward pass.

An entry is found by the digest of the prepared pixels and by everything else that the features
depend on, so it cannot be stale: another resolution, rotation, crop, layer or weights file gives
another key. Entries hold float32, as the network gave it, and a run with the cache gives the same
figures as one without.
"""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from offnominal.atomic import replacing
from offnominal.errors import OptionError

__all__ = ["FeatureCache", "default_cache"]


def default_cache() -> Path:
    """``features`` in ``$OFFNOMINAL_CACHE``, or in ``offnominal`` in the user's cache folder."""
    own = os.environ.get("OFFNOMINAL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(own) if own else Path(base) / "offnominal") / "features"


class FeatureCache:
    """Arrays on disk under a size limit; safe to share between processes.

    Parameters
    ----------
    folder : Path
        Made if absent.
    limit : int
        Bytes that it may take, and never more than half of what was free on the disk. Where it is
        full, entries that this process has not used make room, the oldest first; when there are
        none left, new ones are not kept. (Throwing out what this run still needs would only make
        every later cell miss.)
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(
                f"--cache {folder}: cannot be made ({error.strerror}); name another folder, or "
                "give --no-cache"
            ) from error
        self.size = sum(path.stat().st_size for path in _entries(folder))
        self.limit = min(limit, self.size + shutil.disk_usage(folder).free // 2)
        self._began = time.time()

    def get(self, key: str) -> list[np.ndarray] | None:
        """An entry, or None; a damaged one is removed, and made again by whoever needs it."""
        path = self._path(key)
        try:
            with np.load(path, allow_pickle=False) as stored:
                entry = [stored[f"arr_{number}"] for number in range(len(stored.files))]
            os.utime(path)
        except FileNotFoundError:
            return None
        except (ValueError, EOFError, KeyError, OSError, BadZipFile):
            path.unlink(missing_ok=True)
            return None
        return entry

    def put(self, key: str, entry: Sequence[np.ndarray]) -> None:
        """Keep an entry, if there is room."""
        needed = sum(array.nbytes for array in entry)
        if self.size + needed > self.limit and not self._make_room(needed):
            return
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, *entry)
            self.size += needed
        except OSError:
            # A full disk must not end a benchmark: it only loses the gain.
            self.limit = 0

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"

    def _make_room(self, needed: int) -> bool:
        """Remove old entries down to nine tenths of the limit; whether there is room now."""
        found = []
        for path in _entries(self.folder):
            try:
                state = path.stat()
            except FileNotFoundError:  # another process removed it
                continue
            found.append((state.st_mtime, state.st_size, path))
        self.size = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if self.size + needed <= 0.9 * self.limit or used >= self._began:
                break
            path.unlink(missing_ok=True)
            self.size -= size
        return self.size + needed <= self.limit


def _entries(folder: Path) -> list[Path]:
    return list(folder.glob("??/*.npz"))
