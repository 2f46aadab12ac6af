"""Models that a worker keeps warm."""

import hashlib
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offnominal.errors import ModelFileError

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector

__all__ = ["Models"]


class Models:
    """Open models by their digests; the one that was not asked for longest goes first.

    Parameters
    ----------
    folder : Path
        The station's.
    most : int
        How many stay open.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._open: OrderedDict[str, Detector] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, model: dict[str, Any]) -> "Detector":
        """The detector of ``{"file": ..., "digest": ...}``.

        Raises
        ------
        OffnominalError
            If it cannot be opened, or is not the file that was recorded.
        """
        digest: str = model["digest"]
        with self._lock:
            if digest not in self._open:
                import offnominal

                path = self._folder / model["file"]
                if path.is_file() and file_digest(path) != digest:
                    raise ModelFileError(
                        f"{path}: is not the file that was recorded (SHA-256); bring it back from "
                        "a backup, or roll back to another version"
                    )
                self._open[digest] = offnominal.load(path)
                while len(self._open) > self._most:
                    self._open.popitem(last=False)
            self._open.move_to_end(digest)
            return self._open[digest]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
