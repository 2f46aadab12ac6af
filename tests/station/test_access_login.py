"""Logging in, as somebody would who has no password."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher
from fastapi.testclient import TestClient

from offnominal.station.access import passwords
from offnominal.station.access.attempts import Attempts, origin
from offnominal.station.access.log_in import LogInError, log_in
from offnominal.station.station import Station
from offnominal.station.store.tables import Audit, Session, User
from tests.station.conftest import PASSWORD, another
from tests.station.conftest import log_in as make

RIGHT = {"name": "ADA", "password": PASSWORD}


def enter(browser: TestClient, **more: str) -> object:
    return browser.post("/login", data=RIGHT | more, follow_redirects=False)


@pytest.fixture
def browser(client: TestClient) -> TestClient:
    """Not logged in, where ``ada`` has an account."""
    return another(client)


def test_in_and_out(browser: TestClient, station: Station) -> None:
    assert browser.get("/login").status_code == 200
    answer = browser.post("/login?x", data=RIGHT | {"next": "/account"})
    assert answer.url.path == "/account"
    assert "ada" in answer.text
    held = browser.cookies["offnominal"]
    csrf = answer.text.split('name="csrf" value="')[1].split('"')[0]
    assert browser.get("/login", follow_redirects=False).headers["location"] == "/"
    assert browser.post("/logout", data={"csrf": "x"}).status_code == 403
    assert browser.get("/logout").status_code == 405
    assert browser.post("/logout", data={"csrf": csrf}).url.path == "/login"
    browser.cookies.set("offnominal", held, domain="127.0.0.1", path="/")
    assert browser.get("/account", follow_redirects=False).status_code == 303
    with station.database.reading() as session:
        acts = session.scalars(sa.select(Audit.action).order_by(Audit.id)).all()
    assert acts == ["login", "logout"]


def test_the_cookies_flags(browser: TestClient) -> None:
    told = enter(browser).headers.get_list("set-cookie")
    session = next(one for one in told if one.startswith("offnominal="))
    assert {"HttpOnly", "SameSite=lax", "Path=/", "Max-Age=43200"} <= set(session.split("; "))
    assert "Secure" not in session
    assert "Domain" not in session
    over_tls = another(browser)
    over_tls.base_url = "https://127.0.0.1"
    told = enter(over_tls).headers.get_list("set-cookie")
    session = next(one for one in told if one.startswith("__Host-offnominal="))
    assert {"HttpOnly", "Secure", "SameSite=lax", "Path=/"} <= set(session.split("; "))
    assert all("HttpOnly" in one for one in told if "csrf" not in one)
    far = another(browser)
    far.base_url = "http://10.0.0.7:8765"
    told = enter(far).headers.get_list("set-cookie")
    assert any(one.startswith("__Host-offnominal=") and "Secure" in one for one in told)


def test_a_session_from_before_is_not_taken_over(browser: TestClient, station: Station) -> None:
    browser.cookies.set("offnominal", "planted", domain="127.0.0.1", path="/")
    enter(browser)
    first = browser.cookies["offnominal"]
    assert first != "planted"
    browser.cookies.set("offnominal", first, domain="127.0.0.1", path="/")
    enter(browser)
    second = browser.cookies["offnominal"]
    assert second != first
    thief = another(browser)
    thief.cookies.set("offnominal", first, domain="127.0.0.1", path="/")
    assert thief.get("/account", follow_redirects=False).status_code == 303


@pytest.mark.parametrize(
    "place", ["//evil.example", "https://evil.example/", "/\\evil", "javascript:1"]
)
def test_nobody_is_led_out(browser: TestClient, place: str) -> None:
    assert f'name="next" value="{place}"' not in browser.get("/login", params={"next": place}).text
    assert enter(browser, next=place).headers["location"] == "/"
    assert (
        browser.get("/login", params={"next": place}, follow_redirects=False).headers["location"]
        == "/"
    )


def test_wrong_is_wrong_in_the_same_words(browser: TestClient, station: Station) -> None:
    make(another(browser), "bo", "operator")
    make(another(browser), "cy", "operator")
    with station.database.writing() as session:
        session.execute(sa.update(User).where(User.name == "bo").values(disabled=True))
        later = datetime.now(UTC) + timedelta(hours=1)
        session.execute(sa.update(User).where(User.name == "cy").values(locked_until=later))
    told = set()
    for name, password in [
        *(("ada", "wrong password"), ("nobody at all", PASSWORD), ("bo", PASSWORD)),
        *(("cy", PASSWORD), ("' OR 1=1 --", "' OR ''='"), ("a\0da", PASSWORD), ("", "")),
    ]:
        answer = another(browser).post("/login", data={"name": name, "password": password})
        assert answer.status_code == 401
        told.add(answer.text.split('role="alert">')[1].split("<")[0])
    assert len(told) == 1


@pytest.mark.slow
def test_an_address_cannot_guess_on(browser: TestClient, station: Station) -> None:
    for number in range(10):
        assert enter(browser, name=f"user {number}").status_code == 401
    answer = enter(browser)
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 300
    assert log_in(station, "10.0.0.2", "ada", PASSWORD).name == "ada"


def test_many_addresses_lock_an_account_for_a_while(station: Station) -> None:
    def guess(number: int, password: str = "wrong password", known: str = "") -> float:
        station.guesses.names.back("ada")
        try:
            log_in(station, f"10.0.1.{number}", "ada", password, known)
        except LogInError as error:
            return error.wait
        return -1

    friend = log_in(station, "10.0.0.1", "ada", PASSWORD).known
    for number in range(5):
        assert guess(number) == 0
    with station.database.reading() as session:
        ada = session.scalars(sa.select(User)).one()
    assert ada.locked_until is not None
    left = (ada.locked_until - datetime.now(UTC)).total_seconds()
    assert 20 < left <= 30
    assert guess(7, PASSWORD) == 0, "locked: the right password is not even looked at"
    # Guesses at a locked account do not make the lock longer.
    with station.database.reading() as session:
        assert session.scalars(sa.select(User.failures)).one() == 5
    # Who was here before is not kept out by others, and is told from them by the signature.
    for false in ("", "1.x.y", friend[:-1] + "0", friend.replace("1.", "2.", 1), f"{friend}x"):
        if false != friend:
            assert guess(8, PASSWORD, false) == 0
    assert guess(9, PASSWORD, friend) == -1


@pytest.mark.slow
def test_locks_double_to_a_quarter_of_an_hour(station: Station) -> None:
    waits = []
    for number in range(14):
        station.guesses.names.back("ada")
        with station.database.writing() as session:
            session.execute(sa.update(User).values(locked_until=None))
        with pytest.raises(LogInError):
            log_in(station, f"10.0.1.{number}", "ada", "wrong password")
        with station.database.reading() as session:
            until = session.scalars(sa.select(User.locked_until)).one()
        if until is not None:
            waits.append(round((until - datetime.now(UTC)).total_seconds() / 30) * 30)
    assert waits == [30, 60, 120, 240, 480, 900, 900, 900, 900, 900]


def test_a_friend_cannot_guess_for_ever_either(station: Station) -> None:
    friend = log_in(station, "10.0.0.1", "ada", PASSWORD).known
    waits = []
    for number in range(12):
        with pytest.raises(LogInError) as refused:
            log_in(station, f"10.0.1.{number}", "ada", "wrong password", friend)
        waits.append(refused.value.wait > 0)
    assert waits == [False] * 10 + [True] * 2


def test_many_at_once_are_few(station: Station) -> None:
    for _ in range(5):
        station.guesses.names.take("ada")
    with pytest.raises(LogInError):
        log_in(station, "10.0.0.1", "ada", PASSWORD)


def test_unknown_names_take_as_long(station: Station, browser: TestClient) -> None:
    make(another(browser), "bo", "operator")

    def seconds(name: str) -> float:
        begun = time.perf_counter()
        with pytest.raises(LogInError):
            log_in(station, f"10.0.3.{len(taken)}", name, "wrong password")
        return time.perf_counter() - begun

    taken: list[float] = []
    seconds("bo")  # the first one makes the hash that nobody has
    known, unknown = [], []
    for number in range(3):
        known.append(seconds("ada"))
        unknown.append(seconds(f"nobody {number}"))
    assert 0.3 < min(known) / min(unknown) < 3
    assert min(unknown) > 0.4 * _hashing()


def _hashing() -> float:
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        passwords.waste_time("x")
        times.append(time.perf_counter() - begun)
    return min(times)


def test_outdated_hashes_are_renewed_at_the_log_in(station: Station) -> None:
    weak = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    with station.database.writing() as session:
        session.execute(sa.update(User).values(password=weak))
    assert passwords.is_outdated(weak)
    log_in(station, "10.0.0.1", "ada", PASSWORD)
    with station.database.reading() as session:
        kept = session.scalars(sa.select(User.password)).one()
    assert not passwords.is_outdated(kept)
    assert passwords.matches(kept, PASSWORD)
    assert not passwords.matches("no hash", PASSWORD)
    assert passwords.matches(passwords.hashed("Å" * 12), "Å" * 12)


@pytest.mark.slow
def test_ones_own_password(client: TestClient, browser: TestClient, station: Station) -> None:
    enter(browser)
    assert browser.get("/account").status_code == 200
    for old, new in (("wrong", "another good one"), (PASSWORD, "short"), (PASSWORD, "ada1234567")):
        answer = client.post("/account", data={"old": old, "new": new})
        assert answer.status_code == 422
        assert 'role="alert"' in answer.text
    before = client.cookies["offnominal"]
    answer = client.post("/account", data={"old": PASSWORD, "new": "another good one"})
    assert answer.url.path == "/account/changed"
    assert client.cookies["offnominal"] != before
    assert browser.get("/account", follow_redirects=False).status_code == 303
    assert enter(another(browser)).status_code == 401
    for _ in range(10):
        client.headers["X-CSRF-Token"] = _csrf(station, client)
        client.post("/account", data={"old": "wrong", "new": "another good one"})
    answer = client.post("/account", data={"old": "another good one", "new": "and a third one"})
    assert answer.status_code == 429


def _csrf(station: Station, client: TestClient) -> str:
    with station.database.reading() as session:
        return session.scalars(sa.select(Session.csrf)).one()


def test_nothing_secret_is_written_down(
    browser: TestClient,
    client: TestClient,
    station: Station,
    as_role: Callable[[str], TestClient],
    capfd: pytest.CaptureFixture[str],
) -> None:
    enter(browser, password="a wrong secret one")
    enter(browser, name="typed a secret here", password="x")
    enter(browser)
    made = client.post("/tokens", data={"name": "line", "scopes": "inspect", "days": "30"}).text
    token = made.split('class="token">')[1].split("<")[0]
    client.post("/people", data={"name": "bo", "password": "my secret", "role": "operator"})
    client.post("/people", data={"name": "cy", "password": "cys secret word", "role": "admin"})
    client.post("/login", json={"password": "sent as secret JSON"})
    out, err = capfd.readouterr()
    with station.database.reading() as session:
        log = " ".join(
            str(row) for row in session.execute(sa.select(Audit.by, Audit.object, Audit.detail))
        )
        users = session.scalars(sa.select(User.password)).all()
    held = [browser.cookies["offnominal"], token, PASSWORD, *users]
    for text in (out, err, log):
        assert "secret" not in text
        assert not [one for one in held if one in text]
    files = b"".join(path.read_bytes() for path in station.files.folder.rglob("*.sqlite*"))
    for one in (browser.cookies["offnominal"], token, PASSWORD, "cys secret word"):
        assert one.encode() not in files


def test_counts_are_bounded_in_memory() -> None:
    counted = Attempts(2, 60, keys=100)
    for number in range(1000):
        counted.take(str(number))
    assert len(counted._times) == 100
    assert [counted.take("x") > 0 for _ in range(3)] == [False, False, True]
    counted.back("x")
    assert counted.take("x") == 0


def test_addresses_are_counted_by_who_has_them() -> None:
    assert origin("2001:db8::1") == origin("2001:db8::ffff:2") != origin("2001:db8:0:1::1")
    assert origin("::ffff:10.0.0.1") == origin("10.0.0.1") != origin("10.0.0.2")
    assert origin("fe80::1%eth0") == origin("fe80::2")
    assert origin("testclient") == "testclient"
