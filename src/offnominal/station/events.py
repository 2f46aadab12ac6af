"""What happens now, to those who watch: pages that are open, and outputs that beat."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Event", "Events"]

_BACKLOG = 256  # events that a slow watcher may be behind; older ones are dropped


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes
    ----------
    kind : str
        ``inspection`` (data: its id, product, verdict, told, source, and the whole ``message``, as
        outputs send it), ``label``, ``version``, ``job``, ``state``.
    data : dict
        As JSON takes it. Watchers look up what they need: this is a sign, not the record.
    """

    kind: str
    data: dict[str, Any]


class Events:
    """Handing events to whoever watches, within the web process and its event loop."""

    def __init__(self) -> None:
        self._watchers: set[asyncio.Queue[Event]] = set()

    def publish(self, kind: str, **data: Any) -> None:
        """Tell all watchers; nobody waits. To be called in the event loop."""
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(Event(kind, data))

    @contextmanager
    def watching(self) -> Iterator["asyncio.Queue[Event]"]:
        """A queue of what happens while the block lasts."""
        queue: asyncio.Queue[Event] = asyncio.Queue(_BACKLOG)
        self._watchers.add(queue)
        try:
            yield queue
        finally:
            self._watchers.discard(queue)
