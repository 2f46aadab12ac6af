"""A station: what its parts share."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request

from offnominal.station.access.attempts import Guesses
from offnominal.station.events import Events
from offnominal.station.files import Files
from offnominal.station.inspection.inspector import Inspector
from offnominal.station.inspection.learner import Learner
from offnominal.station.learning.jobs import Jobs
from offnominal.station.metrics import Metrics
from offnominal.station.settings import Settings
from offnominal.station.state import State
from offnominal.station.store.database import Database
from offnominal.station.store.tables import Inspection

__all__ = ["Here", "Station"]

# Given the part's serial number, if it is known; raises an OffnominalError.
Trigger = Callable[[str | None], Awaitable[Inspection]]
Look = Callable[[], Awaitable[bytes]]


class Station:
    """Settings, records, files, and those who work.

    Parameters
    ----------
    settings : Settings
    supervised : bool
        Whether somebody else starts the processes that judge and learn, and starts them again.
        Otherwise they are started here when there is something to do.
    """

    def __init__(self, settings: Settings, supervised: bool = False) -> None:
        self.settings = settings
        self.files = Files(settings.folder)
        self.database = Database(settings.database_url)
        self.events = Events()
        self.guesses = Guesses()
        self.state = State(self.events)
        self.jobs = Jobs(self.events, self.files / "run" / "jobs")
        self.triggers: dict[str, Trigger] = {}
        """By the names of cameras: what takes a picture and has it inspected."""
        self.looks: dict[str, Look] = {}
        """By the names of cameras: what takes a picture, as PNG, which nobody judges."""
        self.serials: dict[int, str] = {}
        """By product: the next part's serial number, where somebody keyed or scanned it."""
        parts = (settings, self.database, self.files, self.events, self.state)
        self.inspector = Inspector(*parts, supervised)
        self.metrics = Metrics(self.database, self.state, self.inspector)
        self.learner = Learner(settings, self.files, supervised)

    async def start(self) -> None:
        """Begin to work; the schema is up already."""
        await self.inspector.start()

    async def stop(self) -> None:
        """End in good order: what was accepted is answered before."""
        await self.jobs.close()
        await self.inspector.stop()
        await self.learner.stop()
        self.database.close()


async def _here(request: Request) -> Station:
    # Not a plain function: FastAPI would hand that to a thread.
    station: Station = request.app.state.station
    return station


Here = Annotated[Station, Depends(_here)]
"""The station, as a parameter of a page or of the API."""
