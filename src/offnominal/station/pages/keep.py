"""Storage: what is kept how long, what that deletes, and everything as one file."""

import shutil
import threading
from datetime import UTC, datetime
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from pydantic import ValidationError

from offnominal.station.access import audit
from offnominal.station.access.who import Who, allowed
from offnominal.station.language import _
from offnominal.station.pages.page import page
from offnominal.station.station import Here, Station
from offnominal.station.store.backup import Pictures, backup
from offnominal.station.store.retention import Plan, Rules, apply, plan, rules, set_rules
from offnominal.station.store.tables import Audit

__all__ = ["router"]

router = APIRouter()

Admin = Annotated[Who, Depends(allowed("admin"))]


class _Work:
    """What is being counted or deleted, so that a page can say how far it is."""

    def __init__(self, new: Rules, deletes: bool) -> None:
        self.rules, self.deletes = new, deletes
        self.plan = Plan()
        self.error = ""

    def start(self, station: Station, by: str) -> None:
        def work() -> None:
            try:
                if self.deletes:
                    self.plan = apply(station, by)
                else:
                    plan(station, self.rules, self.plan)
            except (sa.exc.SQLAlchemyError, OSError) as error:
                self.error = str(error)
            self.plan.done = True

        threading.Thread(target=work, name="retention", daemon=True).start()


_works: dict[int, _Work] = {}  # by the station


@router.get("/keep")
def show(request: Request, station: Here, who: Admin) -> Response:
    """Rules, what they would delete, and backup."""
    return _show(request, station, who)


@router.get("/keep/plan")
def progress(request: Request, station: Here, who: Admin) -> Response:
    """How far the counting is; asked for again and again while it lasts."""
    return page(request, "plan.html.j2", who, work=_works.get(id(station)))


@router.post("/keep/plan")
def preview(
    request: Request,
    station: Here,
    who: Admin,
    accepted_days: Annotated[str, Form()] = "",
    accepted_share: Annotated[str, Form()] = "0",
    rejected_days: Annotated[str, Form()] = "",
    most_gigabytes: Annotated[str, Form()] = "",
) -> Response:
    """Count what rules would delete, before they are in force."""
    given = {"accepted_days": accepted_days, "accepted_share": accepted_share or "0"}
    given |= {"rejected_days": rejected_days, "most_gigabytes": most_gigabytes}
    try:
        new = Rules.model_validate(given)
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        words = _("%(field)s: give a number above 0, or nothing.") % {"field": _FIELDS[field]()}
        return _show(request, station, who, 422, words)
    work = _Work(new, deletes=False)
    _works[id(station)] = work
    work.start(station, who.name)
    return RedirectResponse("/keep#plan", 303)


_FIELDS = {
    "accepted_days": lambda: _("Days of accepted parts"),
    "accepted_share": lambda: _("Share of accepted parts"),
    "rejected_days": lambda: _("Days of rejected parts"),
    "most_gigabytes": lambda: _("Gigabytes"),
}


@router.post("/keep/rules")
def enforce(station: Here, who: Admin, now: Annotated[bool, Form()] = False) -> Response:
    """Put the rules that were counted in force, and delete at once where that is asked for."""
    work = _works.get(id(station))
    if work is not None and not work.deletes:
        with station.database.writing() as session:
            set_rules(session, work.rules, who.name)
        del _works[id(station)]
        if now:
            again = _Work(work.rules, deletes=True)
            _works[id(station)] = again
            again.start(station, who.name)
    return RedirectResponse("/keep", 303)


@router.get("/keep/backup")
def download(station: Here, who: Admin, pictures: Annotated[Pictures, Query()] = "all") -> Response:
    """Everything as one file, streamed."""
    with station.database.writing() as session:
        audit.note(session, who.name, "backup", pictures=pictures)
    name = f"offnominal-{datetime.now(UTC):%Y-%m-%d-%H%M}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(
        backup(station, pictures), media_type="application/zip", headers=headers
    )


def _show(
    request: Request, station: Station, who: Who, status: int = 200, error: str = ""
) -> Response:
    with station.database.reading() as session:
        now = rules(session)
        asked = sa.select(Audit).where(Audit.action == "backup").order_by(Audit.id.desc()).limit(1)
        last = session.scalars(asked).first()
    work = _works.get(id(station))
    return page(
        request,
        "keep.html.j2",
        who,
        status,
        rules=now,
        shown=work.rules if work else now,
        work=work,
        last=last,
        disk=shutil.disk_usage(station.files.folder),
        sqlite=station.database.is_sqlite,
        folder=station.files.folder,
        error=error,
    )
