"""A POST of JSON for each result, signed so that the receiver knows whom it is from."""

import hashlib
import hmac
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import certifi
import httpx

from offnominal._version import __version__
from offnominal.station.outputs.queue import Queue, Send, delivery_id, each
from offnominal.station.outputs.settings import WebhookSettings
from offnominal.station.station import Station

__all__ = ["run", "signature"]


def signature(secret: bytes, at: int, body: bytes) -> str:
    """Value of ``X-Offnominal-Signature``: HMAC-SHA256 of the time, a full stop, and the body."""
    digest = hmac.new(secret, f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


async def run(station: Station, settings: WebhookSettings) -> None:
    """Deliver until cancelled."""
    checked: ssl.SSLContext | bool = False  # where nothing is encrypted
    if settings.url.startswith("https"):  # read once: it takes longer than a delivery
        own = str(settings.ca) if settings.ca is not None else certifi.where()
        checked = ssl.create_default_context(cafile=own)

    @asynccontextmanager
    async def connect() -> AsyncIterator[Send]:
        # No proxies of the environment, no redirects: the address in the settings, or nobody.
        async with httpx.AsyncClient(
            timeout=settings.timeout, verify=checked, trust_env=False
        ) as client:

            async def post(message: dict[str, Any]) -> None:
                body = json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
                headers = {
                    "Content-Type": "application/json",
                    "User-Agent": f"offnominal/{__version__}",
                    "X-Offnominal-Delivery": delivery_id(settings.name, message["request"]),
                }
                if settings.secret is not None:
                    secret = settings.secret.get_secret_value().encode()
                    headers["X-Offnominal-Signature"] = signature(secret, int(time.time()), body)
                answer = await client.post(settings.url, content=body, headers=headers)
                if not answer.is_success:
                    raise ConnectionError(f"{settings.url} answered {answer.status_code}")

            yield lambda messages: each(messages, post)

    await Queue(station, settings).run(connect)
