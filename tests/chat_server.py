"""A real HTTP server on loopback that speaks the chat completions API, well or badly, as told."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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

_FIELDS = {
    "model", "messages", "temperature", "seed", "max_tokens", "max_completion_tokens", "top_p",
    "response_format",
}  # fmt: skip
_URL = "data:image/jpeg;base64,"


@dataclass
class Request:
    """What arrived: when, with which headers, and the images in it, decoded."""

    at: float
    headers: dict[str, str]
    body: dict[str, Any]
    images: list[np.ndarray]

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


class ChatServer(ThreadingHTTPServer):
    """Answers request after request as the script says; its last entry holds for all further ones.

    Attributes
    ----------
    requests : list of Request
        In the order of their arrival.
    problems : list of str
        What the API would have refused in them.
    most_at_once : int
        Requests that were in work at the same time.
    """

    daemon_threads = True

    def __init__(self, *script: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}/v1"
        self.script = list(script)
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self.at_once = self.most_at_once = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests; nothing is printed."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: ChatServer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        """Nobody should read anything here; a redirect that is followed would."""
        self.server.problems.append(f"GET {self.path}")
        self.reply(405, {"error": {"message": "no such thing"}})

    def do_POST(self) -> None:
        """Check the request, and do what the script says."""
        chat, arrived = self.server, time.monotonic()
        length = int(self.headers["Content-Length"])
        content = self.rfile.read(length)
        if len(content) < length:  # whoever asked does not want to know any more
            self.close_connection = True
            return
        try:
            assert self.path == "/v1/chat/completions", self.path
            body = json.loads(content)
            request = Request(arrived, dict(self.headers.items()), body, check_body(body))
        except (ValueError, KeyError, TypeError, OSError, AssertionError) as error:
            chat.problems.append(f"{type(error).__name__}: {error}")
            self.reply(400, {"error": {"message": str(error)}})
            return
        with chat.lock:
            chat.requests.append(request)
            chat.at_once += 1
            chat.most_at_once = max(chat.most_at_once, chat.at_once)
            behaviour = chat.script.pop(0) if len(chat.script) > 1 else chat.script[0]
        try:
            behaviour(self, request)
        finally:
            with chat.lock:
                chat.at_once -= 1

    def reply(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        """Send a whole reply: bytes as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        # What the client library waits where the server does not say is its own affair.
        named = {"Content-Length": str(len(content)), "Retry-After-Ms": "5"} | (headers or {})
        self.send_response(status)
        for name, value in named.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def check_body(body: dict[str, Any]) -> list[np.ndarray]:
    """The images of a request, or an error that says what the API would refuse."""
    assert set(body) <= _FIELDS, sorted(body)
    wanted = body.get("response_format", {"type": "text"})
    assert set(wanted) == {"type", "json_schema"} - ({"json_schema"} - {wanted["type"]}), wanted
    roles = [message["role"] for message in body["messages"]]
    turns = ["user", "assistant"] * len(roles)
    assert roles == turns[: len(roles)], "many templates refuse roles that do not take turns"
    assert roles[-1] == "user"
    images = []
    for part in body["messages"][0]["content"]:
        assert set(part) == {"type", part["type"]}, sorted(part)
        if part["type"] == "image_url":
            url = part["image_url"]["url"]
            assert url.startswith(_URL), url[:40]
            jpeg = io.BytesIO(base64.b64decode(url.removeprefix(_URL), validate=True))
            images.append(np.asarray(Image.open(jpeg, formats=["JPEG"])))
    return images


# -- what a server may do ---------------------------------------------------------------------


def says(content: str | None, ended: str = "stop", **message: Any) -> Behaviour:
    """Answer with this text."""
    told = {"role": "assistant", "content": content} | message
    choice = {"index": 0, "message": told, "finish_reason": ended}
    named = {"id": "1", "object": "chat.completion", "created": 1, "model": "test"}
    return sends(200, named | {"choices": [choice]}, Content_Type="application/json")


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
        if not handler.server.closing.wait(seconds):
            behaviour(handler, request)

    return wait


def drops(handler: Handler, request: Request) -> None:
    """Hang up without a word."""
    handler.close_connection = True


def drips(handler: Handler, request: Request) -> None:
    """Send a byte now and then, without end: each is in time, and all of them never are."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.server.closing.wait(0.02):
        handler.wfile.write(b" ")
