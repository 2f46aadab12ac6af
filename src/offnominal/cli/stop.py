"""What a stop leaves, said by the commands that know it best."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from offnominal.cli.terminal import say

__all__ = ["telling"]


@contextmanager
def telling(kept: Callable[[], str]) -> Iterator[None]:
    """Say what was kept, if Ctrl-C or a signal ends the block."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        say(f"stopped; {kept()}")
        stop.told = True  # type: ignore[union-attr]  # for whoever catches it last
        raise
