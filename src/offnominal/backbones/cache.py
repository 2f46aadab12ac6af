"""Patch features kept on disk, so that runs which see the same pixels share one forward pass.

An entry is found by the digest of the prepared pixels and by everything else that the features
depend on, so it cannot be stale: another resolution, rotation, crop, layer or weights file gives
another key. Entries hold float32, as the network gave it, and a run with the cache gives the same
figures as one without.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from offnominal.atomic import replacing
from offnominal.backbones.base import Backbone, Levels
from offnominal.backbones.clip import ClipBackbone, Tokens
from offnominal.errors import OptionError
from offnominal.npz import read_npz

__all__ = ["FeatureCache", "Meter", "cached", "default_cache"]

# From pixels (B, 3, h, w) to tensors (B, ...), those of one entry together.
Compute = Callable[[Tensor], list[list[Tensor]]]


def default_cache() -> Path:
    """``features`` in ``$OFFNOMINAL_CACHE``, or in ``offnominal`` in the user's cache folder."""
    own = os.environ.get("OFFNOMINAL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(own) if own else Path(base) / "offnominal") / "features"


class FeatureCache:
    """Arrays on disk under a size limit; safe to share between processes.

    Parameters
    ----------
    folder : Path
        Made if absent.
    limit : int
        Bytes that it may take, and never more than half of what was free on the disk. Where it is
        full, entries that this process has not used make room, the oldest first; when there are
        none left, new ones are not kept. (Throwing out what this run still needs would only make
        every later cell miss.)
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(
                f"--cache {folder}: cannot be made ({error.strerror}); name another folder, or "
                "give --no-cache"
            ) from error
        self.size = sum(path.stat().st_size for path in _entries(folder))
        self.limit = min(limit, self.size + shutil.disk_usage(folder).free // 2)
        self._began = time.time() - 0.05  # the clock of a file's times is coarser

    def get(self, key: str) -> list[np.ndarray] | None:
        """An entry, or None; a damaged one is removed, and made again by whoever needs it."""
        path = self._path(key)
        try:
            stored = read_npz(path.read_bytes())
            entry = [stored[f"arr_{number}"] for number in range(len(stored) - 1)]
            if stored["sum"].tobytes() != _sum(key, entry):
                raise ValueError("not as it was written, or of another key")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, OSError):
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):  # a folder that others keep, to be read only
            os.utime(path)
        return entry

    def put(self, key: str, entry: Sequence[np.ndarray]) -> None:
        """Keep an entry, if there is room."""
        needed = sum(array.nbytes for array in entry)
        if self.size + needed > self.limit and not self._make_room(needed):
            return
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, *entry, sum=np.frombuffer(_sum(key, entry), np.uint8))
            self.size += needed
        except OSError:
            # A disk that is full or read-only must not end a benchmark: it only loses the gain.
            self.limit = 0

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"

    def _make_room(self, needed: int) -> bool:
        """Remove old entries down to nine tenths of the limit; whether there is room now."""
        found = []
        for path in _entries(self.folder):
            try:
                state = path.stat()
            except FileNotFoundError:  # another process removed it
                continue
            found.append((state.st_mtime, state.st_size, path))
        self.size = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if self.size + needed <= 0.9 * self.limit or used >= self._began:
                break
            path.unlink(missing_ok=True)
            self.size -= size
        return self.size + needed <= self.limit


def _sum(key: str, entry: Sequence[np.ndarray]) -> bytes:
    """A digest of an entry and of what it is for: a zip's own sums say nothing of shapes."""
    total = hashlib.blake2b(key.encode(), digest_size=16)
    for array in entry:
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.digest()


def _entries(folder: Path) -> list[Path]:
    return list(folder.glob("??/*.npz"))


class Meter(Protocol):
    """What a cached network tells of its work."""

    def run(self, compute: Compute, pixels: Tensor) -> tuple[list[list[Tensor]], np.ndarray]:
        """Call `compute`; what it gave, and numbers to keep with it."""

    def found(self, kept: Sequence[np.ndarray]) -> None:
        """Hear of an image that needed no pass, and of the numbers kept with its entries."""

    def looking(self) -> AbstractContextManager[None]:
        """Surround the looking up of a batch, and the passes that it leads to."""


class _Lookup:
    """Finds what was asked of a network before, and has the rest made and kept."""

    def __init__(self, cache: FeatureCache | None, conditions: Sequence[str], meter: Meter) -> None:
        self.cache = cache
        # The first word tells entries from those of earlier versions, which had no digest.
        self.conditions = ("summed", torch.__version__, *conditions)
        self.meter = meter

    def __call__(
        self, pixels: Tensor, known: Sequence[str], names: Sequence[str], compute: Compute
    ) -> list[list[Tensor]]:
        """Tensors of a batch (B, 3, h, w), an entry for each of `names`; `known` is the network."""
        if self.cache is None:
            return self.meter.run(compute, pixels)[0]
        images = []
        with self.meter.looking():
            for one in (image[None] for image in pixels):
                keys = [self._key(one[0], known, name) for name in names]
                entries = [self.cache.get(key) for key in keys]
                there = [entry for entry in entries if entry is not None]
                if len(there) == len(keys):
                    self.meter.found([entry[-1] for entry in there])
                    parts = [
                        [torch.from_numpy(array).to(one.device) for array in entry[:-1]]
                        for entry in there
                    ]
                else:
                    made, numbers = self.meter.run(compute, one)
                    parts = [[tensor.float() for tensor in part] for part in made]
                    for key, entry, part in zip(keys, entries, parts, strict=True):
                        if entry is None:
                            arrays = [tensor.cpu().numpy() for tensor in part]
                            self.cache.put(key, [*arrays, numbers])
                images.append(parts)
        return [
            [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
            for parts in zip(*images, strict=True)
        ]

    def _key(self, pixels: Tensor, known: Sequence[str], name: str) -> str:
        content = np.ascontiguousarray(pixels.cpu().numpy())
        total = hashlib.blake2b("\n".join((*known, *self.conditions)).encode(), digest_size=20)
        total.update(f"{name} {content.shape}".encode())
        total.update(content.data)
        return total.hexdigest()


def cached(
    network: Backbone, cache: FeatureCache | None, conditions: Sequence[str], meter: Meter
) -> Backbone:
    """A backbone that asks a cache before it works, still CLIP where it was CLIP.

    Parameters
    ----------
    network : Backbone
    cache : FeatureCache or None
        None: every image goes through the network.
    conditions : sequence of str
        What features depend on besides the pixels and the weights: precision, device.
    meter : Meter
    """
    kind = _CachedClip if isinstance(network, ClipBackbone) else _Cached
    return kind(network, _Lookup(cache, conditions, meter))


class _Cached(Backbone):
    def __init__(self, network: Backbone, look_up: _Lookup) -> None:
        super().__init__()
        self.network = network
        self.look_up = look_up
        for name in Backbone.__annotations__:
            setattr(self, name, getattr(network, name))
        # Scales are a detector's, and in no digest.
        scales = getattr(network, "scales", "")
        self._known = (network.name, network.digest, f"{network.layers}{scales}")

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features, as the network gives them; see :class:`Backbone`."""
        [[features]] = self.look_up(
            pixels, self._known, ["features"], lambda batch: [[self.network(batch)]]
        )
        return features

    def levels(self, pixels: Tensor, norm: bool = True) -> Levels:
        """Feature levels, as the network gives them; see :class:`Backbone`."""

        def compute(batch: Tensor) -> list[list[Tensor]]:
            maps, summary = self.network.levels(batch, norm)
            return [[*maps, summary]]

        [[*maps, summary]] = self.look_up(pixels, self._known, [f"levels {norm}"], compute)
        return Levels(maps, summary)

    def at_levels(self, layers: Sequence[int]) -> Self:
        """Other levels of the same network, from the same cache; see :class:`Backbone`."""
        return type(self)(self.network.at_levels(layers), self.look_up)

    def scaled(self, scales: Sequence[float]) -> Self:
        """Joined networks by other scales, from the same cache; see :class:`Backbone`."""
        return type(self)(self.network.scaled(scales), self.look_up)


class _CachedClip(ClipBackbone):
    """Blocks are kept one by one, so that methods share a pass.

    Copies by other rules (``adapted``, ``at_levels``) share the cache.
    """

    def __init__(self, network: Backbone, look_up: _Lookup) -> None:
        nn.Module.__init__(self)
        # What a shallow copy does: the same model, none of its weights read again.
        self.__dict__ |= network.__dict__
        self.look_up = look_up

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
        names = [f"block {index}" for index in (*wanted, final)]
        names += [] if values_from is None else [f"values {values_from} {i}" for i in wanted]

        def compute(batch: Tensor) -> list[list[Tensor]]:
            made = super(_CachedClip, self).tokens(batch, layers, values_from, stop_early)
            return [[tensor] for tensor in (*made.blocks, made.last, *made.values)]

        found = [part[0] for part in self.look_up(pixels, self._known(pixels), names, compute)]
        count = len(wanted)
        grid = (pixels.shape[-2] // self.stride, pixels.shape[-1] // self.stride)
        return Tokens(found[:count], found[count + 1 :], found[count], grid)

    def embed_windows(self, pixels: Tensor, sides: Sequence[int] = (3, 2)) -> list[Tensor]:
        """Embeddings of windows; see :meth:`ClipBackbone.embed_windows`."""

        def compute(batch: Tensor) -> list[list[Tensor]]:
            return [[made] for made in super(_CachedClip, self).embed_windows(batch, sides)]

        names = [f"windows {side}" for side in sides]
        return [part[0] for part in self.look_up(pixels, self._known(pixels), names, compute)]
