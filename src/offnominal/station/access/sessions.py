"""Sessions of browsers: a random cookie, of which the database has the digest."""

import hashlib
import ipaddress
import secrets
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from fastapi import Request, Response
from sqlalchemy.orm import Session as Records

from offnominal.station.store.tables import Session, User

__all__ = ["begin", "drop", "end", "end_all", "find", "give", "is_secure", "token_of"]


def begin(session: Records, user: User, hours: float) -> str:
    """A new session of an account; what the cookie is to hold.

    Never one that the browser brought: who planted a cookie before the log-in does not know the
    one after it.
    """
    token = secrets.token_urlsafe(32)
    now = datetime.now(UTC)
    session.execute(sa.delete(Session).where(Session.expires <= now))
    session.add(
        Session(
            digest=_digest(token),
            user_id=user.id,
            csrf=secrets.token_urlsafe(32),
            created=now,
            expires=now + timedelta(hours=hours),
        )
    )
    session.flush()
    return token


def find(session: Records, request: Request) -> Session | None:
    """The session of a request, if it has one that is not over, of an account that may log in."""
    token = token_of(request)
    if not token:
        return None
    found = session.get(Session, _digest(token))
    if found is None or found.expires <= datetime.now(UTC) or found.user.disabled:
        return None
    return found


def end(session: Records, request: Request) -> None:
    """End the session of a request, if it has one."""
    if token := token_of(request):
        session.execute(sa.delete(Session).where(Session.digest == _digest(token)))


def end_all(session: Records, user: int) -> None:
    """End all sessions of an account."""
    session.execute(sa.delete(Session).where(Session.user_id == user))


def give(response: Response, request: Request, token: str, hours: float) -> None:
    """Put a session's cookie into a response.

    SameSite is Lax, not Strict: a link in a mail to a shift's report opens for who is logged in,
    and what is only looked at changes nothing. All else needs the session's CSRF token besides.
    """
    secure = is_secure(request)
    response.set_cookie(
        _name(secure),
        token,
        max_age=int(hours * 3600),
        path="/",
        secure=secure,
        httponly=True,
        samesite="lax",
    )


def drop(response: Response, request: Request) -> None:
    """Take the cookie away."""
    secure = is_secure(request)
    response.delete_cookie(_name(secure), path="/", secure=secure, httponly=True, samesite="lax")


def token_of(request: Request) -> str | None:
    """What the session's cookie holds, whoever made it."""
    return request.cookies.get(_name(is_secure(request)))


def is_secure(request: Request) -> bool:
    """Whether cookies are for TLS alone: always, but for plain HTTP to this machine itself."""
    if request.url.scheme == "https":
        return True
    host = (request.url.hostname or "").rstrip(".")
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost" and not host.endswith(".localhost")


def _name(secure: bool) -> str:
    # Browsers let no other host and no plain connection set a cookie with that prefix.
    return "__Host-offnominal" if secure else "offnominal"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
