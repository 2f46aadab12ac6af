"""Backbones that measure their own time, and ask a cache of features before they work."""

import hashlib
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from offnominal.backbones.base import Backbone, Levels
from offnominal.backbones.clip import ClipBackbone, Tokens
from offnominal.benchmark.features import FeatureCache
from offnominal.benchmark.machine import cpu_name

__all__ = ["MeasuredBackbone", "MeasuredClip", "Meter", "measured"]

Compute = Callable[[Tensor], list[Tensor]]

# What a backbone says of itself, for those who ask the wrapper.
_SHARED = tuple(Backbone.__annotations__)


class Meter:
    """Counts and times passes through a network, and looks features up first.

    Parameters
    ----------
    cache : FeatureCache or None
        None: every image goes through the network.
    conditions : sequence of str
        What features depend on besides the pixels and the weights: precision, device.

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

    def __init__(self, cache: FeatureCache | None, conditions: Sequence[str]) -> None:
        self.cache = cache
        # The first word tells entries from those of earlier versions, which kept no time.
        self.conditions = ("timed", torch.__version__, *conditions)
        self._place = float(zlib.crc32(f"{cpu_name()} {torch.get_num_threads()}".encode()))
        self.seconds = 0.0
        self.computed = 0
        self.from_cache = 0
        self.spared = 0.0
        self.handling = 0.0

    @property
    def correction(self) -> float:
        """What to add to a time taken so far, for that of the same work without a cache."""
        return self.spared - self.handling

    def together(
        self, pixels: Tensor, known: Sequence[str], what: str, compute: Compute
    ) -> list[Tensor]:
        """Tensors of a batch that are found or computed together, and kept as one entry.

        Parameters
        ----------
        pixels : Tensor of shape (B, 3, h, w)
        known : sequence of str
            What tells the network: its name, digest, and how it is run.
        what : str
            What is asked of it.
        compute : callable
            From a batch of pixels to tensors, each (B, ...).
        """
        if self.cache is None:
            return self._timed(pixels, compute)
        found = []
        with self._handled():
            for one in pixels:
                key = self._key(one, known, what)
                entry = self.cache.get(key)
                if entry is None:
                    computed, took = self._computed(one[None], compute)
                    tensors = [tensor.float() for tensor in computed]
                    self.cache.put(key, [*(tensor.cpu().numpy() for tensor in tensors), took])
                else:
                    *arrays, took = entry
                    self._spare([took])
                    tensors = [torch.from_numpy(array).to(one.device) for array in arrays]
                found.append(tensors)
            return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def apart(
        self, pixels: Tensor, known: Sequence[str], names: Sequence[str], compute: Compute
    ) -> list[Tensor]:
        """Tensors that are kept as an entry each, so that other requests may share some of them.

        Parameters
        ----------
        pixels, known
            As :meth:`together`.
        names : sequence of str
            What is asked for.
        compute : callable
            From a batch of pixels to the tensors that ``names`` lists, each (B, ...).
        """
        if self.cache is None:
            return self._timed(pixels, compute)
        found = []
        with self._handled():
            for one in pixels:
                keys = [self._key(one, known, name) for name in names]
                entries = [self.cache.get(key) for key in keys]
                there = [entry for entry in entries if entry is not None]
                if len(there) == len(keys):
                    self._spare([took for _, took in there])
                    tensors = [torch.from_numpy(array).to(one.device) for array, _ in there]
                else:
                    computed, took = self._computed(one[None], compute)
                    tensors = [tensor.float() for tensor in computed]
                    for key, entry, tensor in zip(keys, entries, tensors, strict=True):
                        if entry is None:
                            self.cache.put(key, [tensor.cpu().numpy(), took])
                found.append(tensors)
            return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def _key(self, pixels: Tensor, known: Sequence[str], what: str) -> str:
        content = np.ascontiguousarray(pixels.cpu().numpy())
        total = hashlib.blake2b("\n".join((*known, *self.conditions)).encode(), digest_size=20)
        total.update(f"{what} {content.shape}".encode())
        total.update(content.data)
        return total.hexdigest()

    @contextmanager
    def _handled(self) -> Iterator[None]:
        """Count what the block takes beside the network."""
        start, before = time.perf_counter(), self.seconds
        yield
        self.handling += time.perf_counter() - start - (self.seconds - before)

    def _computed(self, pixels: Tensor, compute: Compute) -> tuple[list[Tensor], np.ndarray]:
        """What the network gives; the seconds that it took, and where."""
        before = self.seconds
        found = self._timed(pixels, compute)
        return found, np.array([self.seconds - before, self._place])

    def _spare(self, times: Sequence[np.ndarray]) -> None:
        """Count an image whose entries were found; one pass would have made all of them."""
        self.from_cache += 1
        here = all(place == self._place for _, place in times)
        self.spared += max(float(seconds) for seconds, _ in times) if here else math.nan

    def _timed(self, pixels: Tensor, compute: Compute) -> list[Tensor]:
        _wait(pixels.device)
        start = time.perf_counter()
        found = compute(pixels)
        _wait(pixels.device)
        self.seconds += time.perf_counter() - start
        self.computed += len(pixels)
        return found


class MeasuredBackbone(Backbone):
    """Any backbone behind a meter.

    Parameters
    ----------
    network : Backbone
    meter : Meter
    """

    def __init__(self, network: Backbone, meter: Meter) -> None:
        super().__init__()
        self.network = network
        self.meter = meter
        for name in _SHARED:
            setattr(self, name, getattr(network, name))
        self._known = (network.name, network.digest, str(network.layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features of a batch (B, 3, h, w), as the network gives them."""
        [features] = self.meter.together(
            pixels, self._known, "features", lambda batch: [self.network(batch)]
        )
        return features

    def levels(self, pixels: Tensor, norm: bool = True) -> Levels:
        """Feature levels of a batch (B, 3, h, w), as the network gives them."""

        def compute(batch: Tensor) -> list[Tensor]:
            maps, summary = self.network.levels(batch, norm)
            return [*maps, summary]

        *maps, summary = self.meter.together(pixels, self._known, f"levels {norm}", compute)
        return Levels(maps, summary)


class MeasuredClip(ClipBackbone):
    """CLIP behind a meter; blocks are kept one by one, so that methods share a pass.

    Copies by other rules (``adapted``, ``at_levels``) count on the same meter.

    Parameters
    ----------
    network : ClipBackbone
    meter : Meter
    """

    def __init__(self, network: ClipBackbone, meter: Meter) -> None:
        nn.Module.__init__(self)
        # What a shallow copy does: the same model, none of its weights read again.
        self.__dict__ |= network.__dict__
        self.meter = meter

    def _known(self, pixels: Tensor) -> tuple[str, ...]:
        height, width = (side // self.stride for side in pixels.shape[-2:])
        table = len(self.visual.positional_embedding) - 1
        # A table that fits the grid is not resized, by whatever rule.
        own = height == width and height * width == table
        return (self.name, self.digest, "native" if own else self.positions, self.activation)

    def tokens(
        self,
        pixels: Tensor,
        layers: Sequence[int] = (),
        values_from: int | None = None,
        stop_early: bool = False,
    ) -> Tokens:
        """Raw outputs of blocks; see :meth:`ClipBackbone.tokens`."""
        wanted = [self._checked(index) for index in layers]
        final = max(wanted) if stop_early else self.level_count - 1
        blocks = [f"block {index}" for index in (*wanted, final)]
        beside = [] if values_from is None else [f"values {values_from} {i}" for i in wanted]

        def compute(batch: Tensor) -> list[Tensor]:
            found = super(MeasuredClip, self).tokens(batch, layers, values_from, stop_early)
            return [*found.blocks, found.last, *found.values]

        found = self.meter.apart(pixels, self._known(pixels), [*blocks, *beside], compute)
        count = len(wanted)
        grid = (pixels.shape[-2] // self.stride, pixels.shape[-1] // self.stride)
        return Tokens(found[:count], found[count + 1 :], found[count], grid)

    def embed_windows(self, pixels: Tensor, sides: Sequence[int] = (3, 2)) -> list[Tensor]:
        """Embeddings of windows; see :meth:`ClipBackbone.embed_windows`."""
        return self.meter.apart(
            pixels,
            self._known(pixels),
            [f"windows {side}" for side in sides],
            lambda batch: super(MeasuredClip, self).embed_windows(batch, sides),
        )


def measured(network: Backbone, meter: Meter) -> Backbone:
    """A backbone behind a meter, still CLIP where it was CLIP."""
    if isinstance(network, ClipBackbone):
        return MeasuredClip(network, meter)
    return MeasuredBackbone(network, meter)


def _wait(device: torch.device) -> None:
    """Let a card finish, so that the clock measures its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
