"""What browsers are told to keep to, on every answer. Streams pass as they come."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Headers"]

_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'"
)
_ALWAYS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with that, browsers send forms without saying where they come from.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TLS = "max-age=31536000"


class Headers:
    """Pure ASGI, since it must hold back nothing of what is sent bit by bit.

    Parameters
    ----------
    app : ASGI application
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and its answer with more headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    if name != "Referrer-Policy" or headers.get(name) != "no-referrer":
                        headers[name] = value
                if scope["scheme"] == "https":
                    headers["Strict-Transport-Security"] = _TLS
                headers["Cache-Control"] = _kept(scope["path"], headers.get("cache-control", ""))
            await send(message)

        await self.app(scope, receive, sending)


def _kept(path: str, asked: str) -> str:
    """Who may keep an answer: a browser its own, where the page says so; nobody in between."""
    if path.startswith("/static/"):
        return "no-cache"  # asked about each time, and sent if it changed
    return asked if asked.startswith(("private", "no-store")) else "no-store"
