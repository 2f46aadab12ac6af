"""The first minutes: who comes to a new station is led from one step to the next."""

from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse

from offnominal.errors import OptionError
from offnominal.station.access import sessions
from offnominal.station.access.accounts import SHORTEST, any_account
from offnominal.station.access.setup import first_admin
from offnominal.station.access.who import Who, allowed
from offnominal.station.pages.page import page
from offnominal.station.station import Here, Station
from offnominal.station.store.tables import Product

__all__ = ["router"]

router = APIRouter()


@router.get("/")
def first(station: Here, who: Annotated[Who, Depends(allowed("operator"))]) -> Response:
    """To the operator's page; to the first product, where nothing is inspected yet."""
    with station.database.reading() as session:
        of_use = sa.select(Product).filter_by(archived=None).order_by(Product.id)
        products = session.scalars(of_use).all()
    if who.role == "operator" or any(one.live_id for one in products):
        place = "/operator"
    elif len(products) == 1:
        place = f"/products/{products[0].id}/images"
    else:
        place = "/products" if products else "/products/new"
    return RedirectResponse(place, 303)


@router.get("/setup")
def setup(request: Request, station: Here) -> Response:
    """Make the first account; later there is nothing to see here."""
    if _set_up(station):
        return RedirectResponse("/", 303)
    return page(request, "setup.html.j2", None, shortest=SHORTEST, error="", name="")


@router.post("/setup")
def make_first(
    request: Request,
    station: Here,
    code: Annotated[str, Form()] = "",
    name: Annotated[str, Form()] = "",
    password: Annotated[str, Form()] = "",
) -> Response:
    """Spend the code, and go on logged in."""
    if _set_up(station):
        return RedirectResponse("/", 303)
    address = request.client.host if request.client else ""
    try:
        user = first_admin(station, address, code, name, password)
    except OptionError as error:
        told = {"shortest": SHORTEST, "error": str(error), "name": name}
        return page(request, "setup.html.j2", None, status=422, **told)
    answer, hours = RedirectResponse("/products/new", 303), station.settings.session_hours
    with station.database.writing() as session:
        token = sessions.begin(session, user, hours)
    sessions.give(answer, request, token, hours)
    return answer


def _set_up(station: Station) -> bool:
    with station.database.reading() as session:
        return any_account(session)
