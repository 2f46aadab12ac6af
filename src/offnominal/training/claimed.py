"""The files of one training are its own while it lasts."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from offnominal.errors import OptionError
from offnominal.training.checkpoint import Files

__all__ = ["claimed", "output_file"]


@contextmanager
def claimed(files: Files) -> Iterator[None]:
    """Keep others from writing the same files for the length of the block, or until we die.

    Raises
    ------
    OptionError
        If another process is at it, or nothing can be written there.
    """
    path = files.learned.with_name(f".{files.learned.stem[:200]}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        told = "another process is training into it; wait for it, or name another file"
        raise OptionError(f"-o {files.learned}: {told}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise OptionError(f"-o {files.learned}: cannot be written ({reason})") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows refuses
            path.unlink()
        lock.release()


@contextmanager
def output_file(output: str | Path, overwrite: bool) -> Iterator[Path]:
    """The file that a training writes, which for the length of the block is ours alone.

    Raises
    ------
    OptionError
        If its name does not do, or it is there without a training that could go on; or as
        :func:`claimed` does.
    """
    path = Path(output)
    if path.suffix != ".safetensors" or not path.absolute().parent.is_dir():
        told = "name a file that ends in .safetensors, in a folder that exists"
        raise OptionError(f"-o {output}: {told}")
    files = Files(path)
    with claimed(files):
        if path.exists() and not overwrite and not files.state.exists():
            raise OptionError(f"-o {output}: exists; name another file, or give --overwrite")
        yield path
