"""USB cameras, network streams and video files, by OpenCV."""

import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from offnominal.station.sources.frames import NoPictureError
from offnominal.station.sources.settings import CameraSettings

__all__ = ["Video"]

_OPEN, _READ = 5000, 3000  # milliseconds after which a stream counts as gone


class Video:
    """A camera that was opened; see :class:`~offnominal.station.sources.frames.Device`.

    A file is played at its own pace, as a camera would send it.
    """

    def __init__(self, settings: CameraSettings) -> None:
        self._settings = settings
        self._file = isinstance(settings.device, str) and "://" not in settings.device
        if self._file and not Path(str(settings.device)).is_file():
            raise NoPictureError(f"{settings.device}: there is no such file")
        self._open()
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self._interval = 1 / rate if self._file and 0 < rate <= 1000 else 0.0
        self._next = time.monotonic()

    def _open(self) -> None:
        settings = self._settings
        if isinstance(settings.device, int):
            self._capture = cv2.VideoCapture(settings.device)
        else:
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ]
            self._capture = cv2.VideoCapture(str(settings.address), cv2.CAP_FFMPEG, limits)
        if not self._capture.isOpened():
            raise NoPictureError(f"{settings.device} cannot be opened")
        for name, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, settings.width),
            (cv2.CAP_PROP_FRAME_HEIGHT, settings.height),
        ):
            if value is not None:
                self._capture.set(name, value)
        # Frames that wait in the driver would be older than the part.
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def read(self) -> NDArray[Any]:
        """The next frame, blue, green, red."""
        if self._interval:
            self._next += self._interval
            time.sleep(max(0.0, self._next - time.monotonic()))
        there, frame = self._capture.read()
        if not there and self._file and self._settings.loop:
            self.close()
            self._open()
            there, frame = self._capture.read()
        if not there:
            ended = "is at its end" if self._file else "sends nothing any more"
            raise NoPictureError(f"{self._settings.device} {ended}")
        return np.asarray(frame)

    def close(self) -> None:
        """Let go of it."""
        self._capture.release()
