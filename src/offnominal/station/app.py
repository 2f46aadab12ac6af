"""The web process: pages and API of a station, as one ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from offnominal._version import __version__
from offnominal.station.access.doors import guard
from offnominal.station.api import history as history_api
from offnominal.station.api import inspect as inspect_api
from offnominal.station.api import products as products_api
from offnominal.station.api import sources as sources_api
from offnominal.station.api import state as state_api
from offnominal.station.language import Speaking
from offnominal.station.outputs import run as outputs
from offnominal.station.pages import (
    health,
    history,
    images,
    jobs,
    keep,
    languages,
    live,
    login,
    operator,
    people,
    pictures,
    products,
    review,
    shift,
    start,
    threshold,
    trial,
    versions,
)
from offnominal.station.pages.page import STATIC
from offnominal.station.settings import Settings
from offnominal.station.sources import run as sources
from offnominal.station.station import Station
from offnominal.station.store import drifting, retention

__all__ = ["create_app"]

PAGES = [
    *(start, login, people, languages, operator, live, jobs, products, images, trial),
    *(versions, review),
    *(history, pictures, threshold, health, shift, keep),
]
API = [inspect_api, products_api, history_api, sources_api, state_api]


def create_app(settings: Settings, supervised: bool = False) -> FastAPI:
    """The application of a station; its schema is brought up, and its parts start with it.

    ``supervised`` as :class:`~offnominal.station.station.Station` has it.
    """
    station = Station(settings, supervised)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        station.database.upgrade()
        await station.start()
        try:
            # Who tells is there before those who deliver, and goes after them.
            async with (
                retention.running(station),
                drifting.running(station),
                outputs.running(station),
                sources.running(station),
            ):
                yield
        finally:
            await station.stop()

    app = FastAPI(
        title="Offnominal station",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
    )
    app.state.station = station
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    guard(app, settings)
    app.add_middleware(Speaking, otherwise=settings.language)  # around all: refusals speak too
    for module in API:
        app.include_router(module.router)
    for module in PAGES:
        app.include_router(module.router, include_in_schema=False)
    return app
