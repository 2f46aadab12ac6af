"""What is refused before anybody reads it: foreign names, foreign pages, and too much.

In this order: the name that a browser asked for (a page elsewhere can make a name of its own lead
to this machine), where a form comes from, and how much of it there is. A body is bounded while it
is read, with or without a length; who is not known may send no more than a log-in takes.
"""

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from offnominal.station.access.who import known
from offnominal.station.settings import Settings

__all__ = ["Limits", "TooLargeError", "is_local"]

Refuse = Callable[[Request, Exception], Awaitable[ASGIApp]]

STRANGERS = 64 * 1024
"""Bytes of a body from somebody who is not known."""
TEXT = 2**20
"""Bytes of a body that is neither a picture nor has files."""
FORM = 4 * 2**30
"""Bytes of a form with files, however many of the settings' pictures that may be."""
FIELDS = 200
"""Parts of a form beside its files."""
_CHANGING = ("POST", "PUT", "PATCH", "DELETE")


class TooLargeError(HTTPException):
    """A body is larger than it may be."""

    def __init__(self, most: int, stranger: bool = False) -> None:
        # What is left of the body is not read: the connection ends with the answer.
        told = {"Connection": "close"}
        words = f"more than the {most} bytes that are taken"
        if stranger:
            words += " without a valid session or token; log in, or send `Authorization: Bearer`"
        super().__init__(413, words, told)


class Limits:
    """Pure ASGI; answers by itself what it refuses.

    Parameters
    ----------
    app : ASGI application
    settings : Settings
    refuse : callable
        Makes an answer of an error, for the request at hand: of one that nobody expected, too.
    """

    def __init__(self, app: ASGIApp, settings: Settings, refuse: Refuse) -> None:
        self.app, self.settings, self.refuse = app, settings, refuse
        self.names = {"localhost", *(name.lower() for name in settings.names)}
        if settings.host not in ("", "0.0.0.0", "::"):
            self.names.add(settings.host.lower())
        if not is_local(settings.host):
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or say why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, headers = Request(scope, receive), Headers(scope=scope)
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            self._check_host(headers)
            _check_text(scope)
            _check_origin(scope, headers)
            counted = await self._bounded(request, receive)
            await self.app(scope, counted, sending)
        except Exception as error:
            if begun:
                raise
            answer = await self.refuse(request, error)
            await answer(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        name = _name(headers.get("host", ""))
        if name is None or len(headers.getlist("host")) != 1:
            raise HTTPException(400, "a request names one host")
        try:
            ipaddress.ip_address(name)  # nobody's name server can make one lead here
        except ValueError:
            if name.rstrip(".") not in self.names:
                raise HTTPException(
                    421,
                    f"this station does not answer to the name {name[:100]}: if it should, list it "
                    "under `names` in its settings",
                ) from None

    async def _bounded(self, request: Request, receive: Receive) -> Receive:
        """How to receive no more than is taken of this request."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        length = request.headers.get("content-length")
        if length is None and "transfer-encoding" not in request.headers:
            return receive
        most = self._most(kind)
        declared = int(length) if length is not None and length.isdecimal() else None
        large = declared is None or declared > STRANGERS
        stranger = large and await known(request) is None
        if stranger:
            most = STRANGERS
        if declared is not None and declared > most:
            raise TooLargeError(most, stranger)
        parts = _Parts(request.headers.get("content-type", ""))
        files, got = self.settings.upload_files + FIELDS, 0

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            if message["type"] == "http.request":
                body = message.get("body", b"")
                got += len(body)
                if got > most:
                    raise TooLargeError(most, stranger)
                if parts.count(body) > files:
                    raise HTTPException(413, f"more than the {files} parts that are taken")
            return message

        return counted

    def _most(self, kind: str) -> int:
        if kind == "multipart/form-data":
            return (
                max(
                    min(self.settings.upload_bytes * self.settings.upload_files, FORM),
                    self.settings.model_bytes,
                )
                + TEXT
            )
        if kind in ("application/x-www-form-urlencoded", "application/json", "text/plain"):
            return TEXT
        return self.settings.upload_bytes


class _Parts:
    """How many parts of a form have gone by."""

    def __init__(self, kind: str) -> None:
        mark = kind.partition("boundary=")[2].partition(";")[0].strip().strip('"')
        self.mark = b"--" + mark.encode() if kind.startswith("multipart/") and mark else b""
        self.tail, self.found = b"", 0

    def count(self, body: bytes) -> int:
        if self.mark:
            text = self.tail + body
            self.found += text.count(self.mark)
            # So much as cannot be a whole one, that was counted.
            self.tail = text[-(len(self.mark) - 1) :]
        return self.found


def is_local(host: str) -> bool:
    """Whether who listens there is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_text(scope: Scope) -> None:
    # No name, serial number or path has one, and PostgreSQL takes none.
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        raise HTTPException(400, "a zero byte in the address")


def _check_origin(scope: Scope, headers: Headers) -> None:
    """Refuse what another site's page sends, where the browser tells: log-in forms as well."""
    if scope["method"] not in _CHANGING:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    elif origin is not None:
        foreign = urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    else:
        foreign = False  # no browser: it brings no cookies that it was not given
    if foreign:
        raise HTTPException(403, "sent by a page of another site")


def _name(host: str) -> str | None:
    """The name or address in a header ``Host``, in lower case; None of what is no such header."""
    if not 0 < len(host) < 300 or any(letter in host for letter in "/\\@?# \t"):
        return None
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname if parts.port is None or parts.port >= 0 else None
    except ValueError:
        return None
