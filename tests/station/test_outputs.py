"""Outputs: real receivers on loopback, which fail, go away and come back."""

import asyncio
import csv
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from offnominal.station import tasks
from offnominal.station.inspection.request import Request
from offnominal.station.outputs import queue
from offnominal.station.outputs.run import running
from offnominal.station.station import Station
from offnominal.station.store.tables import Delivery, Product
from tests.station.line import a_station, owed, store, until


def attempts(station: Station) -> int:
    with station.database.reading() as session:
        first = session.scalars(sa.select(Delivery).order_by(Delivery.id)).first()
    assert first is not None
    assert "answered 500" in first.error or not first.attempts
    return first.attempts


class Receiver(BaseHTTPRequestHandler):
    """Takes what it is sent, unless it is told to fail."""

    got: list[tuple[dict[str, str], bytes]]
    answers: list[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        code = self.answers.pop(0) if self.answers else 200
        if code == 200:
            self.got.append((dict(self.headers), body))
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Any]:
    kind = type("Own", (Receiver,), {"got": [], "answers": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    kind.url = f"http://127.0.0.1:{server.server_port}/"
    yield kind
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts are of milliseconds here; that they grow is tested apart."""
    monkeypatch.setattr(queue, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(queue, "_LONGEST_PAUSE", 0.05)


def requests(receiver: Any) -> list[str]:
    return [json.loads(body)["request"] for _, body in receiver.got]


def webhook(receiver: Any, **more: Any) -> dict[str, Any]:
    return {"type": "webhook", "name": "mes", "url": receiver.url} | more


async def test_a_webhook_that_fails_at_times_gets_all_once_in_order(
    tmp_path: Path, receiver: Any
) -> None:
    receiver.answers = [500, 200, 503, 404, 200]
    async with a_station(tmp_path, outputs=[webhook(receiver)]) as station:
        store(station, "before")
        async with running(station):
            for number in range(5):
                store(station, f"r{number}")
            await until(lambda: len(receiver.got) == 6)
            await until(lambda: owed(station) == 0)
    assert requests(receiver) == ["before", *(f"r{number}" for number in range(5))]
    told = json.loads(receiver.got[0][1])
    assert (told["product"], told["recipe"], told["verdict"], told["score"]) == (
        *("tile", 7, "good"),
        1.5,
    )


async def test_what_is_owed_outlasts_a_restart(tmp_path: Path, receiver: Any) -> None:
    receiver.answers = [500] * 1000
    async with a_station(tmp_path, outputs=[webhook(receiver)]) as station, running(station):
        store(station, "a")
        store(station, "b")
        await until(lambda: not all(fact.ok for fact in station.state.facts))
        assert not station.state.blind  # a receiver that is away blinds nobody
        assert "500" in station.state.facts[0].words
        await until(lambda: attempts(station) > 1)
    receiver.answers = []
    async with a_station(tmp_path, outputs=[webhook(receiver)]) as station, running(station):
        await until(lambda: owed(station) == 0)
        assert all(fact.ok for fact in station.state.facts)
    assert requests(receiver) == ["a", "b"]


async def test_signature_and_delivery_id(
    tmp_path: Path, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MES_KEY", "s3cret")
    hook = webhook(receiver, secret="env:MES_KEY")
    async with a_station(tmp_path, outputs=[hook]) as station:
        assert "s3cret" not in repr(station.settings)
        async with running(station):
            store(station, "a")
            await until(lambda: receiver.got)
    headers, body = receiver.got[0]
    at, given = (
        part[part.index("=") + 1 :] for part in headers["X-Offnominal-Signature"].split(",")
    )
    right = hmac.new(b"s3cret", at.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(given, right)
    assert headers["X-Offnominal-Delivery"] == queue.delivery_id("mes", "a")


@pytest.mark.slow
async def test_too_much_owed_is_dropped_from_the_oldest_and_said(
    tmp_path: Path, receiver: Any
) -> None:
    receiver.answers = [500] * 3
    async with a_station(tmp_path, outputs=[webhook(receiver, keep=3)]) as station:
        for number in range(10):
            store(station, f"r{number}")
        async with running(station):
            await until(lambda: owed(station) == 0)
            assert station.state.facts[0].words == "7 results were dropped"
            assert b'dropped_total{output="mes"} 7.0' in station.metrics.text()
    assert requests(receiver) == ["r7", "r8", "r9"]


def test_pauses_grow_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_FIRST_PAUSE", 0.5)
    monkeypatch.setattr(queue, "_LONGEST_PAUSE", 60.0)
    for attempts, longest in ((1, 0.5), (2, 1.0), (4, 4.0), (8, 60.0), (10_000, 60.0)):
        found = [queue.pause_after(attempts) for _ in range(50)]
        assert longest / 2 <= min(found) < max(found) <= longest


async def test_outputs_that_are_gone_are_owed_nothing(tmp_path: Path, receiver: Any) -> None:
    async with a_station(tmp_path, outputs=[webhook(receiver)]) as station:
        store(station, "a")
    async with a_station(tmp_path) as station, running(station):
        assert owed(station) == 0


async def test_records_that_are_away_for_a_while_end_no_output(
    tmp_path: Path, receiver: Any
) -> None:
    async with a_station(tmp_path, outputs=[webhook(receiver)]) as station, running(station):
        store(station, "a")
        await until(lambda: owed(station) == 0)
        with station.database.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE deliveries RENAME TO away")
        station.events.publish("inspection", message={"source": "http"})
        await until(lambda: any(not fact.ok for fact in station.state.facts))
        with station.database.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE away RENAME TO deliveries")
        store(station, "b")
        await until(lambda: requests(receiver) == ["a", "b"])


async def test_what_ends_by_a_fault_blinds_and_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_PAUSE", 0.02)
    begun = []

    async def work() -> None:
        begun.append(len(begun))
        if len(begun) < 3:
            raise RuntimeError("a fault")
        await asyncio.Event().wait()

    async with a_station(tmp_path) as station, tasks.together(station, {"work": work}):
        assert station.state.blind
        await until(lambda: len(begun) == 3)
        assert station.state.blind  # not believed at once
        await until(lambda: not station.state.blind)


def files(folder: Path, form: str = "csv") -> dict[str, Any]:
    return {"type": "files", "name": "day", "folder": folder, "format": form, "every": 0.05}


async def test_csv_has_whole_rows_each_once(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    at = datetime(2026, 3, 4, 12, tzinfo=UTC)
    given: dict[str, Any] = {"outputs": [files(folder)], "timezone": "UTC"}
    async with a_station(tmp_path / "s", **given) as station, running(station):
        store(station, "a", received=at, serial='=cmd|"x"\nline', meta={"lot": 3})
        store(station, "b", "reject", received=at)
        await until(lambda: owed(station) == 0)
    path = folder / "day 2026-03-04.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # a power cut, and the second row is owed again
    async with a_station(tmp_path / "s", **given) as station:
        with station.database.writing() as session:
            for number in (1, 2):
                row = Delivery(output="day", inspection_id=number, next=at)
                session.add(row)
        async with running(station):
            await until(lambda: owed(station) == 0)
    assert path.read_bytes() == whole
    rows = list(csv.DictReader(whole.decode().splitlines(keepends=True)))
    assert [row["request"] for row in rows] == ["a", "b"]
    assert rows[0]["serial"] == '\'=cmd|"x"\nline'
    assert rows[0]["meta"] == '{"lot": 3}'


@pytest.mark.slow  # pyarrow imports pandas
async def test_parquet_is_a_folder_of_pieces(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "out"
    at = datetime(2026, 3, 4, 12, tzinfo=UTC)
    given: dict[str, Any] = {"outputs": [files(folder, "parquet")], "timezone": "UTC"}
    async with a_station(tmp_path / "s", **given) as station, running(station):
        store(station, "a", received=at, score=None)
        await until(lambda: owed(station) == 0, 60)
        store(station, "b", received=at)
        await until(lambda: owed(station) == 0)
    table = parquet.read_table(folder / "day 2026-03-04")
    assert table["request"].to_pylist() == ["a", "b"]
    assert table["score"].to_pylist() == [None, 1.5]
    assert table["received"].to_pylist() == [at, at]


def test_health_is_a_word_for_anybody_and_facts_for_those_who_may(
    client: TestClient, station: Station
) -> None:
    assert (client.get("/v1/health").json(), client.get("/v1/health").status_code) == (
        {"state": "ready"},
        200,
    )
    station.state.tell("source top", False, "no picture since 12:00:00")
    answer = client.get("/v1/health")
    assert (answer.json(), answer.status_code) == ({"state": "blind"}, 503)
    facts = {one["name"]: one for one in client.get("/v1/health/details").json()["facts"]}
    assert facts["source top"]["words"] == "no picture since 12:00:00"
    assert facts["queue"]["ok"]
    text = client.get("/metrics").text
    assert 'offnominal_ok{name="source top"} 0.0' in text
    assert "offnominal_ready 0.0" in text
    station.state.forget("source top")
    assert client.get("/v1/health").status_code == 200


def test_results_are_counted(client: TestClient, station: Station) -> None:
    with station.database.writing() as session:
        session.add(Product(id=1, name="tile", created=datetime.now(UTC)))
    request = Request(id="a", product=1, image=None, trouble="x")
    client.portal.call(station.inspector.inspect, request)
    right = 'offnominal_inspections_total{product="tile",verdict="not-inspected"} 1.0'
    end = time.monotonic() + 5
    while right not in client.get("/metrics").text:
        assert time.monotonic() < end


def test_who_is_no_camera_cannot_be_triggered(client: TestClient) -> None:
    answer = client.post("/v1/sources/top/trigger", json={})
    assert answer.status_code == 404
    assert "there are: none" in answer.json()["detail"]
