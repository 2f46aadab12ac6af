"""What a process is told by the one that started it, and noticing that this one is gone."""

import os
import threading
from collections.abc import Callable

__all__ = ["standing_order"]


def standing_order(end: Callable[[], None]) -> str:
    """The first line of the standard input; ``end`` is called when that input ends.

    It ends with whoever holds the other side, in whatever way that one died.
    """
    pipe = os.dup(0)
    # Not by sys.stdin: a thread that waits in it holds its lock, and a library that forks then
    # waits for that lock for ever.
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    line = bytearray()
    while not line.endswith(b"\n") and (byte := os.read(pipe, 1)):
        line += byte

    def wait() -> None:
        while os.read(pipe, 4096):
            pass
        end()

    threading.Thread(target=wait, name="parent", daemon=True).start()
    return line.decode()
