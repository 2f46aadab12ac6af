"""Arrays from ``.npy`` and ``.npz`` bytes, whose claims are held against what is there.

numpy's own reader takes memory for whatever size a header claims before it looks for the numbers.
"""

import io
import math
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["read_npy", "read_npz"]

_LARGEST = 2**29  # bytes of one array


def read_npy(data: bytes) -> npt.NDArray[Any]:
    """The array of a ``.npy`` file: plain numbers, no objects.

    Raises
    ------
    ValueError
        If it is none, or damaged.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, fortran, dtype = (np.lib.format.read_array_header_2_0 if version[0] > 1 else read)(
            file
        )
    except Exception as error:  # the header is a Python literal, which can be wrong in many ways
        raise ValueError(f"no array: {str(error)[:200]}") from error
    rest = data[file.tell() :]
    if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError(f"its header claims {shape} {dtype}, and {len(rest):,} bytes follow")
    array = np.frombuffer(rest, dtype)
    return array.reshape(shape, order="F" if fortran else "C").copy()


def read_npz(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a ``.npz`` file by name.

    Raises
    ------
    ValueError
        If it is none, damaged, or larger than half a gigabyte an array.
    """
    found = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as stored:
            for name in stored.namelist():
                with stored.open(name) as member:
                    content = member.read(_LARGEST + 1)
                if len(content) > _LARGEST:
                    raise ValueError(f"{name} is too large")
                found[name.removesuffix(".npy")] = read_npy(content)
    except ValueError:
        raise
    except Exception as error:  # zipfile and its decompressors raise a dozen kinds
        raise ValueError(f"{type(error).__name__}: {str(error)[:200]}") from error
    return found
