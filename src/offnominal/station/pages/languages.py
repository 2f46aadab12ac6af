"""Choosing the language, on every page."""

from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse

from offnominal.station.access.who import Who, known, local
from offnominal.station.language import LANGUAGES, remember
from offnominal.station.station import Here
from offnominal.station.store.tables import User

__all__ = ["router"]

router = APIRouter()


@router.post("/language")
def choose(
    request: Request,
    station: Here,
    who: Annotated[Who | None, Depends(known)],
    language: Annotated[str, Form()],
    back: Annotated[str, Form()] = "/",
    csrf: Annotated[str, Form()] = "",
) -> Response:
    """Change the language, for whoever is there; also on pages before the log-in.

    A browser's own choice harms nobody, whoever made it ask; an account's is changed only by a form
    of its own session.
    """
    answer = RedirectResponse(local(back), 303)
    if language in LANGUAGES:
        remember(answer, language, request.url.scheme == "https")
        if who and who.user and csrf == who.csrf:
            with station.database.writing() as session:
                session.execute(sa.update(User).filter_by(id=who.user).values(language=language))
    return answer
