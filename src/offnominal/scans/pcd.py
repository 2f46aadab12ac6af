"""PCD of the Point Cloud Library, as text, binary or compressed, with its grid if it has one."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import ImageError
from offnominal.extras import needs
from offnominal.scans.limits import check_claim
from offnominal.scans.text import Cloud, read_table

__all__ = ["read_pcd"]

_HEADER = 2**14  # bytes in which a header has to end
_LZF = 100  # LZF makes nothing smaller than that


def read_pcd(path: Path) -> Cloud:
    """Read a PCD file: the fields x, y, z, and rgb or rgba.

    One with a height over 1 keeps its grid.

    Raises
    ------
    ImageError
        If the header is damaged, lacks x, y or z, or declares more than follows.
    MissingExtraError
        If pypcd4 is not installed.
    """
    pypcd4 = needs("pypcd4", "3d", f"{path.name}, a PCD file,")
    data = path.read_bytes()
    lines: list[str] = []
    begin = 0
    while not lines or not lines[-1].startswith("DATA"):
        end = data.find(b"\n", begin)
        if end < 0 or end > _HEADER:
            raise ImageError(path, "is no PCD file, or its header has no end; export it again")
        line = data[begin:end].decode("latin-1").strip()
        lines += [line] if line and not line.startswith("#") else []
        begin = end + 1
    try:
        header = pypcd4.MetaData.parse_header(lines)
        dtype = header.build_dtype()
    except Exception as error:  # it raises a dozen kinds
        detail = str(error).splitlines()[0][:100]
        raise ImageError(path, f"its header is damaged ({detail}); export it again") from error
    names = list(dtype.names or ())
    if not {"x", "y", "z"} <= set(names):
        raise ImageError(path, f"has no x, y and z but {', '.join(names)[:100]}; export it again")
    if header.width * header.height != header.points:
        reason = f"declares {header.points} points on a grid of {header.width} x {header.height}"
        raise ImageError(path, f"{reason}; export it again")
    how, there = header.data.value, len(data) - begin
    if how == "ascii":
        least = 2 * len(names)
        check_claim(path, "points", header.points, header.points * least - 1, there)
        columns = _from_text(path, data[begin:], dtype, header.points)
    else:
        claimed = header.points * dtype.itemsize
        if how == "binary":
            check_claim(path, "points", header.points, claimed, there)
        else:
            packed, unpacked = struct.unpack("<II", data[begin : begin + 8].ljust(8, b"\0"))
            check_claim(path, "points", header.points, claimed, _LZF * there)
            if packed > there - 8 or unpacked != claimed:
                reason = "is truncated or damaged (its blocks are not as long as it says)"
                raise ImageError(path, f"{reason}; copy or export it again")
        # Its own reader for what is packed. It takes the first ten lines for the header: those
        # that say nothing are left out here.
        plain = "\n".join(lines).encode() + b"\n" + data[begin:]
        rows = pypcd4.PointCloud.from_fileobj(io.BytesIO(plain)).pc_data
        columns = {name: rows[name] for name in names}
    grid = (header.height, header.width) if header.height > 1 else (1, header.points)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is missing
        points = np.stack([columns[axis].astype(np.float32) for axis in "xyz"], axis=1)
    colours = columns.get("rgb", columns.get("rgba"))
    if colours is None:
        return Cloud(points.reshape(*grid, 3))
    return Cloud(points.reshape(*grid, 3), _unpacked(colours).reshape(*grid, 3))


def _from_text(path: Path, text: bytes, dtype: Any, points: int) -> dict[str, NDArray[Any]]:
    table, names = read_table(path, text), dtype.names
    if table.shape != (points, len(names)):
        raise ImageError(
            path,
            f"declares {points} points of {len(names)} numbers, and holds {table.shape[0]} of "
            f"{table.shape[1]}; copy or export it again",
        )
    with np.errstate(invalid="ignore", over="ignore"):
        return {n: c.astype(dtype[n]) for n, c in zip(names, table.T, strict=True)}


def _unpacked(packed: NDArray[Any]) -> NDArray[np.uint8]:
    """Red, green and blue of three bytes in a number, or in the bits of a float."""
    whole = packed.astype(np.float32).view(np.uint32) if packed.dtype.kind == "f" else packed
    return np.stack([whole >> 16, whole >> 8, whole], axis=1).astype(np.uint8)
