"""Workers that are actors of a Ray cluster: one a GPU, or a share of the CPUs.

Ray starts an actor again that died, here or on another machine (``max_restarts``). A shard that it
was at is not tried again by Ray, which would wait for the same actor, and for ever where no machine
has room for it any more: it goes back to the driver, which gives it to whoever is free.
"""

import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offnominal.errors import OptionError
from offnominal.extras import needs
from offnominal.scale.failures import Failed, StartDeaths
from offnominal.scale.files import Sent, unpacked
from offnominal.scale.shards import Died, Function, Shard

__all__ = ["Actors"]

_FOR_EVER = -1
_SECONDS = 10.0  # for a cluster to answer


class Actors:
    """A pool of actors; see :class:`.shards.Engine`.

    Parameters
    ----------
    address : str
        ``auto``: the cluster that ``RAY_ADDRESS`` or a ``ray start`` on this machine names, or a
        new one of this machine alone. Otherwise as ``ray://HOST:10001`` or ``HOST:6379``.
    workers : int or None
        How many; None: one for each GPU, or where there is none for each CPU.
    """

    def __init__(self, address: str, workers: int | None = None) -> None:
        self._ray: Any = None
        self.address = address
        self.workers = workers
        self._ours = False
        self._actors: list[Any] = []
        self._idle: list[Any] = []
        self._pings: dict[Any, Any] = {}
        self._shards: dict[Any, tuple[Any, Shard]] = {}
        self._deaths = StartDeaths()
        self._make: Any = None

    def start(self, function: Function) -> None:
        """Join the cluster, send the function and its files once, and start the actors."""
        self._join()
        ray = self._ray
        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        number = self.workers or gpus or max(1, cpus)
        # As bytes in Ray's object store, not as a path: each machine fetches them once, its actors
        # share that copy, and no disk has to be shared for the model's sake.
        files = function.files() if isinstance(function, Sent) else []
        blobs = [ray.put(np.fromfile(file, np.uint8)) for file in files]
        share = {"num_cpus": max(1, cpus // number), "num_gpus": gpus / number if gpus else 0}
        if gpus >= number:
            share["num_gpus"] = 1
        made = ray.remote(_Actor).options(
            max_restarts=_FOR_EVER, max_task_retries=0, scheduling_strategy="SPREAD", **share
        )
        sent = ray.put(function)
        self._make = lambda: made.remote(sent, str(Path.cwd()), [str(f) for f in files], *blobs)
        for _ in range(number):
            self._add()

    @property
    def free(self) -> int:
        """Actors that are ready and have no shard."""
        return len(self._idle)

    def submit(self, shard: Shard) -> None:
        """Give a shard to an actor that waits."""
        actor = self._idle.pop()
        self._shards[actor.work.remote(shard)] = actor, shard

    def wait(self) -> list[tuple[Shard, Any]]:
        """What actors say, as soon as one of them does."""
        ray = self._ray
        ended: list[tuple[Shard, Any]] = []
        pending = [*self._shards, *self._pings]
        told, _ = ray.wait(pending, num_returns=1)
        more, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        for reference in dict.fromkeys([*told, *more]):
            actor, shard = self._shards.pop(reference, (None, None))
            pinged = self._pings.pop(reference, None)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayTaskError:
                raise  # of Ray's own making: the worker hands its errors over
            except ray.exceptions.RayError as error:
                reason = str(error).strip().split("\n")[0]
                if shard is not None:
                    ended.append((shard, Died(reason)))
                else:
                    self._deaths.died(reason)
                if isinstance(error, ray.exceptions.ActorDiedError):  # for good
                    self._actors.remove(actor or pinged)
                    self._add()
                else:
                    self._ping(actor or pinged)
                continue
            if isinstance(result, Failed):
                raise result.again()
            if shard is not None:
                ended.append((shard, result))
            else:
                self._deaths.ready()
            self._idle.append(actor or pinged)
        return ended

    def close(self) -> None:
        """End the actors; and the cluster, where it was started for this run."""
        ray = self._ray
        if ray is None or not ray.is_initialized():
            return
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._idle = [], []
        if self._ours:
            ray.shutdown()

    def _join(self) -> None:
        # A machine under load takes longer to start what Ray consists of than Ray would wait.
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "240")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        ray = self._ray = needs("ray", "scale", f"--ray {self.address}")
        if ray.is_initialized():
            return
        named = {} if self.address == "auto" else {"address": self.address}
        _check_answers(self.address)
        try:
            more: dict[str, Any] = {"include_dashboard": None if named else False}
            more |= {"log_to_driver": False, "logging_level": logging.WARNING}
            ray.init(**named, **more)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise OptionError(
                f"--ray {self.address}: no cluster can be had there ({_first_line(error)}); start "
                "one with `ray start --head`, or give auto"
            ) from error
        self._ours = True

    def _add(self) -> None:
        actor = self._make()
        self._actors.append(actor)
        self._ping(actor)

    def _ping(self, actor: Any) -> None:
        """Hear when an actor is ready, however often it is started again until then."""
        self._pings[actor.ready.options(max_task_retries=_FOR_EVER).remote()] = actor


class _Actor:
    """What runs in a worker."""

    def __init__(
        self, function: Function, folder: str, files: Sequence[str], *blobs: "np.ndarray"
    ) -> None:
        # A worker is started elsewhere, and names of images may be relative.
        if Path(folder).is_dir():
            os.chdir(folder)
        self._function = function
        self._places = unpacked(files, blobs)
        self._failed: Failed | None = None
        self._begun = False

    def ready(self) -> Failed | None:
        """Make the function ready."""
        if not self._begun:
            try:
                if isinstance(self._function, Sent):
                    self._function.take(self._places)
                self._function.begin()
                self._begun = True
            except Exception as error:
                return Failed(error)
        return None

    def work(self, shard: Shard) -> Any:
        """Work at a shard; an actor that was started again makes itself ready first."""
        if failed := self.ready():
            return failed
        try:
            return self._function(shard)
        except Exception as error:
            return Failed(error)


def _check_answers(address: str) -> None:
    """Raise an OptionError where a cluster does not answer, for which Ray might wait for ever."""
    where, told = address, "start one with `ray start --head`, or give auto"
    if address == "auto":
        where, told = os.environ.get("RAY_ADDRESS") or "", "mend or unset RAY_ADDRESS"
        if where in ("", "auto"):  # Ray keeps a note of the last that was started here
            from ray._private.utils import read_ray_address

            where = read_ray_address() or ""
            told = "if it is no more, `ray stop` on this machine forgets it"
    host, _, port = where.rpartition(":")
    if not host or "://" in where or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except (OSError, OverflowError) as error:
        raise OptionError(
            f"--ray {address}: the cluster at {where} does not answer ({error}); {told}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
