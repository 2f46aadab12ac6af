"""The doors of the application: what every request passes, and how a refusal reads."""

import logging
import math
import traceback

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, OperationalError
from starlette.exceptions import HTTPException as AnyHTTPException
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from offnominal.errors import OffnominalError
from offnominal.station.access.headers import Headers
from offnominal.station.access.limits import Limits
from offnominal.station.access.who import known
from offnominal.station.inspection.request import BusyError
from offnominal.station.language import _
from offnominal.station.pages.page import page
from offnominal.station.settings import Settings

__all__ = ["guard"]

log = logging.getLogger(__name__)
_BARE = ("/v1/", "/metrics", "/static/")


def guard(app: FastAPI, settings: Settings) -> None:
    """Put the doors up: the last one that is named is passed first."""
    app.add_exception_handler(AnyHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(OffnominalError, _cannot)
    app.add_exception_handler(DataError, _unstorable)
    app.add_exception_handler(OperationalError, _away)
    app.add_exception_handler(OverflowError, _unstorable)
    app.add_middleware(Limits, settings=settings, refuse=_any)
    app.add_middleware(Headers)
    if settings.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.trusted_proxies)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException)
    return await _answer(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    """What is wrong, without what was sent: it may be a password."""
    assert isinstance(error, RequestValidationError)
    wrong = [
        {"loc": [str(place) for place in one["loc"]], "msg": one["msg"]} for one in error.errors()
    ]
    if request.url.path.startswith("/v1/"):
        return JSONResponse({"detail": wrong}, 422)
    # A page that is asked for by a number that is none is a page that is not there.
    if wrong and wrong[0]["loc"][0] == "path":
        return await _answer(request, HTTPException(404))
    return await _answer(
        request,
        HTTPException(422, _("Something in this form is missing or is not what it should be.")),
    )


async def _cannot(request: Request, error: Exception) -> Response:
    """An error that a user caused, in its own words."""
    if isinstance(error, BusyError):
        again = {"Retry-After": str(math.ceil(error.retry_after))}
        return await _answer(request, HTTPException(503, str(error), again))
    return await _answer(request, HTTPException(422, str(error)))


async def _away(request: Request, error: Exception) -> Response:
    """The records cannot be reached, or take nothing; who asks may ask again."""
    log.error("%s %r: the records: %s", request.method, request.url.path, _in_a_line(error))
    told = _("The records cannot be reached. Nothing was stored; try again.")
    return await _answer(request, HTTPException(503, told, {"Retry-After": "5"}))


def _in_a_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "orig", error)).split())


async def _unstorable(request: Request, error: Exception) -> Response:
    """A number or a text that no database takes."""
    return await _answer(request, HTTPException(422, _("A value is out of its range.")))


async def _any(request: Request, error: Exception) -> Response:
    """What the doors themselves refuse, and what nobody expected: told in the log alone."""
    if isinstance(error, AnyHTTPException):
        return await _answer(request, error)
    if isinstance(error, OperationalError):  # of who asks nothing can be found out
        return await _away(request, error)
    # As text: what writes the log may show what variables hold, and those hold cookies. The path
    # is somebody else's text, and makes no lines of its own.
    told = "".join(traceback.format_exception(error))
    log.error("%s %r failed\n%s", request.method, request.url.path, told)
    return await _answer(request, HTTPException(500))


async def _answer(request: Request, error: AnyHTTPException) -> Response:
    """JSON for programs, a page in words for people."""
    words = {
        400: _("The station did not understand this request."),
        403: _("This is not allowed."),
        404: _("There is no such page, or what it showed is gone."),
        405: _("This page takes no such request."),
        413: _("This is more than the station takes at once: send fewer or smaller files."),
        500: _("The station failed at this. It was noted in its log; nothing else is affected."),
    }
    told = error.detail if isinstance(error.detail, str) else ""
    if error.status_code == 500 or told in _PHRASES:
        told = ""
    if error.status_code in (204, 303, 304):
        return Response(status_code=error.status_code, headers=error.headers)
    path = request.url.path
    if path.startswith(_BARE) or request.headers.get("hx-request"):
        answer: Response = JSONResponse(
            {"detail": error.detail if error.status_code != 500 else "internal error"},
            error.status_code,
        )
    else:
        try:
            who = await known(request)
        except Exception:  # of an error page the records may be the cause
            who = None
        answer = page(
            request,
            "error.html.j2",
            who,
            error.status_code,
            code=error.status_code,
            words=told or words.get(error.status_code, _("This did not work.")),
        )
    answer.headers.update(error.headers or {})
    return answer


_PHRASES = {"Not Found", "Method Not Allowed", "Forbidden", "Bad Request", "Unauthorized"}
