"""From a request to a verdict that is on the disk."""

import asyncio
import logging
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm.attributes import set_committed_value

from offnominal.errors import OptionError
from offnominal.station.events import Events
from offnominal.station.files import Files
from offnominal.station.inspection.dispatch import Dispatch
from offnominal.station.inspection.frozen import same_frame
from offnominal.station.inspection.pictures import suffix_of
from offnominal.station.inspection.products import Known, Products
from offnominal.station.inspection.reasons import reason
from offnominal.station.inspection.record import Draft, Recorder
from offnominal.station.inspection.request import BusyError, NotStoredError, Request
from offnominal.station.outputs.message import message
from offnominal.station.outputs.settings import queued
from offnominal.station.settings import Settings
from offnominal.station.sources.settings import FolderSettings
from offnominal.station.state import State
from offnominal.station.store.database import Database
from offnominal.station.store.tables import Base, Inspection, Product, Version

__all__ = ["Inspector"]

log = logging.getLogger(__name__)

# Asked with every picture, so that it is built once, and of the table rather than of objects.
_ROWS = Base.metadata.tables["inspections"].c
_FIRST = sa.select(_ROWS.id).where(_ROWS.request == sa.bindparam("request"))
_FROZEN = 3  # times that a camera shows one frame until it is taken for frozen


class Inspector:
    """Judges pictures and stores what was found, before it says so.

    Parameters
    ----------
    settings : Settings
    database : Database
    files : Files
    events : Events
    state : State
        Is told while no worker is there.
    supervised : bool
        Whether somebody else starts the processes that judge, and starts them again.

    Attributes
    ----------
    dispatch : Dispatch
        The workers.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        files: Files,
        events: Events,
        state: State,
        supervised: bool = False,
    ) -> None:
        self._settings, self._database, self._files = settings, database, files
        self._events, self._state = events, state
        self._recorder = Recorder(database, queued(settings.outputs))
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="offnominal-inspect")
        self._running: dict[str, asyncio.Task[Inspection]] = {}
        self._cameras = {
            one.name for one in settings.sources if not isinstance(one, FolderSettings)
        }
        self._frames: dict[str, tuple[str, int]] = {}  # of cameras: the last, and how often
        self._products = Products(database, self._pool)
        self.dispatch = Dispatch(
            settings, files, state, lambda: self._products.live(settings.models), supervised
        )

    # -- what others ask ----------------------------------------------------------------------

    async def start(self) -> None:
        """Watch over the workers; those of a supervisor are reached at once."""
        self.dispatch.start()

    async def stop(self) -> None:
        """Answer what was accepted, then let go of the workers."""
        if self._running:
            waiting = asyncio.gather(*self._running.values(), return_exceptions=True)
            try:
                await asyncio.wait_for(asyncio.shield(waiting), self._settings.deadline)
            except TimeoutError:
                log.warning("%s requests were not answered", len(self._running))
        await self.dispatch.stop()
        self._pool.shutdown(wait=False)

    @property
    def waiting(self) -> int:
        """Requests that were accepted and not answered yet."""
        return len(self._running)

    @property
    def workers(self) -> list[tuple[str, bool, int]]:
        """Name of each worker, whether it is there, and how often it died."""
        return [(link.name, link.connected, link.deaths) for link in self.dispatch.links]

    async def inspect(self, request: Request) -> Inspection:
        """The stored inspection of a request, with its product and version.

        What cannot be judged is stored as well, as ``not-inspected`` with its reason, and the line
        is told the fail-safe decision.

        Raises
        ------
        BusyError
            If the queue is full, or a picture would wait in it beyond its deadline.
        OptionError
            If there is no such product.
        NotStoredError
            If the result could not be written down.
        """
        task = self._running.get(request.id)
        if task is None:
            waiting, workers = len(self._running), len(self.dispatch.links)
            wait = waiting * self.dispatch.seconds / workers
            # What would wait beyond its deadline is not accepted to be answered "not inspected".
            # Each worker always has one, or nobody would notice that it became faster.
            late = wait > (request.deadline or self._settings.deadline) and waiting >= workers
            if late or waiting >= self._settings.queue:
                raise BusyError(max(1.0, round(wait, 1)))
            task = asyncio.create_task(self._stored(request))
            self._running[request.id] = task
            task.add_done_callback(lambda done: self._finished(request.id, done))
        # Who asked may go away: what was accepted is finished all the same.
        return await asyncio.shield(task)

    async def named(self, text: str) -> int:
        """The product of this number, name or barcode.

        Raises
        ------
        OptionError
            If there is none.
        """
        return await self._products.named(text)

    def forget(self, product: int) -> None:
        """Something of a product was changed: believe nothing of it that was known."""
        self._products.forget(product)

    async def warm(self, version: int) -> None:
        """Have all workers open a version's model; to be done before it goes live.

        Raises
        ------
        OptionError
            If there is no such version.
        OffnominalError
            If its model cannot be used.
        """

        def read() -> Version | None:
            with self._database.reading() as session:
                return session.get(Version, version)

        found = await self._in_thread(read)
        if found is None:
            raise OptionError(f"version {version}: there is none")
        await self.dispatch.warm({"file": found.file, "digest": found.digest})

    # -- one request --------------------------------------------------------------------------

    def _finished(self, request: str, task: "asyncio.Task[Inspection]") -> None:
        del self._running[request]
        if not task.cancelled():
            task.exception()  # it was raised to who asked; if nobody does any more, so be it

    async def _stored(self, request: Request) -> Inspection:
        """As :meth:`inspect`; while nothing can be written down, the station is blind."""
        try:
            try:
                row = await self._inspect(request)
            except SQLAlchemyError as error:
                told = " ".join(str(getattr(error, "orig", error)).split())
                raise NotStoredError(f"the records cannot be reached: {told}") from error
        except NotStoredError as error:
            if self._state.tell("records", False, str(error)):
                log.error("%s", error)
            raise
        self._state.tell("records", True)
        return row

    async def _inspect(self, request: Request) -> Inspection:
        if not request.fresh:
            first: Inspection | None = await self._in_thread(lambda: self._first(request.id))
            if first is not None:
                return first
        known = await self._products.get(request.product)
        picture = None
        if request.image is not None:
            picture = asyncio.ensure_future(
                self._in_thread(lambda: self._keep(request.image or b""))
            )
        facts, patches = await self._judged(request, known)
        self._look(request, known, facts)
        try:
            kept = await picture if picture is not None else None
        except OSError as error:
            raise NotStoredError(f"the picture could not be stored: {error}") from error
        draft = self._draft(request, known, facts, patches)
        draft.picture = kept
        row = await self._recorder.store(draft)
        set_committed_value(row, "product", known.product)
        if row is draft.row:
            set_committed_value(row, "version", known.version if row.version_id else None)
            self._events.publish(
                "inspection",
                id=row.id,
                product=row.product_id,
                verdict=row.verdict,
                told=row.told,
                source=row.source,
                message=message(row),
            )
        return row

    def _first(self, request: str) -> Inspection | None:
        with self._database.engine.connect() as connection:
            number = connection.scalar(_FIRST, {"request": request})
        if number is None:
            return None
        with self._database.reading() as session:
            row = session.get_one(Inspection, number)
            set_committed_value(row, "product", session.get(Product, row.product_id))
            version = row.version_id and session.get(Version, row.version_id)
            set_committed_value(row, "version", version)
            return row

    def _keep(self, content: bytes) -> tuple[str, str, int]:
        digest, name = self._files.keep_picture(content, suffix_of(content))
        return digest, name, len(content)

    async def _judged(self, request: Request, known: Known) -> tuple[dict[str, Any], bytes | None]:
        if request.image is None or request.trouble:
            code = "no-picture" if request.image is None else "no-product"
            return _trouble(code, request.trouble)
        if known.version is None:
            return _trouble("no-model")
        if known.version.state != "ready":
            return _trouble("model", f"version {known.version.number} is {known.version.state}")
        seconds = request.deadline or known.product.deadline or self._settings.deadline
        spent = (datetime.now(UTC) - request.received).total_seconds()
        asked = {
            "model": {"file": known.version.file, "digest": known.version.digest},
            "sight": known.version.facts.get("sight"),
            "checks": known.product.checks,
        }
        try:
            facts, patches = await self.dispatch.judge(asked, request.image, seconds - spent)
        except TimeoutError:
            return _trouble("timeout", f"{seconds:g} s")
        if "error" in facts:
            return _trouble("failed", facts["error"])
        return facts, patches

    def _look(self, request: Request, known: Known, facts: dict[str, Any]) -> None:
        """See whether a camera still shows something new."""
        sample = facts.pop("sample", "")
        if sample and request.source in self._cameras and known.product.checks.get("frozen", True):
            last, count = self._frames.get(request.source, ("", 0))
            same = bool(last) and same_frame(b64decode(last), b64decode(sample))
            self._frames[request.source] = sample, count + 1 if same else 1
            if same and count + 1 >= _FROZEN:
                facts["verdict"], facts["reason"] = "not-inspected", reason("frozen")

    def _draft(
        self,
        request: Request,
        known: Known,
        facts: dict[str, Any],
        patches: bytes | None,
    ) -> Draft:
        verdict = facts["verdict"]
        told = self._settings.fail_safe if verdict == "not-inspected" else verdict
        names = ("width", "height", "score", "threshold", "pixel_threshold", "p_value")
        plain = {name: facts.get(name) for name in (*names, "brightness", "sharpness")}
        row = Inspection(
            request=request.id,
            product_id=request.product,
            version_id=known.version.id if known.version else None,
            source=request.source,
            serial=request.serial,
            meta=request.meta,
            received=request.received,
            verdict=verdict,
            reason=facts["reason"],
            told="nothing" if known.product.shadow else told,
            regions=facts.get("regions", []),
            **plain,
        )
        if patches is None:
            return Draft(row)
        grid = facts["grid"]
        return Draft(row, None, (grid[0], grid[1]), facts.get("window"), patches)

    async def _in_thread(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _trouble(code: str, detail: str = "") -> tuple[dict[str, Any], None]:
    return {"verdict": "not-inspected", "reason": reason(code, detail)}, None
