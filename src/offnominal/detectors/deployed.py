"""What an exported model file carries beside the model: a graph, and what was found of it.

An exported file is a model file with a graph in it: one format, one reader, one set of checksums,
and arrays that are mapped into memory. Of a method with a memory bank the graph is its network, and
everything that the method can do goes on without torch; of others it is all of the method's
program, from prepared pixels to patch scores.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offnominal.engines.network import ExportedNetwork, Facts
from offnominal.errors import ModelFileError
from offnominal.modelfile import first_of
from offnominal.sizing import Resample, Resize

__all__ = ["EXPORTED", "Deployed", "Gated", "Row", "Section", "SquareSizing", "WholeSizing"]
__all__ += ["read_section"]

EXPORTED = "export.graph"
"""Name of the array of a model file that holds an exported network or program."""

_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
_Pixels = Field(ge=1, le=2**14)


class WholeSizing(BaseModel):
    """An image sized as :func:`~offnominal.views.whole_view` does it."""

    model_config = _STRICT

    kind: Literal["whole"] = "whole"
    resolution: int = _Pixels
    resize: Resize


class SquareSizing(BaseModel):
    """An image squeezed into a square, as :func:`~offnominal.views.square_view` does it."""

    model_config = _STRICT

    kind: Literal["square"] = "square"
    full: int = _Pixels
    side: int = _Pixels
    resample: Resample


class Row(BaseModel):
    """How an engine's answers compare with those of the detector that was exported.

    Attributes
    ----------
    engine, precision : str
    images : int
        How many were compared.
    score : float
        Largest difference of an image score, as a part of that score or of the threshold, whichever
        is larger.
    map : float
        Largest difference of a pixel of a map, as a part of the map's peak or of the threshold of
        pixels.
    decisions : int
        Images that are decided otherwise.
    spearman : float or None
        Rank correlation of the scores; None of fewer than three.
    auroc_before, auroc : float or None
        Where images of defects were given.
    """

    model_config = _STRICT

    engine: str
    precision: str
    images: int
    score: float
    map: float
    decisions: int
    spearman: float | None = None
    auroc_before: float | None = None
    auroc: float | None = None


class Gated(BaseModel):
    """What was found of a graph in 8 bits; see :class:`~offnominal.engines.gate.Gate`.

    Attributes
    ----------
    auroc : pair of floats or None
        Of float32 and of the graph, 0 to 100; None without images of defects.
    false_rejects : pair of ints
    tried : int
        How many good images that is of.
    rank, cosine : float
        Correlation of scores, and mean cosine of features.
    limits : dict
        What would have been refused.
    """

    model_config = _STRICT

    auroc: tuple[float, float] | None
    false_rejects: tuple[int, int]
    tried: int = Field(ge=0)
    rank: float = Field(ge=-1, le=1)
    cosine: float
    limits: dict[str, float] = Field(max_length=20)

    def __str__(self) -> str:
        """The table in a line."""
        first, second = self.false_rejects
        told = f"{first} -> {second} of {self.tried} good images rejected, rank {self.rank:.4f}"
        before = f"AUROC {self.auroc[0]:.1f} -> {self.auroc[1]:.1f}, " if self.auroc else ""
        return f"{before}{told}, cosine of features {self.cosine:.5f}"


class Section(BaseModel):
    """What the header of an exported file says of the graph."""

    model_config = _STRICT

    format: Literal[1] = 1
    kind: Literal["network", "program"]
    facts: Facts
    outputs: tuple[Literal["patches", "image", "weight", "kinds", "features"], ...] = ()
    sizing: WholeSizing | SquareSizing | None = Field(default=None, discriminator="kind")
    licence: str = Field(default="", max_length=200)
    parity: tuple[Row, ...] = ()
    compared: str = Field(default="", max_length=200)
    gate: Gated | None = None


@dataclass(frozen=True, eq=False)
class Deployed:
    """What an exported file carries beside the model.

    Attributes
    ----------
    kind : {"network", "program"}
        What the graph computes: ``embed``, or all from prepared pixels to patch scores.
    network : ExportedNetwork
    outputs : tuple of str
        Of a program.
    sizing : WholeSizing, SquareSizing or None
        Of a program: how its pixels are prepared.
    licence : str
        Of the weights, where it is known.
    parity : tuple of Row
        What was found when it was exported.
    compared : str
        On which images, in words.
    gate : Gated or None
        What was found of a graph in 8 bits.
    """

    kind: Literal["network", "program"]
    network: ExportedNetwork
    outputs: tuple[Any, ...] = ()
    sizing: WholeSizing | SquareSizing | None = None
    licence: str = ""
    parity: tuple[Row, ...] = ()
    compared: str = ""
    gate: Gated | None = None

    def section(self) -> dict[str, Any]:
        """What a header says of it, as plain values."""
        told = Section(
            kind=self.kind, facts=self.network.facts, outputs=self.outputs, sizing=self.sizing,
            licence=self.licence, parity=self.parity, compared=self.compared, gate=self.gate,
        )  # fmt: skip
        return told.model_dump(mode="json")

    def array(self) -> NDArray[np.uint8]:
        """The graph, as a model file holds it; compared anew, as its file may have changed."""
        graph = ExportedNetwork(self.network.facts, self.network.graph)
        return np.frombuffer(graph.content(), np.uint8)

    @classmethod
    def of(cls, section: Any, graph: NDArray[Any] | None) -> Self:
        """What a model file's header and arrays say.

        Raises
        ------
        ModelFileError
            If they do not fit together, or are of a newer version.
        """
        told = read_section(section)
        if graph is None or graph.dtype != np.uint8 or graph.ndim != 1:
            raise ModelFileError("it says that it was exported, and holds no graph: export anew")
        if told.kind == "program":
            count, names = told.facts.outputs, told.outputs
            plain = names[:1] == ("patches",) and len({*names}) == len(names) == count
            if told.sizing is None or not plain:
                raise ModelFileError("it does not say how its program is run; export anew")
        network = ExportedNetwork(told.facts, graph)
        found = (told.licence, told.parity, told.compared, told.gate)
        return cls(told.kind, network, told.outputs, told.sizing, *found)


def read_section(section: Any) -> Section:
    """What a model file's header says of its graph, under ``export``.

    Raises
    ------
    ModelFileError
        If it is damaged, or of a newer version.
    """
    number = section.get("format") if isinstance(section, dict) else None
    if type(number) is int and number > 1:
        raise ModelFileError("exported by a newer version: install a newer one, or export anew")
    try:
        return Section.model_validate_json(json.dumps(section))
    except ValidationError as error:
        raise ModelFileError(f"what it says of its graph is damaged ({first_of(error)})") from error
