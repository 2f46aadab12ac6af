"""What a run was made on, and what its network took."""

import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from offnominal.engines.base import threads
from offnominal.engines.machine import cpu_name

if TYPE_CHECKING:  # exported models are measured without torch
    import torch
    from torch import Tensor

__all__ = ["NetworkMeter", "cpu_name", "device_name", "is_busy"]


def is_busy() -> bool:
    """Whether more was to be done over the last minute than there are processors.

    False where the system does not tell it. A run alone, with a thread for each processor and some
    that read ahead, stays below the mark.
    """
    if not hasattr(os, "getloadavg"):
        return False
    return os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)


def device_name(name: str) -> str:
    """The name of the card that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` is, or the kind."""
    if (torch := sys.modules.get("torch")) is None:  # which alone computes on others
        return "cpu"
    from offnominal.detectors.options import choose_device

    device = choose_device(name)
    return str(torch.cuda.get_device_name(device) if device.type == "cuda" else device.type)


class NetworkMeter:
    """Counts and times passes through a network, and what a cache spared of them.

    Attributes
    ----------
    seconds : float
        Spent in the network so far.
    computed, from_cache : int
        Images that went through the network, and those that did not.
    spared : float
        Seconds that the network took for those that did not, when their entries were made; nan if
        one of them was made by another processor, or with other threads.
    handling : float
        Seconds spent on looking entries up and writing them down.
    """

    def __init__(self) -> None:
        self._place = float(zlib.crc32(f"{cpu_name()} {threads()}".encode()))
        self.seconds = self.spared = self.handling = 0.0
        self.computed = self.from_cache = 0

    @property
    def correction(self) -> float:
        """What to add to a time taken so far, for that of the same work without a cache."""
        return self.spared - self.handling

    def run(
        self, compute: "Callable[[Tensor], list[list[Tensor]]]", pixels: "Tensor"
    ) -> "tuple[list[list[Tensor]], np.ndarray]":
        """Call `compute` on a batch; what it gave, and how long it took where."""
        _wait(pixels.device)
        start = time.perf_counter()
        found = compute(pixels)
        _wait(pixels.device)
        took = time.perf_counter() - start
        self.seconds += took
        self.computed += len(pixels)
        return found, np.array([took, self._place])

    def found(self, kept: Sequence[np.ndarray]) -> None:
        """Count an image whose entries were found; one pass would have made all of them."""
        self.from_cache += 1
        here = all(place == self._place for _, place in kept)
        self.spared += max(float(seconds) for seconds, _ in kept) if here else math.nan

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Count what the block takes beside the network."""
        start, before = time.perf_counter(), self.seconds
        yield
        self.handling += time.perf_counter() - start - (self.seconds - before)


def _wait(device: "torch.device") -> None:
    """Let a card finish, so that the clock measures its work."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
