"""A memory bank whose rows lie in a file of their own, as far as a disk goes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import ModelFileError, OptionError
from offnominal.memory.bank import MemoryBank
from offnominal.memory.rowfile import RowFile, RowWriter
from offnominal.memory.storage import check_columns

__all__ = ["FiledBank"]


class FiledBank(MemoryBank):
    """Rows in float16 in a file, written in pieces; in memory are 19 bytes of facts a row.

    Once :meth:`finish` was called nothing can be added or dropped; rows of a reference can still be
    passed over.

    Parameters
    ----------
    path : Path
        Written from the first row on; read where a saved bank is adopted.
    memory : int
        See :class:`MemoryBank`.
    """

    def __init__(self, path: Path, memory: int = 512 * 2**20) -> None:
        super().__init__(memory=memory, storage="fp16")
        self.path = path
        self._writer: RowWriter | None = None
        self.crc32 = ""

    def _append(self, name: str, value: NDArray[Any], start: int) -> None:
        if name != "rows":
            super()._append(name, value, start)
            return
        if self.crc32:
            raise OptionError(f"{self.path}: is finished, and takes no more rows; fit anew")
        if self._writer is None:
            self._writer = RowWriter(self.path, value.shape[1])
        self._writer.append(value)
        self.rows = self._writer.rows

    def finish(self) -> None:
        """All rows are there: the file gets its header and its name."""
        if self._writer is not None:
            done = self._writer.close()
            self.rows, self.crc32, self._writer = done.rows, done.crc32, None

    def discard(self) -> None:
        """Give up what is not finished."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _replace(self, change: Any) -> None:
        raise OptionError(
            f"rows that lie in a file of their own ({self.path}) cannot be dropped; fit anew"
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """What is kept of the rows beside the rows, and the file's checksum."""
        found = super().columns()
        del found["rows"]
        told = int(self.crc32 or "0", 16)
        return found | {"crc32": np.array([told], np.int64)}

    def adopt(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Take the columns of a saved bank, and map its rows from their file.

        Raises
        ------
        ModelFileError
            If the file is not the one that was written with them.
        """
        rest = dict(columns)
        told, file = rest.pop("crc32"), RowFile(self.path)
        count = len(rest["reference"])
        if told.shape != (1,) or f"{int(told[0]):08x}" != file.crc32 or count != len(file.rows):
            raise ModelFileError(
                f"{self.path}: holds the rows of another fit; bring back the file that was written "
                "with this model, or fit anew"
            )
        # Rows are not read for it: that would take as long as the file is large.
        stand_in = np.broadcast_to(np.zeros((1, 1), np.float16), (count, 1))
        like = super().columns() | {"rows": np.empty((0, 0), np.float16)}
        check_columns(rest | {"rows": stand_in}, like)
        for name, column in rest.items():
            setattr(self, name, np.array(column))
        self.rows, self.crc32 = file.rows, file.crc32

    def verify(self) -> None:
        """Read all rows once, and raise a ModelFileError if they are not as written."""
        RowFile(self.path).verify()
