"""Triggering a camera by HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, HTTPException, Path
from starlette.concurrency import run_in_threadpool

from offnominal.errors import OptionError
from offnominal.station.access.who import Who, scoped
from offnominal.station.outputs.message import read_message
from offnominal.station.station import Here

__all__ = ["router"]

router = APIRouter(prefix="/v1/sources", tags=["sources"])

_ANSWERS: dict[int | str, dict[str, Any]] = {
    404: {"description": "There is no camera of this name."},
    409: {"description": "There is no product to inspect."},
}


@router.post("/{name}/trigger", responses=_ANSWERS)
async def trigger(
    station: Here,
    who: Annotated[Who, Depends(scoped("inspect"))],
    name: Annotated[str, Path(max_length=60)],
    serial: Annotated[str | None, Body(embed=True, max_length=200)] = None,
) -> dict[str, Any]:
    """Take a picture, have it inspected, and answer with the stored result.

    Where the camera sends no picture the result is ``not-inspected``.
    """
    take = station.triggers.get(name)
    if take is None:
        known = ", ".join(sorted(station.triggers)) or "none"
        raise HTTPException(404, f"there is no camera {name!r}; there are: {known}")
    try:
        inspection = await take(serial)
    except OptionError as error:
        raise HTTPException(409, str(error)) from error

    def read() -> dict[str, Any] | None:
        with station.database.reading() as session:
            return read_message(session, inspection.id)

    told = await run_in_threadpool(read)
    if told is None:
        raise HTTPException(409, "the result was deleted at once; look at the retention rules")
    return told
