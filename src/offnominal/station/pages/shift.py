"""The report of a shift: a page to print, and to send as a link that runs out."""

import base64
import hashlib
import hmac
import secrets
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from offnominal.errors import ImageError
from offnominal.station.access.who import Who, allowed
from offnominal.station.drawing import thumbnail
from offnominal.station.language import _
from offnominal.station.pages.health import cause_words, charts_of
from offnominal.station.pages.page import page
from offnominal.station.shifts import Shift, shift_at, shift_of
from offnominal.station.station import Here, Station
from offnominal.station.store.counts import Counts, counts, reasons
from offnominal.station.store.tables import Audit, Inspection, Label, Picture, Product, Setting
from offnominal.station.store.trend import trend

__all__ = ["link_to", "router", "sealed"]

router = APIRouter()

Operator = Annotated[Who, Depends(allowed("operator"))]
Number = Annotated[int, Path(ge=1, le=24)]
_WORST = 12
_REJECTS = 5_000  # of a shift that are looked through for the worst
_GROUPS = 24  # points of a chart
_DAYS = 14  # for which a link opens the page
_SECRET = "shift.link"


@router.get("/shift")
def current(station: Here, who: Operator) -> Response:
    """The shift that is now."""
    shift = shift_at(station.settings, datetime.now(UTC))
    return RedirectResponse(f"/shift/{shift.day}/{shift.number}", 303)


@router.get("/shift/{day}/{number}")
def show(request: Request, day: date, number: Number, station: Here, who: Operator) -> Response:
    """A shift's report."""
    return _report(request, station, day, number, who)


@router.get("/shift/{day}/{number}/shared")
def shared(
    request: Request,
    day: date,
    number: Number,
    station: Here,
    until: Annotated[int, Query(ge=0, lt=2**40)],
    seal: Annotated[str, Query(max_length=64)],
) -> Response:
    """The same to whoever has the link, as long as it is valid, and nothing else."""
    with station.database.reading() as session:
        row = session.get(Setting, _SECRET)
    right = row is not None and hmac.compare_digest(
        sealed(row.value["key"], day, number, until).encode(), seal.encode()
    )
    if not right or until < datetime.now(UTC).timestamp():
        raise HTTPException(403, _("This link is wrong or has run out: ask for a new one."))
    answer = _report(request, station, day, number, None)
    # The address is the key: it is not handed on to other sites, nor kept by caches.
    answer.headers["Referrer-Policy"] = "no-referrer"
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["X-Robots-Tag"] = "noindex"
    return answer


def sealed(key: str, day: date, number: int, until: int) -> str:
    """The seal of a link: HMAC-SHA256 over the page and when it runs out."""
    told = f"/shift/{day.isoformat()}/{number}\n{until}"
    return hmac.new(bytes.fromhex(key), told.encode(), hashlib.sha256).hexdigest()


def link_to(station: Station, day: date, number: int, now: datetime | None = None) -> str:
    """A path that opens a shift's page without an account, for two weeks."""
    key = _key(station)
    until = int(((now or datetime.now(UTC)) + timedelta(days=_DAYS)).timestamp())
    seal = sealed(key, day, number, until)
    return f"/shift/{day.isoformat()}/{number}/shared?until={until}&seal={seal}"


def _key(station: Station) -> str:
    """The station's own secret for links, made when it is first needed."""
    with station.database.reading() as session:
        row = session.get(Setting, _SECRET)
    if row is None:
        new = Setting(name=_SECRET, value={"key": secrets.token_hex(32)})
        try:
            with station.database.writing() as session:
                session.add(new)
        except IntegrityError:  # another made it meanwhile
            pass
        with station.database.reading() as session:
            row = session.get_one(Setting, _SECRET)
    key: str = row.value["key"]
    return key


def _report(
    request: Request, station: Station, day: date, number: int, who: Who | None
) -> Response:
    try:
        shift = shift_of(station.settings, day, number)
    except (LookupError, OverflowError) as error:
        raise HTTPException(404, _("There is no such shift.")) from error
    now = datetime.now(UTC)
    end = min(shift.end, now)
    with station.database.reading() as session:
        found = counts(session, shift.start, shift.end)
        products = session.scalars(sa.select(Product).order_by(Product.name)).all()
        rows = [(one, found[one.id]) for one in products if one.id in found]
        drifts = _drifts(session, station, [one for one, _counts in rows], shift, end)
        given: dict[str, Any] = {
            "shift": shift,
            "running": shift.start <= now < shift.end,
            "rows": rows,
            "all": _sum([one for _product, one in rows]),
            "reasons": reasons(session, shift.start, shift.end),
            "worst": _worst(session, shift),
            "changes": _changes(session, shift),
            "action": action_words,
            "people": _people(session, shift),
            "labelled": _labelled(session, shift),
            "drifts": drifts,
        }
        before, after = _beside(station, shift)
        given |= {"before": before, "after": after if after.start <= now else None}
        link = None
        if who is not None:
            link = str(request.base_url).rstrip("/") + link_to(station, day, number, now)
            pictures = {}
        else:
            # Whoever has only the link may not ask for pictures: they are in the page.
            pictures = {one.id: _inline(session, station, one) for one in given["worst"]}
        given |= {"link": link, "pictures": pictures, "days": _DAYS}
        return page(request, "shift.html.j2", who, **given)


def _sum(all_counts: list[Counts]) -> Counts:
    names = ("good", "reject", "not_inspected", "false_alarms", "misses", "labelled")
    return Counts(**{name: sum(getattr(one, name) for one in all_counts) for name in names})


def _drifts(
    session: Session, station: Station, products: list[Product], shift: Shift, end: datetime
) -> list[dict[str, Any]]:
    found = []
    for product in products:
        told = trend(session, product, shift.start, end, _GROUPS)
        if told is None:
            continue
        charts = charts_of(told, shift.start, shift.end, station)
        if "score" in charts:
            words = cause_words(told) if told.drift else ""
            one = {"name": product.name, "since": told.drift, "words": words}
            found.append(one | {"chart": charts["score"]})
    return found


def _worst(session: Session, shift: Shift) -> list[Inspection]:
    """The rejected parts that lie farthest above their thresholds."""
    row = Inspection
    some = (
        sa.select(row.id, row.score, row.threshold)
        .where(row.verdict == "reject", row.received >= shift.start, row.received < shift.end)
        .order_by(row.received.desc(), row.id.desc())
        .limit(_REJECTS)
    )

    def share(one: Any) -> float:
        return float((one.score or 0) / one.threshold) if one.threshold else 0.0

    chosen = [one.id for one in sorted(session.execute(some), key=share, reverse=True)[:_WORST]]
    rows = session.scalars(sa.select(row).where(row.id.in_(chosen))).all()
    return sorted(rows, key=lambda one: chosen.index(one.id))


def _inline(session: Session, station: Station, row: Inspection) -> str:
    picture = session.get(Picture, row.picture_id) if row.picture_id else None
    if picture is None:
        return ""
    try:
        content = thumbnail(station.files / picture.file)
    except ImageError:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def _changes(session: Session, shift: Shift) -> list[Audit]:
    """What was done to versions and products."""
    asked = sa.select(Audit).where(Audit.at >= shift.start, Audit.at < shift.end)
    chosen = sa.or_(Audit.action.startswith("version."), Audit.action.startswith("product."))
    return list(session.scalars(asked.where(chosen).order_by(Audit.id).limit(200)))


def action_words(action: str) -> str:
    """What was done, in words; an action's own name where there are none."""
    words = {
        "version.fit": _("Learned anew:"),
        "version.add": _("Good parts added:"),
        "version.forget": _("Pictures forgotten:"),
        "version.threshold": _("Threshold set:"),
        "version.upload": _("Model taken in:"),
        "version.receive": _("Model file brought in:"),
        "version.accept": _("Model file accepted:"),
        "version.refuse": _("Model file refused:"),
        "version.drop": _("Dropped:"),
        "version.restore": _("Taken back:"),
        "version.live": _("Went live:"),
        "product.create": _("Made:"),
        "product.change": _("Changed:"),
        "product.checks": _("Checks of pictures changed:"),
        "product.shadow": _("Shadow mode changed:"),
        "product.archive": _("Put away:"),
        "product.restore": _("Taken back:"),
        "product.costs": _("Costs set:"),
        "product.usual": _("What is usual begun anew:"),
    }
    return words.get(action, action)


def _people(session: Session, shift: Shift) -> list[str]:
    """Who logged in."""
    asked = sa.select(Audit.by).where(
        Audit.at >= shift.start, Audit.at < shift.end, Audit.action == "login"
    )
    return sorted(session.scalars(asked.distinct()))


def _labelled(session: Session, shift: Shift) -> list[tuple[str, int]]:
    """Who labelled how many parts."""
    asked = (
        sa.select(Label.by, sa.func.count())
        .where(Label.at >= shift.start, Label.at < shift.end)
        .group_by(Label.by)
        .order_by(sa.func.count().desc(), Label.by)
    )
    return [(by, number) for by, number in session.execute(asked)]


def _beside(station: Station, shift: Shift) -> tuple[Shift, Shift]:
    return (
        shift_at(station.settings, shift.start - timedelta(seconds=1)),
        shift_at(station.settings, shift.end),
    )
