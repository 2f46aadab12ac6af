"""Making versions: what is learned is another file and another row, and nothing is changed."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from offnominal.errors import OptionError
from offnominal.station.access.audit import note as noted
from offnominal.station.inspection.learner import Told
from offnominal.station.station import Station
from offnominal.station.store.tables import Product, Version

__all__ = ["go_live", "learn", "record"]


async def learn(
    station: Station,
    product: int,
    task: str,
    by: str,
    told: Told | None = None,
    note: str = "",
    parent: int | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Do a task of the learner that makes a model, and record that as the next version.

    Parameters
    ----------
    task : str
        ``fit``, ``add``, ``forget``, ``threshold``; ``given`` is what it takes but for ``file``.
    parent : int or None
        Row of the version that it was made from.

    Returns
    -------
    dict
        What the learner told, and ``version``, its number within the product, and ``version_id``.

    Raises
    ------
    OffnominalError
        If it cannot be made; nothing is recorded then.
    """
    # Its number is known only when it is recorded: another may be made meanwhile.
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    file = f"models/{product}/{task}-{stamp}.offn"
    (station.files / file).parent.mkdir(parents=True, exist_ok=True)
    made = await station.learner.run(task, told, file=file, **given)

    def keep() -> tuple[int, int]:
        with station.database.writing() as session:
            row = record(session, product, made, file, by, task, note, parent)
            return row.number, row.id

    number, row = await run_in_threadpool(keep)
    station.events.publish("version", product=product, version=number)
    return made | {"version": number, "version_id": row}


def record(
    session: Session,
    product: int,
    made: dict[str, Any],
    file: str,
    by: str,
    how: str,
    note: str = "",
    parent: int | None = None,
    state: str = "ready",
) -> Version:
    """A model's file as the next version of a product, which is not live by that.

    ``made`` is what the learner told of it: ``digest``, ``threshold``, ``promise``, ``facts``.
    """
    last = sa.select(sa.func.max(Version.number)).filter_by(product_id=product)
    version = Version(
        product_id=product,
        number=(session.scalar(last) or 0) + 1,
        parent_id=parent,
        file=file,
        digest=made["digest"],
        made_by=by,
        made=datetime.now(UTC),
        how=how,
        note=note,
        state=state,
        threshold=made["threshold"],
        promise=made["promise"],
        facts=made["facts"],
    )
    session.add(version)
    session.flush()
    noted(session, by, f"version.{how}", _name(session, product), version=version.number)
    return version


def go_live(session: Session, product: int, number: int, by: str) -> Version:
    """Let a version judge from now on; any that is ready, an older one too.

    Raises
    ------
    OptionError
        If there is no such version, or it was not accepted yet, or dropped.
    """
    version = session.scalar(sa.select(Version).filter_by(product_id=product, number=number))
    if version is None:
        raise OptionError(f"version {number}: there is none of this product")
    if version.state == "quarantined":
        raise OptionError(f"version {number}: came from outside; an engineer has to accept it")
    if version.state == "dropped":
        raise OptionError(f"version {number}: was dropped; bring it back first")
    if version.threshold is None:
        raise OptionError(
            f"version {number}: has no threshold, so that nothing could be judged; set one"
        )
    row = session.get_one(Product, product)
    was = session.get(Version, row.live_id) if row.live_id else None
    row.live_id = version.id
    before = was.number if was else None
    noted(session, by, "version.live", row.name, version=version.number, before=before)
    return version


def _name(session: Session, product: int) -> str:
    return session.get_one(Product, product).name
