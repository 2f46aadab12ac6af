"""A camera: read all the time, asked by triggers, and missed where it sends nothing."""

import asyncio
import logging
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from numpy.typing import NDArray

from offnominal.station.sources.frames import Device, Frames, NoPictureError, Reader, as_png
from offnominal.station.sources.genicam import Genicam
from offnominal.station.sources.handing import Shot, hand_on
from offnominal.station.sources.opencv import Video
from offnominal.station.sources.settings import (
    CameraSettings,
    FrameTrigger,
    GenicamSettings,
    TriggerSettings,
)
from offnominal.station.sources.trigger import Fired, watch
from offnominal.station.station import Station
from offnominal.station.store.tables import Inspection

__all__ = ["Camera"]

log = logging.getLogger(__name__)

_MOST = 32  # pictures that may wait to be inspected; of parts beyond it there is none


class Camera:
    """A camera of the station; made in the event loop.

    Parameters
    ----------
    station : Station
    settings : CameraSettings or GenicamSettings
    """

    def __init__(self, station: Station, settings: CameraSettings | GenicamSettings) -> None:
        self.station, self.settings = station, settings
        self.frames = Frames(self._look)
        self._fact = f"source {settings.name}"
        self._opened = time.monotonic()
        self._tasks: set[asyncio.Task[Inspection]] = set()

    async def run(self) -> None:
        """Read the camera and listen to its trigger until cancelled."""
        settings = self.settings
        if isinstance(settings.trigger, FrameTrigger):
            self.frames.arrived = self._arrived
        self.station.state.tell(self._fact, False, "not opened yet")
        reader = Reader(self.frames, self._open, self._fact)
        self.station.triggers[settings.name] = self.trigger
        self.station.looks[settings.name] = self.look
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_looking())
                if settings.trigger is not None:
                    group.create_task(self._listen(settings.trigger))
        finally:
            self.station.triggers.pop(settings.name, None)
            self.station.looks.pop(settings.name, None)
            await reader.stop()

    def _open(self) -> Device:
        if isinstance(self.settings, GenicamSettings):
            return Genicam(self.settings, self.frames)
        return Video(self.settings)

    # -- what is known of it ------------------------------------------------------------------

    async def _keep_looking(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(0.5)

    def _look(self) -> None:
        """Say how it is: all is well where frames come, or where it waits for its own trigger."""
        frames = self.frames
        limit = max(2.0, self.settings.wait)
        own = isinstance(self.settings.trigger, FrameTrigger)
        late = not own and time.monotonic() - (frames.last or self._opened) > limit
        if not late and not frames.words:
            self.station.state.tell(self._fact, True)
            return
        when = f"no picture since {frames.since:%H:%M:%S}" if frames.since else "no picture yet"
        why = f" ({frames.words})" if frames.words else ""
        self.station.state.tell(self._fact, False, when + why)

    # -- pictures -----------------------------------------------------------------------------

    async def trigger(self, serial: str | None = None) -> Inspection:
        """Take a picture and have it inspected; the stored result.

        A camera that sends none in time is inspected as well, and the line is told to be careful.

        Raises
        ------
        OptionError
            If there is no product to inspect.
        """
        return await asyncio.shield(await self.take(serial))

    async def look(self) -> bytes:
        """A picture, as PNG, to learn from: nobody judges it.

        Raises
        ------
        NoPictureError
            If none comes in time.
        """
        return await asyncio.to_thread(as_png, await self.frames.next(self.settings.wait))

    async def take(self, serial: str | None = None) -> "asyncio.Task[Inspection]":
        """Take a picture; the task has it inspected."""
        received = datetime.now(UTC)
        frame, trouble = None, ""
        try:
            frame = await self.frames.next(self.settings.wait)
        except NoPictureError as error:
            trouble = str(error)
        return self._hand_on(frame, trouble, serial, received)

    def _arrived(self, frame: NDArray[Any]) -> None:
        self._hand_on(frame, "", None, datetime.now(UTC))

    def _hand_on(
        self, frame: NDArray[Any] | None, trouble: str, serial: str | None, received: datetime
    ) -> "asyncio.Task[Inspection]":
        if len(self._tasks) >= _MOST:
            frame, trouble = None, f"{_MOST} pictures wait already"
        task = asyncio.create_task(self._inspect(frame, trouble, serial, received))
        self._tasks.add(task)
        task.add_done_callback(self._inspected)
        return task

    async def _inspect(
        self, frame: NDArray[Any] | None, trouble: str, serial: str | None, received: datetime
    ) -> Inspection:
        image = await asyncio.to_thread(as_png, frame) if frame is not None else None
        shot = Shot(uuid.uuid4().hex, image, trouble, serial, received=received)
        return await hand_on(self.station, self.settings, shot)

    def _inspected(self, task: "asyncio.Task[Inspection]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: %s", self._fact, error)

    async def _listen(self, trigger: TriggerSettings) -> None:
        async def fire(fired: Fired) -> None:
            await self.take(fired.serial)

        await watch(self.station, self.settings.name, trigger, fire)
