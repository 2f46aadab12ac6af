"""More pictures than can be judged: each sender hears of it in time, and nothing piles up."""

import asyncio
import hashlib
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from offnominal.station.access.accounts import create_user
from offnominal.station.settings import Settings
from offnominal.station.store.database import Database
from offnominal.station.store.tables import Inspection, Token
from tests.station.conftest import PASSWORD
from tests.station.killing import set_up
from tests.station.parts import good_part, model_file
from tests.station.test_serve import answers, children, serving, until

DEADLINE, QUEUE, SENDERS, SECONDS = 1.0, 12, 40, 4.0
TO_STORE = 1.0  # seconds beyond the deadline in which a result is on the disk, of a busy machine
KEY = "offn_of-the-line"


def memory(pid: int) -> int:
    """Bytes that a process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.slow
def test_a_flood_is_answered_in_time_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "station"
    set_up(Settings(folder=folder), model_file())
    told = f"deadline = {DEADLINE}\nqueue = {QUEUE}\nthreads = 1\n"
    (folder / "station.toml").write_text(told)
    database = Database(Settings(folder=folder).database_url)
    with database.writing() as session:
        owner = create_user(session, "ada", PASSWORD, "admin")
        session.flush()
        digest, now = hashlib.sha256(KEY.encode()).hexdigest(), datetime.now(UTC)
        token = {"name": "line", "scopes": ["inspect"], "user_id": owner.id}
        session.add(Token(digest=digest, created=now, **token))
    with serving(folder, lines=1) as (process, address, _):
        until(lambda: answers(address))
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "image/png"}
        send = {"params": {"product": "part", "deadline": "60"}, "headers": headers}
        part = good_part(1)
        until(lambda: httpx.get(f"{address}v1/health", timeout=30).status_code == 200)
        first = httpx.post(f"{address}v1/inspect", content=part, timeout=90, **send)
        assert first.json()["verdict"] == "good"
        [web] = children(process)["web"]
        found, sent, grown = asyncio.run(_flood(address, headers, web))
        # Nothing that was turned away is kept: far more arrived than memory grew by.
        assert grown < max(sent / 2, 32 * 2**20)
        until(lambda: httpx.get(f"{address}v1/health", timeout=30).status_code == 200, 20)
        del send["params"]["deadline"]
        after = httpx.post(f"{address}v1/inspect", content=part, timeout=30, **send).json()
        assert (after["verdict"], after["told"]) == ("good", "good")

    kinds = Counter(one.status_code for one, _seconds in found)
    assert set(kinds) == {200, 503}, kinds
    accepted = {}
    for answer, seconds in found:
        assert seconds < 10  # of a sender that has to share the machine with the station
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            continue
        one = answer.json()
        accepted[one["id"]] = one["verdict"]
        assert one["milliseconds"] < 1000 * (DEADLINE + TO_STORE)
        if one["verdict"] == "not-inspected":
            assert one["reason"].startswith("timeout")
            assert one["told"] == "reject"
        else:
            assert one["verdict"] in ("good", "reject")
    assert len(accepted) == kinds[200]
    with database.reading() as session:
        rows = session.execute(sa.select(Inspection.id, Inspection.verdict)).all()
    stored: dict[int, str] = {one.id: one.verdict for one in rows}
    assert len(stored) == len(accepted) + 2  # those before and after
    assert accepted.items() <= stored.items()
    database.close()


async def _flood(
    address: str, headers: dict[str, str], web: int
) -> tuple[list[tuple[httpx.Response, float]], int, int]:
    """Answers, each with its time; of the second half, bytes sent, and by what memory grew."""
    pictures = [good_part(seed, 400) for seed in range(8)]
    found: list[tuple[httpx.Response, float]] = []
    end = time.monotonic() + SECONDS
    sent = 0

    async def sender(client: httpx.AsyncClient, number: int) -> None:
        nonlocal sent
        content = pictures[number % len(pictures)]
        while (began := time.monotonic()) < end:
            where = f"{address}v1/inspect?product=part"
            answer = await client.post(where, content=content, headers=headers)
            found.append((answer, time.monotonic() - began))
            sent += len(content)
            if answer.status_code == 503:
                await asyncio.sleep(0.05)  # much sooner than it was told

    limits = httpx.Limits(max_connections=SENDERS)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
        senders = [asyncio.create_task(sender(client, number)) for number in range(SENDERS)]
        await asyncio.sleep(SECONDS / 2)
        before, already = memory(web), sent
        await asyncio.gather(*senders)
        return found, sent - already, memory(web) - before
