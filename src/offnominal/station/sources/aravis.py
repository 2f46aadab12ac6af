"""Frames of a GenICam camera: run by the system's Python, imported by nobody.

PyGObject and Aravis's typelib come with the system and belong to its Python. A process of its own
also keeps faults of drivers away from the station, and ends what Aravis leaks with each camera.

Reads JSON lines: first ``{"device", "features", "every"}``, then ``next`` for each frame that is
wanted. Writes JSON lines: ``{"format"}`` when the camera runs, ``{"alive": frames}`` each second,
``{"error"}`` at the end, or ``{"width", "height", "bytes"}`` and the frame's bytes. Ends with its
input.
"""

import json
import os
import select
import sys
import time
from importlib import import_module
from typing import Any


def main() -> "str | None":
    """Open the camera once, and send what is asked for."""
    told = json.loads(sys.stdin.readline())
    try:
        import_module("gi").require_version("Aravis", "0.8")
        aravis: Any = import_module("gi.repository.Aravis")
    except (ImportError, ValueError) as error:
        return f"{error}; apt install gir1.2-aravis-0.8 python3-gi"
    try:
        camera = aravis.Camera.new(told["device"] or None)
        for name, value in told["features"].items():
            set_feature(camera, name, value)
        stream = camera.create_stream(None, None)
        size = camera.get_payload()
        for _ in range(8):
            stream.push_buffer(aravis.Buffer.new_allocate(size))
        lost: list[Any] = []
        camera.get_device().connect("control-lost", lambda device: lost.append(device))
        send({"format": camera.get_pixel_format_as_string()})
        camera.start_acquisition()
    except Exception as error:  # of GLib, whose classes are only known where it is
        return str(error)
    os.set_blocking(0, False)
    wanted, beat, frames = 0, 0.0, 0
    while not lost:
        readable = select.select([0], [], [], 0)[0]
        if readable:
            asked = os.read(0, 4096)
            if not asked:
                return None
            wanted += asked.count(b"\n")
        if time.monotonic() > beat:
            send({"alive": frames})
            beat, frames = time.monotonic() + 1, 0
        buffer = stream.timeout_pop_buffer(50_000)  # microseconds
        if buffer is None:
            continue
        whole = buffer.get_status() == aravis.BufferStatus.SUCCESS
        frames += whole
        if whole and (wanted or told["every"]):
            head = {"width": buffer.get_image_width(), "height": buffer.get_image_height()}
            send(head, buffer.get_data())
            wanted = 0
        stream.push_buffer(buffer)
    return "the connection to the camera was lost"


def set_feature(camera: Any, name: str, value: Any) -> None:
    """By the type that it has in the settings."""
    device = camera.get_device()
    if isinstance(value, bool):
        device.set_boolean_feature_value(name, value)
    elif isinstance(value, str):
        device.set_string_feature_value(name, value)
    elif isinstance(value, float) or "Float" in type(device.get_feature(name)).__name__:
        device.set_float_feature_value(name, float(value))
    else:
        device.set_integer_feature_value(name, value)


def send(head: "dict[str, Any]", content: bytes = b"") -> None:
    """A line, and what it announces."""
    if content:
        head["bytes"] = len(content)
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + content)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    failed = main()
    if failed:
        send({"error": failed})
    sys.exit(1 if failed else 0)
