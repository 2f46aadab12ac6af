"""Which graph a detector needs, told without building its network: by options, files and code."""

import hashlib
import json
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, cast

from offnominal._version import __version__
from offnominal.backbones import AUTO, CATALOGUE
from offnominal.backbones.auto import choose_backbone
from offnominal.backbones.hub import weights_here
from offnominal.engines.files import FileDigests

__all__ = ["Wanted", "is_exportable", "wanted_graph"]

# What `embed` is made of, each of them in some class of a method.
_PROGRAM = ("embed", "features", "levels", "choose_levels")
_PACKAGES = ("torch", "timm", "open_clip_torch")  # a graph is what they make of a network


class Wanted(NamedTuple):
    """A graph, found or still to be made: where it lies in the cache, and what network it is of."""

    key: str
    name: str
    note: str


def is_exportable(kind: type) -> bool:
    """Whether a method says of the very ``embed`` that it has that it can be written as a graph.

    A class that has its own must say so itself: what holds for its base need not hold for it.
    """
    order = list(kind.__mro__)
    said = next((n for n, one in enumerate(order) if "exports" in vars(one)), None)
    if said is None or not vars(order[said])["exports"]:
        return False
    return all(order.index(one) >= said for one in _definers(kind).values())


def _definers(kind: type) -> dict[str, type]:
    """The class of a method that has each part of its program."""
    found = {}
    for name in _PROGRAM:
        owner = next((one for one in kind.__mro__ if name in vars(one)), None)
        if owner is not None:
            found[name] = owner
    return found


def wanted_graph(detector: Any, files: FileDigests) -> Wanted | None:
    """The graph of a detector's network by its options; None where only torch can tell it.

    Neither torch nor timm is imported. Files of weights are known by their content.
    """
    if (code := _code(cast(Any, type(detector)))) is None:
        return None
    name, note = detector.backbone, ""
    path = Path(detector.weights) if detector.weights is not None else None
    if name in (None, AUTO):
        if path is None:
            name, note = choose_backbone(detector.default_backbone, detector.backbone_family)
        else:
            name = _named(path) or detector.default_backbone
    if name in CATALOGUE and path is None:
        entry = CATALOGUE[name]
        path = weights_here(entry) if entry.timm else None
        weights = "none" if not entry.timm else files.digest(path) if path else None
    else:
        weights = files.digest(path) if path is not None else None
    if weights is None:
        return None
    told = {
        "offnominal": __version__,
        "packages": {one: _version(one) for one in _PACKAGES},
        "code": code,
        "network": name,
        "weights": weights,
        "layers": detector.layers,
        "default_layers": detector.default_layers,
        "options": detector.embed_options(),
    }
    plain = json.dumps(told, sort_keys=True, default=str)
    return Wanted(hashlib.sha256(plain.encode()).hexdigest()[:40], name, note)


def _named(path: Path) -> str | None:
    """The network that a safetensors file says it is of, from its header."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < 2**26 else {}
        found = header["__metadata__"]["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


@lru_cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@lru_cache
def _code(kind: type) -> str | None:
    """A digest of the source that a graph is made by; None where there is none, as in a prompt."""
    total = hashlib.sha256()
    own = Path(__file__).parent
    paths = [own / "export.py", own.parent / "detectors" / "fusion.py"]
    paths += sorted((own.parent / "backbones").glob("*.py"))
    for name, owner in _definers(kind).items():
        module = sys.modules.get(owner.__module__)
        if (file := getattr(module, "__file__", None)) is None or not Path(file).is_file():
            return None
        total.update(f"{name} {owner.__module__} {owner.__qualname__}".encode())
        paths.append(Path(file))
    for path in dict.fromkeys(paths):
        total.update(path.read_bytes())
    return total.hexdigest()
