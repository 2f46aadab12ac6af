"""What is known of an ONNX graph, as a file holds it, checked."""

import json
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from offnominal.engines.base import Structure, leaves_of
from offnominal.errors import ModelFileError
from offnominal.sizing import Resize

__all__ = ["FACTS", "Facts", "read_facts"]

FORMAT = 1
FACTS = "network.json"
_LARGEST = 2**16
_DEEPEST = 4

Name = Field(max_length=300)
Positive = Field(ge=1, le=2**31)


class Facts(BaseModel):
    """What is known of a graph: all that a detector asks of its backbone, and of the file itself.

    The first sixteen are as :class:`~offnominal.backbones.base.Backbone` has them.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    name: str = Name
    family: str = Name
    dim: int = Positive
    stride: int = Positive
    multiple: int = Positive
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resolution: int = Positive
    resize: Resize
    normalize: Literal["l2", "standardize", "none"]
    mask_threshold: float | None
    layers: tuple[int, ...] = Field(max_length=1000)
    level_count: int = Positive
    is_transformer: bool
    digest: str = Name
    untrained: str = Field(max_length=2000)
    parameters: int = Field(ge=0)
    precision: Literal["fp32", "int8"] = "fp32"
    structure: list[Any] | None = None
    outputs: int = Field(ge=1, le=100)
    opset: int = Field(ge=7, le=1000)
    made_with: dict[str, str] = Field(default_factory=dict, max_length=50)
    size: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @field_validator("std")
    @classmethod
    def _divides(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError("pixels are divided by it, so it lies above 0")
        return std

    @field_validator("structure")
    @classmethod
    def _plain(cls, structure: Structure) -> Structure:
        _check_structure(structure, 0)
        return structure

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (count := leaves_of(self.structure)) != self.outputs:
            raise ValueError(f"outputs are {self.outputs}, and its structure has {count} arrays")
        return self


def _check_structure(structure: Any, depth: int) -> None:
    if structure is None:
        return
    plain = isinstance(structure, list) and structure and structure[0] in ("list", "tuple")
    if not plain or depth > _DEEPEST or len(structure) > _LARGEST:
        raise ValueError("no arrays in tuples and lists")
    for each in structure[1:]:
        _check_structure(each, depth + 1)


def read_facts(content: bytes, where: object = FACTS) -> Facts:
    """Facts from a JSON file.

    Raises
    ------
    ModelFileError
        If they are damaged, of something else, or of a newer version.
    """
    try:
        plain = json.loads(content)
    except ValueError as error:
        raise ModelFileError(f"{where}: damaged: no JSON ({error})") from error
    number = plain.get("format") if isinstance(plain, dict) else None
    if type(number) is not int:
        raise ModelFileError(f"{where}: says nothing of a network; it is of something else")
    if number > FORMAT:
        raise ModelFileError(
            f"{where}: written by a newer version of offnominal (format {number}; this one reads "
            f"{FORMAT}): upgrade offnominal"
        )
    try:
        return Facts.model_validate_json(content, strict=True)
    except ValidationError as error:
        one = error.errors(include_url=False)[0]
        place = ".".join(map(str, one["loc"]))
        told = f"{place[:100]!r}: {one['msg'][:200]}"
        raise ModelFileError(f"{where}: damaged: {told}") from error
