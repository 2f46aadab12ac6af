"""Beside the line: one glance, two buttons."""

import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import JSONResponse, RedirectResponse
from sqlalchemy.orm import Session, selectinload
from starlette.concurrency import run_in_threadpool

from offnominal.errors import OffnominalError, OptionError
from offnominal.station.access.who import Who, allowed
from offnominal.station.inspection import recipes
from offnominal.station.inspection.request import BusyError
from offnominal.station.inspection.request import Request as Asked
from offnominal.station.language import _
from offnominal.station.pages.facts import what_blinds
from offnominal.station.pages.found import product_of
from offnominal.station.pages.live import BEAT
from offnominal.station.pages.page import page
from offnominal.station.shifts import shift_at
from offnominal.station.station import Here, Station
from offnominal.station.store.counts import Counts, counts
from offnominal.station.store.labelling import label as labelled
from offnominal.station.store.labelling import undo as undone
from offnominal.station.store.tables import Inspection, Label, Product

__all__ = ["router"]

router = APIRouter()

Operator = Annotated[Who, Depends(allowed("operator"))]
_LAST = 12


@router.get("/operator")
async def choose(request: Request, station: Here, who: Operator) -> Response:
    """Which product the line makes; with one product only there is nothing to choose."""

    def products() -> list[Product]:
        with station.database.reading() as session:
            of_use = sa.select(Product).where(
                Product.archived.is_(None), Product.live_id.is_not(None)
            )
            return list(session.scalars(of_use.order_by(sa.func.lower(Product.name))))

    found, active = await run_in_threadpool(products), await recipes.active(station)
    made = next((one for one in found if active and one.id == active.id), None)
    known = found[0] if len(found) == 1 else made
    if known and (len(found) == 1 or "choose" not in request.query_params):
        return RedirectResponse(f"/operator/{known.id}", 303)
    context: dict[str, Any] = {"products": found, "active": active.id if active else None}
    return page(request, "operator_choose.html.j2", who, **context)


@router.post("/operator/{product}/choose")
async def activate(product: int, station: Here, who: Operator) -> Response:
    """The line makes this product from now on."""

    def name() -> str:
        with station.database.reading() as session:
            return product_of(session, product).name

    await recipes.activate(station, name=await run_in_threadpool(name), by=who.name)
    return RedirectResponse(f"/operator/{product}", 303)


@router.get("/operator/{product}")
def show(
    request: Request, product: int, station: Here, who: Operator, at: int | None = None
) -> Response:
    """The newest part, or another of the last ones."""
    with station.database.reading() as session:
        context = _now(session, station, product, at)
        several = session.scalar(
            sa.select(sa.func.count())
            .select_from(Product)
            .where(Product.archived.is_(None), Product.live_id.is_not(None))
        )
    context |= {
        "several": (several or 0) > 1,
        "beat": BEAT,
        "blind": station.state.blind,
        "why": what_blinds(station.state),
        "cameras": list(station.triggers),
    }
    return page(request, "operator.html.j2", who, **context)


@router.get("/operator/{product}/now")
def now(
    request: Request, product: int, station: Here, who: Operator, at: int | None = None
) -> Response:
    """What of that page changes with each part."""
    with station.database.reading() as session:
        context = _now(session, station, product, at)
    answer = page(request, "operator_now.html.j2", who, **context)
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.post("/operator/{product}/label")
async def say(
    product: int,
    station: Here,
    who: Operator,
    inspection: Annotated[int, Form()],
    label: Annotated[str, Form(pattern="^(good|bad)$")],
) -> Response:
    """A person's own verdict, which counts above the station's."""

    def keep() -> None:
        with station.database.writing() as session:
            row = session.get(Inspection, inspection)
            if row is None or row.product_id != product:
                raise HTTPException(404, _("There is no such part."))
            labelled(session, [inspection], "good" if label == "good" else "bad", who.name)

    await run_in_threadpool(keep)
    station.events.publish("label", id=inspection, product=product, label=label)
    return RedirectResponse(f"/operator/{product}?at={inspection}", 303)


@router.post("/operator/{product}/undo")
async def undo(product: int, station: Here, who: Operator) -> Response:
    """Take back what this person said last."""

    def back() -> int | None:
        with station.database.writing() as session:
            last = _last_said(session, product, who.name)
            return last if last is not None and undone(session, last, who.name) else None

    found = await run_in_threadpool(back)
    if found is not None:
        station.events.publish("label", id=found, product=product)
    return RedirectResponse(f"/operator/{product}", 303)


@router.post("/operator/{product}/serial")
async def take_serial(
    request: Request,
    product: int,
    station: Here,
    who: Operator,
    serial: Annotated[str, Form()] = "",
) -> Response:
    """The next part's serial number; or the code of a product, which the line makes from now on."""
    text = serial.strip()[:200]
    target = product
    try:
        known = await recipes.activate(station, barcode=text, by=who.name) if text else None
    except OptionError:  # no product's code: it is a part's
        known = None
    if known is not None:
        target = known.id
    elif text:
        station.serials[product] = text
    else:
        station.serials.pop(product, None)
    if request.headers.get("accept", "").startswith("application/json"):
        go = "" if target == product else f"/operator/{target}"
        return JSONResponse({"go": go, "serial": station.serials.get(product, "")})
    return RedirectResponse(f"/operator/{target}", 303)


@router.post("/operator/{product}/inspect")
async def inspect(
    request: Request,
    product: int,
    station: Here,
    who: Operator,
    file: UploadFile | None = None,
    camera: Annotated[str, Form()] = "",
) -> Response:
    """Inspect a picture by hand, or have a camera of the station take one."""
    serial = station.serials.pop(product, None)
    try:
        if camera:
            if (trigger := station.triggers.get(camera)) is None:
                raise OptionError(
                    _("The camera %(source)s does not work now.") % {"source": camera}
                )
            row = await trigger(serial)
        elif file is None or not file.filename:
            raise OptionError(_("No file was chosen."))
        else:
            content = await file.read(station.settings.upload_bytes + 1)
            if len(content) > station.settings.upload_bytes:
                raise OptionError(_("The picture is larger than the station takes."))
            asked = Asked(uuid.uuid4().hex, product, content, "hand", serial, {"by": who.name})
            row = await station.inspector.inspect(asked)
    except OffnominalError as error:
        if serial:
            station.serials.setdefault(product, serial)  # it was not used
        status = 503 if isinstance(error, BusyError) else 422
        if request.headers.get("accept", "").startswith("application/json"):
            return JSONResponse({"error": str(error)}, status)
        raise HTTPException(status, str(error)) from error
    if request.headers.get("accept", "").startswith("application/json"):
        return JSONResponse({"id": row.id})
    return RedirectResponse(f"/operator/{row.product_id}", 303)


def _now(session: Session, station: Station, product: int, at: int | None) -> dict[str, Any]:
    row = product_of(session, product)
    last = (
        sa.select(Inspection)
        .filter_by(product_id=product)
        .order_by(Inspection.received.desc(), Inspection.id.desc())
        .limit(_LAST)
        .options(selectinload(Inspection.picture))
    )
    parts = list(session.scalars(last))
    shown = next((one for one in parts if one.id == at), None)
    moment = datetime.now(UTC)
    shift = shift_at(station.settings, moment)
    tally = counts(session, shift.start, shift.end, product).get(product, Counts())
    return {
        "product": row,
        "parts": parts,
        "part": shown or (parts[0] if parts else None),
        "older": shown is not None and shown is not parts[0],
        "tally": tally,
        "shift": shift,
        "serial": station.serials.get(product, ""),
    }


def _last_said(session: Session, product: int, name: str) -> int | None:
    said = (
        sa.select(Label.inspection_id)
        .join(Inspection, Inspection.id == Label.inspection_id)
        .where(Inspection.product_id == product, Label.by == name)
        .order_by(Label.id.desc())
    )
    return session.scalar(said.limit(1))
