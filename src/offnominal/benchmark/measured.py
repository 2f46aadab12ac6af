"""Backbones that measure their own time, and ask a cache of features before they work."""

import hashlib
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from offnominal.backbones.base import Backbone, Levels
from offnominal.backbones.clip import ClipBackbone, Tokens
from offnominal.benchmark.features import FeatureCache

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
    """

    def __init__(self, cache: FeatureCache | None, conditions: Sequence[str]) -> None:
        self.cache = cache
        self.conditions = (torch.__version__, *conditions)
        self.seconds = 0.0
        self.computed = 0
        self.from_cache = 0

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
        for one in pixels:
            key = self._key(one, known, what)
            entry = self.cache.get(key)
            if entry is None:
                computed = self._timed(one[None], compute)
                tensors = [tensor.float() for tensor in computed]
                self.cache.put(key, [tensor.cpu().numpy() for tensor in tensors])
            else:
                self.from_cache += 1
                tensors = [torch.from_numpy(array).to(one.device) for array in entry]
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
        for one in pixels:
            keys = [self._key(one, known, name) for name in names]
            entries = [self.cache.get(key) for key in keys]
            if all(entry is not None for entry in entries):
                self.from_cache += 1
                arrays = [entry[0] for entry in entries if entry is not None]
                tensors = [torch.from_numpy(array).to(one.device) for array in arrays]
            else:
                tensors = [tensor.float() for tensor in self._timed(one[None], compute)]
                for key, entry, tensor in zip(keys, entries, tensors, strict=True):
                    if entry is None:
                        self.cache.put(key, [tensor.cpu().numpy()])
            found.append(tensors)
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def _key(self, pixels: Tensor, known: Sequence[str], what: str) -> str:
        content = np.ascontiguousarray(pixels.cpu().numpy())
        total = hashlib.blake2b("\n".join((*known, *self.conditions)).encode(), digest_size=20)
        total.update(f"{what} {content.shape}".encode())
        total.update(content.data)
        return total.hexdigest()

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

    @property
    def _known(self) -> tuple[str, ...]:
        return (self.name, self.digest, self.positions, self.activation)

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

        found = self.meter.apart(pixels, self._known, [*blocks, *beside], compute)
        count = len(wanted)
        grid = (pixels.shape[-2] // self.stride, pixels.shape[-1] // self.stride)
        return Tokens(found[:count], found[count + 1 :], found[count], grid)

    def embed_windows(self, pixels: Tensor, sides: Sequence[int] = (3, 2)) -> list[Tensor]:
        """Embeddings of windows; see :meth:`ClipBackbone.embed_windows`."""
        return self.meter.apart(
            pixels,
            self._known,
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
