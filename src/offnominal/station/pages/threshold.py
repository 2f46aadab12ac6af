"""The threshold of a product: what it would reject and miss, moved by hand or by costs."""

import json
import math
from typing import Annotated, Any

import numpy as np
import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from offnominal.calibration import p_value
from offnominal.costs import ByCost, threshold_by_cost
from offnominal.errors import OffnominalError, OptionError
from offnominal.station.access import audit
from offnominal.station.access.who import Who, allowed
from offnominal.station.language import _
from offnominal.station.learning.versions import learn
from offnominal.station.pages.charts import Axis, histogram
from offnominal.station.pages.found import product_of, version_of
from offnominal.station.pages.page import page
from offnominal.station.station import Here, Station
from offnominal.station.store.scores import Known, comparable, known
from offnominal.station.store.tables import Inspection, Product, Version

__all__ = ["router"]

router = APIRouter()

Engineer = Annotated[Who, Depends(allowed("engineer"))]
_BINS = 72
_SHARE = 1.0  # percent of parts that are defective, where nobody says otherwise
_LOOK = 5_000  # parts that are looked at for what would flip
_FLIPS = 60
_KINDS = ("good", "bad", "unlabelled")


@router.get("/products/{product}/threshold")
def show(
    request: Request,
    product: int,
    station: Here,
    who: Engineer,
    share: Annotated[float, Query(gt=0, lt=100)] = _SHARE,
    at: Annotated[float | None, Query(allow_inf_nan=False)] = None,
) -> Response:
    """The histogram and its handle."""
    return _show(request, station, product, who, share, at)


def _show(
    request: Request,
    station: Station,
    product: int,
    who: Who,
    share: float = _SHARE,
    at: float | None = None,
    status: int = 200,
    error: str = "",
) -> Response:
    with station.database.reading() as session:
        row = product_of(session, product)
        version = session.get(Version, row.live_id) if row.live_id else None
        given: dict[str, Any] = {"product": row, "version": version, "error": error, "share": share}
        if version is None or version.threshold is None:
            return page(request, "threshold.html.j2", who, status, chart=None, **given)
        stored = known(session, row, version)
    good = [float(one) for one in version.facts["good_scores"]]
    value = version.threshold if at is None else at
    axis = _axis([*good, *stored.good, *stored.bad, *stored.unlabelled, version.threshold, value])
    chart = histogram(
        [("chart-known", stored.good), ("chart-good", stored.unlabelled)],
        stored.bad,
        good,
        axis,
        _BINS,
        _("Scores of stored parts: good ones upwards, known-bad ones downwards"),
    )
    cheapest, why_not = _cheapest(row, stored, good, share)
    data = {
        # More digits than scores have, and fewer bytes than floats have.
        **{name: [float(f"{one:.9g}") for one in getattr(stored, name)] for name in _KINDS},
        **{"calibration": good, "threshold": version.threshold, "value": value},
        **{"low": axis.low, "high": axis.high, "start": axis.start, "stop": axis.stop},
        **{"log": axis.logarithm, "miss": row.cost_miss, "reject": row.cost_reject},
        "share": share / 100,
    }
    return page(
        request,
        "threshold.html.j2",
        who,
        status,
        chart=chart,
        axis=axis,
        place=axis(value),
        live_place=axis(version.threshold),
        value=value,
        stored=stored,
        good=good,
        promised=promised(value, good),
        approximate=is_approximate(version),
        rejected=sum(one > value for one in [*stored.good, *stored.unlabelled]),
        missed=sum(one <= value for one in stored.bad),
        cheapest=cheapest,
        why_not=why_not,
        data=json.dumps(data, separators=(",", ":")),
        **given,
    )


@router.post("/products/{product}/threshold/costs")
def costs(
    product: int,
    station: Here,
    who: Engineer,
    miss: Annotated[float, Form(gt=0, allow_inf_nan=False)],
    reject: Annotated[float, Form(gt=0, allow_inf_nan=False)],
    share: Annotated[float, Form(gt=0, lt=100)] = _SHARE,
) -> Response:
    """What mistakes cost."""
    with station.database.writing() as session:
        row = product_of(session, product)
        row.cost_miss, row.cost_reject = miss, reject
        audit.note(session, who.name, "product.costs", row.name, miss=miss, reject=reject)
    return RedirectResponse(f"/products/{product}/threshold?share={share:g}", 303)


@router.post("/products/{product}/threshold")
async def save(
    request: Request,
    product: int,
    station: Here,
    who: Engineer,
    value: Annotated[float, Form(allow_inf_nan=False)],
) -> Response:
    """Make a version with this threshold, which is not live by that."""

    def live() -> tuple[int, str]:
        with station.database.reading() as session:
            row = product_of(session, product)
            if row.live_id is None:
                raise HTTPException(409, _("No version is live."))
            version = session.get_one(Version, row.live_id)
            return version.id, version.file

    parent, model = await run_in_threadpool(live)
    given: dict[str, Any] = {"parent": parent, "model": model, "value": value}
    try:
        made = await learn(station, product, "threshold", who.name, **given)
    except OffnominalError as error:
        more = (request, station, product, who, _SHARE, value, 422, str(error))
        return await run_in_threadpool(_show, *more)
    return RedirectResponse(f"/products/{product}/threshold/{made['version']}", 303)


@router.get("/products/{product}/threshold/{number}")
def confirm(request: Request, product: int, number: int, station: Here, who: Engineer) -> Response:
    """What would flip in the history, before it goes live."""
    with station.database.reading() as session:
        row, version = product_of(session, product), version_of(session, product, number)
        if version.threshold is None:
            raise HTTPException(404, _("This version has no threshold."))
        looked, flips = _flips(session, version)
        live = session.get(Version, row.live_id) if row.live_id else None
        return page(
            request,
            "threshold_new.html.j2",
            who,
            product=row,
            version=version,
            live=live,
            looked=looked,
            to_reject=[one for one in flips if one.verdict == "good"],
            to_good=[one for one in flips if one.verdict == "reject"],
            shown=_FLIPS,
        )


def promised(value: float, good: list[float]) -> float | None:
    """The rate of good parts that a threshold rejects at most, by good parts' scores.

    A new good part exceeds it with a probability of at most (1 + those above it) / (n + 1): the
    conformal p-value of the least score that is rejected (Vovk et al., 2005, chapter 2). It holds
    of a threshold that was chosen without looking at these scores; of one that was moved by them it
    is an estimate.
    """
    return p_value(float(np.nextafter(value, math.inf)), good)


def is_approximate(version: Version) -> bool:
    """Whether good scores are not quite those that new good parts would have."""
    by_itself = version.facts["good_kind"] == "leave-one-out"
    return version.facts["good_kind"] not in ("held-out", "leave-one-out") or (
        by_itself and version.facts["leave_one_out"] != "exact"
    )


def _axis(values: list[float]) -> Axis:
    low, high = min(values), max(values)
    logarithm = low > 0 and high / low > 4
    if logarithm:
        room = (high / low) ** 0.04
        return Axis(low / room, high * room, 8, 712, True)
    room = 0.04 * (high - low) or abs(high) or 1.0
    return Axis(low - room, high + room, 8, 712)


def _cheapest(
    product: Product, stored: Known, good: list[float], share: float
) -> tuple[ByCost | None, str]:
    if product.cost_miss is None or product.cost_reject is None:
        return None, ""
    # Parts that nobody looked at are not counted: they were passed because they score low.
    fine = [*good, *stored.good]
    if len(stored.bad) < 1 or len(fine) < 2:
        return None, _("Label at least one bad part, and costs can be weighed.")
    try:
        told = (fine, stored.bad, product.cost_miss, product.cost_reject, share / 100)
        return threshold_by_cost(*told), ""
    except OptionError:
        return None, _("The bad parts score no higher than the good ones: no threshold helps.")


def _flips(session: Session, version: Version) -> tuple[int, list[Any]]:
    """Parts of the last ones whose verdict would be another, and how many could be looked at."""
    ids = {one.id for one in comparable(session, version)}
    row = Inspection
    last = (
        sa.select(row.id, row.score, row.verdict, row.version_id, row.label, row.picture_id)
        .where(row.product_id == version.product_id)
        .order_by(row.received.desc(), row.id.desc())
        .limit(_LOOK)
    )
    assert version.threshold is not None
    judged = [
        one
        for one in session.execute(last)
        if one.version_id in ids and one.score is not None and one.verdict != "not-inspected"
    ]
    limit = version.threshold
    flips = [one for one in judged if ("reject" if one.score > limit else "good") != one.verdict]
    return len(judged), flips
