"""Parts: what workers write, a file a shard, on a disk or in an object store.

A part is a Parquet file whose rows are those of ``results.jsonl``: the line itself, and beside it
what people ask a table for.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from offnominal.atomic import write_atomically
from offnominal.errors import OptionError
from offnominal.extras import needs
from offnominal.prefetch import prefetch
from offnominal.scale.shards import Shard

__all__ = ["Parts", "Store", "is_local", "is_url", "persistently"]

T = TypeVar("T")

_SUFFIX = ".parquet"
_NAME = re.compile(r"\d{12,}-\d{3}-[0-9a-f]{12}\.parquet")  # as `Shard.name` has it
_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)  # seconds between tries of an object store
_READERS = 4  # parts on their way where they are read in order


def is_url(name: str) -> bool:
    """Whether a name is for fsspec to open, as ``s3://bucket/key``."""
    return "://" in name


def is_local(name: str) -> bool:
    """Whether a name is of this machine's disks."""
    return not is_url(name) or name.startswith(("file://", "local://"))


def persistently(call: Callable[[], T], what: str) -> T:
    """What a call to a store returns, tried again for a while where it fails.

    Raises
    ------
    OptionError
        If it fails to the end; a file that is not there and a missing right are told at once.
    """
    for pause in (*_PAUSES, None):
        try:
            return call()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except Exception as error:  # of each store's client, which have no common base
            if pause is None:
                told = str(error).strip().split("\n")[0] or type(error).__name__
                raise OptionError(
                    f"{what}: fails, tried {len(_PAUSES) + 1} times ({told}); what was written is "
                    "kept, and the same command goes on from there"
                ) from error
            time.sleep(pause)
    raise AssertionError


class Store:
    """A folder of files that appear whole or not at all, local or of an object store.

    Parameters
    ----------
    url : str
        A path, or a URL of a kind that fsspec has a driver for.
    """

    def __init__(self, url: str) -> None:
        fsspec = needs("fsspec", "scale", url)
        self.url = url.rstrip("/")
        try:
            self.system, self.root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            told = f"takes a package that is not there ({error}); the extra scale brings that of S3"
            raise OptionError(f"{url}: {told}") from error
        except ValueError as error:
            raise OptionError(f"{url}: cannot be opened ({error})") from error
        self.local = is_local(url)

    def __reduce__(self) -> Any:
        """A worker opens its own."""
        return type(self), (self.url,)

    def write(self, name: str, content: bytes) -> None:
        """Write a file below the folder, whole or not at all."""
        where = f"{self.root}/{name}"
        if self.local:
            Path(where).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(where), content)
        else:  # an object is there once all of it is
            persistently(lambda: self.system.pipe_file(where, content), f"{self.url}/{name}")

    def read(self, name: str) -> bytes:
        """The content of a file."""
        where = f"{self.root}/{name}"
        found: bytes = persistently(lambda: self.system.cat_file(where), f"{self.url}/{name}")
        return found

    def is_there(self, name: str) -> bool:
        """Whether there is a file."""
        where = f"{self.root}/{name}"

        def look() -> bool:
            self.system.invalidate_cache()
            return bool(self.system.exists(where))

        return persistently(look, f"{self.url}/{name}")

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder; none where it is not there."""
        where = f"{self.root}/{folder}"

        def look() -> list[str]:
            self.system.invalidate_cache()
            return [str(one) for one in self.system.ls(where, detail=False)]

        try:
            return [one.rpartition("/")[2] for one in persistently(look, f"{self.url}/{folder}")]
        except FileNotFoundError:
            return []

    def remove(self, folder: str, names: Iterable[str] | None = None) -> None:
        """Take away files of a folder; None: all."""
        for name in self.names(folder) if names is None else names:
            where = f"{self.root}/{folder}/{name}"
            persistently(lambda where=where: self.system.rm_file(where), where)  # type: ignore[misc]


class Parts:
    """The parts of a run, in ``parts/`` of its folder of results.

    Parameters
    ----------
    store : Store
        The folder of results.
    """

    folder = "parts"

    def __init__(self, store: Store) -> None:
        needs("pyarrow", "scale", "results in parts")
        self.store = store
        self.names: set[str] = set()
        self._starts: set[int] = set()

    def __reduce__(self) -> Any:
        """A worker writes, and need not know what is there."""
        return type(self), (self.store,)

    def look(self) -> None:
        """See which parts are there; what else lies there is nobody's business."""
        found = self.store.names(self.folder)
        self.names = {one.removesuffix(_SUFFIX) for one in found if _NAME.fullmatch(one)}
        self._starts = {int(name.partition("-")[0]) for name in self.names}

    def clear(self) -> None:
        """Take away the parts, and no file of anybody else."""
        self.look()
        self.store.remove(self.folder, [one + _SUFFIX for one in sorted(self.names)])
        self.look()

    def left(self, shards: Iterable[Shard]) -> Iterator[Shard]:
        """Shards, those that were halved as their halves."""
        for shard in shards:
            if shard.name in self.names or len(shard.items) == 1:
                yield shard
            elif any(shard.start + n in self._starts for n in range(len(shard.items))):
                first, second = shard.halves()
                # A whole part of the same place that is of other images is none of its halves.
                if self._holds(first) or self._holds(second):
                    yield from self.left((first, second))
                else:
                    yield shard
            else:
                yield shard

    def _holds(self, shard: Shard) -> bool:
        """Whether a shard, or a part of it, is there."""
        if shard.name in self.names:
            return True
        return len(shard.items) > 1 and any(map(self._holds, shard.halves()))

    def has(self, shard: Shard) -> bool:
        """Whether a shard's part was there at the last look."""
        return shard.name in self.names

    def written(self, shard: Shard) -> bool:
        """Whether it is there now."""
        return self.store.is_there(f"{self.folder}/{shard.name}{_SUFFIX}")

    def write(self, shard: Shard, lines: list[str]) -> None:
        """Write a part.

        Parameters
        ----------
        shard : Shard
        lines : list of str
            One of JSON for each image, as ``results.jsonl`` has them.
        """
        import pyarrow as pa
        from pyarrow import parquet

        rows = [json.loads(line) for line in lines]
        table = pa.table(
            {
                "image": pa.array([row["image"] for row in rows], pa.string()),
                "score": pa.array([row.get("score") for row in rows], pa.float64()),
                "is_anomalous": pa.array([row.get("is_anomalous") for row in rows], pa.bool_()),
                "error": pa.array([row.get("error") for row in rows], pa.string()),
                "line": pa.array(lines, pa.string()),
            }
        )
        buffer = pa.BufferOutputStream()
        parquet.write_table(table, buffer, compression="zstd")
        self.store.write(f"{self.folder}/{shard.name}{_SUFFIX}", buffer.getvalue().to_pybytes())

    def lines(self, names: Iterable[str]) -> Iterator[str]:
        """Lines of parts, in the order of their names, a few parts at a time."""
        import pyarrow as pa
        from pyarrow import parquet

        def read(name: str) -> list[str]:
            place = f"{self.folder}/{name}{_SUFFIX}"
            told = "take it away, and the same command makes it anew"
            try:
                content = self.store.read(place)
                table = parquet.read_table(pa.BufferReader(content), columns=["line"])
            except FileNotFoundError as error:
                told = "was taken away during the run; run the same command again"
                raise OptionError(f"{self.store.url}/{place}: {told}") from error
            except (pa.ArrowException, OSError) as error:
                why = f"damaged ({str(error).strip().split(chr(10))[0]})"
                raise OptionError(f"{self.store.url}/{place}: {why}; {told}") from error
            found: list[str] = table["line"].to_pylist()
            return found

        for _, lines, error in prefetch(sorted(names), read, _READERS, 2 * _READERS):
            if error:
                raise error
            yield from lines or ()
