"""From the first step to a version that is live: what pages show, keep and refuse."""

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from offnominal.errors import OptionError
from offnominal.station.access.setup import setup_code
from offnominal.station.inspection.learner import Told
from offnominal.station.inspection.models import file_digest
from offnominal.station.learning import references
from offnominal.station.learning.models import model_of
from offnominal.station.learning.versions import go_live, record
from offnominal.station.pages.products import agreement_of
from offnominal.station.station import Station
from offnominal.station.store.tables import Audit, Inspection, Product, Version
from tests.station.parts import model_file
from tests.station.rows import NOW, a_picture, add, add_product


def _product(client: TestClient, name: str = "Cover", **more: str) -> int:
    answer = client.post("/products/new", data={"name": name} | more, follow_redirects=False)
    return int(re.fullmatch(r"/products/(\d+)/images", answer.headers["location"])[1])


def _modelled(station: Station, product: int, state: str = "ready") -> Version:
    """A version with a real model's file."""
    file, detector = station.files / "models/real.offn", model_of(model_file())
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(model_file().read_bytes())
    known = detector.threshold
    made = {
        "digest": file_digest(file),
        "threshold": known.value,
        "promise": str(known),
        "facts": {"grows": True, "references": []},
    }
    with station.database.writing() as session:
        told = ("models/real.offn", "ada", "fit", "", None, state)
        return record(session, product, made, *told)


# -- the first steps ------------------------------------------------------------------------------


def test_a_new_station_leads_from_step_to_step(stranger: TestClient) -> None:
    assert stranger.get("/").url.path == "/setup"
    code = setup_code(stranger.app.state.station)
    form = {"code": "AAAA-BBBB-CCCC", "name": "ada", "password": "correct horse battery"}
    answer = stranger.post("/setup", data=form)
    assert answer.status_code == 422
    assert "wrong or spent" in answer.text
    assert 'value="ada"' in answer.text  # nothing is typed twice
    answer = stranger.post("/setup", data=form | {"code": code})
    assert answer.url.path == "/products/new"
    assert stranger.get("/setup").url.path == "/products/new"  # there is one account now
    stranger.headers["X-CSRF-Token"] = re.search(r'name="csrf" content="(\S+)"', answer.text)[1]
    product = _product(stranger)
    assert stranger.get("/").url.path == f"/products/{product}/images"


@pytest.mark.slow
def test_an_operator_is_led_to_the_line(as_role: Callable[[str], TestClient]) -> None:
    operator = as_role("operator")
    assert operator.get("/").url.path == "/operator"
    assert operator.get("/products").status_code == 403
    assert operator.get("/review").status_code == 403


def test_bad_files_are_named_and_cost_no_other(client: TestClient, station: Station) -> None:
    product = _product(client)
    files = [
        ("files", ("a.png", a_picture(100))),
        ("files", ("notes.txt", b"no picture")),
        ("files", ("half.png", a_picture(90)[:-40])),
        ("files", ("b.png", a_picture(200))),
        ("files", ("again.png", a_picture(100))),
    ]
    answer = client.post(f"/products/{product}/images", files=files)
    assert answer.status_code == 422
    refused = re.findall(r"<li>([\w.]+): ", answer.text)
    assert refused == ["notes.txt", "half.png"]
    names = references.known(station.files, product)
    assert [name[:2] for name in names] == ["a-", "b-"]
    told = client.post(
        f"/products/{product}/images", files=files, headers={"Accept": "application/json"}
    ).json()
    assert (told["new"], [one["file"] for one in told["refused"]]) == ([], refused)
    small = client.get(f"/products/{product}/images/{names[0]}/small")
    assert small.headers["content-type"] == "image/jpeg"
    client.post(f"/products/{product}/images/remove", data={"names": [names[0]]})
    assert references.known(station.files, product) == [names[1]]
    with station.database.reading() as session:
        asked = sa.select(Audit.action).where(Audit.action.startswith("images."))
        assert session.scalars(asked).all() == ["images.add", "images.remove"]


def test_a_folder_of_the_station_is_taken_and_no_other(
    client: TestClient, station: Station, tmp_path: Path
) -> None:
    product = _product(client)
    folder = station.settings.readable[0]
    folder.mkdir()
    (folder / "one.png").write_bytes(a_picture())
    (tmp_path / "secret.png").write_bytes(a_picture(50))
    place = f"/products/{product}/images/folder"
    assert client.post(place, data={"folder": str(folder)}).status_code == 200
    assert len(references.known(station.files, product)) == 1
    answer = client.post(place, data={"folder": str(tmp_path)})
    assert answer.status_code == 422
    assert "pages read in" in answer.text
    assert len(references.known(station.files, product)) == 1


def test_nothing_is_learned_from_nothing(client: TestClient) -> None:
    product = _product(client)
    answer = client.post(f"/products/{product}/fit")
    assert answer.status_code == 422
    assert "no picture to learn from" in answer.text
    answer = client.post(f"/products/{product}/images/source", data={"source": "gone"})
    assert "does not work now" in answer.text
    assert client.post(f"/products/{product}/test").status_code in (409, 422)
    assert client.get("/products/999/images").status_code == 404


# -- products -------------------------------------------------------------------------------------


def test_names_numbers_and_barcodes_are_a_products_own(client: TestClient) -> None:
    _product(client, "Cover", number="7", barcode="400-1")
    for given in (
        {"name": "Cover"},
        {"name": "x", "number": "7"},
        {"name": "x", "barcode": "400-1"},
    ):
        answer = client.post("/products/new", data=given)
        assert answer.status_code == 422
        assert "already" in answer.text
    for given, told in (({"name": " "}, "1 to 100"), ({"name": "x", "number": "-1"}, "0 to 65535")):
        answer = client.post("/products/new", data=given)
        assert (answer.status_code, told in answer.text) == (422, True)


def test_settings_take_a_comma_and_are_on_record(client: TestClient, station: Station) -> None:
    product = _product(client)
    form = {"name": "Cover, top", "number": "3", "deadline": "1,5", "cost_miss": "200"}
    assert client.post(f"/products/{product}", data=form).status_code == 200
    assert client.post(f"/products/{product}", data=form | {"deadline": "soon"}).status_code == 422
    with station.database.reading() as session:
        row = session.get(Product, product)
        assert (row.name, row.number, row.deadline, row.cost_miss) == ("Cover, top", 3, 1.5, 200)
        change = session.scalar(sa.select(Audit).filter_by(action="product.change"))
        assert change.detail == {
            "name": "Cover, top", "number": 3, "deadline": 1.5, "cost_miss": 200.0,
        }  # fmt: skip


def test_a_product_is_put_away_and_brought_back(client: TestClient, station: Station) -> None:
    product = _product(client)
    for archived in (True, False):
        client.post(f"/products/{product}/archive", data={"archived": str(archived).lower()})
        with station.database.reading() as session:
            assert (session.get(Product, product).archived is not None) == archived
    assert "Cover" in client.get("/products").text


def test_shadow_mode_says_when_it_can_be_trusted(client: TestClient, station: Station) -> None:
    product, version = add_product(station)
    client.post(f"/products/{product}/shadow", data={"shadow": "true"})
    shadow = {"told": "nothing", "label": "good"}
    add(station, product, version, [0.5] * 40, **shadow)
    add(station, product, version, [0.5] * 9, told="good", label="bad")  # not in shadow mode
    add(station, product, version, [None] * 9, last=NOW - timedelta(days=1), **shadow)
    page = client.get(f"/products/{product}").text
    assert "agreed with people on 40 of 40 parts" in page
    assert "takes 33 more parts" in page
    add(station, product, version, [0.5] * 33, last=NOW - timedelta(days=2), **shadow)
    with station.database.reading() as session:
        assert agreement_of(session, product).trusted
    assert "well enough to be trusted" in client.get(f"/products/{product}").text


# -- versions -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_version_shows_its_promise_and_the_heat_of_its_pictures(
    client: TestClient, station: Station
) -> None:
    product = _product(client)
    version = _modelled(station, product)
    place = f"/products/{product}/versions/{version.number}"
    page = client.get(place).text
    assert "Up to 11 % of good parts may be rejected" in page
    assert "With 11 more good pictures it could promise 5 %" in page
    assert page.count("<figure>") == 8
    shown = [float(one) for one in re.findall(r"<figcaption[^>]*>([\d.]+)", page)]
    assert shown == sorted(shown, reverse=True)  # the oddest first
    heat = client.get(f"{place}/references/0")
    assert heat.headers["content-type"] == "image/jpeg"
    assert client.get(f"{place}/references/8").status_code == 404


def test_what_is_not_accepted_or_dropped_never_goes_live(
    client: TestClient, station: Station
) -> None:
    product = _product(client)
    version = _modelled(station, product, "quarantined")
    with station.database.writing() as session:
        with pytest.raises(OptionError, match="engineer has to accept"):
            go_live(session, product, version.number, "ada")
        session.get(Version, version.id).state = "dropped"
        with pytest.raises(OptionError, match="was dropped"):
            go_live(session, product, version.number, "ada")
        session.get(Version, version.id).state = "ready"
        with pytest.raises(OptionError, match="none of this product"):
            go_live(session, product, 99, "ada")
        go_live(session, product, version.number, "ada")
    answer = client.post(
        f"/products/{product}/versions/{version.number}/state", data={"state": "dropped"}
    )
    assert answer.status_code == 409
    page = client.get(f"/products/{product}/versions").text
    assert "live" in re.search(r"<tbody>.*</tbody>", page, re.DOTALL)[0]


def test_versions_are_dropped_and_brought_back(client: TestClient, station: Station) -> None:
    product = _product(client)
    version = _modelled(station, product)
    for state in ("dropped", "ready"):
        place = f"/products/{product}/versions/{version.number}"
        client.post(f"{place}/state", data={"state": state})
        with station.database.reading() as session:
            assert session.get(Version, version.id).state == state
    with station.database.reading() as session:
        asked = sa.select(Audit.action).where(Audit.action.startswith("version."))
        assert session.scalars(asked).all() == ["version.fit", "version.drop", "version.restore"]


# -- the operator's page --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_operator_sees_the_newest_part_and_counts_of_the_shift(
    client: TestClient, station: Station
) -> None:
    from datetime import UTC, datetime

    product, version = add_product(station)
    now = datetime.now(UTC)
    ids = add(
        station, product, version, [0.5, 1.5, None], every=timedelta(milliseconds=1), last=now,
        pictures=[a_picture()], serial="S-1",
    )  # fmt: skip
    page = client.get(f"/operator/{product}/now").text
    assert f'data-part="{ids[2]}"' in page
    assert 'class="judged not-inspected"' in page
    assert "NOT INSPECTED" in page
    tally = re.findall(r'<div class="([\w-]+)"><dt>[^<]*</dt><dd>(\d+)<', page)
    assert dict(tally) == {"good": "1", "reject": "1", "not-inspected": "1"}
    older = client.get(f"/operator/{product}/now?at={ids[1]}").text
    assert 'class="judged reject"' in older
    assert "data-older" in older
    whole = client.get("/operator")
    assert whole.url.path == f"/operator/{product}"  # the only one
    assert "operator waiting" in whole.text  # no verdict is in sight before the station answers


def test_what_operators_say_is_kept_and_taken_back(client: TestClient, station: Station) -> None:
    product, version = add_product(station)
    other, _ = add_product(station, "Other")
    first, second = add(station, product, version, [0.5, 1.5])

    def said() -> list[str | None]:
        with station.database.reading() as session:
            return [session.get(Inspection, one).label for one in (first, second)]

    place = f"/operator/{product}"
    client.post(f"{place}/label", data={"inspection": second, "label": "good"})
    client.post(f"{place}/label", data={"inspection": first, "label": "bad"})
    assert said() == ["bad", "good"]
    client.post(f"{place}/undo")
    assert said() == [None, "good"]
    wrong = client.post(f"/operator/{other}/label", data={"inspection": second, "label": "bad"})
    assert wrong.status_code == 404
    for label in ("maybe", ""):
        form = {"inspection": second, "label": label}
        assert client.post(f"{place}/label", data=form).status_code == 422
    assert said() == [None, "good"]


def test_a_scanner_names_the_next_part_or_the_product(client: TestClient, station: Station) -> None:
    product, _ = add_product(station, "Cover")
    other, _ = add_product(station, "Flange")
    with station.database.writing() as session:
        session.get(Product, other).barcode = "400-2"
    asked = {"Accept": "application/json"}
    place = f"/operator/{product}/serial"
    told = client.post(place, data={"serial": " S-77 "}, headers=asked).json()
    assert told == {"go": "", "serial": "S-77"}
    assert station.serials == {product: "S-77"}
    told = client.post(place, data={"serial": "400-2"}, headers=asked).json()
    assert told["go"] == f"/operator/{other}"
    assert client.get("/operator").url.path == f"/operator/{other}"  # what the line makes now
    assert "Cover" in client.get("/operator?choose").text
    client.post(place, data={"serial": ""}, headers=asked)
    assert station.serials == {}


# -- review ---------------------------------------------------------------------------------------


def _sections(page: str) -> list[int]:
    """How many parts each section shows: false alarms, those nobody judged, misses."""
    return [
        one.count('name="inspections"')
        for one in re.findall("<section>.*?</section>", page, re.DOTALL)
    ]


def test_review_shows_what_waits_for_eyes(client: TestClient, station: Station) -> None:
    product, version = add_product(station, grows=True)
    picture = {"pictures": [a_picture(50)]}
    alarms = add(station, product, version, [1.5, 1.6], label="good", **picture)
    add(station, product, version, [1.7], last=NOW - timedelta(days=1))
    misses = add(station, product, version, [0.4], last=NOW - timedelta(days=2), label="bad")
    add(station, product, version, [None, 0.5], last=NOW - timedelta(days=3))
    page = client.get("/review").text
    assert _sections(page) == [2, 1, 1]
    assert "passes 1 of 1 part that is known to be bad" in page
    form = {"inspections": misses, "label": "bad", "kind": "crack"}
    client.post(f"/review/{product}/label", data=form)
    with station.database.reading() as session:
        assert session.get(Inspection, misses[0]).kind == "crack"
    form = {"inspections": alarms, "label": "bad"}
    page = client.post(f"/review/{product}/label", data=form).text
    assert _sections(page) == [0, 1, 1]


def test_what_is_learned_is_not_shown_again(client: TestClient, station: Station) -> None:
    product, version = add_product(station, grows=True)
    add(station, product, version, [1.5], label="good", pictures=[a_picture(50)])
    with station.database.writing() as session:
        row = session.get(Version, version)
        file = session.scalar(sa.select(Inspection)).picture.file
        row.facts = row.facts | {"references": [{"file": file, "active": True}]}
    page = client.get("/review").text
    assert _sections(page)[0] == 0
    assert "1 was learned already" in page


def test_a_method_that_cannot_grow_gets_the_pictures_for_a_new_fit(
    client: TestClient, station: Station
) -> None:
    product, version = add_product(station, grows=False)
    ids = add(station, product, version, [1.5], label="good", pictures=[a_picture(50)])
    page = client.get("/review").text
    assert "cannot learn from single further pictures" in page
    answer = client.post(f"/review/{product}/keep", data={"inspections": ids})
    assert answer.url.path == f"/products/{product}/images"
    assert len(references.known(station.files, product)) == 1
    bad = add(station, product, version, [1.5], label="bad", pictures=[a_picture(60)])
    client.post(f"/review/{product}/keep", data={"inspections": bad})
    assert len(references.known(station.files, product)) == 1  # only what somebody called good


def test_only_good_parts_are_learned(client: TestClient, station: Station) -> None:
    product, version = add_product(station, grows=True)
    ids = add(station, product, version, [1.5], label="bad", pictures=[a_picture(50)])
    answer = client.post(f"/review/{product}/learn", data={"inspections": ids})
    assert answer.status_code == 422
    assert "somebody said are good" in answer.text
    assert station.jobs.last(product, "add") is None


def test_a_check_of_pictures_is_switched_off_and_on(client: TestClient, station: Station) -> None:
    product = _product(client)
    form = {"on": ["dark", "bright", "moved", "size", "frozen"]}
    answer = client.post(f"/products/{product}/checks", data=form)
    assert 'value="blurred">' in answer.text
    with station.database.reading() as session:
        assert session.get(Product, product).checks == {"blurred": False}
    assert client.post(f"/products/{product}/checks", data={"on": ["taste"]}).status_code == 422
    form["on"].append("blurred")
    assert 'value="blurred" checked>' in client.post(f"/products/{product}/checks", data=form).text


def test_a_comparison_that_a_restart_interrupted_says_so(
    client: TestClient, station: Station
) -> None:
    product, _version = add_product(station)
    _modelled(station, product)
    asyncio.run(_begin_and_die(station, product, "compare 1 2", "compare 2"))
    station.jobs = Station(station.settings).jobs  # of the next process
    for place, form in (("compare?a=1&b=2", "compare"), ("2", "2/compare")):
        page = client.get(f"/products/{product}/versions/{place}").text
        assert "station was restarted: start it again" in page
        assert "data-job" not in page
        assert f'action="/products/{product}/versions/{form}"' in page
    assert "restarted" not in client.get(f"/products/{product}/versions/1").text
    found = station.jobs.last(product, "compare 2")
    assert client.get(f"/jobs/{found.id}").json()["state"] == "failed"


async def _begin_and_die(station: Station, product: int, *kinds: str) -> None:
    async def work(told: Told) -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    for kind in kinds:  # of one product one after the other, so in a process of its own each
        jobs = Station(station.settings).jobs
        jobs.start(product, kind, "ada", work)
        await asyncio.sleep(0)
        await jobs.close()
