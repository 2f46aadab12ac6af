"""Files that appear whole or not at all."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offnominal.errors import OptionError

__all__ = ["replacing", "write_atomically", "writing"]


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
    # Named before it is made, so that a Ctrl-C at any point finds something to remove; without the
    # path's own name, which may be as long as a name can be.
    temporary = path.absolute().with_name(f".offnominal-{secrets.token_hex(8)}")
    try:
        temporary.touch(exist_ok=False)
        rights = temporary.stat().st_mode & 0o777
        yield temporary
        temporary.chmod(rights)  # those of the umask, where a library wrote with others
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """:func:`replacing` for a file that the user named.

    Raises
    ------
    OptionError
        If it cannot be written: no right to, no room, a folder of that name, a name too long.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or str(error)
        raise OptionError(
            f"{path}: cannot be written ({reason}); what was there before is as it was"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file in one step, so that a half-written one is never seen.

    Raises
    ------
    OptionError
        If it cannot be written.
    """
    with writing(path) as temporary:
        temporary.write_bytes(content)
