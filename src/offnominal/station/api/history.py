"""The history for programs: lists with a cursor, single inspections, labels."""

from datetime import datetime
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from anyio import from_thread
from fastapi import APIRouter, Depends, HTTPException, Path, Query
from pydantic import BaseModel, ConfigDict, Field, field_validator

from offnominal.errors import OptionError
from offnominal.station.access.who import Who, scoped
from offnominal.station.shifts import zone_of
from offnominal.station.station import Here
from offnominal.station.store.labelling import label
from offnominal.station.store.search import Search, find
from offnominal.station.store.tables import Inspection, Label

__all__ = ["InspectionRow", "router"]

router = APIRouter(prefix="/v1/inspections", tags=["inspections"])

Number = Annotated[int, Path(ge=1, lt=2**63)]


class InspectionRow(BaseModel):
    """An inspection."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    request: str
    product: int = Field(validation_alias="product_id", description="its id")
    version: int | None = Field(validation_alias="version_id", description="its id")
    source: str
    serial: str | None
    meta: dict[str, Any]
    received: datetime
    finished: datetime
    verdict: Literal["good", "reject", "not-inspected"]
    reason: str
    told: str
    score: float | None
    threshold: float | None
    pixel_threshold: float | None
    p_value: float | None
    width: int | None
    height: int | None
    regions: list[Any]
    brightness: float | None
    sharpness: float | None
    milliseconds: float
    label: Literal["good", "bad"] | None
    kind: str | None
    labelled_by: str | None
    labelled: datetime | None
    picture: bool = Field(
        validation_alias="picture_id", description="whether it is kept: /pictures/{id}/image"
    )

    @field_validator("picture", mode="before")
    @classmethod
    def _is_there(cls, value: Any) -> bool:
        return value is not None and value is not False


class Said(BaseModel):
    """What somebody said of an inspection."""

    model_config = ConfigDict(from_attributes=True)

    label: str | None
    kind: str | None
    by: str
    at: datetime


class OneInspection(InspectionRow):
    """An inspection, with all that was ever said of it, the newest first."""

    labels: list[Said] = []


class Inspections(BaseModel):
    """Part of the list."""

    inspections: list[InspectionRow]
    next: str | None = Field(
        description="give it as `after` for what is older; null: nothing is. It may be given with "
        "fewer inspections than were asked for, where others lie far back"
    )


class NewLabel(BaseModel):
    """What an inspection is."""

    model_config = ConfigDict(extra="forbid")

    label: Literal["good", "bad"] | None = Field(description="null takes back what was said")
    kind: Annotated[str | None, Field(max_length=100, pattern=r"^[^\x00]*$")] = None


class _Asked(Search):
    limit: Annotated[int, Field(ge=1, le=1_000)] = 100


@router.get("", summary="Inspections, the newest first")
def inspections(
    station: Here, who: Annotated[Who, Depends(scoped("read"))], search: Annotated[_Asked, Query()]
) -> Inspections:
    """All that is given has to hold; see `next` for how to go on."""
    with station.database.reading() as session:
        found = find(session, search, zone_of(station.settings), search.limit)
        rows = [InspectionRow.model_validate(row) for row in found.rows]
    return Inspections(inspections=rows, next=str(found.older) if found.older else None)


@router.get("/{inspection}", summary="One inspection")
def inspection(
    inspection: Number, station: Here, who: Annotated[Who, Depends(scoped("read"))]
) -> OneInspection:
    """With everything that was said of it."""
    with station.database.reading() as session:
        row = session.get(Inspection, inspection)
        if row is None:
            raise HTTPException(404, f"inspection {inspection}: there is none of this number")
        said = sa.select(Label).where(Label.inspection_id == inspection)
        labels = session.scalars(said.order_by(Label.id.desc()).limit(1_000)).all()
        found = OneInspection.model_validate(row)
        found.labels = [Said.model_validate(one) for one in labels]
    return found


@router.post("/{inspection}/label", summary="Say what an inspected part is")
def relabel(
    inspection: Number,
    new: NewLabel,
    station: Here,
    who: Annotated[Who, Depends(scoped("label"))],
) -> InspectionRow:
    """The verdict stays as it was given; who said what, and when, is kept."""
    try:
        with station.database.writing() as session:
            changed = label(session, [inspection], new.label, who.name, new.kind)
            row = session.get_one(Inspection, inspection)
            found = InspectionRow.model_validate(row)
    except OptionError as error:
        raise HTTPException(404, str(error)) from error
    if changed:
        from_thread.run_sync(lambda: station.events.publish("label", inspection=inspection))
    return found
