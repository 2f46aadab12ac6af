"""Writing down what was found: several results in one transaction, each told only after it."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from offnominal.station.inspection.request import NotStoredError
from offnominal.station.store.database import Database
from offnominal.station.store.tables import Delivery, Inspection, PatchScores, Picture

__all__ = ["Draft", "Recorder"]

log = logging.getLogger(__name__)

_TOGETHER = 64  # results of one transaction, at most


@dataclass
class Draft:
    """A result that is to be written down.

    Attributes
    ----------
    row : Inspection
        Without its picture and its times.
    picture : tuple or None
        Digest, name and size of the picture's file, which is on the disk already.
    grid, window, patches
        Of the patch scores; None and empty where there are none.
    """

    row: Inspection
    picture: tuple[str, str, int] | None = None
    grid: tuple[int, int] | None = None
    window: list[int] | None = None
    patches: bytes = b""


class Recorder:
    """One writer for all results: who waits while it writes is in the next transaction.

    Parameters
    ----------
    database : Database
    outputs : sequence of str
        Names of those that are owed each result.
    """

    def __init__(self, database: Database, outputs: Sequence[str] = ()) -> None:
        self._database, self._outputs = database, outputs
        self._waiting: list[tuple[Draft, asyncio.Future[Inspection]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="offnominal-record")

    async def store(self, draft: Draft) -> Inspection:
        """The row that stands for a result, on the disk; the first one's where there is one.

        Raises
        ------
        NotStoredError
            If it could not be written.
        """
        future: asyncio.Future[Inspection] = asyncio.get_running_loop().create_future()
        self._waiting.append((draft, future))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return await future

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch = self._waiting[:_TOGETHER]
                del self._waiting[:_TOGETHER]
                drafts = [draft for draft, _ in batch]
                try:
                    found = await loop.run_in_executor(self._pool, self._keep, drafts)
                except Exception as error:
                    log.exception("results could not be stored")
                    found = [NotStoredError(f"the result could not be stored: {error}")] * len(
                        batch
                    )
                for (_, future), one in zip(batch, found, strict=True):
                    if future.done():
                        continue
                    if isinstance(one, Exception):
                        future.set_exception(one)
                    else:
                        future.set_result(one)
        finally:
            self._writing = None

    def _keep(self, drafts: list[Draft]) -> list["Inspection | NotStoredError"]:
        try:
            return list(self._transaction(drafts))
        except (IntegrityError, SQLAlchemyError) as error:
            if len(drafts) > 1:  # one of them is at fault; the others are not
                return [self._keep([draft])[0] for draft in drafts]
            request = drafts[0].row.request
            with self._database.reading() as session:
                first = session.scalar(sa.select(Inspection).where(Inspection.request == request))
            if first is not None:
                return [first]
            log.error("a result could not be stored: %s", error)
            return [NotStoredError(f"the result could not be stored: {error}")]

    def _transaction(self, drafts: list[Draft]) -> list[Inspection]:
        now = datetime.now(UTC)
        with self._database.writing() as session:
            requests = [draft.row.request for draft in drafts]
            asked = sa.select(Inspection).where(Inspection.request.in_(requests))
            first = {row.request: row for row in session.scalars(asked)}
            digests = {draft.picture[0] for draft in drafts if draft.picture}
            kept = sa.select(Picture).where(Picture.digest.in_(digests))
            pictures = {one.digest: one for one in session.scalars(kept)}
            new: list[Draft] = []
            for draft in drafts:
                if draft.row.request in first:
                    continue
                row = draft.row
                if draft.picture is not None:
                    digest, name, size = draft.picture
                    if digest not in pictures:
                        picture = Picture(digest=digest, file=name, size=size, kept=now)
                        pictures[digest] = picture
                    row.picture = pictures[digest]
                row.finished = now
                row.milliseconds = 1000 * (now - row.received).total_seconds()
                session.add(row)
                first[row.request] = row
                new.append(draft)
            session.flush()
            if maps := [_patch_scores(draft) for draft in new if draft.grid]:
                session.execute(sa.insert(PatchScores), maps)
            owed = [
                {"output": output, "inspection_id": draft.row.id, "next": now, "error": ""}
                for draft in new
                for output in self._outputs
            ]
            if owed:
                session.execute(sa.insert(Delivery), owed)
        return [first[request] for request in requests]


def _patch_scores(draft: Draft) -> dict[str, object]:
    assert draft.grid is not None
    return {
        "inspection_id": draft.row.id,
        "rows": draft.grid[0],
        "columns": draft.grid[1],
        "window": draft.window,
        "values": draft.patches,
    }
