"""Files that appear whole or not at all."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offnominal.errors import OptionError

__all__ = ["replacing", "write_atomically"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside a path, which takes its place when the block ends without an error.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    OSError
        If it cannot be made, or cannot take the place.
    """
    # Named before it is made, so that a Ctrl-C at any point finds something to remove.
    temporary = path.absolute().with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file in one step, so that a half-written one is never seen.

    Raises
    ------
    OptionError
        If it cannot be written.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise OptionError(f"{path}: cannot be written ({error.strerror}); name another") from error
