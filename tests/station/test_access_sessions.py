"""Who may come in: sessions, their cookies, CSRF, and roles."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated

import pytest
import sqlalchemy as sa
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from offnominal.errors import OptionError
from offnominal.station.access import sessions, setup
from offnominal.station.access.accounts import change, create_user, find_user, set_password
from offnominal.station.access.who import Who, allowed, local, scoped
from offnominal.station.station import Station
from offnominal.station.store.tables import Session, User
from tests.station.conftest import PASSWORD, another, log_in


@pytest.fixture(autouse=True)
def doors(stranger: TestClient) -> None:
    """Pages of the test's own, one for each door."""
    app = stranger.app
    assert isinstance(app, FastAPI)

    @app.api_route("/for-engineers", methods=["GET", "POST"])
    def page(who: Annotated[Who, Depends(allowed("engineer"))]) -> str:
        return who.name

    @app.api_route("/v1/for-managers", methods=["GET", "POST"])
    def manage(who: Annotated[Who, Depends(scoped("manage"))]) -> str:
        return who.name


def test_strangers_are_led_to_set_up_and_then_to_log_in(stranger: TestClient) -> None:
    assert stranger.get("/for-engineers", follow_redirects=False).headers["location"] == "/setup"
    log_in(another(stranger), "ada", "admin")
    found = stranger.get("/for-engineers?x=1&y=/2", follow_redirects=False)
    assert found.status_code == 303
    assert found.headers["location"] == "/login?next=/for-engineers%3Fx%3D1%26y%3D/2"
    for headers in ({"HX-Request": "true"}, {"Sec-Fetch-Mode": "cors"}):
        assert stranger.get("/for-engineers", headers=headers).status_code == 401
    assert stranger.get("/v1/for-managers").status_code == 401
    assert stranger.post("/v1/for-managers").status_code == 401


@pytest.mark.slow
def test_roles_open_what_is_theirs(
    client: TestClient, as_role: Callable[[str], TestClient]
) -> None:
    assert client.get("/for-engineers").json() == "ada"
    engineer, operator = as_role("engineer"), as_role("operator")
    assert engineer.get("/for-engineers").status_code == 200
    assert operator.get("/for-engineers").status_code == 403
    assert operator.get("/v1/for-managers").status_code == 403
    assert engineer.post("/v1/for-managers").json() == "engineer account"


@pytest.mark.parametrize("place", ["/for-engineers", "/v1/for-managers"])
def test_nothing_changes_without_the_sessions_own_token(
    client: TestClient, as_role: Callable[[str], TestClient], place: str
) -> None:
    own = client.headers.pop("X-CSRF-Token")
    assert client.post(place).status_code == 403
    assert client.post(place, data={"csrf": "x"}).status_code == 403
    assert client.post(place, data={"csrf": "ö"}).status_code == 403
    others = as_role("engineer").headers["X-CSRF-Token"]
    assert client.post(place, data={"csrf": others}).status_code == 403
    assert client.post(place, json={"csrf": own}).status_code == 403
    assert client.post(f"{place}?csrf={own}").status_code == 403
    assert client.post(place, data={"csrf": own}).status_code == 200
    file = {"file": ("csrf", b"x")}
    assert client.post(place, data={"csrf": own}, files=file).status_code == 200
    assert client.post(place, files={"csrf": ("csrf", own.encode())}).status_code == 403
    assert client.post(place, headers={"X-CSRF-Token": own}).status_code == 200


def test_a_session_ends(client: TestClient, station: Station) -> None:
    assert client.get("/for-engineers").status_code == 200
    with station.database.writing() as session:
        session.execute(sa.update(Session).values(expires=datetime.now(UTC) - timedelta(seconds=1)))
    assert client.get("/for-engineers", follow_redirects=False).status_code == 303


@pytest.mark.parametrize("what", ["password", "role", "disabled"])
@pytest.mark.slow
def test_sessions_end_with_the_rights_they_were_for(
    as_role: Callable[[str], TestClient], station: Station, what: str
) -> None:
    browser = as_role("engineer")
    assert browser.get("/for-engineers").status_code == 200
    with station.database.writing() as session:
        user = find_user(session, "ENGINEER Account")
        assert user is not None
        if what == "password":
            set_password(session, user, "something else")
        elif what == "role":
            change(session, user, role="admin")
        else:
            change(session, user, disabled=True)
    assert browser.get("/for-engineers", follow_redirects=False).status_code == 303


def test_a_cookie_that_was_planted_is_none(client: TestClient, station: Station) -> None:
    browser = another(client)
    browser.cookies.set("offnominal", "planted", domain="127.0.0.1", path="/")
    assert browser.get("/for-engineers", follow_redirects=False).status_code == 303
    with station.database.reading() as session:
        held = client.cookies["offnominal"]
        kept = session.scalars(sa.select(Session.digest)).all()
    assert held not in kept
    browser.cookies.set("offnominal", kept[0], domain="127.0.0.1", path="/")
    assert browser.get("/for-engineers", follow_redirects=False).status_code == 303


def test_there_is_always_an_administrator(client: TestClient, station: Station) -> None:
    with station.database.writing() as session:
        ada = find_user(session, "ada")
        assert ada is not None
        for asked in ({"role": "engineer"}, {"disabled": True}):
            with pytest.raises(OptionError, match="last administrator"):
                change(session, ada, **asked)
        create_user(session, "bo", PASSWORD, "admin")
        change(session, ada, role="engineer")
        assert ada.role == "engineer"


@pytest.mark.parametrize(
    ("name", "password"),
    [
        *((" ", PASSWORD), ("x" * 101, PASSWORD), ("a\0b", PASSWORD), ("a\u202eb", PASSWORD)),
        *(("Station", PASSWORD), ("token x", PASSWORD), ("ADA", PASSWORD), ("ａｄａ", PASSWORD)),
        *(("bo", "short"), ("bo", "x" * 201), ("bo", "aaaaaaaaaaaa"), ("bob", "BobBob123456")),
    ],
)
def test_accounts_that_are_refused(
    client: TestClient, station: Station, name: str, password: str
) -> None:
    with pytest.raises(OptionError), station.database.writing() as session:
        create_user(session, name, password, "operator")
    with station.database.reading() as session:
        assert session.scalars(sa.select(User.name)).all() == ["ada"]


def test_the_set_up_code_makes_one_account(stranger: TestClient) -> None:
    station: Station = stranger.app.state.station
    old, code = setup.setup_code(station), setup.setup_code(station)
    assert old is not None
    assert code is not None
    for wrong in ("", "AAAA-AAAA-AAAA", old):
        with pytest.raises(OptionError, match="wrong or spent"):
            setup.first_admin(station, "10.0.0.1", wrong, "ada", PASSWORD)
    with pytest.raises(OptionError, match="too short"):
        setup.first_admin(station, "10.0.0.1", code, "ada", "short")
    made = setup.first_admin(station, "10.0.0.1", code.lower().replace("-", " "), "ada", PASSWORD)
    assert made.role == "admin"
    with pytest.raises(OptionError, match="wrong or spent"):
        setup.first_admin(station, "10.0.0.1", code, "eve", PASSWORD)
    assert setup.setup_code(station) is None


def test_the_set_up_code_cannot_be_guessed_at(stranger: TestClient) -> None:
    station: Station = stranger.app.state.station
    code = setup.setup_code(station)
    assert code is not None
    for _ in range(10):
        with pytest.raises(OptionError, match="wrong or spent"):
            setup.first_admin(station, "10.0.0.1", "AAAA", "eve", PASSWORD)
    with pytest.raises(OptionError, match="Too many"):
        setup.first_admin(station, "10.0.0.1", code, "eve", PASSWORD)
    assert setup.first_admin(station, "10.0.0.2", code, "ada", PASSWORD).name == "ada"


@pytest.mark.parametrize(
    "place",
    [
        *("//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil", "javascript:x"),
        *("/\tevil", " /x", "///evil", "evil", "/%0a\n", "http:/x", "//[", "", None),
    ],
)
def test_no_way_leads_out(place: str | None) -> None:
    assert local(place) == "/"


def test_ways_within_are_kept() -> None:
    assert local("/history?q=%2F&x=https://a") == "/history?q=%2F&x=https://a"


def test_cookies_are_for_tls_but_on_this_machine() -> None:
    class Asked:
        def __init__(self, url: str) -> None:
            from starlette.datastructures import URL

            self.url = URL(url)

    for url, secure in [
        *(("http://127.0.0.1/", False), ("http://localhost:1/", False), ("http://[::1]/", False)),
        *(("https://127.0.0.1/", True), ("http://10.0.0.1/", True), ("http://line3/", True)),
        *(("http://localhost.evil.example/", True), ("http://127.0.0.1.evil.example/", True)),
    ]:
        assert sessions.is_secure(Asked(url)) is secure, url  # type: ignore[arg-type]
