"""Fitting by workers: they look at the references, and the driver adds up what they saw.

The network's work is shared out; sums, Gaussians and rows are added by the driver in the order of
the references, as one process would, so that the model is the same to the byte.
"""

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offnominal.detectors.registry import detector_class, light_class
from offnominal.engines.base import flat, restored, structure_of
from offnominal.errors import OptionError
from offnominal.npz import read_npz
from offnominal.scale.parts import Store
from offnominal.scale.shards import Engine, Shard, cut, run_shards
from offnominal.tensors import is_tensor, no_gradients, to_numpy

__all__ = ["Looker", "check_looks", "forget_looks", "look_by_workers"]

_IMAGES = 8  # of a shard: features take room
_FOLDER = "looked"
_NAME = re.compile(r"options\.json|\d{12,}-\d{3}-[0-9a-f]{12}\.npz")


@dataclass
class Looker:
    """Looks at references; see :class:`.shards.Function` and :class:`.files.Sent`.

    Attributes
    ----------
    method, options
        Of the detector; ``engine`` is the one that the driver uses.
    numbers : dict of str to int
        Of the references, by file.
    store : Store
    """

    method: str
    options: dict[str, Any]
    numbers: dict[str, int]
    store: Store
    detector: Any = field(default=None, repr=False)

    def files(self) -> list[Path]:
        """Weights, where they are files."""
        named = str(self.options.get("weights") or "").split(",")
        return [Path(one) for one in named if one and Path(one).is_file()]

    def take(self, places: Mapping[str, Path]) -> None:
        """Open those in their place."""
        if named := self.options.get("weights"):
            moved = [str(places.get(str(Path(one)), one)) for one in str(named).split(",")]
            self.options = self.options | {"weights": ",".join(moved)}

    def begin(self) -> None:
        """Build the detector and its network."""
        self.detector = detector_class(self.method)(**self.options)
        self.detector.load_network()

    def __call__(self, shard: Shard) -> None:
        """Write what is seen of some references."""
        arrays: dict[str, np.ndarray] = {}
        told = []
        for place, name in enumerate(shard.items):
            with no_gradients():
                seen = self.detector.look(self.numbers[name], self.detector.image_of(name))
            leaves = flat(seen)
            told.append([structure_of(seen), [is_tensor(leaf) for leaf in leaves]])
            for number, leaf in enumerate(leaves):
                arrays[f"{place}-{number}"] = to_numpy(leaf) if is_tensor(leaf) else leaf
        arrays["structures"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # no name is that of its option
        self.store.write(_place(shard), buffer.getvalue())


def check_looks(method: str, options: Mapping[str, Any]) -> None:
    """Raise an :class:`OptionError` where a fit cannot be shared out, and say why."""
    kind = light_class(method)
    if not vars(kind).get("looks", False):
        raise OptionError(
            f"--workers, --ray: not with --method {method}, whose learning is no sum over images; "
            "those that are: anomalydino, patchcore, padim, gaussian, dn2, subspacead"
        )
    if options.get("reduction") == "pca":
        raise OptionError("--workers, --ray: not with --reduction pca, which looks twice")
    if "+" in str(options.get("backbone") or ""):
        told = "joined networks are brought to one scale by the first reference"
        raise OptionError(f"--workers, --ray: not with --backbone {options['backbone']}: {told}")


def look_by_workers(
    looker: Looker,
    files: Sequence[str],
    stamp: Callable[[str], str],
    engine: Engine,
    progress: Callable[[int], None],
) -> Callable[[int], list[Any]]:
    """Have references looked at; returns what tells of each, by number, what was seen.

    What an earlier run of the same options wrote is there already.
    """  # fmt: skip
    store = looker.store
    mark = json.dumps([looker.method, looker.options], sort_keys=True, default=str).encode()
    if not store.is_there(f"{_FOLDER}/options.json") or (
        store.read(f"{_FOLDER}/options.json") != mark
    ):
        _forget(store)
        store.write(f"{_FOLDER}/options.json", mark)
    there = set(store.names(_FOLDER))

    def give_up(shard: Shard, reason: str) -> None:
        raise OptionError(
            f"{shard.items[0]}: ends the process that reads it ({reason}); take it away"
        )

    places: dict[int, tuple[Shard, int]] = {}
    done = 0
    for shard, _ in run_shards(
        looker, cut(files, stamp, _IMAGES), engine,
        lambda shard: Path(_place(shard)).name in there,
        lambda shard: store.is_there(_place(shard)), give_up,
    ):  # fmt: skip
        for place, name in enumerate(shard.items):
            places[looker.numbers[name]] = shard, place
        done += len(shard.items)
        progress(done)
    held: dict[str, dict[str, np.ndarray]] = {}

    def looked_at(number: int) -> list[Any]:
        shard, place = places[number]
        if shard.name not in held:
            held.clear()
            held[shard.name] = read_npz(store.read(_place(shard)))
        arrays = held[shard.name]
        structure, tensors = json.loads(arrays["structures"].tobytes())[place]
        leaves = [arrays[f"{place}-{n}"] for n in range(len(tensors))]
        found: list[Any] = restored(structure, list(map(_as_it_was, leaves, tensors)))
        return found

    return looked_at


def forget_looks(folder: str) -> None:
    """Take away what workers saw, and the folders, unless something else lies there."""
    _forget(Store(folder))
    for one in (Path(folder, _FOLDER), Path(folder)):
        with suppress(OSError):  # not empty: the rest is somebody else's
            one.rmdir()


def _forget(store: Store) -> None:
    store.remove(_FOLDER, filter(_NAME.fullmatch, store.names(_FOLDER)))


def _as_it_was(leaf: np.ndarray, tensor: bool) -> Any:
    if not tensor:
        return leaf
    from torch import from_numpy

    return from_numpy(leaf)


def _place(shard: Shard) -> str:
    return f"{_FOLDER}/{shard.name}.npz"
