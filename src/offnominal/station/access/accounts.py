"""Accounts: made, changed and disabled; there is always one administrator left."""

import unicodedata
from datetime import UTC, datetime
from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy.orm import Session

from offnominal.errors import OptionError
from offnominal.station.access import passwords, sessions
from offnominal.station.access.roles import Role
from offnominal.station.language import _
from offnominal.station.store.tables import User

__all__ = [
    "SHORTEST",
    "any_account",
    "change",
    "check_password",
    "create_user",
    "find_user",
    "set_password",
]

SHORTEST = 10
"""Characters of a password, at least; nothing is asked of what they are."""
_LONGEST = 200
_NAME = 100


def create_user(session: Session, name: str, password: str, role: Role) -> User:
    """A new account, not yet committed.

    Raises
    ------
    OptionError
        If the name is taken, empty, too long or one of the station's own, or the password is too
        short, too long or the name.
    """
    name = _checked(name)
    if role not in get_args(Role):
        raise OptionError(_("There is no such role."))
    check_password(name, password)
    if find_user(session, name) is not None:
        raise OptionError(_("There is an account with this name already."))
    user = User(
        name=name,
        folded=_folded(name),
        password=passwords.hashed(password),
        role=role,
        created=datetime.now(UTC),
        disabled=False,
        failures=0,
    )
    session.add(user)
    session.flush()
    return user


def any_account(session: Session) -> bool:
    """Whether the station was set up."""
    return session.scalar(sa.select(User.id).limit(1)) is not None


def find_user(session: Session, name: str) -> User | None:
    """The account of a name, in upper or lower case letters."""
    folded = _folded(name.strip())
    if len(folded) > 2 * _NAME or "\0" in folded:
        return None
    return session.scalar(sa.select(User).where(User.folded == folded))


def set_password(session: Session, user: User, password: str) -> None:
    """Give an account another password; all its sessions end, its lock is lifted.

    Raises
    ------
    OptionError
        If the password is too short, too long, or the name.
    """
    check_password(user.name, password)
    user.password = passwords.hashed(password)
    user.failures, user.locked_until = 0, None
    sessions.end_all(session, user.id)


def change(
    session: Session, user: User, role: Role | None = None, disabled: bool | None = None
) -> None:
    """Give an account another role, disable it or enable it; all its sessions end.

    Raises
    ------
    OptionError
        If no administrator would be left.
    """
    wanted: str = role or user.role
    disabled = user.disabled if disabled is None else disabled
    if wanted not in get_args(Role):
        raise OptionError(_("There is no such role."))
    if wanted != "admin" or disabled:
        # Held until the end, so that two cannot remove each other at once.
        others = session.scalars(
            sa.select(User.id)
            .where(User.role == "admin", User.disabled.is_(False))
            .order_by(User.id)
            .with_for_update()
        ).all()
        if list(others) == [user.id]:
            raise OptionError(_("This is the last administrator: make another account one before."))
    user.role, user.disabled = wanted, disabled
    sessions.end_all(session, user.id)


def check_password(name: str, password: str) -> None:
    """See that a password is long enough, and not simply the name.

    Raises
    ------
    OptionError
        If it is not.
    """
    told: dict[str, Any] = {"least": SHORTEST, "most": _LONGEST}
    if len(password) < SHORTEST:
        raise OptionError(_("The password is too short: %(least)s characters at least.") % told)
    if len(password) > _LONGEST:
        raise OptionError(_("The password is too long: %(most)s characters at most.") % told)
    bare = _folded(password).replace(" ", "")
    if len(set(bare)) == 1 or not bare.replace(_folded(name).replace(" ", ""), "").strip(
        "0123456789"
    ):
        raise OptionError(
            _("The password is easily guessed from the name, or one character only: take another.")
        )


def _checked(name: str) -> str:
    name = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(name) <= _NAME:
        raise OptionError(
            _("The name of an account has 1 to %(most)s characters.") % {"most": _NAME}
        )
    # Nothing that cannot be seen, which could pass for another name.
    if any(unicodedata.category(letter)[0] == "C" for letter in name):
        raise OptionError(_("The name of an account has no control characters."))
    # The audit log's own words for who did something.
    if _folded(name) in ("station", "nobody") or _folded(name).startswith("token "):
        raise OptionError(_("This name is kept for the station itself: take another."))
    return name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
