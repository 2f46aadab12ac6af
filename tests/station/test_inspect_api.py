"""``POST /v1/inspect`` and products by JSON, as far as no model is needed."""

import io
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from PIL import Image

from offnominal.station.app import create_app
from offnominal.station.settings import Settings
from offnominal.station.station import Station
from offnominal.station.store.tables import Delivery, Inspection, Picture, Product
from tests.station.conftest import ADDRESS, log_in
from tests.station.parts import good_part

PART = good_part(1)


def make(station: Station, **more: Any) -> int:
    with station.database.writing() as session:
        row = Product(**({"name": "washer", "created": datetime.now(UTC)} | more))
        session.add(row)
        session.flush()
        return row.id


def send(client: TestClient, image: bytes = PART, **fields: str) -> Any:
    return client.post("/v1/inspect", files={"image": ("x.png", image)}, data=fields)


def count(station: Station) -> int:
    with station.database.reading() as session:
        return session.scalar(sa.select(sa.func.count(Inspection.id))) or 0


def test_what_nothing_judges_is_stored_and_never_good(client: TestClient, station: Station) -> None:
    make(station)
    answer = send(client, product="washer", serial="S1", shift="late")
    told = answer.json()
    assert answer.status_code == 200
    assert (told["verdict"], told["told"], told["serial"]) == ("not-inspected", "reject", "S1")
    assert told["reason"].startswith("no-model: ")
    with station.database.reading() as session:
        row = session.get(Inspection, told["id"])
        kept = session.get(Picture, row.picture_id)
    assert row.meta == {"shift": "late"}
    assert (station.files / kept.file).read_bytes() == PART
    assert 0 < row.milliseconds < 60_000


def test_records_that_cannot_be_reached_are_no_fault_of_the_sender(
    client: TestClient, station: Station
) -> None:
    make(station)
    for table in ("products", "users", "inspections"):
        with station.database.engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {table}_away")
        answer = send(client, product="washer", request_id="a")
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True), table
        assert client.get("/v1/health").status_code == (503 if table == "inspections" else 200)
        with station.database.engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {table}_away RENAME TO {table}")
    assert send(client, product="washer", request_id="a").status_code == 200
    assert client.get("/v1/health").status_code == 200
    assert count(station) == 1


def test_a_body_alone_is_a_picture_as_well(client: TestClient, station: Station) -> None:
    make(station, number=7, barcode="4006381333931")
    for text in ("7", "washer", "4006381333931"):
        told = client.post(
            "/v1/inspect", params={"product": text, "serial": "S"}, content=PART,
            headers={"content-type": "image/png"},
        ).json()  # fmt: skip
        assert (told["product"], told["serial"]) == ("washer", "S")


def test_one_id_has_one_result(client: TestClient, station: Station) -> None:
    make(station)
    first = send(client, product="washer", request_id="one").json()
    header = {"Idempotency-Key": "one"}
    again = client.post("/v1/inspect?product=washer", content=good_part(2), headers=header).json()
    assert again["id"] == first["id"]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(send, client, product="washer", request_id="two") for _ in range(8)]
        assert len({one.result().json()["id"] for one in asked}) == 1
    assert count(station) == 2


@pytest.mark.parametrize(
    ("fields", "image", "status"),
    [
        ({"product": "bolt"}, PART, 404),
        ({}, PART, 404),
        ({"product": "washer"}, b"%PDF-1.7 and so on", 415),
        ({"product": "washer", "request_id": "x" * 201}, PART, 422),
        ({"product": "washer", "deadline": "soon"}, PART, 422),
        ({"product": "washer", "deadline": "inf"}, PART, 422),
    ],
)
def test_what_cannot_be_meant_is_refused_and_not_stored(
    client: TestClient, station: Station, fields: dict[str, str], image: bytes, status: int
) -> None:
    make(station)
    answer = send(client, image, **fields)
    assert (answer.status_code, count(station)) == (status, 0)


def test_a_form_without_a_picture_is_refused(client: TestClient, station: Station) -> None:
    make(station)
    assert client.post("/v1/inspect", data={"product": "washer"}).status_code == 415
    empty = client.post("/v1/inspect", files={"other": ("x.png", PART)}, data={"product": "x"})
    assert (empty.status_code, count(station)) == (422, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_picture_of_many_million_pixels_is_refused_and_not_stored(
    client: TestClient, station: Station, kind: str
) -> None:
    make(station)
    answer = send(client, _claiming(kind, 20_000), product="washer")
    assert (answer.status_code, count(station)) == (413, 0)
    assert "pixels" in answer.json()["detail"]


def _claiming(kind: str, side: int) -> bytes:
    """A small picture whose header says that it has so many pixels a side."""
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, kind)
    content = bytearray(file.getvalue())
    if kind == "PNG":
        content[16:24] = struct.pack(">II", side, side)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        return bytes(content)
    [start] = struct.unpack_from("<I", content, 4)
    [entries] = struct.unpack_from("<H", content, start)
    for place in range(start + 2, start + 2 + 12 * entries, 12):
        tag, form = struct.unpack_from("<HH", content, place)
        if tag in (256, 257):
            struct.pack_into("<H" if form == 3 else "<I", content, place + 8, side)
    return bytes(content)


@pytest.fixture
def strict(settings: Settings) -> Iterator[TestClient]:
    changes = {"upload_pixels": 1024, "upload_bytes": 4096, "fail_safe": "stop"}
    with TestClient(create_app(settings.model_copy(update=changes)), base_url=ADDRESS) as made:
        yield log_in(made, "ada", "admin")


@pytest.mark.slow
def test_limits_hold_before_anything_is_decoded(strict: TestClient) -> None:
    station = strict.app.state.station
    make(station)
    file = io.BytesIO()
    Image.new("1", (5000, 5000)).save(file, "PNG")  # a few bytes that claim many pixels
    assert send(strict, file.getvalue(), product="washer").status_code == 413
    assert send(strict, bytes(5000), product="washer").status_code == 413
    file = io.BytesIO()
    Image.new("1", (32, 32)).save(file, "PNG")
    told = send(strict, file.getvalue(), product="washer").json()
    assert told["told"] == "stop"
    assert count(station) == 1


def test_in_shadow_mode_the_line_is_told_nothing(client: TestClient, station: Station) -> None:
    make(station, shadow=True)
    told = send(client, product="washer").json()
    assert (told["verdict"], told["told"]) == ("not-inspected", "nothing")


@pytest.mark.slow
def test_products_are_listed_and_switched(client: TestClient, station: Station) -> None:
    make(station, name="washer", number=1)
    bolt = make(station, name="bolt", number=2)
    make(station, name="old", archived=datetime.now(UTC))
    listed = client.get("/v1/products").json()
    assert [one["name"] for one in listed] == ["bolt", "washer"]
    assert client.post(f"/v1/products/{bolt}/activate").json()["active"]
    assert send(client).json()["product"] == "bolt"
    assert client.post("/v1/products/99/activate").status_code == 404


def test_outputs_are_owed_each_result_from_the_same_transaction(
    settings: Settings, tmp_path: Path
) -> None:
    output = {"name": "log", "type": "webhook", "url": "http://127.0.0.1:9/"}
    made = Settings(folder=settings.folder, outputs=[output])
    with TestClient(create_app(made), base_url=ADDRESS) as client:
        log_in(client, "ada", "admin")
        station = client.app.state.station
        make(station)
        told = send(client, product="washer").json()
        with station.database.reading() as session:
            assert session.scalars(sa.select(Delivery.inspection_id)).all() == [told["id"]]
