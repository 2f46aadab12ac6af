"""A real HTTP server on loopback that speaks the chat completions API, well or badly, as told.

Every request is held against the API: what OpenAI's reference does not know or does not allow is
refused with status 400 and noted in :attr:`ChatServer.problems`.
"""

import base64
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

GOOD = {
    "description": "a scratch in the middle",
    "boxes": [{"left": 0.25, "top": 0.5, "right": 0.5, "bottom": 0.75}],
    "anomalous": True,
    "confidence": 0.875,
}
FINE = {"description": "nothing is wrong", "boxes": [], "anomalous": False, "confidence": 0.75}

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "messages": list,
    "temperature": (int, float),
    "seed": int,
    "max_tokens": int,
    "max_completion_tokens": int,
    "top_p": (int, float),
    "response_format": dict,
}
_DATA_URL = re.compile(r"data:image/(jpeg|png|webp);base64,([A-Za-z0-9+/]+=*)")


@dataclass
class Request:
    """What arrived: when, with which headers, and the images in it, decoded."""

    at: float
    headers: dict[str, str]
    body: dict[str, Any]
    images: list[np.ndarray] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text of the first message."""
        parts = self.body["messages"][0]["content"]
        return "\n".join(part["text"] for part in parts if part["type"] == "text")

    @property
    def shade(self) -> int:
        """Mean value of the image that is asked about."""
        return round(float(self.images[-1].mean()))


Behaviour = Callable[["Handler", Request], None]


class ChatServer:
    """Answers request after request as the script says; its last entry holds for all further ones.

    Attributes
    ----------
    requests : list of Request
        In the order of their arrival.
    problems : list of str
        What was wrong with them.
    most_at_once : int
        Requests that were in work at the same time.
    """

    def __init__(self, *script: Behaviour) -> None:
        self.script = list(script)
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self.most_at_once = 0
        self.at_once = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.chat = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def endpoint(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def next_behaviour(self) -> Behaviour:
        """The script's next entry."""
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class _Server(ThreadingHTTPServer):
    chat: ChatServer
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests; nothing is printed."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        """Nobody should read anything here; a redirect that is followed would."""
        self.server.chat.problems.append(f"GET {self.path}")
        self.reply(405, {"error": {"message": "no such thing"}})

    def do_POST(self) -> None:
        """Check the request, and do what the script says."""
        chat = self.server.chat
        arrived = time.monotonic()
        length = int(self.headers["Content-Length"])
        content = self.rfile.read(length)
        if len(content) < length:  # whoever asked does not want to know any more
            self.close_connection = True
            return
        try:
            if self.path != "/v1/chat/completions":
                raise ValueError(f"path {self.path}")
            if self.headers["Content-Type"] != "application/json":
                raise ValueError(f"content type {self.headers['Content-Type']}")
            body = json.loads(content)
            request = Request(arrived, dict(self.headers.items()), body, check_body(body))
        except (ValueError, KeyError, TypeError, OSError) as error:
            chat.problems.append(f"{type(error).__name__}: {error}")
            self.reply(400, {"error": {"message": str(error), "type": "invalid_request_error"}})
            return
        with chat.lock:
            chat.requests.append(request)
            chat.at_once += 1
            chat.most_at_once = max(chat.most_at_once, chat.at_once)
            behaviour = chat.next_behaviour()
        try:
            behaviour(self, request)
        finally:
            with chat.lock:
                chat.at_once -= 1

    def reply(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        """Send a whole reply: bytes as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def check_body(body: dict[str, Any]) -> list[np.ndarray]:
    """The images of a request, or an error that says what the API would refuse."""
    for name, value in body.items():
        if name not in _FIELDS:
            raise ValueError(f"unknown field {name}")
        if not isinstance(value, _FIELDS[name]) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}")
    if not body["model"] or not body["messages"]:
        raise ValueError("model and messages are needed")
    images: list[np.ndarray] = []
    previous = "assistant"
    for message in body["messages"]:
        if message["role"] not in ("user", "assistant") or message["role"] == previous:
            raise ValueError(f"{message['role']} after {previous}: many templates refuse it")
        previous = message["role"]
        if isinstance(message["content"], str):
            if not message["content"]:
                raise ValueError("an empty message")
            continue
        for part in message["content"]:
            if set(part) != {"type", part["type"]}:
                raise ValueError(f"a part with fields {sorted(part)}")
            if part["type"] == "image_url":
                images.append(decode(part["image_url"]["url"]))
            elif part["type"] != "text" or not isinstance(part["text"], str):
                raise ValueError(f"a part of type {part['type']}")
    if previous != "user" or not images:
        raise ValueError("the last message is the user's, and there is an image")
    check_format(body.get("response_format"))
    return images


def decode(url: str) -> np.ndarray:
    """The picture in a data URL, which must be of the type that the URL says."""
    match = _DATA_URL.fullmatch(url)
    if match is None:
        raise ValueError(f"no data URL of an image: {url[:40]}")
    with Image.open(io.BytesIO(base64.b64decode(match[2], validate=True))) as picture:
        if (picture.format or "").lower() != match[1]:
            raise ValueError(f"{picture.format} called {match[1]}")
        return np.asarray(picture.convert("RGB"))


def check_format(wanted: dict[str, Any] | None) -> None:
    """Hold ``response_format`` against the API, and a schema against its strict mode."""
    if wanted in (None, {"type": "json_object"}, {"type": "text"}):
        return
    if set(wanted) != {"type", "json_schema"} or wanted["type"] != "json_schema":
        raise ValueError(f"response_format {wanted}")
    named = wanted["json_schema"]
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", named["name"]) or named["strict"] is not True:
        raise ValueError("a strict schema needs a name")
    check_strict(named["schema"])


def check_strict(schema: dict[str, Any]) -> None:
    """Every property required, none beside them, and no constraint that strict modes refuse."""
    allowed = {"type", "description", "properties", "required", "additionalProperties", "items"}
    if not set(schema) <= allowed:
        raise ValueError(f"not allowed in strict mode: {sorted(set(schema) - allowed)}")
    if schema["type"] == "object":
        if schema["additionalProperties"] is not False:
            raise ValueError("additionalProperties")
        if schema["required"] != list(schema["properties"]):
            raise ValueError("required")
        for each in schema["properties"].values():
            check_strict(each)
    elif schema["type"] == "array":
        check_strict(schema["items"])


# -- what a server may do ---------------------------------------------------------------------


def completion(content: str | None, ended: str = "stop", **message: Any) -> dict[str, Any]:
    """A reply as the API has it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "test",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content} | message,
                "finish_reason": ended,
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18},
    }


def says(content: str | None, ended: str = "stop", **message: Any) -> Behaviour:
    """Answer with this text."""
    return lambda handler, _: handler.reply(200, completion(content, ended, **message))


def answers(answer: dict[str, Any] = GOOD, **changes: Any) -> Behaviour:
    """Answer with this object, to the schema unless changed."""
    return says(json.dumps(answer | changes))


def of_shade(answer: Callable[[int], Behaviour]) -> Behaviour:
    """What the image's mean value asks for."""
    return lambda handler, request: answer(request.shade)(handler, request)


def sends(status: int, body: object, **headers: str) -> Behaviour:
    """Reply with this status, body and these headers (underscores for hyphens)."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, _: handler.reply(status, body, named)


def fails(status: int, message: str = "no", **headers: str) -> Behaviour:
    """Reply with an error as the API has it."""
    return sends(status, {"error": {"message": message, "type": "error"}}, **headers)


def after(seconds: float, behaviour: Behaviour) -> Behaviour:
    """Do it later."""

    def wait(handler: Handler, request: Request) -> None:
        if not handler.server.chat.closing.wait(seconds):
            behaviour(handler, request)

    return wait


def drops(handler: Handler, request: Request) -> None:
    """Hang up without a word."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def stops_halfway(handler: Handler, request: Request) -> None:
    """Promise more than is sent."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def is_no_http(handler: Handler, request: Request) -> None:
    """Say something that is not HTTP."""
    handler.wfile.write(b"\x00\xff220 mail.example ESMTP\r\n\r\n")
    handler.close_connection = True


def drips(handler: Handler, request: Request) -> None:
    """Send a byte now and then, without end: each is in time, and all of them never are."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.server.chat.closing.wait(0.02):
        handler.wfile.write(b" ")


def floods(handler: Handler, request: Request) -> None:
    """Stream garbage without end, as fast as it goes."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    line = b"data: {}\n\n" * 6554
    while not handler.server.chat.closing.is_set():
        handler.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
