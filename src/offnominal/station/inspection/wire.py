"""How the web process and a worker talk: JSON and raw bytes over a socket in the station's folder.

Never a pickle: what arrives is data, whoever sent it. Both sides prove that they know the key in
the folder before anything is read.
"""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from offnominal.atomic import replacing

__all__ = ["Message", "connect", "key_of", "listening", "receive", "send"]

Message = tuple[dict[str, Any], bytes | None]

_LONGEST_PATH = 100  # bytes; the system's own limit for a socket is 104 to 108
_LARGEST = 2**30  # bytes of a message


def key_of(folder: Path) -> bytes:
    """The key that the processes of a station share, made where there is none."""
    path = folder / "run" / "key"
    path.parent.mkdir(exist_ok=True, mode=0o700)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        with replacing(path) as temporary:
            temporary.chmod(0o600)
            temporary.write_bytes(secrets.token_bytes(32))
        path.chmod(0o600)
        return path.read_bytes()


@contextmanager
def _address(folder: Path, name: str) -> Iterator[str]:
    """The address of a worker's socket; by way of an open folder, where its path is too long."""
    place = folder / "run"
    place.mkdir(exist_ok=True, mode=0o700)
    path = f"{place}/{name}"
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield path
        return
    open_folder = os.open(place, os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{open_folder}/{name}"
    finally:
        os.close(open_folder)


@contextmanager
def listening(folder: Path, name: str) -> Iterator[Listener]:
    """A socket that takes who knows the key; what an earlier process left there goes."""
    (folder / "run" / name).unlink(missing_ok=True)
    with _address(folder, name) as address:
        listener = Listener(address, family="AF_UNIX", backlog=8, authkey=key_of(folder))
        try:
            yield listener
        finally:
            listener.close()


def connect(folder: Path, name: str) -> Connection:
    """The other end of a worker's socket.

    Raises
    ------
    OSError
        If nobody listens there.
    """
    with _address(folder, name) as address:
        return Client(address, family="AF_UNIX", authkey=key_of(folder))


def send(connection: Connection, message: Mapping[str, Any], content: bytes | None = None) -> None:
    """Send a message, and bytes with it."""
    head = dict(message) | ({"content": True} if content is not None else {})
    connection.send_bytes(json.dumps(head, allow_nan=False).encode())
    if content is not None:
        connection.send_bytes(content)


def receive(connection: Connection) -> Message:
    """The next message.

    Raises
    ------
    EOFError, OSError
        If the other side is gone.
    """
    head: dict[str, Any] = json.loads(connection.recv_bytes(_LARGEST))
    content = connection.recv_bytes(_LARGEST) if head.pop("content", False) else None
    return head, content
