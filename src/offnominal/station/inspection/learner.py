"""What takes longer than a verdict: fitting, growing, comparing, explaining; one by one."""

import asyncio
from collections.abc import Callable
from typing import Any

from offnominal.errors import OffnominalError
from offnominal.station.files import Files
from offnominal.station.inspection.client import Link, WorkerDiedError
from offnominal.station.inspection.process import LEARNER, start_worker
from offnominal.station.settings import Settings

__all__ = ["Learner", "Told"]

# Called with the stage and how many pictures it has done, in the event loop.
Told = Callable[[str, int], None]


class Learner:
    """A process beside those that judge, which work on while this one learns.

    Parameters
    ----------
    settings : Settings
    files : Files
    supervised : bool
        Whether somebody else starts the process, and starts it again.
    """

    def __init__(self, settings: Settings, files: Files, supervised: bool = False) -> None:
        start = None if supervised else lambda: start_worker(LEARNER, settings, files.folder)
        self.link = Link(files.folder, LEARNER, start, self._look)
        self._turn = asyncio.Lock()
        self._there = asyncio.Event()

    def _look(self) -> None:
        if self.link.connected:
            self._there.set()
        else:
            self._there.clear()

    async def stop(self) -> None:
        """End the process, if it was started here."""
        await self.link.stop()

    async def run(self, task: str, told: Told | None = None, **given: Any) -> dict[str, Any]:
        """Do one task and return what came of it, as JSON has it.

        ``fit(pictures, file, options)``, ``add(model, pictures, file)``,
        ``forget(model, references, file)``, ``threshold(model, value, file)``,
        ``facts(model)``, ``score(model, pictures)``, ``heat(model, picture, file)``,
        ``explain(model, picture, file)``. Names of files are within the station's folder; each new
        model is a new file. ``options`` are those of a method's constructor, and ``method``.

        What makes a model, and ``facts``, give what a :class:`Version` holds: ``digest``,
        ``threshold``, ``promise`` and ``facts``, whose ``references`` and ``good_scores`` the pages
        show; and ``unreadable``, a list of names and reasons of pictures that were left out.
        ``score`` gives ``scores``, one for each picture in order, with ``score``, ``is_anomalous``
        and ``p_value``, or ``error``. ``heat`` and ``explain`` write a PNG file, and give what
        ``Prediction.to_dict`` has; ``explain`` ``matches`` as well.

        Raises
        ------
        OffnominalError
            Whatever the task raised, in its words.
        """
        async with self._turn:
            self.link.wake()
            await self._there.wait()
            try:
                message = {"do": "task", "task": task, "given": given}
                answer, _ = await self.link.ask(message, progress=told)
            except WorkerDiedError as error:
                raise OffnominalError(
                    f"{task}: the process that learns ended before it was done, perhaps for want "
                    "of memory; nothing was changed, and it is started again: give fewer or "
                    "smaller pictures, or a lighter model"
                ) from error
        if "error" in answer:
            raise OffnominalError(answer["error"])
        done: dict[str, Any] = answer["done"]
        return done
