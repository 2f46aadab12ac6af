"""The history: finding any part again, looking at it closely, saying what it is."""

from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import urlencode

import sqlalchemy as sa
from anyio import from_thread
from fastapi import APIRouter, Depends, Form, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from sqlalchemy.orm import Session

from offnominal.errors import OptionError
from offnominal.station.access import audit
from offnominal.station.access.who import Who, allowed, local
from offnominal.station.language import _
from offnominal.station.pages.page import page
from offnominal.station.pages.saving import as_csv, as_parquet, as_zip, can_parquet
from offnominal.station.shifts import zone_of
from offnominal.station.station import Here, Station
from offnominal.station.store.labelling import MOST, LabelName, label, undo
from offnominal.station.store.search import Count, Place, Search, count, find, walk
from offnominal.station.store.tables import Inspection, Label, Product, Version

__all__ = ["router"]

router = APIRouter()

Operator = Annotated[Who, Depends(allowed("operator"))]
_PAGE = 60
_FEW = 24  # pictures shown before several parts are labelled
_FIRST = {"product", "verdict", "label", "since", "until", "serial"}  # filters always in sight
_KINDS = 30  # kinds of defects that are offered


@router.get("/history")
def show_list(
    request: Request, station: Here, who: Operator, search: Annotated[Search, Query()]
) -> Response:
    """What is looked for, the newest first."""
    zone = zone_of(station.settings)
    with station.database.reading() as session:
        found = find(session, search, zone, _PAGE)
        # Where a search looked as far as it may and found few, counting would look as far again.
        number = Count(len(found.rows), False) if found.looked else count(session, search, zone)
        known = _known(session, station)
        words = search.words()
        given: dict[str, Any] = {
            "search": search,
            "found": found,
            "count": number,
            "query": urlencode(words),
            "more": bool(words.keys() - _FIRST),
            "link": lambda **place: "/history?" + urlencode(words | place),
            "place": lambda row: Place(row.received, row.id),
        }
        return page(request, "history.html.j2", who, **given, **known)


@router.get("/history/export")
def export(
    station: Here,
    who: Operator,
    search: Annotated[Search, Query()],
    what: Annotated[str, Query(alias="as", pattern="^(csv|parquet|zip)$")] = "csv",
) -> Response:
    """What is looked for, as a file: rows all of them, pictures the newest ones; streamed."""
    zone = zone_of(station.settings)
    with station.database.writing() as session:
        audit.note(session, who.name, "history.export", what, **search.words())
    rows = walk(station.database, search, zone)
    if what == "csv":
        return _file(as_csv(rows), "text/csv; charset=utf-8", "inspections.csv")
    if what == "parquet":
        if not can_parquet():
            raise HTTPException(
                422, _("Parquet takes pyarrow: pip install pyarrow, or take CSV instead.")
            )
        return _file(as_parquet(rows), "application/vnd.apache.parquet", "inspections.parquet")
    return _file(as_zip(station.files, rows), "application/zip", "inspections.zip")


def _file(content: Iterator[bytes], kind: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(content, media_type=kind, headers=headers)


@router.post("/history/label")
def relabel(
    request: Request,
    station: Here,
    who: Operator,
    label_name: Annotated[str, Form(alias="label", pattern="^(good|bad|none)$")],
    inspection: Annotated[list[int], Form(max_length=MOST)] = [],  # noqa: B006  # FastAPI copies it
    kind: Annotated[str, Form(max_length=100)] = "",
    back: Annotated[str, Form(max_length=2000)] = "/history",
    sure: Annotated[bool, Form()] = False,
) -> Response:
    """Say of several parts what they are, after saying how many."""
    back = local(back)
    if not inspection:
        return RedirectResponse(back, 303)
    if not sure:
        given: dict[str, Any] = {"label": label_name, "inspections": inspection}
        given |= {"kind": kind, "back": back, "few": _FEW}
        with station.database.reading() as session:
            given["seen"] = _seen(session, inspection[:_FEW])
        return page(request, "relabel.html.j2", who, **given)
    say(station, inspection, label_name, kind, who)
    return RedirectResponse(back, 303)


@router.get("/history/{inspection}")
def show_one(
    request: Request,
    inspection: int,
    station: Here,
    who: Operator,
    search: Annotated[Search, Query()],
) -> Response:
    """One part: its picture and everything that is known of it."""
    zone = zone_of(station.settings)
    with station.database.reading() as session:
        row = session.get(Inspection, inspection)
        if row is None:
            raise HTTPException(404, _("There is no such inspection."))
        at = str(Place(row.received, row.id))
        words = search.words()
        older = find(session, Search.model_validate(words | {"after": at}), zone, 1).rows
        newer = find(session, Search.model_validate(words | {"before": at}), zone, 1).rows
        said = sa.select(Label).where(Label.inspection_id == inspection)
        query = "?" + urlencode(words) if words else ""
        given: dict[str, Any] = {
            "row": row,
            "older": older[0].id if older else None,
            "newer": newer[0].id if newer else None,
            "said": session.scalars(said.order_by(Label.id.desc()).limit(50)).all(),
            "kinds": _kinds(session, row.product_id),
            "query": query,
            "list": "/history" + query,
        }
        return page(request, "inspection.html.j2", who, **given)


@router.post("/history/{inspection}/label")
def label_one(
    inspection: int,
    station: Here,
    who: Operator,
    label_name: Annotated[str, Form(alias="label", pattern="^(good|bad|none|undo)$")],
    kind: Annotated[str, Form(max_length=100)] = "",
    back: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    """Say what it is, or go back to what was said before."""
    say(station, [inspection], label_name, kind, who)
    return RedirectResponse(local(back or f"/history/{inspection}"), 303)


def _seen(session: Session, inspections: list[int]) -> set[int]:
    """Those of them that have a picture which can be shown."""
    row = Inspection
    asked = sa.select(row.id).where(
        row.id.in_(inspections),
        row.picture_id.is_not(None),
        row.reason.not_like("unreadable%"),
    )
    return set(session.scalars(asked))


def say(station: Station, inspections: list[int], name: str, kind: str, who: Who) -> None:
    """Label, and tell whoever watches."""
    try:
        with station.database.writing() as session:
            if name == "undo":
                changed = [one for one in inspections if undo(session, one, who.name)]
            else:
                names: dict[str, LabelName] = {"good": "good", "bad": "bad"}
                changed = label(
                    session, inspections, names.get(name), who.name, kind.strip() or None
                )
    except OptionError as error:
        raise HTTPException(404, str(error)) from error

    def tell() -> None:
        for one in changed[:100]:
            station.events.publish("label", inspection=one)

    from_thread.run_sync(tell)


def _known(session: Session, station: Station) -> dict[str, Any]:
    """What filters offer."""
    return {
        "products": session.execute(
            sa.select(Product.id, Product.name).order_by(Product.name)
        ).all(),
        "versions": session.execute(
            sa.select(Version.id, Version.number, Product.name)
            .join(Product, Product.id == Version.product_id)
            .order_by(Product.name, Version.number.desc())
            .limit(200)
        ).all(),
        "sources": ["http", *(one.name for one in station.settings.sources)],
        "kinds": _kinds(session, None),
    }


def _kinds(session: Session, product: int | None) -> list[str]:
    """Kinds of defects that were named among the last bad parts."""
    last = sa.select(Inspection.kind, Inspection.product_id).where(Inspection.label == "bad")
    last = last.order_by(Inspection.received.desc(), Inspection.id.desc()).limit(2_000)
    some = last.subquery()
    asked = sa.select(some.c.kind).where(some.c.kind.is_not(None)).distinct().limit(_KINDS)
    if product is not None:
        asked = asked.where(some.c.product_id == product)
    return sorted(one for one in session.scalars(asked) if one)
