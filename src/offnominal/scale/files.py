"""Files that a function needs on whatever machine it runs."""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from offnominal.atomic import write_atomically

__all__ = ["Sent", "unpacked"]


@runtime_checkable
class Sent(Protocol):
    """A function with files, which are sent along where workers are on other machines."""

    def files(self) -> list[Path]:
        """Files of the driver's machine that it opens."""

    def take(self, places: Mapping[str, Path]) -> None:
        """Open these in their place, by the names that :meth:`files` gave."""


def unpacked(names: Sequence[str], contents: Sequence[Any]) -> dict[str, Path]:
    """Files of this machine with contents that were sent; workers of one user share them.

    Parameters
    ----------
    names : sequence of str
        Of the files, where they came from.
    contents : sequence of uint8 arrays (n,)

    Returns
    -------
    dict of str to Path
        Each file keeps the last part of its name, which may say what is in it.
    """
    root = Path(tempfile.gettempdir()) / f"offnominal-{os.getuid() if hasattr(os, 'getuid') else 0}"
    root.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and root.stat().st_uid != os.getuid():
        raise PermissionError(f"{root}: belongs to somebody else; set TMPDIR to a folder of yours")
    places = {}
    for name, content in zip(names, contents, strict=True):
        digest = hashlib.sha256(memoryview(content)).hexdigest()
        place = root / digest[:32] / Path(name).name
        place.parent.mkdir(mode=0o700, exist_ok=True)
        if not place.exists() or place.stat().st_size != len(content):
            write_atomically(place, memoryview(content))  # type: ignore[arg-type]
        places[name] = place
    return places
