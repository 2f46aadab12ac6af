"""Logging in: guesses are counted, and nobody else can keep you out.

Three counts. By address, ten failures in five minutes: then that address waits. By name, whether
there is such an account or not, five within half a minute, so that many at once are few. And by
account, in the database: from the fifth failure on it is locked, 30 seconds at first, twice as
long each time, 15 minutes at most.

A lock that anybody can bring about could keep everybody out. So a browser that has logged in to an
account before holds a second cookie, signed by the station and good for that account and its
present password: it is neither stopped by the lock nor counted by address, and its own failures
are counted by themselves. What is answered, and how long that takes, is the same for a wrong
password, a locked account, a disabled one and a name that does not exist.
"""

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from offnominal.errors import OffnominalError
from offnominal.station.access import audit, passwords, sessions
from offnominal.station.access.accounts import find_user
from offnominal.station.access.attempts import origin
from offnominal.station.language import _
from offnominal.station.station import Station
from offnominal.station.store.tables import Setting, User

__all__ = ["KNOWN", "Entered", "LogInError", "log_in", "sign"]

KNOWN = "offnominal-known"
"""The cookie of a browser that was here before."""
_FREE, _FIRST, _LONGEST = 5, 30, 900  # failures, seconds, seconds


class LogInError(OffnominalError):
    """Nobody was logged in.

    Parameters
    ----------
    message : str
    wait : float
        Seconds after which it may be tried again; 0: it may be tried at once.
    """

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Entered:
    """Who logged in.

    Attributes
    ----------
    token : str
        What the session's cookie is to hold.
    known : str
        What the cookie :data:`KNOWN` is to hold.
    """

    name: str
    token: str
    known: str
    language: str | None


def log_in(station: Station, address: str, name: str, password: str, known: str = "") -> Entered:
    """Begin a session, if name and password are right and this was not tried too often.

    Raises
    ------
    LogInError
        If not.
    """
    secret = _secret(station)
    with station.database.reading() as session:
        user = find_user(session, name)
    friend = user is not None and _is_signed(secret, user, known)
    guesses, key = station.guesses.log_in, origin(address)
    if friend:
        guesses, key = station.guesses.known, known
    if wait := guesses.take(key):
        raise LogInError(
            _("Too many attempts: try again in %(seconds)s seconds.") % {"seconds": int(wait) + 1},
            wait,
        )
    now = datetime.now(UTC)
    crowd = not friend and station.guesses.names.take(name.casefold()[:200]) > 0
    locked = (
        user is not None and user.locked_until is not None and user.locked_until > now
    ) and not friend
    right = False
    if user is None or user.disabled or locked or crowd:
        passwords.waste_time(password)
    else:
        right = passwords.matches(user.password, password)
    with station.database.writing() as session:
        found = session.get(User, user.id, with_for_update=True) if user is not None else None
        # In the meantime somebody may have changed the account.
        same = found is not None and user is not None and found.password == user.password
        if right and same and found is not None and not found.disabled:
            guesses.back(key)
            if not friend:
                station.guesses.names.back(name.casefold()[:200])
            found.failures, found.locked_until = 0, None
            if passwords.is_outdated(found.password):
                found.password = passwords.hashed(password)
            token = sessions.begin(session, found, station.settings.session_hours)
            audit.note(session, found.name, "login", found.name, address=address)
            return Entered(
                found.name, token, _signed(secret, found, secrets.token_hex(8)), found.language
            )
        if found is not None and not found.disabled and not locked and not friend:
            found.failures += 1
            if found.failures >= _FREE:
                seconds = min(_FIRST * 2 ** min(found.failures - _FREE, 10), _LONGEST)
                found.locked_until = now + timedelta(seconds=seconds)
        # Not the name as it was typed: people type passwords there.
        audit.note(session, "station", "login.failed", found.name if found else "", address=address)
    raise LogInError(
        _("Name or password is wrong. After several failures an account waits some minutes.")
    )


def sign(station: Station, user: User) -> str:
    """A new cookie :data:`KNOWN` of an account, as after a change of its password."""
    return _signed(_secret(station), user, secrets.token_hex(8))


def _signed(secret: bytes, user: User, number: str) -> str:
    told = f"{user.id}.{number}"
    # With the password's hash: another password makes those who knew the last one strangers.
    mac = hmac.new(secret, f"{told}.{user.password}".encode(), hashlib.sha256).hexdigest()
    return f"{told}.{mac}"


def _is_signed(secret: bytes, user: User, known: str) -> bool:
    number = known.split(".")[1] if known.count(".") == 2 else ""
    return hmac.compare_digest(_signed(secret, user, number).encode(), known.encode())


def _secret(station: Station) -> bytes:
    """The station's own, made when it is first needed."""
    asked = sa.select(Setting.value).where(Setting.name == "secret")
    with station.database.reading() as session:
        kept = session.scalar(asked)
    if kept is None:
        made = {"name": "secret", "value": json.dumps({"key": secrets.token_hex(32)})}
        with station.database.writing() as session:
            insert = "INSERT INTO settings (name, value) VALUES (:name, :value)"
            session.execute(sa.text(f"{insert} ON CONFLICT DO NOTHING"), made)
            kept = session.scalars(asked).one()
    return bytes.fromhex(kept["key"])
