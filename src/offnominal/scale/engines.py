"""Who works at shards: this process itself, processes of this machine, or actors of a cluster."""

from typing import Any

from offnominal.errors import OptionError
from offnominal.scale.shards import Engine, Function, Shard

__all__ = ["Serial", "engine_for"]


class Serial:
    """Has this process work at one shard after the other; see :class:`.shards.Engine`."""

    def __init__(self) -> None:
        self._function: Function | None = None
        self._shard: Shard | None = None

    def start(self, function: Function) -> None:
        """Make the function ready."""
        function.begin()
        self._function = function

    @property
    def free(self) -> int:
        """1 where no shard is waiting to be worked at."""
        return int(self._shard is None)

    def submit(self, shard: Shard) -> None:
        """Take a shard."""
        self._shard = shard

    def wait(self) -> list[tuple[Shard, Any]]:
        """Work at it."""
        assert self._shard is not None
        assert self._function is not None
        shard, self._shard = self._shard, None
        return [(shard, self._function(shard))]

    def close(self) -> None:
        """Nothing runs."""


def engine_for(workers: int | None, ray: str | None) -> Engine:
    """The engine that ``--workers`` and ``--ray`` name.

    Raises
    ------
    OptionError
        If there are to be fewer workers than one.
    """
    if workers is not None and workers < 1:
        raise OptionError(f"--workers {workers}: give 1 or more")
    if ray is not None:
        from offnominal.scale.actors import Actors

        return Actors(ray, workers)
    if workers in (None, 1):
        return Serial()
    from offnominal.scale.processes import Processes

    return Processes(workers or 1)
