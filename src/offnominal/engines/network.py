"""A network that needs no torch: an ONNX graph, and what a detector asks of a backbone."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from offnominal.engines.facts import FACTS, Facts, read_facts
from offnominal.errors import ModelFileError
from offnominal.sizing import Resize

__all__ = ["FACTS", "GRAPH", "ExportedNetwork", "Facts", "facts_of", "is_exported"]

GRAPH = "network.onnx"

Graph = bytes | NDArray[np.uint8]
Opened = TypeVar("Opened")


# Of a backbone, as it is; the rest of the facts is of the file.
_OWN = (
    *("name", "family", "dim", "stride", "multiple", "mean", "std", "resolution", "resize"),
    *("normalize", "mask_threshold", "layers", "level_count", "is_transformer", "digest"),
    "untrained",
)


def facts_of(backbone: Any) -> dict[str, Any]:
    """What a detector asks of its backbone, as plain values, and the number of its parameters."""
    found = {name: getattr(backbone, name) for name in _OWN}
    for name in ("mean", "std"):
        found[name] = tuple(float(value) for value in found[name])
    found["layers"] = tuple(int(layer) for layer in found["layers"])
    if isinstance(backbone, ExportedNetwork):
        return found | {"parameters": backbone.parameters_count}
    return found | {"parameters": sum(each.numel() for each in backbone.parameters())}


class ExportedNetwork:
    """A network that other engines than torch run, in the place of a backbone.

    Parameters
    ----------
    facts : Facts
    graph : bytes, uint8 array or Path
        The ONNX graph, or the file that holds it, which is read when it is needed.
    held : bytes, uint8 array or None
        Beside a file: the same graph, for when the file is gone; None: the file itself, mapped.

    Attributes
    ----------
    name, family, dim, stride, multiple, mean, std, resolution, resize, normalize, mask_threshold,
    layers, level_count, is_transformer, digest, untrained
        As :class:`~offnominal.backbones.base.Backbone` has them.
    """

    name: str
    family: str
    dim: int
    stride: int
    multiple: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resolution: int
    resize: Resize
    normalize: Literal["l2", "standardize", "none"]
    mask_threshold: float | None
    layers: tuple[int, ...]
    level_count: int
    is_transformer: bool
    digest: str
    untrained: str
    # Networks of points, and joined ones, are torch's alone.
    takes_points: bool = False
    parts: tuple[int, ...] = ()

    def __init__(self, facts: Facts, graph: Graph | Path, held: Graph | None = None) -> None:
        self.facts = facts
        self.graph = graph
        self._held = held
        if isinstance(graph, Path) and held is None:  # a folder of a cache may go at any time
            with suppress(OSError, ValueError):
                self._held = np.memmap(graph, np.uint8, "r")
        self._verified = False
        self.where = ""  # the model file that it came in
        for name in _OWN:
            setattr(self, name, getattr(facts, name))

    def __deepcopy__(self, memo: object) -> Self:
        """The same: nothing of it changes."""
        return self

    def __reduce__(self) -> Any:
        """The file, while it is there; else what it held."""
        there = isinstance(self.graph, Path) and self.graph.is_file()
        return type(self), (self.facts, self.graph if there else self.content())

    @property
    def parameters_count(self) -> int:
        """How many parameters the network had when it was written down."""
        return self.facts.parameters

    @property
    def folder(self) -> Path | None:
        """Where it lies in a cache; None for one that is in memory."""
        return self.graph.parent if isinstance(self.graph, Path) else None

    def verify(self) -> None:
        """Compare the graph with its checksum, once.

        Raises
        ------
        ModelFileError
            If it is not as it was written, or cannot be read.
        """
        if self._verified:
            return
        path = self.graph if isinstance(self.graph, Path) else None
        where = path or (f"{self.where}: its network" if self.where else GRAPH)
        again = "make it anew" if path or not self.where else "copy it again or export it anew"
        try:
            if isinstance(self.graph, Path):  # piece by piece, which takes no memory
                with self.graph.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    size = file.tell()
            else:
                digest, size = _digest(self.graph), len(self.graph)
        except OSError as error:
            if self._held is None:
                raise ModelFileError(f"{where}: cannot be read ({error.strerror})") from error
            digest, size = _digest(self._held), len(self._held)
        if size != self.facts.size:
            told = f"{size} bytes, not the {self.facts.size} that were written"
            raise ModelFileError(f"{where}: damaged: {told}; {again}")
        if digest != self.facts.sha256:
            raise ModelFileError(
                f"{where}: damaged: its checksum is not that of the graph that was written; {again}"
            )
        self._verified = True

    def content(self) -> bytes:
        """The ONNX graph, compared with its checksum the first time; see :meth:`verify`."""
        self.verify()
        if not isinstance(self.graph, Path):
            return bytes(self.graph)
        try:
            return self.graph.read_bytes()
        except OSError as error:
            if self._held is None:
                raise ModelFileError(f"{self.graph}: cannot be read ({error.strerror})") from error
        found = bytes(self._held)
        if _digest(found) != self.facts.sha256:
            raise ModelFileError(f"{self.graph}: is gone, and what it was of changed; open it anew")
        return found

    def opened(self, make: Callable[[str | bytes], Opened]) -> Opened:
        """What an engine makes of the graph: of its file, which takes less memory, if there still.

        Parameters
        ----------
        make : callable
            Of a path, or of the graph itself.
        """
        if isinstance(self.graph, Path):
            self.verify()
            try:
                return make(str(self.graph))
            except Exception:
                if self.graph.is_file():
                    raise
        return make(self.content())

    def check_outputs(self, count: int) -> None:
        """Raise a :class:`ModelFileError` unless the graph gives as many arrays as is told."""
        if count != self.facts.outputs:
            raise ModelFileError(
                f"{self.name}: its graph gives {count} arrays, not the {self.facts.outputs} that "
                "are told of it"
            )

    def plain_facts(self) -> bytes:
        """The facts as a JSON file."""
        return (self.facts.model_dump_json(indent=1) + "\n").encode()

    def write(self, folder: Path) -> None:
        """Write both files into a folder that is there."""
        self.verify()
        graph = self.graph if isinstance(self.graph, np.ndarray) else self.content()
        (folder / GRAPH).write_bytes(graph.data if isinstance(graph, np.ndarray) else graph)
        (folder / FACTS).write_bytes(self.plain_facts())

    @classmethod
    def read(cls, folder: Path) -> "ExportedNetwork":
        """Open what :meth:`write` wrote.

        Raises
        ------
        ModelFileError
            If the facts are damaged or of a newer version; the graph is checked when it is used.
        FileNotFoundError
            If there is none.
        """
        return cls(read_facts((folder / FACTS).read_bytes(), folder / FACTS), folder / GRAPH)

    @classmethod
    def of(cls, facts: bytes, graph: bytes) -> "ExportedNetwork":
        """One from the contents of both files, as a deployment file holds them; all is checked."""
        found = cls(read_facts(facts), graph)
        found.content()
        return found


def _digest(graph: Graph) -> str:
    return hashlib.sha256(graph if isinstance(graph, bytes) else graph.data).hexdigest()


def is_exported(network: Any) -> bool:
    """Whether a network is a graph, and no backbone of torch's."""
    return isinstance(network, ExportedNetwork)
