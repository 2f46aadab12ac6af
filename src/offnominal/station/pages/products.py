"""Products: made, named, numbered, trusted, put away."""

from datetime import UTC, datetime
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from offnominal.errors import OptionError
from offnominal.station.access.audit import note
from offnominal.station.access.who import Who, allowed
from offnominal.station.inspection.sight import CHECKS, Check
from offnominal.station.language import _
from offnominal.station.learning import references
from offnominal.station.learning.agreement import ENOUGH, Agreement
from offnominal.station.pages.found import product_of
from offnominal.station.pages.page import page
from offnominal.station.station import Here, Station
from offnominal.station.store.tables import Inspection, Product, Version

__all__ = ["agreement_of", "router"]

router = APIRouter()

Engineer = Annotated[Who, Depends(allowed("engineer"))]
Text = Annotated[str, Form()]


@router.get("/products")
def show_all(request: Request, station: Here, who: Engineer) -> Response:
    """All of them; those put away at the end."""
    with station.database.reading() as session:
        order = (Product.archived.is_not(None), sa.func.lower(Product.name))
        products = session.scalars(sa.select(Product).order_by(*order)).all()
        last = _last_inspected(session)
        waiting = {
            one.id: session.scalar(
                sa.select(sa.func.max(Version.number)).where(
                    Version.product_id == one.id,
                    Version.state == "ready",
                    Version.number > (one.live.number if one.live else 0),
                )
            )
            for one in products
        }
    pictures = {one.id: references.known(station.files, one.id)[:1] for one in products}
    context: dict[str, Any] = {
        "products": products,
        "last": last,
        "waiting": waiting,
        "pictures": pictures,
    }
    return page(request, "products.html.j2", who, **context)


@router.get("/products/new")
def new(request: Request, who: Engineer) -> Response:
    """A name for what is to be inspected."""
    given = {"name": "", "number": "", "barcode": ""}
    return page(request, "product_new.html.j2", who, given=given, error="")


@router.post("/products/new")
def create(
    request: Request,
    station: Here,
    who: Engineer,
    name: Text = "",
    number: Text = "",
    barcode: Text = "",
) -> Response:
    """Make it, and go on to its pictures."""
    try:
        known = _checked(name, number, barcode)
        with station.database.writing() as session:
            row = Product(**known, created=datetime.now(UTC))
            session.add(row)
            session.flush()
            note(session, who.name, "product.create", row.name)
    except (OptionError, IntegrityError) as error:
        given = {"name": name, "number": number, "barcode": barcode}
        told = _words(error)
        return page(request, "product_new.html.j2", who, 422, given=given, error=told)
    return RedirectResponse(f"/products/{row.id}/images", 303)


@router.get("/products/{product}")
def show(request: Request, product: int, station: Here, who: Engineer) -> Response:
    """Its settings, and how far it is trusted."""
    return _page(request, station, product, who)


@router.post("/products/{product}")
def change(
    request: Request,
    product: int,
    station: Here,
    who: Engineer,
    name: Text = "",
    number: Text = "",
    barcode: Text = "",
    deadline: Text = "",
    cost_miss: Text = "",
    cost_reject: Text = "",
) -> Response:
    """Change its settings."""
    try:
        known = _checked(name, number, barcode) | {
            "deadline": _amount(_("Deadline"), deadline),
            "cost_miss": _amount(_("Cost of a missed defect"), cost_miss),
            "cost_reject": _amount(_("Cost of a rejected good part"), cost_reject),
        }
        with station.database.writing() as session:
            row = product_of(session, product)
            changed = {key: value for key, value in known.items() if getattr(row, key) != value}
            for key, value in changed.items():
                setattr(row, key, value)
            session.flush()
            if changed:
                note(session, who.name, "product.change", row.name, **changed)
    except (OptionError, IntegrityError) as error:
        return _page(request, station, product, who, 422, _words(error))
    _changed(station, product)
    return RedirectResponse(f"/products/{product}", 303)


@router.post("/products/{product}/shadow")
def set_shadow(
    product: int, station: Here, who: Engineer, shadow: Annotated[bool, Form()]
) -> Response:
    """Let it judge without switching anything, or trust it."""
    with station.database.writing() as session:
        row = product_of(session, product)
        if row.shadow != shadow:
            row.shadow = shadow
            note(session, who.name, "product.shadow", row.name, shadow=shadow)
    _changed(station, product)
    return RedirectResponse(f"/products/{product}", 303)


@router.post("/products/{product}/checks")
def set_checks(
    product: int,
    station: Here,
    who: Engineer,
    on: Annotated[list[Check], Form()] = [],  # noqa: B006  # FastAPI's default of no box
) -> Response:
    """Which faults of a picture keep a part from being judged."""
    off: dict[str, Any] = {name: False for name in CHECKS if name not in on}
    with station.database.writing() as session:
        row = product_of(session, product)
        if row.checks != off:
            row.checks = off
            note(session, who.name, "product.checks", row.name, off=sorted(off))
    _changed(station, product)
    return RedirectResponse(f"/products/{product}", 303)


@router.post("/products/{product}/archive")
def archive(
    product: int, station: Here, who: Engineer, archived: Annotated[bool, Form()]
) -> Response:
    """Put it away, with all its records, or bring it back."""
    with station.database.writing() as session:
        row = product_of(session, product)
        if (row.archived is not None) != archived:
            row.archived = datetime.now(UTC) if archived else None
            note(session, who.name, "product.archive" if archived else "product.restore", row.name)
    _changed(station, product)
    return RedirectResponse("/products" if archived else f"/products/{product}", 303)


def agreement_of(session: Session, product: int) -> Agreement:
    """Of parts judged in shadow mode, how the verdicts agree with what people said."""
    row = Inspection
    asked = sa.select(row.verdict, row.label, sa.func.count()).where(
        row.product_id == product,
        row.told == "nothing",
        row.label.in_(("good", "bad")),  # by name, so that an index finds the few of them
        row.verdict.in_(("good", "reject")),
    )
    found = {
        (verdict, label): count
        for verdict, label, count in session.execute(asked.group_by(row.verdict, row.label))
    }
    return Agreement(
        found.get(("good", "good"), 0),
        found.get(("reject", "bad"), 0),
        found.get(("good", "bad"), 0),
        found.get(("reject", "good"), 0),
    )


def _page(
    request: Request,
    station: Station,
    product: int,
    who: Who,
    status: int = 200,
    error: str = "",
) -> Response:
    with station.database.reading() as session:
        row = product_of(session, product)
        agreement = agreement_of(session, product)
    context: dict[str, Any] = {
        "product": row,
        "agreement": agreement,
        "enough": ENOUGH,
        "deadline": station.settings.deadline,
        "error": error,
    }
    return page(request, "product.html.j2", who, status, **context)


def _last_inspected(session: Session) -> dict[int, datetime]:
    """When each product's last part came, by a walk along the index for each of them."""
    row = Inspection
    found = {}
    for product in session.scalars(sa.select(Product.id)):
        latest = sa.select(row.received).where(row.product_id == product)
        at = session.scalar(latest.order_by(row.received.desc(), row.id.desc()).limit(1))
        if at is not None:
            found[product] = at
    return found


def _checked(name: str, number: str, barcode: str) -> dict[str, Any]:
    name, number, barcode = name.strip(), number.strip(), barcode.strip()
    if not 1 <= len(name) <= 100:
        raise OptionError(_("Name: give 1 to 100 characters."))
    if number and (not number.isdecimal() or not 0 <= int(number) < 65536):
        raise OptionError(_("Recipe number: give a whole number from 0 to 65535."))
    if len(barcode) > 200:
        raise OptionError(_("Barcode: give 200 characters at most."))
    return {"name": name, "number": int(number) if number else None, "barcode": barcode or None}


def _amount(what: str, given: str) -> float | None:
    """A number above 0, with a comma or a point; None where the field is empty."""
    if not (text := given.strip().replace(",", ".")):
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e12:
        raise OptionError(_("%(what)s: give a number above 0, or leave it empty.") % {"what": what})
    return value


def _words(error: Exception) -> str:
    if isinstance(error, IntegrityError):
        return _("Another product has this name, number or barcode already.")
    return str(error)


def _changed(station: Station, product: int) -> None:
    station.inspector.forget(product)
