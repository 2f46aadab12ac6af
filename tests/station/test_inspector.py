"""From a request to a stored verdict, by real worker processes, some ended while they judge."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import sqlalchemy as sa

import offnominal
from offnominal.errors import OffnominalError
from offnominal.station.inspection import recipes
from offnominal.station.inspection.models import file_digest
from offnominal.station.inspection.request import BusyError, Request
from offnominal.station.inspection.wire import connect
from offnominal.station.settings import Settings
from offnominal.station.station import Station
from offnominal.station.store.tables import Inspection, PatchScores, Product, Version
from tests.station.conftest import BOTH
from tests.station.parts import bad_part, good_part, model_file

slow = pytest.mark.slow
Play = Callable[[Station], Awaitable[None]]


@pytest.fixture
def play(settings: Settings) -> Callable[..., None]:
    """Run a coroutine function with a station that is running."""

    def run(what: Play, **changes: Any) -> None:
        given = {"deadline": 120.0, "threads": 1} | changes

        async def main() -> None:
            async with running(settings.model_copy(update=given)) as station:
                await what(station)

        asyncio.run(main())

    return run


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Station]:
    station = Station(settings)
    await station.start()
    try:
        yield station
    finally:
        await station.stop()


def product(station: Station, name: str = "washer", model: Path | None = None, **more: Any) -> int:
    """A product with a live version of its own file."""
    with station.database.writing() as session:
        made = Product(name=name, created=datetime.now(UTC), **more)
        session.add(made)
        session.flush()
        if model is not None:
            version = next_version(station, made.id, 1, model)
            session.add(version)
            session.flush()
            made.live_id = version.id
        return made.id


def next_version(station: Station, number: int, count: int, model: Path) -> Version:
    name = station.files.model(number, count)
    path = station.files / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, path)
    return Version(
        product_id=number, number=count, file=name, digest=file_digest(path), made_by="x",
        made=datetime.now(UTC), how="fit", facts={},
    )  # fmt: skip


async def pid_of(station: Station) -> int:
    """The only worker's process, once it is there."""
    link = next(iter(station.inspector.dispatch.links))
    link.wake()
    while link.pid is None:
        await asyncio.sleep(0.02)
    return link.pid


@slow
def test_the_line_switches_between_warm_models_in_a_fifth_of_a_second(
    play: Callable[..., None], tmp_path: Path
) -> None:
    detector = offnominal.load(model_file())
    detector.set_threshold(1000.0)
    detector.save(tmp_path / "other.offn")
    files = {"washer": model_file(), "bolt": tmp_path / "other.offn"}

    async def go(station: Station) -> None:
        numbers = {name: product(station, name, model=files[name]) for name in files}
        took: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(20):  # each product twice: switched to, then as it was
            name = list(files)[turn // 2 % 2]
            began = time.monotonic()
            made = await recipes.activate(station, name=name)
            request = Request(f"{turn}", made.id, good_part(60 + turn))
            row = await station.inspector.inspect(request)
            assert row.product_id == numbers[name]
            assert (row.threshold == 1000.0) == (name == "bolt")
            if turn >= 4:  # both models are warm
                took[turn % 2 == 0].append(time.monotonic() - began)
        switched, stayed = median(took[True]), median(took[False])
        assert switched - stayed < 0.2

    play(go)


@slow
@BOTH
def test_verdicts_are_stored_with_all_that_was_found(play: Callable[..., None]) -> None:
    async def go(station: Station) -> None:
        number = product(station, model=model_file())
        good = await station.inspector.inspect(Request("a", number, good_part(50), serial="S"))
        bad = await station.inspector.inspect(Request("b", number, bad_part(51)))
        again = await station.inspector.inspect(Request("a", number, bad_part(51)))
        none = await station.inspector.inspect(Request("c", number, bad_part(51)[:300]))
        assert (good.verdict, good.told, good.reason) == ("good", "good", "")
        assert (bad.verdict, bad.told) == ("reject", "reject")
        assert bad.regions
        assert 0 < bad.brightness < 1
        assert (none.verdict, none.told) == ("not-inspected", "reject")
        assert none.reason.startswith("unreadable: ")
        assert (again.id, again.product.name) == (good.id, "washer")
        with station.database.reading() as session:
            rows = session.scalars(sa.select(Inspection).order_by(Inspection.id)).all()
            patches = session.get(PatchScores, bad.id)
        assert [row.request for row in rows] == ["a", "b", "c"]
        assert len(patches.values) == 4 * patches.rows * patches.columns

        # A worker that is ended is there again, and a damaged model is never good.
        os.kill(await pid_of(station), signal.SIGKILL)
        later = await station.inspector.inspect(Request("d", number, good_part(50)))
        assert (later.verdict, later.score) == ("good", good.score)
        os.kill(await pid_of(station), signal.SIGKILL)
        file = station.files / good.version.file
        file.write_bytes(file.read_bytes()[:-1] + b"!")
        broken = await station.inspector.inspect(Request("e", number, good_part(50)))
        assert broken.reason.startswith("model: ")
        assert broken.told == "reject"

    play(go)


@slow
def test_what_ends_two_workers_is_given_up_and_the_next_is_judged(
    play: Callable[..., None],
) -> None:
    async def go(station: Station) -> None:
        number = product(station, model=model_file())
        await station.inspector.inspect(Request("warm", number, good_part(50)))
        asked = asyncio.create_task(station.inspector.inspect(Request("a", number, good_part(50))))
        for _ in range(2):
            link = next(iter(station.inspector.dispatch.links))
            while not (link.pid and link.pending and any(station.inspector.dispatch.links[link])):
                await asyncio.sleep(0)
            os.kill(link.pid, signal.SIGSTOP)  # so that it cannot be done before
            os.kill(link.pid, signal.SIGKILL)
            while link.connected:
                await asyncio.sleep(0.01)
        row = await asked
        assert (row.verdict, row.told) == ("not-inspected", "reject")
        assert row.reason.startswith("worker: ")
        after = await station.inspector.inspect(Request("b", number, good_part(50)))
        assert after.verdict == "good"

    play(go)


@slow
def test_swapping_versions_under_load_drops_nothing(play: Callable[..., None]) -> None:
    async def go(station: Station) -> None:
        number = product(station, model=model_file())
        other = product(station, "bolt", model=model_file(), number=2)
        await station.inspector.inspect(Request("warm", number, good_part(50)))
        await station.inspector.inspect(Request("warm 2", other, good_part(50)))

        async def load(line: int) -> list[Inspection]:
            return [
                await station.inspector.inspect(Request(f"{line}-{part}", number, good_part(part)))
                for part in range(20)
            ]

        lines = [asyncio.create_task(load(line)) for line in range(4)]
        await asyncio.sleep(0.2)
        with station.database.writing() as session:
            version = next_version(station, number, 2, model_file())
            session.add(version)
            session.flush()
        await station.inspector.warm(version.id)
        with station.database.writing() as session:
            session.get(Product, number).live_id = version.id
        station.inspector.forget(number)
        rows = [row for line in lines for row in await line]
        assert [row for row in rows if row.verdict == "not-inspected"] == []
        assert {row.version_id for row in rows} == {1, version.id}

        began = time.perf_counter()
        await recipes.activate(station, number=2)
        row = await station.inspector.inspect(Request("switched", other, good_part(1)))
        assert time.perf_counter() - began < 1  # 0.02 s alone; other tests run beside it
        assert row.product.name == "bolt"

    play(go, workers=1)


@slow
def test_the_learner_makes_models_and_says_what_is_wrong(play: Callable[..., None]) -> None:
    async def go(station: Station) -> None:
        folder = station.files.references(1)
        folder.mkdir(parents=True)
        for seed in range(6):
            (folder / f"{seed}.png").write_bytes(good_part(seed))
        names = [f"references/1/{seed}.png" for seed in range(6)]
        (folder / "bad.png").write_bytes(good_part(1)[:200])
        options = {"backbone": "builtin", "resolution": 64, "rotations": "0"}
        stages: list[str] = []
        run = station.learner.run
        made = await run(
            "fit", lambda stage, done: stages.append(stage), file="models/1/1.offn",
            pictures=[*names[:5], "references/1/bad.png"], options=options,
        )  # fmt: skip
        assert set(stages) >= {"features", "threshold"}
        assert [name for name, _ in made["unreadable"]] == ["references/1/bad.png"]
        assert made["digest"] == file_digest(station.files / "models/1/1.offn")
        assert len(made["facts"]["good_scores"]) == 5
        assert made["facts"]["sight"]["size"] == [64, 64]
        more = await run("add", model="models/1/1.offn", pictures=names[5:], file="models/1/2.offn")
        assert len(more["facts"]["references"]) == 6
        less = await run(
            "forget", model="models/1/2.offn", references=names[:1], file="models/1/3.offn"
        )
        assert sum(one["active"] for one in less["facts"]["references"]) == 5
        hand = await run("threshold", model="models/1/1.offn", value=2.5, file="models/1/4.offn")
        assert hand["threshold"] == 2.5
        told = await run(
            "score", model="models/1/1.offn", pictures=[names[5], "references/1/bad.png"]
        )
        assert told["scores"][0]["score"] > 0
        assert "error" in told["scores"][1]
        await run("heat", model="models/1/1.offn", picture=names[5], file="cache/heat.png")
        seen = await run("explain", model="models/1/1.offn", picture=names[5], file="cache/e.png")
        assert seen["matches"][0]["reference"] in names
        assert (station.files / "cache/heat.png").stat().st_size > 100
        with pytest.raises(OffnominalError, match="each version is a new file"):
            await run("add", model="models/1/1.offn", pictures=names[5:], file="models/1/2.offn")
        busy = asyncio.create_task(
            run("fit", pictures=names, file="models/1/9.offn", options=options)
        )
        await asyncio.sleep(0.05)
        os.kill(station.learner.link.pid, signal.SIGKILL)
        with pytest.raises(OffnominalError, match="ended before it was done"):
            await busy
        assert not (station.files / "models/1/9.offn").exists()
        assert (await run("facts", model="models/1/1.offn"))["digest"] == made["digest"]

    play(go)


def test_the_queue_is_bounded_and_a_deadline_holds_without_a_worker(
    play: Callable[..., None],
) -> None:
    async def go(station: Station) -> None:
        number = product(station, model=model_file_not_needed(station))
        first = asyncio.create_task(station.inspector.inspect(Request("a", number, good_part(1))))
        await asyncio.sleep(0.05)
        with pytest.raises(BusyError) as busy:
            await station.inspector.inspect(Request("b", number, good_part(1)))
        assert busy.value.retry_after >= 1
        row = await first
        assert (row.verdict, row.told) == ("not-inspected", "stop")
        assert row.reason.startswith("timeout: ")
        with station.database.reading() as session:
            assert session.scalars(sa.select(Inspection.request)).all() == ["a"]

    play(go, queue=1, deadline=0.2, fail_safe="stop")


def test_what_would_wait_beyond_its_deadline_is_not_accepted(play: Callable[..., None]) -> None:
    async def go(station: Station) -> None:
        number = product(station, model=model_file_not_needed(station))
        station.inspector.dispatch.seconds = 60.0  # as slow pictures made it
        first = asyncio.create_task(station.inspector.inspect(Request("a", number, good_part(1))))
        await asyncio.sleep(0.05)
        with pytest.raises(BusyError) as busy:
            await station.inspector.inspect(Request("b", number, good_part(1)))
        assert busy.value.retry_after == 60
        await first

    play(go, queue=32, deadline=0.5)


def model_file_not_needed(station: Station) -> Path:
    path = station.files / "x.offn"
    path.write_bytes(b"never opened: the deadline passes while the worker starts")
    return path


@pytest.mark.slow
def test_nobody_is_heard_without_the_key(settings: Settings) -> None:
    from offnominal.station.inspection.process import start_worker

    process = start_worker("worker-1", settings, settings.folder)
    try:
        until = time.monotonic() + 30
        while True:
            try:
                connect(settings.folder, "worker-1").close()
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.05)
        key = settings.folder / "run" / "key"
        assert key.stat().st_mode & 0o077 == 0
        assert (settings.folder / "run").stat().st_mode & 0o077 == 0
        key.write_bytes(b"another")
        with pytest.raises(Exception, match="digest"):
            connect(settings.folder, "worker-1")
        assert process.stdin is not None
        process.stdin.close()  # as when who started it dies
        assert process.wait(10) == 0
    finally:
        process.kill()


@slow
def test_nothing_that_was_answered_is_lost_in_a_hundred_kills(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killing.py")
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script, tmp_path / "station", model_file(), "100"],
        capture_output=True, text=True, timeout=900, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] == 100
    assert told["answered"] >= 80
    assert (told["lost"], told["twice"], told["changed"]) == (0, 0, 0)
