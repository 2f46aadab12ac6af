"""Kill a station's process at any moment, again and again, and see what it had promised.

Each round is a process of its own (a fork, which saves the imports) that inspects without a pause
and writes down each id and verdict that was answered; after some milliseconds it is killed. The
worker outlives them all. Ids that were not answered are sent again in the next round.
"""

import asyncio
import hashlib
import json
import os
import random
import select
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from offnominal.station.inspection.process import start_worker
from offnominal.station.inspection.request import BusyError, Request
from offnominal.station.settings import Settings
from offnominal.station.station import Station
from offnominal.station.store.database import Database
from offnominal.station.store.tables import Inspection, PatchScores, Picture, Product, Version
from tests.station.parts import bad_part, good_part

LINES = 4
PARTS = [good_part(1), bad_part(2), good_part(3)[:300]]
VERDICTS = ["good", "reject", "not-inspected"]


def set_up(settings: Settings, model: Path) -> None:
    database = Database(settings.database_url)
    settings.folder.mkdir(parents=True)
    database.upgrade()
    file = settings.folder / "models/1/1.offn"
    file.parent.mkdir(parents=True)
    shutil.copy(model, file)
    now = datetime.now(UTC)
    with database.writing() as session:
        product = Product(name="part", created=now, live_id=1)
        session.add(product)
        session.flush()
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        version = Version(
            product_id=product.id, number=1, file="models/1/1.offn", digest=digest,
            made_by="x", made=now, how="fit", facts={},
        )  # fmt: skip
        session.add(version)
    database.close()


def inspect_until_killed(settings: Settings, answers: int, numbers: list[int]) -> None:
    async def line(station: Station) -> None:
        while True:
            number = numbers.pop(0)
            while True:
                request = Request(f"part-{number}", 1, PARTS[number % 3])
                try:
                    row = await station.inspector.inspect(request)
                    break
                except BusyError:
                    await asyncio.sleep(0.01)
            # One write of a few bytes to a pipe is there whole or not at all.
            os.write(answers, f"{number} {row.id} {row.verdict}\n".encode())

    async def main() -> None:
        station = Station(settings, supervised=True)
        await station.start()
        await asyncio.gather(*(line(station) for _ in range(LINES)))

    asyncio.run(main())


def main() -> None:
    folder, model, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    settings = Settings(folder=folder, deadline=120, threads=1)
    set_up(settings, model)
    worker = start_worker("worker-1", settings, folder)
    answered: dict[int, tuple[int, str]] = {}
    twice, rng, first = 0, random.Random(1), 0
    try:
        for round_ in range(kills):
            read, write = os.pipe()
            todo = [n for n in range(first, first + 5000) if n not in answered]
            child = os.fork()
            if child == 0:
                os.close(read)
                inspect_until_killed(settings, write, todo)
                os._exit(1)
            os.close(write)
            with os.fdopen(read, "rb") as told:
                if round_ == 0:
                    told.readline()  # the model is open: the first one alone takes seconds
                    first = 1
                if round_ % 5:  # at any moment of its work; otherwise of its start as well
                    select.select([told], [], [], 60)
                time.sleep(rng.uniform(0, 0.4))
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                for text in told.read().decode().splitlines():
                    number, row, verdict = text.split()
                    twice += int(number) in answered
                    answered[int(number)] = int(row), verdict
    finally:
        worker.kill()
        worker.wait()
    lost = changed = 0
    database = Database(settings.database_url)
    with database.reading() as session:
        for number, (row_id, verdict) in answered.items():
            row = session.get(Inspection, row_id)
            if row is None or row.request != f"part-{number}":
                lost += 1
                continue
            picture = session.get(Picture, row.picture_id)
            whole = (folder / picture.file).read_bytes() == PARTS[number % 3]
            patches = session.get(PatchScores, row.id) is not None
            right = row.verdict == verdict == VERDICTS[number % 3]
            changed += not (whole and right and patches == (row.score is not None))
        total = session.scalar(sa.select(sa.func.count(Inspection.id)))
        distinct = session.scalar(sa.select(sa.func.count(sa.distinct(Inspection.request))))
    facts = {"kills": kills, "answered": len(answered), "stored": total, "lost": lost}
    print(json.dumps(facts | {"twice": twice + total - distinct, "changed": changed}))


if __name__ == "__main__":
    main()
