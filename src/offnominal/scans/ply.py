"""PLY: the Stanford triangle format, as text or binary of either byte order; vertices only."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import ImageError
from offnominal.scans.limits import check_claim
from offnominal.scans.text import Cloud, read_table

__all__ = ["read_ply"]

_HEADER = 2**16  # bytes in which a header has to end
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_COLOURS = ("red", "green", "blue")


class _Element(NamedTuple):
    name: str
    rows: int
    properties: dict[str, str]  # type by name, as numpy has it
    lists: bool


def read_ply(path: Path) -> Cloud:
    """Read the vertices of a PLY file: x, y, z in any order and type, and red, green, blue.

    Raises
    ------
    ImageError
        If the header is not that of a PLY, lacks x, y or z, or declares more than follows.
    """
    data = path.read_bytes()
    end = data.find(b"end_header", 0, _HEADER)
    line_end = data.find(b"\n", end)
    if data[:3] != b"ply" or end < 0 or line_end < 0:
        raise ImageError(path, "is no PLY file, or its header has no end; export it again")
    order, elements = _header(path, data[:end].decode("latin-1"))
    body, before = data[line_end + 1 :], 0
    for element in elements:
        if element.name == "vertex":
            break
        if element.lists:
            raise ImageError(path, "has faces before its vertices; save the vertices first")
        # In text a line for each; in binary its bytes.
        before += element.rows * (_dtype(element, order).itemsize if order else 1)
    else:
        raise ImageError(path, "has no element called vertex; export it as a cloud of points")
    names = list(element.properties)
    if element.lists or not {"x", "y", "z"} <= set(names):
        reason = "its vertices need the properties x, y and z, and no lists; export it again"
        raise ImageError(path, reason)
    least = 2 * len(names) if not order else _dtype(element, order).itemsize
    check_claim(path, "points", element.rows, element.rows * least - (not order),
                len(body) - before)  # fmt: skip
    if order:
        rows = np.frombuffer(body, _dtype(element, order), element.rows, before)
        columns = {name: rows[name] for name in names}
    else:
        text = b"\n".join(body.split(b"\n")[before:]) if before else body
        table = read_table(path, text, rows=element.rows)
        if table.shape != (element.rows, len(names)):
            reason = f"declares {element.rows} points of {len(names)} numbers, and holds "
            reason += f"{table.shape[0]} of {table.shape[1]}; copy or export it again"
            raise ImageError(path, reason)
        columns = dict(zip(names, table.T, strict=True))
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is missing
        points = np.stack([columns[axis].astype(np.float32) for axis in "xyz"], axis=1)[None]
    if not set(_COLOURS) <= set(names):
        return Cloud(points)
    kinds = {element.properties[name] for name in _COLOURS}
    return Cloud(points, _colours([columns[name] for name in _COLOURS], kinds)[None])


def _header(path: Path, text: str) -> tuple[str, list[_Element]]:
    """Byte order, empty for text, and the elements."""
    order: str | None = None
    elements: list[_Element] = []
    for line in text.splitlines()[1:]:
        words = line.split()
        try:
            if words[:1] == ["format"]:
                order = _ORDERS[words[1]]
            elif words[:1] == ["element"]:
                elements.append(_Element(words[1], int(words[2]), {}, False))
                if elements[-1].rows < 0:
                    raise ValueError
            elif words[:2] == ["property", "list"]:
                elements[-1] = elements[-1]._replace(lists=True)
            elif words[:1] == ["property"]:
                if words[2] in elements[-1].properties:
                    raise ValueError
                elements[-1].properties[words[2]] = _TYPES[words[1]]
        except (IndexError, KeyError, ValueError) as error:
            told = f"its header has a line that says nothing ({line[:60]!r}); export it again"
            raise ImageError(path, told) from error
    if order is None:
        raise ImageError(path, "its header does not say its format; export it again")
    return order, elements


def _dtype(element: _Element, order: str) -> np.dtype[np.void]:
    return np.dtype([(name, order + kind) for name, kind in element.properties.items()])


def _colours(columns: list[NDArray[np.generic]], kinds: set[str]) -> NDArray[np.uint8]:
    """Of 8 bits as they are; of 16 bits the upper 8; floating-point ones are on [0, 1]."""
    values = np.stack([column.astype(np.float64) for column in columns], axis=1)
    if kinds <= {"f4", "f8"}:
        values = 255 * values
    elif "u2" in kinds:
        values = values / 257
    return np.rint(np.clip(np.nan_to_num(values), 0, 255)).astype(np.uint8)
