"""The pages of records, as a browser asks for them: history, pictures, threshold, health, shift."""

import csv
import io
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from PIL import Image

from offnominal.calibration import choose_threshold
from offnominal.costs import threshold_by_cost
from offnominal.pictures import outline
from offnominal.station.access.audit import note
from offnominal.station.access.roles import Role
from offnominal.station.control import ewma
from offnominal.station.pages.shift import link_to
from offnominal.station.pages.threshold import promised
from offnominal.station.station import Station
from offnominal.station.store.criteria import Place
from offnominal.station.store.drifting import drifting
from offnominal.station.store.labelling import label
from offnominal.station.store.tables import Inspection, Picture, Product, Version
from offnominal.station.store.trend import begin_anew, trend
from tests.station.conftest import another
from tests.station.rows import NOW, a_picture, add, add_judged, add_product


@pytest.fixture
def stored(station: Station) -> list[int]:
    product, version = add_product(station)
    scores = [0.5, 1.5, None, 0.7, 2.5]
    return add(
        *(station, product, version, scores, timedelta(minutes=1), NOW, [a_picture()]), serial="S-1"
    )


def test_the_list_and_its_filters(client: TestClient, stored: list[int]) -> None:
    told = client.get("/history?verdict=reject").text
    assert [one in told for one in (f"/history/{stored[1]}?", f"/history/{stored[0]}?")] == [
        True,
        False,
    ]
    assert "2 inspections" in told
    assert client.get("/history?after=x").status_code == 422
    assert "Nothing found" in client.get("/history?serial=Z").text


def test_an_unreadable_part_is_asked_about_without_a_broken_picture(
    client: TestClient, station: Station, stored: list[int]
) -> None:
    [broken] = add(
        *(station, 1, None, [None], timedelta(0), NOW, [b"\x89PNG\r\n\x1a\n"]),
        reason="unreadable: the picture cannot be read (is truncated)",
    )
    asked = client.post("/history/label", data={"label": "bad", "inspection": [stored[0], broken]})
    assert f'src="/pictures/{stored[0]}/thumbnail"' in asked.text
    assert f"/pictures/{broken}/" not in asked.text
    assert f'<span class="no-picture">Part {broken}<br>no picture</span>' in asked.text


def test_a_part_and_its_neighbours(client: TestClient, stored: list[int]) -> None:
    told = client.get(f"/history/{stored[1]}?verdict=reject").text
    assert f'rel="prev" href="/history/{stored[4]}?verdict=reject"' in told
    assert 'rel="next"' not in told
    blind = client.get(f"/history/{stored[2]}").text
    assert 'class="verdict not-inspected"' in blind
    assert 'class="verdict good"' not in blind
    assert client.get("/history/999").status_code == 404


@pytest.mark.slow
def test_many_are_labelled_after_a_question(
    client: TestClient, station: Station, stored: list[int]
) -> None:
    given = {"label": "bad", "kind": "dent", "inspection": stored[:2], "back": "//evil.example"}
    asked = client.post("/history/label", data=given)
    assert "2 parts" in asked.text
    with station.database.reading() as session:
        assert session.get_one(Inspection, stored[0]).label is None
    done = client.post("/history/label", data=given | {"sure": "1"}, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, "/")
    with station.database.reading() as session:
        assert [session.get_one(Inspection, one).kind for one in stored[:3]] == [
            "dent",
            "dent",
            None,
        ]
    client.post(f"/history/{stored[0]}/label", data={"label": "undo"})
    with station.database.reading() as session:
        assert session.get_one(Inspection, stored[0]).label is None


@pytest.mark.slow
def test_what_is_found_is_exported(client: TestClient, station: Station, stored: list[int]) -> None:
    with station.database.writing() as session:
        session.get_one(Inspection, stored[4]).serial = "=HYPERLINK(1)"
    rows = list(csv.DictReader(io.StringIO(client.get("/history/export?verdict=reject").text)))
    assert [int(row["id"]) for row in rows] == [stored[4], stored[1]]
    # A spreadsheet takes it for a text.
    assert rows[0]["serial"] == "'=HYPERLINK(1)"
    table = pq.read_table(io.BytesIO(client.get("/history/export?as=parquet").content))
    assert table.column("id").to_pylist() == stored[::-1]
    assert table.column("received").to_pylist()[0] == NOW
    assert table.column("score").to_pylist()[2] is None
    packed = zipfile.ZipFile(io.BytesIO(client.get("/history/export?as=zip").content))
    assert packed.read(f"good/{stored[0]}.png") == a_picture()
    assert len(packed.namelist()) == 6


def test_the_api(client: TestClient, stored: list[int]) -> None:
    first = client.get("/v1/inspections?limit=3").json()
    second = client.get(f"/v1/inspections?limit=3&after={first['next']}").json()
    ids = [one["id"] for one in [*first["inspections"], *second["inspections"]]]
    assert (ids, second["next"]) == (stored[::-1], None)
    answer = client.post(f"/v1/inspections/{stored[1]}/label", json={"label": "good"})
    assert answer.json()["label"] == "good"
    one = client.get(f"/v1/inspections/{stored[1]}").json()
    assert (one["picture"], one["labels"][0]["by"]) == (True, "ada")
    assert client.post("/v1/inspections/999/label", json={"label": None}).status_code == 404
    assert client.post(f"/v1/inspections/{stored[1]}/label", json={"label": "x"}).status_code == 422


@pytest.fixture
def judged(station: Station, parts_of_fabric: tuple[Path, list[Path]]) -> list[tuple[int, object]]:
    model, pictures = parts_of_fabric
    product, version = add_product(station, smoothing=4.0)
    return list(add_judged(station, product, version, model, pictures))


@pytest.fixture
def parts_of_fabric(fabric_model: Path, parts: Path) -> tuple[Path, list[Path]]:
    test = parts / "fabric" / "test"
    return fabric_model, [test / "good/000.png", test / "hole/000.png"]


def pixels(client: TestClient, path: str) -> np.ndarray:
    answer = client.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(float)


@pytest.mark.slow
def test_maps_are_drawn_as_the_detector_drew_them(
    client: TestClient, station: Station, judged: list[tuple[int, object]]
) -> None:
    for number, told in judged:
        drawn = pixels(client, f"/pictures/{number}/heat")
        # JPEG's own loss is all that lies between.
        assert np.abs(drawn - told.overlay()).mean() < 4
    (fine, first), (wrong, second) = judged
    assert np.abs(pixels(client, f"/pictures/{fine}/outline") - first.image).mean() < 4
    lines = outline(second.image, second.anomaly_map > second.region_threshold)
    assert np.abs(pixels(client, f"/pictures/{wrong}/outline") - lines).mean() < 4
    small = pixels(client, f"/pictures/{wrong}/thumbnail")
    assert max(small.shape) == 320
    assert len(list((station.files / "cache").rglob("*.jpg"))) == 5


def test_a_picture_is_handed_out_as_it_came(
    client: TestClient, station: Station, stored: list[int]
) -> None:
    answer = client.get(f"/pictures/{stored[0]}/image")
    assert (answer.content, answer.headers["content-type"]) == (a_picture(), "image/png")
    again = client.get(
        f"/pictures/{stored[0]}/image", headers={"If-None-Match": answer.headers["etag"]}
    )
    assert again.status_code == 304
    with station.database.reading() as session:
        file = station.files / session.scalars(sa.select(Picture.file)).one()
    file.write_bytes(b"<html><script>alert(1)</script>")
    evil = client.get(f"/pictures/{stored[0]}/image")
    assert evil.headers["content-type"] == "application/octet-stream"
    assert evil.headers["content-disposition"].startswith("attachment")
    assert client.get(f"/pictures/{stored[0]}/thumbnail").status_code == 404
    file.unlink()
    assert client.get(f"/pictures/{stored[1]}/image").status_code == 404


def test_a_stranger_sees_no_picture(client: TestClient, stored: list[int]) -> None:
    answer = another(client).get(f"/pictures/{stored[0]}/image", follow_redirects=False)
    assert answer.status_code in (303, 401)


def test_the_rate_of_a_threshold_is_that_of_calibration() -> None:
    good = np.random.default_rng(0).gamma(3, 1, 59).tolist()
    for rate in (0.05, 0.1, 0.3):
        chosen = choose_threshold(good, rate)
        assert chosen is not None
        assert promised(chosen.value, good) <= rate
        assert promised(np.nextafter(chosen.value, 0), good) > promised(chosen.value, good)


@pytest.mark.slow
def test_the_threshold_page_counts_and_weighs(client: TestClient, station: Station) -> None:
    product, version = add_product(station)
    ids = add(station, product, version, [0.5, 0.6, 0.7, 1.2, 1.6, 1.8])
    with station.database.writing() as session:
        label(session, ids[4:], "bad", "ada")
        label(session, ids[3:4], "good", "ada")
    told = client.get(f"/products/{product}/threshold?at=1.7").text
    assert '<b id="rejected">0</b>' in told
    assert '<b id="missed">1</b>' in told
    client.post(f"/products/{product}/threshold/costs", data={"miss": 10, "reject": 1, "share": 5})
    told = client.get(f"/products/{product}/threshold?share=5").text
    best = threshold_by_cost([0.5, 0.6, 0.7, 0.8, 1.2], [1.6, 1.8], 10, 1, 0.05)
    assert f'data-value="{best.value}"' in told


def test_what_would_flip_is_shown_first(client: TestClient, station: Station) -> None:
    product, version = add_product(station)
    ids = add(station, product, version, [0.5, 1.2, 1.6, None])
    with station.database.writing() as session:
        old = session.get_one(Version, version)
        told = {"digest": "1" * 64, "made": NOW, "made_by": "ada", "facts": old.facts}
        more = {"file": "x", "how": "threshold", "threshold": 1.4, "parent_id": version}
        session.add(Version(product_id=product, number=2, **told, **more))
    page = client.get(f"/products/{product}/threshold/2").text
    assert "the last 3 parts" in page
    assert f"/history/{ids[1]}" in page
    assert f"/history/{ids[2]}" not in page
    with station.database.reading() as session:
        assert session.get_one(Product, product).live_id == version


def test_ewma_has_roberts_s_limits() -> None:
    chart = ewma([1.0, 1.0, 1.0], [4, 4, 4], 0.0, 2.0, weight=0.2, width=3.0)
    assert chart.average == pytest.approx([0.2, 0.36, 0.488])
    steps = np.arange(1, 4)
    roberts = 3 * np.sqrt(4 / 4 * 0.2 / 1.8 * (1 - 0.8 ** (2 * steps)))
    assert chart.half == pytest.approx(roberts)


def test_ewma_rarely_cries_wolf_and_sees_a_shift() -> None:
    rng = np.random.default_rng(1)
    alarms = 0
    for _chart in range(200):
        values = rng.normal(0, 1 / 5, 96)
        alarms += ewma(values, [25] * 96, 0.0, 1.0).alarm is not None
    assert alarms == 0
    shifted = np.r_[rng.normal(0, 1 / 5, 60), rng.normal(1.0, 1 / 5, 36)]
    assert 60 <= (ewma(shifted, [25] * 96, 0.0, 1.0).alarm or 0) <= 66


def drifted(station: Station) -> tuple[int, datetime]:
    """A product whose scores rise, and whose pictures darken, for the last four hours."""
    product, version = add_product(station)
    rng = np.random.default_rng(0)
    now = datetime.now(UTC)
    with station.database.writing() as session:
        session.get_one(Version, version).made = now - timedelta(hours=30)
    before = np.exp(rng.normal(-0.9, 0.1, 260)).tolist()
    every = timedelta(minutes=6)
    add(station, product, version, before, every, now - timedelta(hours=4), brightness=0.5)
    late = np.exp(rng.normal(-0.6, 0.1, 40)).tolist()
    add(station, product, version, late, every, now, brightness=0.4)
    return product, now


@pytest.mark.slow
def test_drift_is_told_with_its_beginning_and_cause(client: TestClient, station: Station) -> None:
    product, now = drifted(station)
    found = drifting(station, now)[product]
    assert found is not None
    assert found.rises
    assert found.cause == "light"
    assert abs(found.since - (now - timedelta(hours=4))) < timedelta(hours=1)
    page = client.get("/health").text
    assert "look at the light" in page
    client.post(f"/health/usual?product={product}")
    assert "look at the light" not in client.get("/health").text


def test_too_few_parts_are_no_drift(client: TestClient, station: Station) -> None:
    product, version = add_product(station)
    add(station, product, version, [0.5] * 10 + [0.9] * 10, last=datetime.now(UTC))
    with station.database.writing() as session:
        begin_anew(session, product, datetime.now(UTC) - timedelta(days=1))
        now = datetime.now(UTC)
        told = trend(session, session.get_one(Product, product), now - timedelta(days=1), now)
    assert told is not None
    assert (told.drift, told.base) == (None, 20)
    assert "20 of 50" in client.get("/health").text


def test_a_shift_s_report_by_link(
    client: TestClient, station: Station, stored: list[int], as_role: Callable[[Role], TestClient]
) -> None:
    station.settings.timezone = "UTC"
    path = "/shift/2026-03-10/1"
    told = client.get(path).text
    assert "<b>5</b>" in told
    assert "<b>2</b>" in told
    stranger = another(client)
    assert stranger.get(path, follow_redirects=False).status_code in (303, 401)
    link = link_to(station, NOW.date(), 1)
    opened = stranger.get(link)
    assert opened.status_code == 200
    assert "data:image/jpeg" in opened.text
    assert "/pictures/" not in opened.text
    assert "<form" not in opened.text
    for wrong in (link.replace("/1/", "/2/"), link[:-1] + "g", link.replace("until=", "until=1")):
        assert stranger.get(wrong).status_code == 403
    old = link_to(station, NOW.date(), 1, datetime.now(UTC) - timedelta(days=15))
    assert stranger.get(old).status_code == 403
    assert client.get("/shift/2026-03-10/9").status_code == 404


def test_a_shift_s_report_tells_what_was_changed_in_it(
    client: TestClient, station: Station, stored: list[int]
) -> None:
    with station.database.writing() as session:
        note(session, "ada", "product.create", "washer, upper side")
        note(session, "ada", "version.live", "washer, upper side", version=3)
    told = client.get("/shift").text
    assert "washer, upper side" in told
    assert "version 3" in told


def test_places_in_the_list_are_texts() -> None:
    place = Place(NOW, 7)
    assert Place.of(str(place)) == place
