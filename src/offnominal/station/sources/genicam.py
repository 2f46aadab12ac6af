"""GenICam cameras (GigE Vision, USB3 Vision) by Aravis, in a process of its own."""

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from offnominal.station.sources.frames import Frames, NoPictureError
from offnominal.station.sources.settings import FrameTrigger, GenicamSettings

__all__ = ["Genicam"]

_HELPER = Path(__file__).with_name("aravis.py")
# GenICam names the first two pixels of the first row, OpenCV those in the middle of the second.
_BAYER = {
    "BayerRG": cv2.COLOR_BayerBG2BGR,
    "BayerBG": cv2.COLOR_BayerRG2BGR,
    "BayerGR": cv2.COLOR_BayerGB2BGR,
    "BayerGB": cv2.COLOR_BayerGR2BGR,
}
_SHIFT = {"10": 6, "12": 4, "14": 2, "16": 0}  # to the full range of 16 bits


def as_array(content: bytes, width: int, height: int, form: str) -> NDArray[Any]:
    """A frame's bytes as an image: grey, or blue, green, red; 8 or 16 bits.

    Raises
    ------
    NoPictureError
        If the pixel format is none of those that are read.
    """
    name, bits = form.rstrip("0123456789"), form[len(form.rstrip("0123456789")) :]
    known = (name in ("Mono", *_BAYER) and bits in ("8", *_SHIFT)) or form in ("RGB8", "BGR8")
    if not known:
        raise NoPictureError(
            f'pixel format {form} is not read; set features = {{PixelFormat = "Mono8"}}, or '
            "Mono10, Mono12, Mono16, RGB8, BGR8 or a Bayer format"
        )
    kind = np.dtype(np.uint8) if bits == "8" else np.dtype("<u2")
    depth = 3 if form in ("RGB8", "BGR8") else 1
    count = width * height * depth
    if len(content) < count * kind.itemsize:
        raise NoPictureError(f"a frame of {width} x {height} has {len(content)} bytes only")
    pixels: NDArray[Any] = np.frombuffer(content, kind, count).reshape(
        height, width, *([3] * (depth == 3))
    )
    if bits != "8":
        pixels = (pixels << _SHIFT[bits]).astype(np.uint16)
    if name in _BAYER:
        return np.asarray(cv2.cvtColor(pixels, _BAYER[name]))
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)) if form == "RGB8" else pixels


class Genicam:
    """A camera that was opened; see :class:`~offnominal.station.sources.frames.Device`."""

    def __init__(self, settings: GenicamSettings, frames: Frames) -> None:
        self._frames = frames
        self._form = ""
        self._every = isinstance(settings.trigger, FrameTrigger)
        try:
            self._process = subprocess.Popen(
                [settings.python, "-I", _HELPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except OSError as error:
            raise NoPictureError(f"python = {settings.python}: {error.strerror}") from error
        told = {"device": settings.device, "features": settings.features, "every": self._every}
        self._write(json.dumps(told))
        frames.ask = None if self._every else self._ask

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def _ask(self) -> None:
        with suppress(OSError, ValueError):  # it ended; the reader hears of it
            self._write("next")

    def read(self) -> NDArray[Any] | None:
        """What the camera's process says next: a frame, or something else."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise NoPictureError(f"the camera's process ended ({self._process.wait()})")
        head = json.loads(line)
        if "error" in head:
            raise NoPictureError(head["error"])
        self._form = head.get("format", self._form)
        # A camera that waits for its own trigger is well without sending anything.
        if "alive" in head and (self._every or head["alive"]):
            self._frames.alive()
        if "bytes" not in head:
            return None
        content = self._process.stdout.read(head["bytes"])
        return as_array(content, head["width"], head["height"], self._form)

    def close(self) -> None:
        """End the camera's process, which lets go of the camera first."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(3)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
