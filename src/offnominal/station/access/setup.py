"""The first account: made by whoever sees what the station prints where it was started."""

import hashlib
import hmac
import secrets
from datetime import UTC, datetime

import sqlalchemy as sa

from offnominal.errors import OptionError
from offnominal.station.access import audit
from offnominal.station.access.accounts import any_account, create_user
from offnominal.station.access.attempts import origin
from offnominal.station.language import _
from offnominal.station.station import Station
from offnominal.station.store.tables import Setting, User

__all__ = ["admin_of_file", "first_admin", "setup_code"]

_NAME = "setup"
_LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"  # none that is taken for another


def setup_code(station: Station) -> str | None:
    """A code that makes one account, while there is none; each call makes the last one useless.

    Returns
    -------
    str or None
        Twelve letters and digits in groups of four (59 bits), of which only a hash is kept; None
        where there are accounts.
    """
    letters = [secrets.choice(_LETTERS) for place in range(12)]
    code = "-".join("".join(letters[start : start + 4]) for start in (0, 4, 8))
    with station.database.writing() as session:
        if any_account(session):
            return None
        session.merge(Setting(name=_NAME, value={"digest": _digest(code)}))
    return code


def first_admin(station: Station, address: str, code: str, name: str, password: str) -> User:
    """Spend the code for the first account, an administrator's.

    Raises
    ------
    OptionError
        If the code is wrong or spent, was guessed at too often, or name or password will not do
        (then the code can be used again).
    """
    if wait := station.guesses.setup.take(origin(address)):
        raise OptionError(
            _("Too many attempts: try again in %(seconds)s seconds.") % {"seconds": int(wait) + 1}
        )
    with station.database.writing() as session:
        # Held until the end: of two at once, one finds it spent.
        kept = session.scalar(sa.select(Setting).where(Setting.name == _NAME).with_for_update())
        right = kept is not None and hmac.compare_digest(kept.value["digest"], _digest(code))
        if kept is None or not right or any_account(session):
            raise OptionError(
                _("The set-up code is wrong or spent: a new one is printed at each start.")
            )
        station.guesses.setup.back(origin(address))
        user = create_user(session, name, password, "admin")
        session.delete(kept)
        session.merge(
            Setting(name="set-up", value={"at": datetime.now(UTC).isoformat(), "by": user.name})
        )
        audit.note(session, user.name, "user.create", user.name, role="admin", address=address)
    return user


def admin_of_file(station: Station) -> None:
    """Make the account ``admin`` with the password of the settings' file, while there is none.

    Raises
    ------
    OptionError
        If the file cannot be read, or its password will not do.
    """
    path = station.settings.admin_password_file
    if path is None:
        return
    with station.database.writing() as session:
        if any_account(session):
            return
        try:
            password = path.read_text(encoding="utf-8").rstrip("\r\n")
            create_user(session, "admin", password, "admin")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise OptionError(f"admin_password_file {path}: cannot be read ({reason})") from error
        except OptionError as error:
            raise OptionError(f"admin_password_file {path}: {error}") from error
        audit.note(session, "station", "user.create", "admin", role="admin", file=str(path))


def _digest(code: str) -> str:
    letters = "".join(letter for letter in code.upper() if letter.isalnum())
    return hashlib.sha256(letters.encode()).hexdigest()
