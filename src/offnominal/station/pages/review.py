"""Review and learn: what people said of parts becomes a new version, or a known defect."""

from collections.abc import Sequence
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from offnominal.errors import OffnominalError, OptionError
from offnominal.station.access.who import Who, allowed
from offnominal.station.inspection.learner import Told
from offnominal.station.language import _, ngettext
from offnominal.station.learning import references
from offnominal.station.learning.comparing import MOST, compare
from offnominal.station.learning.versions import learn
from offnominal.station.pages.found import product_of
from offnominal.station.pages.jobs import told as job_told
from offnominal.station.pages.jobs import trouble
from offnominal.station.pages.page import page
from offnominal.station.station import Here, Station
from offnominal.station.store.labelling import LabelName
from offnominal.station.store.labelling import label as labelled
from offnominal.station.store.tables import Inspection, Picture, Product, Version

__all__ = ["router"]

router = APIRouter()

Engineer = Annotated[Who, Depends(allowed("engineer"))]
_SHOWN = 60


@router.get("/review")
def show(request: Request, station: Here, who: Engineer, product: int | None = None) -> Response:
    """What waits for somebody's eyes: of one product."""
    return _page(request, station, who, product)


@router.post("/review/{product}/label")
def say(
    product: int,
    station: Here,
    who: Engineer,
    label: Annotated[str, Form(pattern="^(good|bad|none)$")],
    inspections: Annotated[list[int], Form(default_factory=list)],
    kind: Annotated[str, Form(max_length=100)] = "",
) -> Response:
    """Say of several parts what they are."""
    with station.database.writing() as session:
        asked = sa.select(Inspection.id).filter_by(product_id=product)
        own = list(session.scalars(asked.where(Inspection.id.in_(inspections))))
        said: LabelName | None = None
        if label != "none":
            said = "good" if label == "good" else "bad"
        labelled(session, own, said, who.name, kind.strip() or None)
    return RedirectResponse(f"/review?product={product}", 303)


@router.post("/review/{product}/learn")
async def learn_from(
    request: Request,
    product: int,
    station: Here,
    who: Engineer,
    inspections: Annotated[list[int], Form(default_factory=list)],
    last: Annotated[int, Form()] = 200,
) -> Response:
    """Add false alarms to a new version, and see what it would change."""

    def given() -> tuple[Version, list[str]]:
        with station.database.reading() as session:
            live = product_of(session, product).live
            if live is None:
                raise OptionError(_("This product has no live version: start one first."))
            files = _good_files(session, product, inspections)
        if not files:
            raise OptionError(_("Choose parts that somebody said are good, with a picture."))
        return live, files

    async def work(told: Told) -> dict[str, Any]:
        note = ngettext("%(count)s false alarm", "%(count)s false alarms", len(files))
        note %= {"count": len(files)}
        more = {"model": live.file, "pictures": files}
        made = await learn(station, product, "add", who.name, told, note, live.id, **more)
        place = f"/products/{product}/versions/{made['version']}"

        async def see(told: Told) -> dict[str, Any]:
            found = await compare(station, product, made["version_id"], None, last, told)
            return found | {"go": place}

        # Only once this job is over: a product has one at a time.
        station.jobs.then(product, f"compare {made['version']}", who.name, see, last)
        return {"go": place}

    try:
        live, files = await run_in_threadpool(given)
        station.jobs.start(product, "add", who.name, work, len(files))
    except OptionError as error:
        more = (request, station, who, product, 422, str(error))
        return await run_in_threadpool(_page, *more)
    return RedirectResponse(f"/review?product={product}", 303)


@router.post("/review/{product}/keep")
def keep(
    product: int,
    station: Here,
    who: Engineer,
    inspections: Annotated[list[int], Form(default_factory=list)],
) -> Response:
    """Put false alarms among the pictures of good parts, for methods that learn only anew."""
    with station.database.reading() as session:
        product_of(session, product)
        files = _good_files(session, product, inspections)
    for file in files:
        path = station.files / file
        try:
            references.keep(station.files, product, path.name, path.read_bytes())
        except OffnominalError as error:
            raise HTTPException(422, str(error)) from error
    return RedirectResponse(f"/products/{product}/images", 303)


@router.post("/review/{product}/known")
async def judge_known(
    product: int, station: Here, who: Engineer, last: Annotated[int, Form()] = 200
) -> Response:
    """Judge the known-bad pictures by the live version: those of older ones have other scores."""

    def live() -> int:
        with station.database.reading() as session:
            row = product_of(session, product)
            if row.live_id is None:
                raise HTTPException(409, _("This product has no live version: start one first."))
            return row.live_id

    version = await run_in_threadpool(live)

    async def work(told: Told) -> dict[str, Any]:
        found = await compare(station, product, version, None, last, told)
        return found | {"go": f"/review?product={product}"}

    try:
        station.jobs.start(product, f"known {version}", who.name, work, last)
    except OptionError as error:
        raise HTTPException(409, str(error)) from error
    return RedirectResponse(f"/review?product={product}", 303)


def _good_files(session: Session, product: int, inspections: Sequence[int]) -> list[str]:
    asked = (
        sa.select(Picture.file)
        .join(Inspection, Inspection.picture_id == Picture.id)
        .where(
            Inspection.id.in_(inspections[:1000]),
            Inspection.product_id == product,
            Inspection.label == "good",
        )
    )
    return list(dict.fromkeys(session.scalars(asked)))


def _page(
    request: Request,
    station: Station,
    who: Who,
    product: int | None,
    status: int = 200,
    error: str = "",
) -> Response:
    with station.database.reading() as session:
        usable = sa.select(Product).filter_by(archived=None)
        products = session.scalars(usable.order_by(sa.func.lower(Product.name))).all()
        row = (
            product_of(session, product)
            if product
            else next((one for one in products if one.live_id), products[0] if products else None)
        )
        context: dict[str, Any] = {"products": products, "product": row, "error": error}
        if row is None:
            return page(request, "review.html.j2", who, status, **context)
        context |= _waiting(session, row)
        context["bad"] = _known(session, station, row)
    running = station.jobs.running(row.id)
    failed = [station.jobs.last(row.id, "add"), station.jobs.last(row.id, f"known {row.live_id}")]
    if not running and not error:
        context["error"] = trouble(failed[1]) or trouble(failed[0])
    context |= {
        "job": job_told(running) if running else None,
        "shown": _SHOWN,
        "most": MOST,
    }
    return page(request, "review.html.j2", who, status, **context)


def _waiting(session: Session, product: Product) -> dict[str, Any]:
    """Parts by what somebody should do about them."""
    row = Inspection

    def some(*conditions: Any) -> list[Inspection]:
        asked = sa.select(row).where(row.product_id == product.id, *conditions)
        order = asked.order_by(row.received.desc(), row.id.desc())
        return list(session.scalars(order.limit(_SHOWN)))

    learned = _learned(product.live)
    alarms = some(row.verdict == "reject", row.label == "good", row.picture_id.is_not(None))
    pictures = {one.picture_id for one in alarms}
    files = {
        one.id: one.file
        for one in session.scalars(sa.select(Picture).where(Picture.id.in_(pictures)))
    }
    newer = sa.select(Version).where(
        Version.product_id == product.id,
        Version.state == "ready",
        Version.number > (product.live.number if product.live else 0),
    )
    return {
        "unjudged": some(row.verdict == "reject", row.label.is_(None)),
        "alarms": [one for one in alarms if files.get(one.picture_id or 0) not in learned],
        "done": sum(files.get(one.picture_id or 0) in learned for one in alarms),
        "misses": some(row.verdict == "good", row.label == "bad"),
        "candidates": list(session.scalars(newer.order_by(Version.number.desc()).limit(5))),
        "grows": bool(product.live and product.live.facts.get("grows")),
    }


def _learned(live: Version | None) -> set[str]:
    """Files that the live version knows already."""
    known = live.facts.get("references", []) if live else []
    return {one["file"] for one in known if one.get("active", True)}


def _known(session: Session, station: Station, product: Product) -> dict[str, Any]:
    """How the live threshold does on parts that are known to be bad."""
    row, live = Inspection, product.live
    of_bad = sa.select(row).where(row.product_id == product.id, row.label == "bad")
    total = session.scalar(sa.select(sa.func.count()).select_from(of_bad.subquery())) or 0
    found: dict[str, Any] = {"total": total, "judged": 0, "passed": []}
    if live is None or live.threshold is None:
        return found
    job = station.jobs.last(product.id, f"known {live.id}")
    if job and job.state == "done":
        bad = [one for one in job.result["pairs"] if one["label"] == "bad"]
        passed = [one for one in bad if one["now"] == "good"]
        scores = [(one["inspection"], one["after"]) for one in passed]
        return found | {"judged": len(bad), "passed": scores}
    # Scores of other versions are of other models: only the live one's own count here.
    own = sa.select(row.id, row.score).where(
        row.product_id == product.id,
        row.label == "bad",
        row.version_id == live.id,
        row.score.is_not(None),
    )
    rows = session.execute(own.order_by(row.score).limit(1000)).all()
    scores = [(number, score) for number, score in rows if (score or 0) <= live.threshold]
    return found | {"judged": len(rows), "passed": scores}
