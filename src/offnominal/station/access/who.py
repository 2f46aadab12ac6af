"""Who asks, and whether they may."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlsplit

import sqlalchemy as sa
from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from offnominal.station.access import sessions
from offnominal.station.access.accounts import any_account
from offnominal.station.access.roles import ROLES, SCOPES, Role, Scope, reaches
from offnominal.station.language import _
from offnominal.station.station import Station
from offnominal.station.store.tables import Base, Token

__all__ = ["Role", "Scope", "Who", "allowed", "known", "local", "scoped"]

_UNCHANGING = ("GET", "HEAD")
_USED = timedelta(minutes=1)  # how exactly the last use of a token is told
# Asked with every picture, so that it is built once, and of tables rather than of objects.
_TOKENS, _USERS = Base.metadata.tables["tokens"].c, Base.metadata.tables["users"].c
_TOKEN = sa.select(
    *(_TOKENS.id, _TOKENS.name, _TOKENS.scopes, _TOKENS.expires, _TOKENS.revoked),
    *(_TOKENS.last_used, _USERS.role, _USERS.disabled),
).where(_TOKENS.digest == sa.bindparam("digest"), _USERS.id == _TOKENS.user_id)


@dataclass(frozen=True)
class Who:
    """Who asks.

    Attributes
    ----------
    name : str
        As records have it: a user's name, or ``token NAME``.
    role : Role
    user : int or None
        None of a token.
    csrf : str
        What forms of this session carry; empty of a token.
    language : str or None
    scopes : frozenset of str
        Of a token; of a session, those of its role.
    """

    name: str
    role: Role
    user: int | None = None
    csrf: str = ""
    language: str | None = None
    scopes: frozenset[str] = frozenset()


def allowed(role: Role) -> Callable[[Request], Awaitable[Who]]:
    """A dependency of pages: the one who asks, with this role at least.

    Who is not logged in is led to the log-in page; who may not gets 403. What changes anything
    (all methods but GET and HEAD) is refused without the session's CSRF token, in the form's field
    ``csrf`` or the header ``X-CSRF-Token``.
    """

    async def check(request: Request) -> Who:
        who = await known(request)
        if who is None or who.user is None:
            raise await _led_to_log_in(request)
        await _check_csrf(request, who)
        if not reaches(who.role, role):
            raise HTTPException(403, _("Your account may not do this: ask an administrator."))
        return who

    return check


def scoped(scope: Scope) -> Callable[[Request], Awaitable[Who]]:
    """A dependency of the API: a token with this scope, or a session as :func:`allowed` has it."""

    async def check(request: Request) -> Who:
        who = await known(request)
        if who is None:
            raise HTTPException(
                401,
                "no token, or one that is unknown, expired or revoked: send "
                "`Authorization: Bearer TOKEN`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if who.user is not None:
            await _check_csrf(request, who)
        if scope not in who.scopes:
            raise HTTPException(403, f"this needs the scope {scope}, which is not given to you")
        return who

    return check


async def known(request: Request) -> Who | None:
    """Who asks, if anybody known; looked up once for each request.

    A token in the header ``Authorization`` goes before a cookie, and where it is wrong nothing
    else is tried.
    """
    if not hasattr(request.state, "who"):
        request.state.who = await run_in_threadpool(_look_up, request)
    who: Who | None = request.state.who
    return who


def local(place: str | None) -> str:
    """A path of this station to go to, or ``/`` for anything that could lead elsewhere."""
    place = place or "/"
    odd = any(ord(letter) <= 32 or ord(letter) == 127 or letter == "\\" for letter in place)
    if odd or not place.startswith("/") or place.startswith("//"):
        return "/"
    try:
        parts = urlsplit(place)
    except ValueError:
        return "/"
    return "/" if parts.scheme or parts.netloc else place


def _look_up(request: Request) -> Who | None:
    station: Station = request.app.state.station
    header = request.headers.get("authorization")
    if header is not None:
        kind, _space, token = header.partition(" ")
        return _of_token(station, token.strip()) if kind.lower() == "bearer" else None
    if not sessions.token_of(request):
        return None
    with station.database.reading() as session:
        found = sessions.find(session, request)
        if found is None:
            return None
        user = found.user
        scopes = frozenset(scope for scope, role in SCOPES.items() if reaches(user.role, role))
        role = next(role for role in ROLES if role == user.role)
        return Who(user.name, role, user.id, found.csrf, user.language, scopes)


def _of_token(station: Station, token: str) -> Who | None:
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
    now = datetime.now(UTC)
    with station.database.engine.connect() as connection:
        row = connection.execute(_TOKEN, {"digest": digest}).one_or_none()
    if row is None or row.revoked or row.disabled:
        return None
    if row.expires is not None and row.expires <= now:
        return None
    if row.last_used is None or row.last_used < now - _USED:
        with station.database.writing() as session:
            session.execute(sa.update(Token).where(Token.id == row.id).values(last_used=now))
    # What its owner may not do, or may do no more, a token cannot.
    scopes = frozenset(
        scope for scope, role in SCOPES.items() if scope in row.scopes and reaches(row.role, role)
    )
    role: Role = "engineer" if "manage" in scopes else "operator"
    return Who(f"token {row.name}", role, scopes=scopes)


async def _led_to_log_in(request: Request) -> HTTPException:
    station: Station = request.app.state.station

    def set_up() -> bool:
        with station.database.reading() as session:
            return any_account(session)

    if not await run_in_threadpool(set_up):
        place = "/setup"
    elif request.method in _UNCHANGING:
        query = f"?{request.url.query}" if request.url.query else ""
        place = f"/login?next={quote(request.url.path + query, safe='/')}"
    else:
        place = "/login"
    words = _("Log in to see this.")
    if request.headers.get("hx-request"):
        return HTTPException(401, words, headers={"HX-Redirect": place})
    # A picture or a stream of events has no use for the log-in page.
    if request.headers.get("sec-fetch-mode", "navigate") != "navigate":
        return HTTPException(401, words)
    return HTTPException(303, words, headers={"Location": place})


async def _check_csrf(request: Request, who: Who) -> None:
    if request.method in _UNCHANGING:
        return
    given = request.headers.get("x-csrf-token")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given is None and kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        form: FormData = await request.form()
        field = form.get("csrf")
        given = field if isinstance(field, str) else None
    if given is None or not hmac.compare_digest(given.encode(), who.csrf.encode()):
        raise HTTPException(
            403, _("This form is not of your session any more: load the page again.")
        )
