"""Where something is written to that is sent at the same time."""

import io
from typing import Any

__all__ = ["Sink"]


class Sink(io.RawIOBase):
    """A file that cannot be gone back in, taken from as it grows."""

    def __init__(self) -> None:
        self._held, self._at = bytearray(), 0

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """How much was written."""
        return self._at

    def write(self, content: Any) -> int:
        """Hold some more."""
        self._held += content
        self._at += len(content)
        return len(content)

    def take(self) -> bytes:
        """What was written since the last time."""
        held, self._held = bytes(self._held), bytearray()
        return held
