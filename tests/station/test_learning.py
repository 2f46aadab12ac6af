"""What pages of teaching stand on: agreement, jobs, live events, comparing, pictures kept."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from offnominal.calibration import Threshold
from offnominal.errors import ImageError, OptionError
from offnominal.station.events import Events
from offnominal.station.files import Files
from offnominal.station.inspection import worker
from offnominal.station.inspection.learner import Told
from offnominal.station.learning import references
from offnominal.station.learning.agreement import Agreement, interval
from offnominal.station.learning.comparing import Pair, summary
from offnominal.station.learning.jobs import Jobs
from offnominal.station.learning.models import wanted
from offnominal.station.pages.live import happening
from offnominal.station.pages.plot import scatter
from offnominal.station.pages.words import promise, promise_more
from offnominal.station.settings import Settings
from offnominal.station.station import Station
from tests.station.parts import good_part, model_file
from tests.station.rows import a_picture


def test_the_interval_is_wilsons() -> None:
    low, high = interval(8, 10)  # Wilson's, as textbooks have it
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert interval(0, 0) == (0.0, 1.0)
    assert interval(10, 10)[1] == pytest.approx(1)


def test_a_station_is_trusted_by_the_lower_end() -> None:
    assert not Agreement(both_good=72).trusted
    assert Agreement(both_good=60, both_bad=13).trusted
    assert not Agreement(both_good=73, missed=1).trusted
    known = Agreement(both_good=30, missed=1)
    more = known.wanting
    assert Agreement(both_good=30 + more, missed=1).trusted
    assert not Agreement(both_good=30 + more * 9 // 10, missed=1).trusted


async def test_a_job_goes_on_and_says_how_far_it_is(tmp_path: Path) -> None:
    events = Events()
    jobs = Jobs(events, tmp_path / "jobs")
    go = asyncio.Event()

    async def work(told: Told) -> dict[str, Any]:
        told("features", 2)
        await go.wait()
        return {"go": "/there"}

    with events.watching() as queue:
        job = jobs.start(1, "fit", "ada", work, total=4)
        assert (await queue.get()).data == {"id": job.id, "product": 1}
        assert (job.state, job.stage, job.done) == ("running", "features", 2)
        with pytest.raises(OptionError, match="wait until that is done"):
            jobs.start(1, "add", "ada", work)
        other = jobs.start(2, "fit", "ada", work)
        go.set()
        while "running" in (job.state, other.state):
            await queue.get()
    assert job.result == {"go": "/there"}
    assert jobs.running(1) is None
    assert jobs.last(1, "fit") is job


async def test_a_job_that_fails_says_why_and_what_was_to_follow_does_not(
    tmp_path: Path,
) -> None:
    jobs, began = Jobs(Events(), tmp_path), []

    async def bad(told: Told) -> dict[str, Any]:
        jobs.then(1, "compare", "ada", follows)
        raise ImageError("a.png", "is truncated")

    async def good(told: Told) -> dict[str, Any]:
        jobs.then(1, "compare", "ada", follows)
        return {}

    async def follows(told: Told) -> dict[str, Any]:
        began.append(1)
        return {}

    job = jobs.start(1, "add", "ada", bad)
    await asyncio.sleep(0.01)
    assert (job.state, job.error, began) == ("failed", "a.png: is truncated", [])
    jobs.start(1, "add", "ada", good)
    await asyncio.sleep(0.01)
    assert began == [1]


async def test_jobs_are_broken_off_at_the_end_and_are_told_to_be_interrupted(
    tmp_path: Path,
) -> None:
    jobs = Jobs(Events(), tmp_path)

    async def work(told: Told) -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    job = jobs.start(1, "fit", "ada", work)
    await asyncio.sleep(0)
    killed = Jobs(Events(), tmp_path).last(1, "fit")  # as one sees it that starts after a kill
    await jobs.close()
    assert job.state == "failed"
    again = Jobs(Events(), tmp_path)
    assert killed == again.last(1, "fit") == again.get(job.id) == job
    assert again.running(1) is None

    async def short(told: Told) -> dict[str, Any]:
        return {}

    again.start(1, "fit", "ada", short)
    await asyncio.sleep(0.01)
    assert Jobs(Events(), tmp_path).last(1, "fit") is None


def test_the_learner_ends_what_nobody_waits_for_any_more(tmp_path: Path) -> None:
    part, told = tmp_path / "part.png", []
    part.write_bytes(good_part(1))

    def answer(message: dict[str, Any]) -> bool:
        told.append(message)
        return len(told) < 2  # then the station is gone

    given = {"model": str(model_file()), "pictures": [str(part)] * 9}
    worker._working(1, "score", given, answer)()
    assert [one.get("count") for one in told] == [1, 2, None]
    assert "nobody waits" in told[-1]["error"]


async def test_a_page_hears_the_heart_beat_and_what_happens(settings: Settings) -> None:
    station = Station(settings)
    stream = happening(station, beat=0.02, longest=0.2)
    first = await anext(stream)
    assert (first.event, first.data) == ("beat", {"blind": False, "why": []})
    station.events.publish("inspection", id=3, product=1, verdict="good")
    second = await anext(stream)
    assert (second.event, second.data["id"]) == ("inspection", 3)
    station.state.tell("workers", False, "none is there")
    assert (await anext(stream)).event == "state"
    beat = await anext(stream)
    assert beat.data == {"blind": True, "why": ["Workers: none is there"]}
    rest = [one.event async for one in stream]
    assert 2 <= len(rest) <= 12  # and it ends, so that the browser is asked again who it is
    station.database.close()


def test_flips_are_counted_by_what_people_said() -> None:
    pairs = [
        Pair(1, "good", 1.2, "reject", 0.8, "good"),
        Pair(2, "bad", 1.3, "reject", 0.9, "good"),
        Pair(3, "bad", 0.9, "good", 1.1, "reject"),
        Pair(4, "good", 0.9, "good", 1.1, "reject"),
        Pair(5, None, 0.5, "good", 0.5, "good"),
        Pair(6, "bad", 0.5, "good", 0.5, "good"),
    ]
    assert summary(pairs) == {
        "all": 6, "flips": 4, "to_good": 2, "to_reject": 2, "cured": 1, "new_misses": 1,
        "found": 1, "new_alarms": 1, "bad": 3, "passed": 2,
    }  # fmt: skip


def test_a_scatter_has_thresholds_where_they_are() -> None:
    drawn = scatter([Pair(1, None, 0, "good", 0, "good"), Pair(2, None, 2, "x", 4, "y")], 1, 2)
    assert drawn.across == pytest.approx(drawn.side / 2)
    assert drawn.up == pytest.approx(drawn.side / 2)
    left, right = drawn.points
    assert left.x < drawn.across < right.x
    assert left.y > drawn.up > right.y  # upwards


@pytest.mark.parametrize(
    ("threshold", "says", "more"),
    [
        (Threshold(0.5, "conformal", 0.2, 4), "Up to 20 % of good parts", "15 more"),
        (Threshold(0.5, "conformal", 0.05, 19), "Up to 5 %", "80 more"),
        (Threshold(0.5, "conformal", 0.01, 120), "Up to 1 %", ""),
        (Threshold(0.5, "guess", 0.5, 1), "guess", "18 more"),
        (Threshold(0.5, "manual", float("nan"), 0), "set by hand", ""),
        (None, "no threshold", ""),
    ],
)
def test_a_threshold_says_what_it_promises(
    threshold: Threshold | None, says: str, more: str
) -> None:
    assert says in promise(threshold)
    assert more in promise_more(threshold)
    assert bool(more) == bool(promise_more(threshold))
    assert threshold is None or (wanted(threshold) is None) == (not more)


def test_pictures_are_kept_once_and_checked(tmp_path: Path) -> None:
    files = Files(tmp_path)
    name = references.keep(files, 1, "../../etc/Part 7.PNG", a_picture())
    assert name.startswith("Part-7-")
    assert references.keep(files, 1, "again.png", a_picture()) == name
    with pytest.raises(ImageError, match="is a text file") as told:
        references.keep(files, 1, "notes.png", b"hello, this is text")
    assert told.value.source == "notes.png"
    assert references.known(files, 1) == [name]
    assert references.small(files, 1, name).read_bytes()[:2] == b"\xff\xd8"
    assert references.take_out(files, 1, [name, "../../station.sqlite"]) == 1
    assert references.known(files, 1) == []


def test_pages_read_in_named_folders_only(tmp_path: Path) -> None:
    root, other = tmp_path / "import", tmp_path / "other"
    for folder in (root / "parts", other):
        folder.mkdir(parents=True)
    (root / "leads-out").symlink_to(other)
    assert references.within([root], "parts") == root / "parts"
    assert references.within([root, other], str(other)) == other
    for given in (str(other), "../other", "leads-out", "/etc"):
        with pytest.raises(OptionError, match="pages read in"):
            references.within([root], given)
    with pytest.raises(OptionError, match="does not exist"):
        references.within([root], "nothing")
