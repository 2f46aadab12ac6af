"""What workers do in these tests: little, slowly, and sometimes dying of it."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offnominal.atomic import write_atomically
from offnominal.scale.scoring import Model
from offnominal.scale.shards import Shard


@dataclass
class Writes:
    """Writes a shard's items into a file of its name.

    ``poison``: items that kill the process; ``pids``: a folder where each worker writes its number.
    """

    folder: str
    seconds: float = 0.0
    poison: tuple[str, ...] = ()
    refuses: str = ""
    pids: str = ""

    def begin(self) -> None:
        if self.refuses:
            from offnominal.errors import OptionError

            raise OptionError(self.refuses)
        if self.pids:
            Path(self.pids, str(os.getpid())).touch()

    def __call__(self, shard: Shard) -> int:
        for item in shard.items:
            if item in self.poison:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.seconds)
        write_atomically(Path(self.folder, shard.name), "\n".join(shard.items).encode())
        return len(shard.items)


@dataclass
class Opens(Model):
    """A model that is killed by opening it (``""``), or by the images that ``poison`` names."""

    poison: tuple[str, ...] = ()

    def open(self) -> Any:
        if "" in self.poison:
            os.kill(os.getpid(), signal.SIGKILL)
        return Mortal(self.poison)


@dataclass
class Mortal:
    poison: tuple[str, ...]
    method: str = "none"
    threshold: None = None
    pixel_threshold: None = None
    decides: bool = False
    file_options: tuple[str, ...] = ()

    def each_category(self) -> list["Mortal"]:
        return [self]

    def stream(self, sources: Iterable[str], on_error: object) -> Iterator[str]:
        for one in sources:
            if one in self.poison:
                os.kill(os.getpid(), signal.SIGKILL)
            yield one
