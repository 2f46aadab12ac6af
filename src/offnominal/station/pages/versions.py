"""Versions of a product: what each promises, what it would change, and which one judges."""

from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import FileResponse, RedirectResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from offnominal.errors import OffnominalError, OptionError
from offnominal.station.access import quarantine
from offnominal.station.access.audit import note as noted
from offnominal.station.access.who import Who, allowed
from offnominal.station.inspection.learner import Told
from offnominal.station.language import _
from offnominal.station.learning.comparing import MOST, Pair, compare, known_bad, summary
from offnominal.station.learning.models import draw_reference, model_of, references_of
from offnominal.station.learning.versions import go_live, learn
from offnominal.station.pages.found import product_of, version_of
from offnominal.station.pages.jobs import told as job_told
from offnominal.station.pages.jobs import trouble
from offnominal.station.pages.page import page
from offnominal.station.pages.plot import Scatter, scatter
from offnominal.station.pages.words import how_made, promise, promise_more
from offnominal.station.station import Here, Station
from offnominal.station.store.tables import Version

__all__ = ["router", "start_comparing"]

router = APIRouter()

Engineer = Annotated[Who, Depends(allowed("engineer"))]
_SHOWN = 200  # flips and references on one page


@router.get("/products/{product}/versions")
def show_all(request: Request, product: int, station: Here, who: Engineer) -> Response:
    """All of them, the newest first."""
    return _list(request, station, product, who)


@router.get("/products/{product}/versions/compare")
def show_compared(
    request: Request, product: int, station: Here, who: Engineer, a: int, b: int
) -> Response:
    """Two versions on the same stored pictures."""
    with station.database.reading() as session:
        row = product_of(session, product)
        first, second = version_of(session, product, a), version_of(session, product, b)
    running = station.jobs.running(product)
    job = station.jobs.last(product, f"compare {a} {b}")
    found = _outcome(job.result) if job and job.state == "done" else None
    plot: Scatter | None = None
    if found and first.threshold is not None and second.threshold is not None:
        plot = scatter(found["pairs"], first.threshold, second.threshold)
    context: dict[str, Any] = {
        "product": row,
        "first": first,
        "second": second,
        "found": found,
        "plot": plot,
        "error": "" if running else trouble(job),
        "job": job_told(running) if running else None,
        "shown": _SHOWN,
    }
    return page(request, "compare.html.j2", who, **context)


@router.post("/products/{product}/versions/compare")
async def begin_compared(
    product: int,
    station: Here,
    who: Engineer,
    a: Annotated[int, Form()],
    b: Annotated[int, Form()],
    last: Annotated[int, Form()] = 200,
) -> Response:
    """Let both judge the last stored pictures."""

    def rows() -> tuple[int, int]:
        with station.database.reading() as session:
            return version_of(session, product, a).id, version_of(session, product, b).id

    first, second = await run_in_threadpool(rows)
    place = f"/products/{product}/versions/compare?a={a}&b={b}"

    async def work(told: Told) -> dict[str, Any]:
        return await compare(station, product, second, first, last, told) | {"go": place}

    _start(station, product, f"compare {a} {b}", who, work, last)
    return RedirectResponse(place, 303)


@router.post("/products/{product}/versions/upload")
async def upload(
    request: Request,
    product: int,
    station: Here,
    who: Engineer,
    file: UploadFile,
) -> Response:
    """Take a model file in, which judges nothing until an engineer accepts it."""
    try:
        version = await quarantine.receive(station, who, product, file)
    except OffnominalError as error:
        return await run_in_threadpool(_list, request, station, product, who, 422, str(error))
    return RedirectResponse(f"/products/{product}/versions/{version.number}", 303)


@router.get("/products/{product}/versions/{number}")
def show(
    request: Request, product: int, number: int, station: Here, who: Engineer, all: bool = False
) -> Response:
    """One version: what it promises, what it learned from, what it would change."""
    return _one(request, station, product, number, who, all=all)


@router.get("/products/{product}/versions/{number}/references/{reference}")
def reference(product: int, number: int, reference: int, station: Here, who: Engineer) -> Response:
    """A picture that it learned from, with the heat that it would have had."""
    with station.database.reading() as session:
        row = version_of(session, product, number)
    try:
        model = model_of(station.files / row.file)
        if not 0 <= reference < len(model.references):
            raise OptionError(f"reference {reference}: there is none of this number")
        # By what it was made from: another threshold draws other outlines.
        drawn = station.files / f"models/{product}/heat/{row.digest[:16]}/{reference}.jpg"
        if not drawn.exists():
            picture = station.files / model.references[reference].file
            draw_reference(model, reference, picture, drawn)
    except OffnominalError as error:
        raise HTTPException(404, str(error)) from error
    return FileResponse(drawn, headers={"Cache-Control": "private, max-age=604800"})


@router.post("/products/{product}/versions/{number}/live")
async def make_live(
    request: Request, product: int, number: int, station: Here, who: Engineer
) -> Response:
    """Let it judge from now on: opened by the workers first, so that no part waits for it."""

    def read() -> tuple[int, bool]:
        with station.database.reading() as session:
            first = product_of(session, product).live_id is None
            return version_of(session, product, number).id, first

    def switch() -> None:
        with station.database.writing() as session:
            product_of(session, product)
            go_live(session, product, number, who.name)

    version, first = await run_in_threadpool(read)
    try:
        await station.inspector.warm(version)
        await run_in_threadpool(switch)
    except OffnominalError as error:
        more = (request, station, product, number, who, 422, str(error))
        return await run_in_threadpool(_one, *more)
    station.inspector.forget(product)
    station.events.publish("version", product=product, version=number)
    place = f"/operator/{product}" if first else f"/products/{product}/versions"
    return RedirectResponse(place, 303)


@router.post("/products/{product}/versions/{number}/state")
def set_state(
    product: int,
    number: int,
    station: Here,
    who: Engineer,
    state: Annotated[str, Form(pattern="^(ready|dropped)$")],
) -> Response:
    """Drop what is not wanted, or bring it back; accept what came from outside, or refuse it."""
    with station.database.reading() as session:
        outside = version_of(session, product, number)
    if outside.state == "quarantined":
        if state == "ready":
            quarantine.accept(station, who, outside.id)
            return RedirectResponse(f"/products/{product}/versions/{number}", 303)
        quarantine.refuse(station, who, outside.id)
        return RedirectResponse(f"/products/{product}/versions", 303)
    with station.database.writing() as session:
        row, version = product_of(session, product), version_of(session, product, number)
        if row.live_id == version.id:
            raise HTTPException(409, _("This version is live: make another one live before."))
        if state != version.state:
            what = "restore" if state == "ready" else "drop"
            version.state = state
            noted(session, who.name, f"version.{what}", row.name, version=number)
    return RedirectResponse(f"/products/{product}/versions/{number}", 303)


@router.post("/products/{product}/versions/{number}/forget")
async def forget(
    request: Request,
    product: int,
    number: int,
    station: Here,
    who: Engineer,
    references: Annotated[list[str], Form(default_factory=list)],
) -> Response:
    """Make a version without some of the pictures that it learned from."""

    def model() -> Version:
        with station.database.reading() as session:
            return version_of(session, product, number)

    parent = await run_in_threadpool(model)

    async def work(told: Told) -> dict[str, Any]:
        given: dict[str, Any] = {"model": parent.file, "references": references}
        made = await learn(station, product, "forget", who.name, told, parent=parent.id, **given)
        return {"go": f"/products/{product}/versions/{made['version']}"}

    try:
        if not references:
            raise OptionError(_("Choose pictures that are to be forgotten."))
        station.jobs.start(product, f"forget {number}", who.name, work)
    except OptionError as error:
        more = (request, station, product, number, who, 422, str(error))
        return await run_in_threadpool(_one, *more)
    return RedirectResponse(f"/products/{product}/versions/{number}", 303)


@router.post("/products/{product}/versions/{number}/compare")
async def begin(
    request: Request,
    product: int,
    number: int,
    station: Here,
    who: Engineer,
    last: Annotated[int, Form()] = 200,
) -> Response:
    """Let it judge the last stored pictures, beside what was said of them."""

    def row() -> int:
        with station.database.reading() as session:
            return version_of(session, product, number).id

    candidate = await run_in_threadpool(row)
    try:
        start_comparing(station, product, number, candidate, who, last)
    except OptionError as error:
        more = (request, station, product, number, who, 422, str(error))
        return await run_in_threadpool(_one, *more)
    return RedirectResponse(f"/products/{product}/versions/{number}", 303)


def start_comparing(
    station: Station, product: int, number: int, candidate: int, who: Who, last: int
) -> None:
    """Begin the job whose outcome the version's page shows; to be called in the event loop."""
    place = f"/products/{product}/versions/{number}"

    async def work(told: Told) -> dict[str, Any]:
        return await compare(station, product, candidate, None, last, told) | {"go": place}

    station.jobs.start(product, f"compare {number}", who.name, work, last)


def _outcome(result: dict[str, Any]) -> dict[str, Any]:
    pairs = [Pair(**one) for one in result["pairs"]]
    flips = [one for one in pairs if one.flips]
    # First what somebody would regret: a known-bad part that passes.
    order = {("bad", "good"): 0, ("good", "reject"): 1}
    flips.sort(key=lambda one: (order.get((one.label or "", one.now), 2), -(one.after or 0)))
    return result | {"pairs": pairs, "flips": flips, "summary": summary(pairs)}


def _list(
    request: Request,
    station: Station,
    product: int,
    who: Who,
    status: int = 200,
    error: str = "",
) -> Response:
    with station.database.reading() as session:
        row = product_of(session, product)
        versions = _versions(session, product)
        parent = row.live.parent_id if row.live else None
        before = session.get(Version, parent) if parent else None
    context: dict[str, Any] = {
        "product": row,
        "versions": versions,
        "before": before,
        "how_made": how_made,
        "error": error,
        "most": MOST,
    }
    return page(request, "versions.html.j2", who, status, **context)


def _versions(session: Session, product: int) -> list[Version]:
    found = sa.select(Version).filter_by(product_id=product).order_by(Version.number.desc())
    return list(session.scalars(found))


def _one(
    request: Request,
    station: Station,
    product: int,
    number: int,
    who: Who,
    status: int = 200,
    error: str = "",
    all: bool = False,
) -> Response:
    with station.database.reading() as session:
        row, version = product_of(session, product), version_of(session, product, number)
        parent = session.get(Version, version.parent_id) if version.parent_id else None
        bad = known_bad(session, product)
        first_fit = row.live_id is None and version.state == "ready"
    running = station.jobs.running(product)
    compared = station.jobs.last(product, f"compare {number}")
    forgot, fitted = (station.jobs.last(product, one) for one in (f"forget {number}", "fit"))
    if not running:
        error = error or trouble(compared) or trouble(forgot)
    left_out = fitted.result.get("left_out", []) if fitted else []
    if not fitted or fitted.result.get("go") != f"/products/{product}/versions/{number}":
        left_out = []
    try:
        model = model_of(station.files / version.file)
    except OffnominalError as wrong:
        model, error = None, str(wrong)
    found = _outcome(compared.result) if compared and compared.state == "done" else None
    pictures = references_of(model) if model else []
    missed = model.missed_defects if model else []
    context: dict[str, Any] = {
        "product": row,
        "version": version,
        "parent": parent,
        "first_fit": first_fit,
        "model": model,
        "error": error,
        "promise": promise(model.threshold) if model else "",
        "more": promise_more(model.threshold) if model else "",
        "warning": model.threshold_warning if model else None,
        "missed": sum(one.missed for one in missed),
        "made": sum(one.made for one in missed),
        "network": _network(model) if model else ("", ""),
        "references": pictures if all else pictures[:_SHOWN],
        "total": len(pictures),
        "active": sum(one.active for one in pictures),
        "alone": bool(model) and not len(model.good.references) if model else False,
        "left_out": left_out,
        "found": found,
        "known_bad": bad,
        "how_made": how_made,
        "job": job_told(running) if running else None,
        "shown": _SHOWN,
        "most": MOST,
    }
    return page(request, "version.html.j2", who, status, **context)


def _network(model: Any) -> tuple[str, str]:
    """Name of the network, and what would be better."""
    known = model.header.get("backbone") or {}
    return known.get("name", ""), known.get("note", "")


def _start(station: Station, product: int, kind: str, who: Who, work: Any, total: int) -> None:
    try:
        station.jobs.start(product, kind, who.name, work, total)
    except OptionError as error:
        raise HTTPException(409, str(error)) from error
