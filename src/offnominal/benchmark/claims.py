"""Claims: how several processes or machines share the cells of one folder.

A claim is a file that its owner alone could create, and touches while it works. One that has not
been touched for a while belongs to a process that died; anyone may take it over. All times are
those of the file system, so that the machines' clocks need not agree.
"""

import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["STALE", "claim"]

STALE = 300.0  # seconds without a sign of life
_BEAT = 30.0


@contextmanager
def claim(folder: Path, name: str, beat: float = _BEAT, stale: float = STALE) -> Iterator[bool]:
    """Claim a piece of work for the length of the block.

    Parameters
    ----------
    folder : Path
        Where claims are kept; made if absent.
    name : str
        Of the piece of work; a file name.
    beat : float
        Seconds between signs of life.
    stale : float
        Seconds without one after which a claim is taken over.

    Yields
    ------
    bool
        Whether the claim was had; if not, another process is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.claim"
    mark = uuid.uuid4().hex
    if not _take(path, mark, stale):
        yield False
        return
    done = threading.Event()

    def sign() -> None:
        while not done.wait(beat):
            try:
                os.utime(path)
            except FileNotFoundError:  # taken over while this process slept; its result still holds
                return

    beats = threading.Thread(target=sign, name="offnominal-claim", daemon=True)
    beats.start()
    try:
        yield True
    finally:
        done.set()
        beats.join()
        if _owner(path) == mark:
            path.unlink(missing_ok=True)


def _take(path: Path, mark: str, stale: float) -> bool:
    if _create(path, mark):
        return True
    try:
        before = path.stat().st_mtime_ns
    except FileNotFoundError:  # given up this moment
        return _create(path, mark)
    if _now(path.parent) - before < stale * 1e9:
        return False
    # Of several that see it stale, one succeeds in moving it away.
    grave = path.with_suffix(f".{mark}")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return False
    fresh = grave.stat().st_mtime_ns != before
    if fresh:
        # Another had taken it over in between: put its claim back.
        grave.rename(path)
        return False
    grave.unlink()
    return _create(path, mark)


def _create(path: Path, mark: str) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(f"{mark}\n")
    return True


def _owner(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def _now(folder: Path) -> int:
    """The file system's idea of the time, in nanoseconds."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".now") as probe:
        return os.fstat(probe.fileno()).st_mtime_ns
