"""Clouds as text: one point a line, x y z first, perhaps red green blue after them."""

import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import ImageError
from offnominal.scans.limits import check_claim

__all__ = ["Cloud", "read_table", "read_text"]

_SHORTEST = 2  # bytes of a number and what parts it from the next


class Cloud(NamedTuple):
    """Points as a file has them.

    Attributes
    ----------
    points : float32 array of shape (H, W, 3)
        (1, N, 3) without a grid.
    colour : uint8 array of the same shape, or None
    """

    points: NDArray[np.float32]
    colour: NDArray[np.uint8] | None = None


def read_text(path: Path) -> Cloud:
    """Read a cloud from text.

    Numbers are parted by blanks, commas or semicolons. Columns 4 to 6 are colours where there are
    6 or 7 columns and those hold whole numbers from 0 to 255, some over 1: normals do not. A first
    line that is no point is passed over: the number of points, or headings.
    """
    table = read_table(path, path.read_bytes(), first=True)
    if table.shape[1] < 3:
        raise ImageError(path, f"has {table.shape[1]} numbers a line; a point has three: x y z")
    points = table[:, :3].astype(np.float32)[None]
    if table.shape[1] in (6, 7):
        rest = table[:, 3:6]
        with np.errstate(invalid="ignore"):
            whole = bool(((rest >= 0) & (rest <= 255) & (rest == np.floor(rest))).all())
        if whole and rest.max() > 1:
            return Cloud(points, rest.astype(np.uint8)[None])
    return Cloud(points)


def read_table(
    path: Path, data: bytes, *, first: bool = False, rows: int | None = None
) -> NDArray[np.float64]:
    """Numbers of a table in text.

    Parameters
    ----------
    path : Path
        Named in messages.
    data : bytes
    first : bool
        Whether the first line may be something else, and is passed over then.
    rows : int or None
        How many are read; all by default.

    Returns
    -------
    float64 array of shape (rows, columns)

    Raises
    ------
    ImageError
        If there are no rows, or one of them is no row of numbers or of another length.
    """
    check_claim(path, "points", len(data) // (3 * _SHORTEST), len(data), len(data))
    if b"\0" in data[:4096]:
        raise ImageError(path, "is no text; name it after what it is, such as .ply or .pcd")
    try:
        text = data.decode("utf-8-sig")
        begin = text.lstrip()
        line, _, rest = begin.partition("\n")
        if first and not _is_row(line):
            begin = rest
        if "," in begin or ";" in begin:
            begin = begin.replace(",", " ").replace(";", " ")
        # Of the lines of a comment, whatever sign begins them, nothing is a number.
        lines = io.StringIO(begin)
        table: NDArray[np.float64] = np.loadtxt(
            lines, np.float64, comments=("#", "//"), ndmin=2, max_rows=rows
        )
    except ValueError as error:
        detail = re.sub(r"\s+", " ", str(error))[:200]
        raise ImageError(path, f"is no table of points ({detail}); export it again") from error
    if not len(table):
        raise ImageError(path, "holds no points; export it again, or leave it out")
    return table


def _is_row(line: str) -> bool:
    numbers = re.split(r"[\s,;]+", line.strip())
    try:
        return len([float(number) for number in numbers if number]) >= 3
    except ValueError:
        return line.lstrip().startswith(("#", "//"))
