"""Logging in and out, and the account of whoever is logged in."""

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse

from offnominal.errors import OptionError
from offnominal.station.access import audit, passwords, sessions
from offnominal.station.access.accounts import SHORTEST, any_account, set_password
from offnominal.station.access.attempts import origin
from offnominal.station.access.log_in import KNOWN, LogInError, log_in, sign
from offnominal.station.access.who import Who, allowed, local
from offnominal.station.language import _, remember
from offnominal.station.pages.page import page
from offnominal.station.station import Here
from offnominal.station.store.tables import User

__all__ = ["router"]

router = APIRouter()
_YEAR = 365 * 24 * 3600


@router.get("/login")
def ask(request: Request, station: Here, next: str = "/") -> Response:
    """The form."""
    with station.database.reading() as session:
        if not any_account(session):
            return RedirectResponse("/setup", 303)
        if sessions.find(session, request) is not None:
            return RedirectResponse(local(next), 303)
    return page(request, "login.html.j2", None, next=local(next), name="", error="")


@router.post("/login")
def enter(
    request: Request,
    station: Here,
    name: Annotated[str, Form()] = "",
    password: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "/",
) -> Response:
    """Log in; whatever session the browser had before is over."""
    known = request.cookies.get(KNOWN, "")
    try:
        entered = log_in(station, _address(request), name, password, known)
    except LogInError as error:
        told = {"next": local(next), "name": name, "error": str(error)}
        answer: Response = page(request, "login.html.j2", None, 429 if error.wait else 401, **told)
        if error.wait:
            answer.headers["Retry-After"] = str(int(error.wait) + 1)
        return answer
    with station.database.writing() as session:
        sessions.end(session, request)
    answer = RedirectResponse(local(next), 303)
    sessions.give(answer, request, entered.token, station.settings.session_hours)
    _remember(answer, request, entered.known)
    remember(answer, entered.language, sessions.is_secure(request))
    return answer


@router.post("/logout")
def leave(
    request: Request, station: Here, who: Annotated[Who, Depends(allowed("operator"))]
) -> Response:
    """Log out."""
    with station.database.writing() as session:
        sessions.end(session, request)
        audit.note(session, who.name, "logout", who.name)
    answer = RedirectResponse("/login", 303)
    sessions.drop(answer, request)
    return answer


@router.get("/account")
def account(request: Request, who: Annotated[Who, Depends(allowed("operator"))]) -> Response:
    """Who is logged in, and their password."""
    return page(request, "account.html.j2", who, shortest=SHORTEST, error="", done=False)


@router.post("/account")
def change_own(
    request: Request,
    station: Here,
    who: Annotated[Who, Depends(allowed("operator"))],
    old: Annotated[str, Form()] = "",
    new: Annotated[str, Form()] = "",
) -> Response:
    """Another password; all sessions of the account end but this browser's, which is a new one."""

    def again(error: str, status: int) -> Response:
        told = {"shortest": SHORTEST, "error": error, "done": False}
        return page(request, "account.html.j2", who, status, **told)

    guesses = station.guesses.own
    if wait := guesses.take(str(who.user)):
        words = _("Too many attempts: try again in %(seconds)s seconds.")
        return again(words % {"seconds": int(wait) + 1}, 429)
    with station.database.reading() as session:
        user = session.get_one(User, who.user)
    if not passwords.matches(user.password, old):
        return again(_("The present password is wrong."), 422)
    guesses.back(str(who.user))
    hours = station.settings.session_hours
    try:
        with station.database.writing() as session:
            user = session.get_one(User, who.user)
            set_password(session, user, new)
            token = sessions.begin(session, user, hours)
            audit.note(session, who.name, "user.password", who.name, address=_address(request))
    except OptionError as error:
        return again(str(error), 422)
    answer = RedirectResponse("/account/changed", 303)
    sessions.give(answer, request, token, hours)
    _remember(answer, request, sign(station, user))
    return answer


@router.get("/account/changed")
def changed(request: Request, who: Annotated[Who, Depends(allowed("operator"))]) -> Response:
    """That it was done."""
    return page(request, "account.html.j2", who, shortest=SHORTEST, error="", done=True)


def _address(request: Request) -> str:
    return origin(request.client.host) if request.client else ""


def _remember(answer: Response, request: Request, known: str) -> None:
    answer.set_cookie(
        KNOWN,
        known,
        max_age=_YEAR,
        path="/login",
        secure=sessions.is_secure(request),
        httponly=True,
        samesite="strict",
    )
