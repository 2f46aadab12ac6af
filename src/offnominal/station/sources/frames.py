"""The newest frame of a camera, between the thread that reads it and those who wait for one."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import cv2
from numpy.typing import NDArray

from offnominal.errors import OffnominalError

__all__ = ["Device", "Frames", "NoPictureError", "Reader", "as_png"]

_LONGEST_PAUSE = 10.0  # seconds between two attempts to open a camera


class NoPictureError(OffnominalError):
    """The camera delivered no picture in time."""


def as_png(frame: NDArray[Any]) -> bytes:
    """A frame as PNG, with the least effort at compressing.

    What is judged, and kept, is what the camera saw: the blocks of a JPEG are texture that no good
    part has.

    Parameters
    ----------
    frame : ndarray, shape (H, W) or (H, W, 3), uint8 or uint16
        Colour is blue, green, red.
    """
    done, content = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise NoPictureError(f"a frame of shape {frame.shape} cannot be written as PNG")
    return content.tobytes()


class Frames:
    """What came last; to be used in the event loop, except for :meth:`put` and :meth:`say`."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.words = "not opened yet"
        """Why there is no connection; empty while there is one."""
        self.last: float | None = None
        """When the newest frame came, by the monotonic clock."""
        self.count = 0
        self.since: datetime | None = None
        self._loop = asyncio.get_running_loop()
        self._changed = changed
        self._waiting: list[asyncio.Future[NDArray[Any]]] = []
        self.arrived: Callable[[NDArray[Any]], None] | None = None
        """Called with each frame, if it is set."""
        self.ask: Callable[[], None] | None = None
        """Asks for a frame, of a camera that sends none by itself."""

    def put(self, frame: NDArray[Any]) -> None:
        """A frame is there; from any thread."""
        self._post(self._put, frame)

    def say(self, words: str) -> None:
        """Why there is no connection; from any thread."""
        self._post(self._say, words)

    def alive(self) -> None:
        """The camera answers, although there is no frame for anybody; from any thread."""
        self._post(self._alive)

    def _post(self, what: Callable[..., None], *given: Any) -> None:
        with suppress(RuntimeError):  # the event loop is over
            self._loop.call_soon_threadsafe(what, *given)

    def _alive(self) -> None:
        self.last, self.since, self.words = time.monotonic(), datetime.now().astimezone(), ""
        self._changed()

    def _put(self, frame: NDArray[Any]) -> None:
        self.count += 1
        self._alive()
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(frame)
        if self.arrived is not None:
            self.arrived(frame)

    def _say(self, words: str) -> None:
        self.words = words
        self._changed()

    async def next(self, seconds: float) -> NDArray[Any]:
        """The first frame that arrives from now on.

        Not the one that is there: it may have been taken before the part was.

        Raises
        ------
        NoPictureError
            If none arrives within so many seconds.
        """
        future: asyncio.Future[NDArray[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self.ask is not None:
            self.ask()
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            why = f": {self.words}" if self.words else ""
            raise NoPictureError(f"no picture within {seconds:g} s{why}") from None


class Device(Protocol):
    """A camera that was opened."""

    def read(self) -> NDArray[Any] | None:
        """The next frame; None: none yet.

        Raises
        ------
        NoPictureError
            If there will be none.
        """

    def close(self) -> None:
        """Let go of it."""


@dataclass(eq=False)
class Reader:
    """A thread that reads a camera and opens it again when it went away.

    Parameters
    ----------
    frames : Frames
    open : callable
        Opens the camera; raises a NoPictureError.
    name : str
    """

    frames: Frames
    open: Callable[[], Device]
    name: str

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End it; a camera that does not answer is left to itself."""
        self._stopping.set()
        await asyncio.to_thread(self._thread.join, 5)

    def _run(self) -> None:
        pause = 0.2
        while not self._stopping.is_set():
            device = None
            try:
                device = self.open()
                while not self._stopping.is_set():
                    frame = device.read()
                    if frame is not None:
                        pause = 0.2
                        self.frames.put(frame)
            except (NoPictureError, OSError, cv2.error, ValueError) as error:
                self.frames.say(str(error))
            finally:
                if device is not None:
                    device.close()
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
