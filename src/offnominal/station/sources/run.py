"""Everything that pictures come from, while the station runs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from offnominal.station.sources import folder, recipe
from offnominal.station.sources.camera import Camera
from offnominal.station.sources.settings import FolderSettings
from offnominal.station.station import Station
from offnominal.station.tasks import together

__all__ = ["running"]


@asynccontextmanager
async def running(station: Station) -> AsyncIterator[None]:
    """Take pictures while the block lasts."""
    sources = station.settings.sources
    works: dict[str, Callable[[], Awaitable[None]]] = {}
    for one in sources:
        if isinstance(one, FolderSettings):
            works[f"source {one.name}"] = partial(folder.run, station, one)
        else:
            works[f"source {one.name}"] = Camera(station, one).run
        if one.recipe is not None:
            works[f"recipe of {one.name}"] = partial(recipe.follow, station, one)
    async with together(station, works):
        yield
