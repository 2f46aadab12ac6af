"""The files of a cell: how they are written, and what they must say to be believed.

``sha256sums`` has the digest of each, as the program of that name writes it, so that what is not as
it was written is found. Cells of earlier versions have none, and are checked by their schema alone.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from offnominal.errors import DatasetError
from offnominal.npz import read_npy, read_npz
from offnominal.text import printable

__all__ = ["ContentsFile", "Metrics", "PlanFile", "Run", "Settings", "check_sums", "read_json"]
__all__ += ["read_map"]
__all__ += [
    "read_patch_scores",
    "read_scores",
    "seal",
    "write_json",
    "write_patch_scores",
    "write_scores",
]

Floats = npt.NDArray[np.float32]
M = TypeVar("M", bound=BaseModel)

_SUMS = "sha256sums"
_MOST_BYTES, _MOST_IMAGES = 2**28, 500_000

Count = Annotated[int, Field(ge=0, le=2**40)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Figure = Number | None
Texts = list[str]
Name = Annotated[str, Field(min_length=1)]
Plain = None | bool | Annotated[int, Field(ge=-(2**53), le=2**53)] | Number | str


class _Part(BaseModel):
    """A JSON object; what it says beyond these fields is kept."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Data(_Part):
    root: str = ""
    test_good: Count = 0
    test_defective: Count = 0


class Settings(_Part):
    """``settings.json``: what was run."""

    format: Count = 0
    dataset: Name
    category: Name
    samples: str
    method: Name
    shots: Count | None
    seed: Count
    sampling: str
    options: dict[str, Plain | list[Plain]]
    cached: bool
    defects: Count = 0
    set_aside: Count = 0
    draw: str = ""
    marked: bool = False
    left_out: str | None = None
    tested: str = "all"
    data: _Data
    references: Texts = []
    learned_defects: Texts = []


class _Threshold(_Part):
    value: Number
    kind: str = ""


class _Backbone(_Part):
    name: str = ""
    stride: Annotated[int, Field(ge=1, le=4096)] = 1
    resolution: Count | None = None


class Run(_Part):
    """``run.json``: on what, when, and how long."""

    version: str = "not known"
    python: str = "not known"
    packages: dict[str, str] = {}
    device: str = "not known"
    cpu: str = "not known"
    threads: Count | None = None
    busy: bool | None = None
    finished: str = ""
    timings: dict[str, Figure] = {}
    images: Count | None = None
    threshold: _Threshold | None = None
    pixel_threshold: _Threshold | None = None
    backbone: _Backbone | None = None
    features: dict[str, Count] = {}
    notes: Texts = []
    unreadable: Texts = []


class _Curve(_Part):
    x: list[Number]
    y: list[Number]

    @model_validator(mode="after")
    def _pairs(self) -> "_Curve":
        if len(self.x) != len(self.y):
            raise ValueError("x and y are not as long as each other")
        return self


class _Region(_Part):
    name: str
    lower: Number
    upper: Number
    regions: Count

    @model_validator(mode="after")
    def _shares(self) -> "_Region":
        for rate in ("1%", "5%", "30%"):
            for what in ("recall", "found"):
                value = (self.model_extra or {}).get(f"{what}_at_{rate}", "absent")
                if not (value is None or (isinstance(value, int | float) and 0 <= value <= 1)):
                    raise ValueError(f"{what}_at_{rate} is no share")
        return self


class _Kind(_Part):
    kind: str
    images: Count
    image_auroc: Figure = None
    image_ap: Figure = None
    misses: Figure = None
    named: Figure = None

    @model_validator(mode="after")
    def _share(self) -> "_Kind":
        value = (self.model_extra or {}).get("image_miss_at_1%")
        if not (value is None or (isinstance(value, int | float) and 0 <= value <= 1)):
            raise ValueError("image_miss_at_1% is no share")
        return self


class _Confusion(_Part):
    truth: Texts
    said: Texts
    counts: list[list[Count]]

    @model_validator(mode="after")
    def _whole(self) -> "_Confusion":
        if {len(row) for row in self.counts} - {len(self.said)} or len(self.counts) != len(
            self.truth
        ):
            raise ValueError("counts are not as many as the classes")
        return self


class Metrics(_Part):
    """``metrics.json``: what came of it."""

    figures: dict[str, Figure]
    intervals: dict[str, Annotated[list[Figure], Field(min_length=2, max_length=2)]] = {}
    curves: dict[str, dict[str, _Curve]] = {}
    regions: list[_Region] = []
    images: Count = 0
    unscored: dict[str, Count] = {}
    failures_as_wrong: dict[str, Figure] = {}
    untrained: str | None = None
    kinds: list[_Kind] = []
    confusion: _Confusion | None = None


class PlanFile(_Part):
    """``plans/NAME.json``."""

    title: str
    axes: Texts
    cells: Texts


class ContentsFile(_Part):
    """``contents/DIGEST.json``: what the files of a category held."""

    dataset: str
    category: str
    files: dict[str, str]


def read_json(path: Path, schema: type[M]) -> dict[str, Any]:
    """A file of JSON, as its schema has it.

    Raises
    ------
    DatasetError
        If it cannot be read, is not as it was written, or does not say what it must.
    """
    try:
        content = _each_encoded(json.loads(_read(path)))
        return schema.model_validate(content).model_dump()
    except ValidationError as error:
        one = error.errors(include_url=False)[0]
        place = printable(".".join(map(str, one["loc"])))[:200]
        raise _damaged(path, f"{place}: {one['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)[:200]) from error


def read_scores(folder: Path) -> dict[str, list[Any]]:
    """Columns of ``scores.parquet``; raises as `read_json` does."""
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / "scores.parquet"
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    kinds = {"image": text, "mask": text, "mask_threshold": whole, "label": whole, "defect": text}
    kinds |= {"category": text, "score": real, "threshold": real, "is_anomalous": pa.bool_()}
    kinds |= {"p_value": real, "height": whole, "width": whole, "map_max": real, "seconds": real}
    data = _read(path)
    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        if not 0 < file.metadata.num_rows <= _MOST_IMAGES:
            raise ValueError(f"has {file.metadata.num_rows:,} rows")
        if "kind" in file.schema_arrow.names:  # of methods that tell a class
            kinds["kind"] = text
        table = file.read(columns=list(kinds)).select(list(kinds)).cast(pa.schema(kinds))
        columns: dict[str, list[Any]] = table.to_pydict()
    except Exception as error:  # the reader has kinds of its own
        raise _damaged(path, f"{type(error).__name__}: {str(error)[:200]}") from error
    if (
        any(None in columns[name] for name in ("image", "defect", "mask_threshold"))
        or not {*columns["label"]} <= {0, 1}
        or not all(_finite(columns[name], False) for name in ("score", "map_max", "seconds"))
        or not all(_finite(columns[name], True) for name in ("threshold", "p_value"))
    ):
        raise _damaged(path, "what it says of an image is missing, or no number")
    return columns


def read_patch_scores(folder: Path) -> list[Floats]:
    """Patch scores of every image; raises as `read_json` does."""
    path = folder / "patch_scores.npz"
    try:
        stored = read_npz(_read(path))
        values, shapes = stored["values"], stored["shapes"].astype(np.int64)
        if values.dtype != np.float32 or shapes.ndim != 2 or shapes.shape[1:] != (2,):
            raise ValueError("holds other arrays")
        if (shapes < 1).any() or (shapes > 10**6).any() or shapes.prod(1).sum() != values.size:
            raise ValueError("has more or fewer values than its shapes say")
    except (ValueError, KeyError) as error:
        raise _damaged(path, str(error)[:200]) from error
    pieces = np.split(values.ravel(), np.cumsum(shapes.prod(1))[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def read_map(path: Path) -> Floats:
    """One of the maps that were kept; raises as `read_json` does."""
    try:
        found = read_npy(_read(path))
    except ValueError as error:
        raise _damaged(path, str(error)[:200]) from error
    if found.ndim != 2 or not found.size or found.dtype.kind != "f":
        raise _damaged(path, f"no map, but {found.shape}")
    return found.astype(np.float32)


def seal(folder: Path) -> None:
    """Write down the digest of every file of a cell, which changes no more."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in files
    ]
    (folder / _SUMS).write_text("".join(lines), encoding="utf-8")


def check_sums(folder: Path) -> bool:
    """Whether a cell has digests; if a file but the maps is not as they say, a DatasetError."""
    listed = _sums(folder)
    for name in [line.partition("  ")[2] for line in listed or ()]:
        if not name.startswith("maps/"):
            _read(folder / name)
    return bool(listed)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values; what is not finite becomes null, which every reader of JSON takes."""
    path.write_text(f"{json.dumps(_nulls(content), indent=1)}\n", encoding="utf-8")


def write_scores(folder: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write ``scores.parquet`` of a cell."""
    import pyarrow as pa
    from pyarrow import parquet

    # Names whose bytes are no UTF-8 have no place in it.
    fit = {name: [_encoded(value) for value in values] for name, values in columns.items()}
    parquet.write_table(pa.table(fit), folder / "scores.parquet")


def write_patch_scores(folder: Path, grids: Sequence[Floats]) -> None:
    """Write ``patch_scores.npz`` of a cell."""
    shapes = np.array([grid.shape for grid in grids], np.int32).reshape(-1, 2)
    values = np.concatenate([np.empty(0, np.float32), *(grid.ravel() for grid in grids)])
    np.savez_compressed(folder / "patch_scores.npz", values=values, shapes=shapes)


def _read(path: Path) -> bytes:
    """A file's bytes, if they are those that were written."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise _damaged(path, "too large")
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    folder = path.parent.parent if path.parent.name == "maps" else path.parent
    sums = _sums(folder)
    own = f"{hashlib.sha256(data).hexdigest()}  {path.relative_to(folder).as_posix()}"
    if sums is not None and own not in sums:
        raise _damaged(path, f"not as {_SUMS} has it")
    return data


def _sums(folder: Path) -> list[str] | None:
    """Lines of digests and names; None where a cell has none."""
    path = folder / _SUMS
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)[:200]) from error


def _damaged(path: Path, why: str) -> DatasetError:
    gone = path if path.parent.name == "plans" else path.parent
    return DatasetError(
        f"{path}: damaged or absent ({printable(why)}); delete {gone}, and run the benchmark again"
    )


def _finite(values: Sequence[Any], or_none: bool) -> bool:
    return all(or_none if value is None else math.isfinite(value) for value in values)


def _encoded(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return printable(value)
    return value


def _each_encoded(value: Any) -> Any:
    """Values of JSON, their texts such as every table and page can hold."""
    if isinstance(value, dict):
        return {_encoded(key): _each_encoded(entry) for key, entry in value.items()}
    return [*map(_each_encoded, value)] if isinstance(value, list) else _encoded(value)


def _nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _nulls(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_nulls(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
