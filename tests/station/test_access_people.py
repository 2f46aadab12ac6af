"""Accounts, tokens and the audit log: what an administrator does, and who is none tries."""

import csv
import io
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated

import pytest
import sqlalchemy as sa
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from offnominal.station.access import audit
from offnominal.station.access.who import Who, scoped
from offnominal.station.station import Station
from offnominal.station.store.tables import Audit, Product, Token, User
from tests.station.conftest import BOTH, PASSWORD, another

AsRole = Callable[[str], TestClient]
HOSTILE = [
    *("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'; DROP TABLE users; --"),
    *("%' OR '1'='1", "{{ 7*7 }}", "%(x)s", "_", "\\", "=HYPERLINK(1)", "a\u2028b", "ä ß 中"),
]


def user(station: Station, name: str) -> User:
    with station.database.reading() as session:
        return session.scalars(sa.select(User).where(User.name == name)).one()


def token(client: TestClient, *scopes: str, days: str = "30") -> str:
    sent = {"name": "line", "scopes": list(scopes), "days": days}
    answer = client.post("/tokens", data=sent)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    made = answer.text.split('class="token">')[1].split("<")[0]
    assert made not in client.get("/tokens").text
    return made


@pytest.fixture(autouse=True)
def doors(stranger: TestClient) -> None:
    app = stranger.app
    assert isinstance(app, FastAPI)
    for scope in ("inspect", "read", "label", "manage"):

        def page(who: Annotated[Who, Depends(scoped(scope))]) -> dict[str, str]:  # type: ignore[arg-type]  # one of them
            return {"name": who.name, "role": who.role}

        app.add_api_route(f"/v1/try/{scope}", page, methods=["GET", "POST"])


@BOTH
def test_accounts_are_made_and_changed(client: TestClient, station: Station) -> None:
    new = {"name": "bo", "password": PASSWORD, "role": "operator"}
    assert client.post("/people", data=new).url.path == "/people"
    assert client.post("/people", data=new).status_code == 422
    assert client.post("/people", data=new | {"name": "cy", "role": "root"}).status_code == 422
    number = user(station, "bo").id
    assert client.post(f"/people/{number}/role", data={"role": "engineer"}).status_code == 200
    assert user(station, "bo").role == "engineer"
    client.post(f"/people/{number}/disable")
    assert user(station, "bo").disabled
    with station.database.writing() as session:
        later = datetime.now(UTC) + timedelta(hours=1)
        session.execute(sa.update(User).where(User.name == "bo").values(locked_until=later))
    client.post(f"/people/{number}/enable")
    assert not user(station, "bo").disabled
    assert user(station, "bo").locked_until is None
    before = user(station, "bo").password
    assert client.post(f"/people/{number}/password", data={"password": "x"}).status_code == 422
    assert client.post(f"/people/{number}/password", data={"password": "y" + PASSWORD}).is_success
    assert user(station, "bo").password != before
    assert client.post("/people/77/disable").status_code == 404
    assert client.post(f"/people/{number}/sudo").status_code in (404, 422)
    with station.database.reading() as session:
        acts = session.scalars(sa.select(Audit.action).order_by(Audit.id)).all()
    assert acts == [
        "user.create",
        *(f"user.{one}" for one in ("role", "disable", "enable", "password")),
    ]


@BOTH
def test_the_last_administrator_stays(client: TestClient, station: Station) -> None:
    number = user(station, "ada").id
    for what in ("role", "disable"):
        answer = client.post(f"/people/{number}/{what}", data={"role": "operator"})
        assert answer.status_code == 422
        assert "last administrator" in answer.text
    assert (user(station, "ada").role, user(station, "ada").disabled) == ("admin", False)


@pytest.mark.parametrize("role", ["operator", "engineer"])
def test_others_do_not_get_in(
    client: TestClient, as_role: AsRole, station: Station, role: str
) -> None:
    browser, number = as_role(role), user(station, "ada").id
    for place in ("/people", "/audit", "/audit.csv"):
        assert browser.get(place).status_code == 403
    own = user(station, f"{role} account").id
    for place in (f"/people/{number}/disable", f"/people/{own}/role", "/people"):
        sent = {"role": "admin", "name": "eve", "password": PASSWORD}
        assert browser.post(place, data=sent).status_code == 403
    assert user(station, f"{role} account").role == role
    assert browser.get("/tokens").status_code == (403 if role == "operator" else 200)


@BOTH
def test_tokens_do_what_they_are_for(client: TestClient, as_role: AsRole, station: Station) -> None:
    made, browser = token(client, "inspect", "read"), another(client)
    browser.headers["Authorization"] = f"Bearer {made}"
    assert browser.post("/v1/try/inspect").json() == {"name": "token line", "role": "operator"}
    assert browser.get("/v1/try/read").status_code == 200
    for scope in ("label", "manage"):
        assert browser.post(f"/v1/try/{scope}").status_code == 403
    # Pages are for people.
    for place in ("/people", "/tokens", "/account"):
        assert browser.get(place, follow_redirects=False).status_code == 303
    for wrong in (made + "x", made[:-1], made.lower(), "", "Basic YTpi", f"Token {made}"):
        browser.headers["Authorization"] = wrong if " " in wrong else f"Bearer {wrong}"
        assert browser.get("/v1/try/read").status_code == 401
    browser.headers["Authorization"] = f"bearer {made}"
    assert browser.get("/v1/try/read").status_code == 200
    with station.database.reading() as session:
        kept = session.scalars(sa.select(Token)).one()
    assert made not in (kept.digest, kept.name)
    assert kept.last_used is not None


def test_a_form_that_is_sent_again_makes_no_other_token(
    client: TestClient, as_role: AsRole, station: Station
) -> None:
    token(client, "read")
    sent = {"name": " line", "scopes": "read", "days": "30"}
    answer = client.post("/tokens", data=sent)
    assert answer.status_code == 409
    assert 'class="token"' not in answer.text
    with station.database.reading() as session:
        assert session.scalars(sa.select(Token.name)).all() == ["line"]
    token(as_role("engineer"), "read")  # names are each account's own
    client.post("/tokens/1/revoke")
    token(client, "read")  # what is over leaves its name to another


def test_tokens_end(client: TestClient, station: Station) -> None:
    made, browser = token(client, "read"), another(client)
    browser.headers["Authorization"] = f"Bearer {made}"
    assert browser.get("/v1/try/read").status_code == 200
    with station.database.writing() as session:
        soon = datetime.now(UTC) - timedelta(seconds=1)
        session.execute(sa.update(Token).values(expires=soon))
    assert browser.get("/v1/try/read").status_code == 401
    made = token(client, "read", days="0")
    browser.headers["Authorization"] = f"Bearer {made}"
    assert browser.get("/v1/try/read").status_code == 200
    with station.database.reading() as session:
        number = session.scalars(sa.select(Token.id).order_by(Token.id.desc())).first()
    assert client.post(f"/tokens/{number}/revoke").status_code == 200
    assert browser.get("/v1/try/read").status_code == 401


@pytest.mark.slow
def test_a_token_goes_before_a_cookie(client: TestClient) -> None:
    """Who sends a wrong token with a session's cookie gets nothing, and needs no CSRF token."""
    assert client.get("/v1/try/read").status_code == 200
    assert client.get("/v1/try/read", headers={"Authorization": "Bearer x"}).status_code == 401


def test_a_token_is_never_more_than_its_owner(
    client: TestClient, as_role: AsRole, station: Station
) -> None:
    engineer = as_role("engineer")
    made, browser = token(engineer, "manage", "read"), another(client)
    browser.headers["Authorization"] = f"Bearer {made}"
    assert browser.post("/v1/try/manage").json()["role"] == "engineer"
    number = user(station, "engineer account").id
    client.post(f"/people/{number}/role", data={"role": "operator"})
    assert browser.post("/v1/try/manage").status_code == 403
    assert browser.get("/v1/try/read").status_code == 200
    client.post(f"/people/{number}/disable")
    assert browser.get("/v1/try/read").status_code == 401


def test_others_tokens_are_none_of_ones_business(client: TestClient, as_role: AsRole) -> None:
    token(client, "read")
    engineer = as_role("engineer")
    assert "Revoke" not in engineer.get("/tokens").text
    assert engineer.post("/tokens/1/revoke").status_code == 404
    token(engineer, "read")
    assert client.get("/tokens").text.count("Revoke") == 2


@pytest.mark.parametrize(
    "sent",
    [
        {"name": "", "scopes": "read", "days": "30"},
        {"name": "x" * 81, "scopes": "read", "days": "30"},
        {"name": "a\nb", "scopes": "read", "days": "30"},
        {"name": "x", "days": "30"},
        {"name": "x", "scopes": "root", "days": "30"},
        {"name": "x", "scopes": "read", "days": "99999999999999999999"},
        {"name": "x", "scopes": "read", "days": "-1"},
    ],
)
def test_tokens_that_are_not_made(
    client: TestClient, station: Station, sent: dict[str, str]
) -> None:
    assert client.post("/tokens", data=sent).status_code == 422
    with station.database.reading() as session:
        assert session.scalars(sa.select(Token)).all() == []


@BOTH
@pytest.mark.slow
def test_the_log_is_shown_searched_and_exported(client: TestClient, station: Station) -> None:
    with station.database.writing() as session:
        for number in range(120):
            audit.note(session, "ada", "product.create", f"part {number:03}", number=number)
        for text in HOSTILE:
            audit.note(session, text, "x", text, told=text)
    text = client.get("/audit").text
    assert "Sealed: intact" in text
    assert "part 119" in text
    assert "part 000" not in text
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    older = re.findall(r'href="(/audit\?before=\d+)"', text)
    assert (
        "part 050"
        in client.get(client.get(older[0]).text.split('href="/audit?before')[0] and older[0]).text
    )
    found = client.get("/audit", params={"q": "PART 00"}).text
    assert found.count("<code>product.create</code>") == 10
    for wild in ("%", "_", "\\"):
        rows = client.get("/audit", params={"q": wild}).text.count("<code>x</code>")
        assert rows == sum(wild in text for text in HOSTILE), wild
    for hostile in HOSTILE:
        assert client.get("/audit", params={"q": hostile}).status_code == 200
    answer = client.get("/audit.csv", params={"q": "HYPERLINK"})
    rows = list(csv.reader(io.StringIO(answer.text)))
    assert len(rows) == 2
    assert rows[1][2] == "'=HYPERLINK(1)"
    assert len(list(csv.reader(io.StringIO(client.get("/audit.csv").text)))) == 1 + 120 + len(
        HOSTILE
    )


def test_a_log_that_was_changed_says_where(client: TestClient, station: Station) -> None:
    with station.database.writing() as session:
        for _ in range(3):
            audit.note(session, "ada", "x")
    with station.database.engine.begin() as connection:
        name = "audit_update" if station.database.is_sqlite else "audit_change ON audit"
        connection.exec_driver_sql(f"DROP TRIGGER {name}")
        connection.exec_driver_sql("UPDATE audit SET by = 'eve' WHERE id = 2")
    assert "broken at row 2" in client.get("/audit").text


def test_nothing_of_the_application_changes_the_log(client: TestClient) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for place in ("/audit", "/audit/1", "/audit.csv"):
            assert client.request(method, place).status_code in (404, 405)


@pytest.mark.slow
def test_hostile_names_are_shown_as_they_are(client: TestClient, station: Station) -> None:
    with station.database.writing() as session:
        for text in HOSTILE:
            session.add(Product(name=text, created=datetime.now(UTC), barcode=text))
            audit.note(session, text, "x", text, told=text)
    for text in HOSTILE[:3]:
        client.post("/people", data={"name": text, "password": PASSWORD, "role": "operator"})
        client.post("/tokens", data={"name": text, "scopes": "read", "days": "30"})
    for place in ("/people", "/tokens", "/audit", "/products", "/operator", "/history", "/review"):
        text = client.get(place).text
        for hostile in HOSTILE[:2]:
            assert hostile not in text, place
        assert "49" not in re.findall(r"\{\{ 7\*7 \}\}|>49<", text)
