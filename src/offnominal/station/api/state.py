"""How the station is: for load balancers, for people who look after it, for Prometheus."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from offnominal._version import __version__
from offnominal.station.access.who import Who, scoped
from offnominal.station.station import Here

__all__ = ["router"]

router = APIRouter(tags=["state"])

_BLIND: dict[int | str, dict[str, Any]] = {
    503: {"description": "The station is blind: parts that pass now are not inspected."}
}


@router.get("/v1/health", responses=_BLIND)
def health(station: Here) -> JSONResponse:
    """``ready`` with 200 or ``blind`` with 503: a word, for anybody."""
    return JSONResponse({"state": station.state.word}, 503 if station.state.blind else 200)


@router.get("/v1/health/details", responses=_BLIND)
def health_details(station: Here, who: Annotated[Who, Depends(scoped("read"))]) -> JSONResponse:
    """The facts that the state is made of."""
    told: dict[str, Any] = {
        "state": station.state.word,
        "version": __version__,
        "facts": [fact.as_json() for fact in station.state.facts],
    }
    return JSONResponse(told, 503 if station.state.blind else 200)


@router.get("/metrics", response_class=Response)
def metrics(station: Here, who: Annotated[Who, Depends(scoped("read"))]) -> Response:
    """Counters and gauges, in Prometheus's text format."""
    return Response(station.metrics.text(), media_type=CONTENT_TYPE_LATEST)
