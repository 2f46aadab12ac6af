"""The language of whoever asks: catalogues by babel, read as they stand."""

from contextvars import ContextVar
from functools import cache
from gettext import NullTranslations
from io import BytesIO
from pathlib import Path

from babel.core import negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import Translations
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = [
    "LANGUAGES",
    "Speaking",
    "_",
    "asked_for",
    "catalogue",
    "ngettext",
    "remember",
    "speaking",
]

LANGUAGES = {"en": "English", "de": "Deutsch", "zh": "中文", "ja": "日本語"}
_LOCALE = Path(__file__).parent / "locale"
_COOKIE = "language"
_YEAR = 365 * 24 * 3600

speaking: ContextVar[str] = ContextVar("speaking", default="en")
"""The language of the request that is being answered."""


@cache
def catalogue(language: str) -> NullTranslations:
    """A language's sentences; English ones are in the code."""
    path = _LOCALE / f"{language}.po"
    if not path.exists():
        return NullTranslations()
    compiled = BytesIO()
    with path.open("rb") as file:
        write_mo(compiled, read_po(file, locale=language))
    compiled.seek(0)
    return Translations(compiled)


def _(sentence: str) -> str:
    """A sentence in the language of the request."""
    return catalogue(speaking.get()).gettext(sentence) if sentence else ""


def ngettext(one: str, many: str, count: int) -> str:
    """A sentence for a number of things, in that language's plural form."""
    return catalogue(speaking.get()).ngettext(one, many, count)


def asked_for(accepted: str, otherwise: str) -> str:
    """Of a browser's list of languages the first that there is.

    Parameters
    ----------
    accepted : str
        As the header Accept-Language has it: ``de-AT,de;q=0.9,en;q=0.5``.
    otherwise : str
    """
    wanted: list[tuple[float, str]] = []
    for part in accepted.split(","):
        name, _semicolon, weight = part.strip().partition(";q=")
        try:
            wanted.append((-float(weight or 1), name.strip()))
        except ValueError:  # no number: a browser that does not know what it wants
            continue
    names = [name for weight, name in sorted(wanted, key=lambda one: one[0]) if weight < 0 and name]
    return negotiate_locale(names, list(LANGUAGES), sep="-") or otherwise


class Speaking:
    """Middleware: the language of each request.

    The cookie says what its reader chose, on this machine or, by the log-in, for their account;
    then the browser is asked, then the settings.
    """

    def __init__(self, app: ASGIApp, otherwise: str = "en") -> None:
        self.app, self.otherwise = app, otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request in its language."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asks = HTTPConnection(scope)
        chosen = asks.cookies.get(_COOKIE, "")
        if chosen not in LANGUAGES:
            chosen = asked_for(asks.headers.get("accept-language", ""), self.otherwise)
        before = speaking.set(chosen)
        try:
            await self.app(scope, receive, send)
        finally:
            speaking.reset(before)


def remember(response: Response, language: str | None, secure: bool) -> None:
    """Let a browser keep a language; for the log-in, which knows the account's."""
    if language in LANGUAGES:
        how = {"samesite": "lax", "httponly": True, "secure": secure, "max_age": _YEAR}
        response.set_cookie(_COOKIE, str(language), **how)  # type: ignore[arg-type]  # each of its own type
