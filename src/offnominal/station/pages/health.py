"""Health: whether scores drift, whether pictures are what they were, what the machine does."""

import shutil
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import numpy as np
import sqlalchemy as sa
from babel.dates import format_date, format_time
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse
from markupsafe import Markup
from sqlalchemy.orm import Session

from offnominal.station.access import audit
from offnominal.station.access.who import Who, allowed
from offnominal.station.language import _, speaking
from offnominal.station.pages.charts import control_chart
from offnominal.station.pages.found import product_of
from offnominal.station.pages.page import page
from offnominal.station.shifts import zone_of
from offnominal.station.station import Here, Station
from offnominal.station.store.counts import counts
from offnominal.station.store.tables import Inspection, Product
from offnominal.station.store.trend import Series, Trend, begin_anew, shown, trend

__all__ = ["cause_words", "charts_of", "router"]

router = APIRouter()

Operator = Annotated[Who, Depends(allowed("operator"))]
Engineer = Annotated[Who, Depends(allowed("engineer"))]
_RANGES = {"day": timedelta(days=1), "week": timedelta(days=7), "month": timedelta(days=30)}
_STEPS = [timedelta(minutes=one) for one in (1, 2, 5, 10, 15, 30, 60, 120, 240)]
_LATEST = 2_000  # inspections whose time is told


@router.get("/health")
def show(
    request: Request,
    station: Here,
    who: Operator,
    product: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
    span: Annotated[str, Query(alias="range", pattern="^(day|week|month)$")] = "day",
) -> Response:
    """One product over a while, and the station itself."""
    end = datetime.now(UTC)
    start = end - _RANGES[span]
    with station.database.reading() as session:
        asked = sa.select(Product).where(Product.archived.is_(None)).order_by(Product.name)
        products = session.scalars(asked).all()
        chosen = next((one for one in products if one.id == product), None)
        if chosen is None:
            chosen = next((one for one in products if one.live_id), None)
        told = trend(session, chosen, start, end) if chosen else None
        latency = _latency(session)
        last_day = sum((one.all for one in counts(session, end - _RANGES["day"], end).values()), 0)
    disk = shutil.disk_usage(station.files.folder)
    return page(
        request,
        "health.html.j2",
        who,
        products=products,
        chosen=chosen,
        range=span,
        ranges={"day": _("a day"), "week": _("a week"), "month": _("a month")},
        trend=told,
        charts=charts_of(told, _begun(told, start, end), end, station) if told else {},
        words=cause_words(told) if told and told.drift else "",
        latency=latency,
        last_day=last_day,
        disk=disk,
        facts=[one for one in station.state.facts if not one.name.startswith("drift ")],
        blind=station.state.blind,
    )


@router.post("/health/usual")
def usual(station: Here, who: Engineer, product: Annotated[int, Query(ge=1, lt=2**31)]) -> Response:
    """What comes from now on is usual: the light, the lens or the tool was changed on purpose."""
    with station.database.writing() as session:
        row = product_of(session, product)
        begin_anew(session, product, datetime.now(UTC))
        audit.note(session, who.name, "product.usual", row.name)
    return RedirectResponse(f"/health?product={product}", 303)


def cause_words(told: Trend) -> str:
    """What to look at, where scores drift."""
    return {
        "light": _("The brightness of the pictures moved as well: look at the light."),
        "lens": _("The sharpness of the pictures moved as well: look at the lens and its focus."),
        "part": _(
            "Brightness and sharpness did not move: look at the parts, their place, and the tool."
        ),
    }[told.cause]


def charts_of(told: Trend, start: datetime, end: datetime, station: Station) -> dict[str, Markup]:
    """A control chart of each series that has points."""
    labels = {
        "score": _("Scores of accepted parts over time, with the limits of what is usual"),
        "brightness": _("Brightness of accepted parts' pictures over time"),
        "sharpness": _("Sharpness of accepted parts' pictures over time"),
    }
    ticks = _ticks(start, end, station)
    return {
        name: _chart(series, start, end, ticks, labels[name])
        for name, series in told.series.items()
        if series.points
    }


def _begun(told: Trend, start: datetime, end: datetime) -> datetime:
    """Where the charts begin: with the first part, if most of the time asked for was before it."""
    first = min((one.points[0].at for one in told.series.values() if one.points), default=start)
    return max(start, first - (end - first) / 20) if 4 * (end - first) < end - start else start


def _chart(
    series: Series, start: datetime, end: datetime, ticks: list[tuple[float, str]], label: str
) -> Markup:
    def own(value: float) -> float:
        return shown(value, series.logarithm)

    times = [one.at.timestamp() for one in series.points]
    values = [own(next(iter(one.values.values()))) for one in series.points]
    span = (start.timestamp(), end.timestamp())
    control = series.control
    if control is None:
        return control_chart(times, values, [], [], None, [], ticks, span, label)
    low, high = control.centre - control.half, control.centre + control.half
    limits = [(own(float(a)), own(float(b))) for a, b in zip(low, high, strict=True)]
    average = [own(float(one)) for one in control.average]
    outside = [bool(one) for one in control.outside]
    centre = own(control.centre)
    return control_chart(times, values, average, limits, centre, outside, ticks, span, label)


def _ticks(start: datetime, end: datetime, station: Station) -> list[tuple[float, str]]:
    """Whole hours or days, as the reader's language writes them."""
    zone, locale = zone_of(station.settings), speaking.get()
    first, last = start.astimezone(zone), end.astimezone(zone)
    days = (end - start) > timedelta(days=2)
    least = (end - start) / 7
    step = next((one for one in _STEPS if one >= least), _STEPS[-1])
    if days:
        step = timedelta(days=max(1, (end - start).days // 6))
    at = first.replace(hour=0, minute=0, second=0, microsecond=0)
    if not days:
        at += (first - at) // step * step
    found = []
    while at <= last:
        if at >= first:
            words = (
                format_date(at, "d. MMM" if locale == "de" else "MMMd", locale=locale)
                if days
                else format_time(at, "short", locale=locale)
            )
            found.append((at.timestamp(), words))
        at += step
    return found


def _latency(session: Session) -> dict[str, Any] | None:
    """Percentiles of milliseconds of the latest inspections."""
    row = Inspection
    asked = sa.select(row.milliseconds).order_by(row.received.desc(), row.id.desc())
    values = list(session.scalars(asked.limit(_LATEST)))
    if not values:
        return None
    p50, p95, p99 = (float(one) for one in np.percentile(values, [50, 95, 99]))
    return {"p50": p50, "p95": p95, "p99": p99, "count": len(values)}
