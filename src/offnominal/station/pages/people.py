"""Accounts, tokens of programs, and the audit log."""

import csv
import hashlib
import io
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, get_args

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, HTTPException, Path, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from sqlalchemy.orm import Session

from offnominal.errors import OptionError
from offnominal.station.access import accounts, audit
from offnominal.station.access.roles import ROLES, SCOPES, Role, Scope, reaches
from offnominal.station.access.who import Who, allowed
from offnominal.station.language import _
from offnominal.station.pages.page import page
from offnominal.station.station import Here, Station
from offnominal.station.store.tables import Audit, Token, User

__all__ = ["router"]

router = APIRouter()
Admin = Annotated[Who, Depends(allowed("admin"))]
Engineer = Annotated[Who, Depends(allowed("engineer"))]
Number = Annotated[int, Path(ge=1, lt=2**31)]

_ROWS = 50
_CHECKED = 20_000  # rows whose seals are checked unasked
_DAYS = (30, 90, 365, 0)


@router.get("/people")
def people(request: Request, station: Here, who: Admin) -> Response:
    """All accounts."""
    return _people(request, station, who)


@router.post("/people")
def add(
    request: Request,
    station: Here,
    who: Admin,
    name: Annotated[str, Form()] = "",
    password: Annotated[str, Form()] = "",
    role: Annotated[Role, Form()] = "operator",
) -> Response:
    """One more account."""
    try:
        with station.database.writing() as session:
            user = accounts.create_user(session, name, password, role)
            audit.note(session, who.name, "user.create", user.name, role=role)
    except OptionError as error:
        return _people(request, station, who, str(error), name=name, role=role)
    return RedirectResponse("/people", 303)


@router.post("/people/{number}/{what}")
def change(
    request: Request,
    station: Here,
    who: Admin,
    number: Number,
    what: Literal["role", "disable", "enable", "unlock", "password"],
    role: Annotated[Role | None, Form()] = None,
    password: Annotated[str, Form()] = "",
) -> Response:
    """Change an account; its sessions end, but where only its lock is lifted."""
    detail: dict[str, Any] = {}
    try:
        with station.database.writing() as session:
            user = session.get(User, number)
            if user is None:
                raise HTTPException(404)
            if what == "role" and role is not None:
                detail = {"before": user.role, "role": role}
                accounts.change(session, user, role=role)
            elif what in ("disable", "enable"):
                accounts.change(session, user, disabled=what == "disable")
            elif what == "password":
                accounts.set_password(session, user, password)
            if what in ("unlock", "enable"):
                user.failures, user.locked_until = 0, None
            audit.note(session, who.name, f"user.{what}", user.name, **detail)
    except OptionError as error:
        return _people(request, station, who, str(error))
    return RedirectResponse("/people", 303)


@router.get("/tokens")
def tokens(request: Request, station: Here, who: Engineer) -> Response:
    """One's own tokens; an administrator's page shows all."""
    return _tokens(request, station, who)


@router.post("/tokens")
def make_token(
    request: Request,
    station: Here,
    who: Engineer,
    name: Annotated[str, Form()] = "",
    scopes: Annotated[list[Scope], Form()] = [],  # noqa: B006  # a form's default is not changed
    days: Annotated[int, Form()] = 90,
) -> Response:
    """A new token, shown this once: a form that is sent again finds its name taken."""
    name = name.strip()
    if not 1 <= len(name) <= 80 or not name.isprintable():
        return _tokens(request, station, who, _("The name of a token has 1 to 80 characters."))
    if not scopes or days not in _DAYS:
        return _tokens(request, station, who, _("Choose what the token may do, and how long."))
    if not all(reaches(who.role, SCOPES[scope]) for scope in scopes):
        raise HTTPException(403, _("A token cannot do more than your account."))
    made, now = f"offn_{secrets.token_urlsafe(32)}", datetime.now(UTC)
    with station.database.writing() as session:
        # Whoever sends a form twice at once waits here for the first one.
        session.get(User, who.user, with_for_update=True)
        valid = (Token.revoked.is_(None), sa.or_(Token.expires.is_(None), Token.expires > now))
        twice = sa.select(Token.id).where(Token.user_id == who.user, Token.name == name, *valid)
        if session.scalar(twice.limit(1)) is not None:
            told = _(
                "You have a token of this name, which was shown when it was made: choose another "
                "name, or revoke that token before."
            )
            return _tokens(request, station, who, told, status=409)
        session.add(
            Token(
                name=name,
                digest=hashlib.sha256(made.encode()).hexdigest(),
                scopes=sorted(set(scopes)),
                user_id=who.user,
                created=now,
                expires=now + timedelta(days=days) if days else None,
            )
        )
        audit.note(session, who.name, "token.create", name, scopes=sorted(set(scopes)), days=days)
    return _tokens(request, station, who, made=made)


@router.post("/tokens/{number}/revoke")
def revoke(station: Here, who: Engineer, number: Number) -> Response:
    """Make a token useless, at once and for good."""
    with station.database.writing() as session:
        token = session.get(Token, number)
        if token is None or (token.user_id != who.user and who.role != "admin"):
            raise HTTPException(404)
        if token.revoked is None:
            token.revoked = datetime.now(UTC)
            audit.note(session, who.name, "token.revoke", token.name)
    return RedirectResponse("/tokens", 303)


@router.get("/audit")
def log(
    request: Request,
    station: Here,
    who: Admin,
    q: Annotated[str, Query(max_length=200)] = "",
    before: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
    check: bool = False,
) -> Response:
    """Who did what, the last first; and whether the log is as it was written."""
    with station.database.reading() as session:
        asked = _matching(q).order_by(Audit.id.desc()).limit(_ROWS + 1)
        if before is not None:
            asked = asked.where(Audit.id < before)
        rows = session.scalars(asked).all()
        count = session.scalar(sa.select(sa.func.count()).select_from(Audit)) or 0
        checked = check or count <= _CHECKED
        broken = audit.broken(session) if checked else None
        head = session.scalar(sa.select(Audit.seal).order_by(Audit.id.desc()).limit(1)) or ""
    return page(
        request,
        "audit.html.j2",
        who,
        rows=rows[:_ROWS],
        older=rows[_ROWS - 1].id if len(rows) > _ROWS else None,
        q=q,
        count=count,
        checked=checked,
        broken=broken,
        head=head,
    )


@router.get("/audit.csv")
def export(station: Here, who: Admin, q: Annotated[str, Query(max_length=200)] = "") -> Response:
    """What is shown, all pages of it, for a spreadsheet."""
    told = {"Content-Disposition": 'attachment; filename="audit.csv"'}
    return StreamingResponse(_lines(station, q), media_type="text/csv", headers=told)


def _people(
    request: Request,
    station: Station,
    who: Who,
    error: str = "",
    name: str = "",
    role: str = "operator",
) -> Response:
    with station.database.reading() as session:
        users = session.scalars(sa.select(User).order_by(User.folded)).all()
    told = {"users": users, "roles": ROLES, "now": datetime.now(UTC), "error": error}
    told |= {"name": name, "role": role, "shortest": accounts.SHORTEST}
    return page(request, "people.html.j2", who, 422 if error else 200, **told)


def _tokens(
    request: Request,
    station: Station,
    who: Who,
    error: str = "",
    made: str = "",
    status: int = 422,
) -> Response:
    """The page; ``status`` is that of an error."""
    asked = sa.select(Token, User.name).join(User, User.id == Token.user_id)
    if who.role != "admin":
        asked = asked.where(Token.user_id == who.user)
    with station.database.reading() as session:
        rows = session.execute(asked.order_by(Token.created.desc(), Token.id.desc())).all()
    scopes = [scope for scope in get_args(Scope) if reaches(who.role, SCOPES[scope])]
    told = {"rows": rows, "scopes": scopes, "days": _DAYS, "now": datetime.now(UTC)}
    told |= {"error": error, "made": made}
    return page(request, "tokens.html.j2", who, status if error else 200, **told)


def _matching(q: str) -> sa.Select[Audit]:
    asked = sa.select(Audit)
    if q:
        wanted = [Audit.by, Audit.action, Audit.object]
        asked = asked.where(sa.or_(*(one.icontains(q, autoescape=True) for one in wanted)))
    return asked


def _lines(station: Station, q: str) -> Iterator[str]:
    with station.database.reading() as session:
        yield from _csv(session, q)


def _csv(session: Session, q: str) -> Iterator[str]:
    kept = io.StringIO()
    writer = csv.writer(kept)
    writer.writerow(["id", "at", "by", "action", "object", "detail", "seal"])
    rows = _matching(q).order_by(Audit.id).execution_options(yield_per=1000)
    for row in session.scalars(rows):
        cells = [row.by, row.action, row.object, audit.text_of(row.detail), row.seal]
        writer.writerow([row.id, row.at.isoformat(), *map(_no_formula, cells)])
        if kept.tell() > 2**16:
            yield kept.getvalue()
            kept.seek(0)
            kept.truncate()
    yield kept.getvalue()


def _no_formula(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
