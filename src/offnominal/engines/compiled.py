"""What an engine compiled, kept beside the graph: a start that need not compile takes half as long.

OpenVINO's own cache is not used: it takes what was compiled in one precision for another.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from offnominal.atomic import replacing
from offnominal.engines.machine import this_machine

__all__ = ["Compiled"]

_MOST = 3  # kept beside one graph: each is as large as the graph itself


class Compiled:
    """The compiled form of a graph on this machine, by whatever else it depends on.

    Parameters
    ----------
    folder : Path or None
        Where it lies; None: nothing is kept.
    told : plain values
        What it depends on beside the machine and the versions of engines.
    """

    def __init__(self, folder: Path | None, *told: object) -> None:
        plain = json.dumps([this_machine(), *told])
        name = f"{hashlib.sha256(plain.encode()).hexdigest()[:32]}.blob"
        self.path = folder / name if folder else None

    def read(self) -> bytes | None:
        """What was kept, or None; what is damaged is removed."""
        if self.path is None:
            return None
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        view = memoryview(content)
        if hashlib.sha256(view[32:]).digest() == content[:32]:
            with suppress(OSError):
                os.utime(self.path)
            return content[32:]
        with suppress(OSError):
            self.path.unlink()
        return None

    def keep(self, content: bytes) -> None:
        """Keep something, in the place of what was not used for longest."""
        if self.path is None:
            return
        with suppress(OSError):  # full, or to be read only: the next start compiles again
            self.path.parent.mkdir(exist_ok=True)
            others = sorted(self.path.parent.glob("*.blob"), key=lambda one: one.stat().st_mtime)
            for one in others[: max(0, len(others) - _MOST + 1)]:
                one.unlink()
            with replacing(self.path) as temporary, temporary.open("wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
