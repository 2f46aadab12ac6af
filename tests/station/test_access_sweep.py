"""Every page and every call of the API, tried by strangers, without tokens, and with odd names."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from offnominal.station.app import create_app
from offnominal.station.settings import Settings
from offnominal.station.station import Station
from offnominal.station.store.tables import Inspection, Product
from tests.station.conftest import another

# What anybody may ask for, and why.
OPEN = {
    ("GET", "/login"), ("POST", "/login"),  # to come in
    ("GET", "/setup"), ("POST", "/setup"),  # to come in for the first time, with the code
    ("POST", "/language"), ("GET", "/language"),  # to read the log-in page
    ("GET", "/shift/{day}/{number}/shared"),  # a link in a mail, with a signature
    ("GET", "/v1/health"),  # a container's health check has no account
}  # fmt: skip
SCHEMA = "/v1/openapi.json"


def every(app: FastAPI) -> Iterator[tuple[str, str]]:
    """All methods and paths of an application."""

    def walk(routes: Any) -> Iterator[APIRoute]:
        for route in routes:
            if isinstance(route, APIRoute):
                yield route
            elif hasattr(route, "routes"):
                yield from walk(route.routes or [])
            elif hasattr(route, "original_router"):
                yield from walk(route.original_router.routes)

    for route in walk(app.routes):
        for method in sorted(route.methods):
            yield method, route.path


ROUTES = sorted(set(every(create_app(Settings(folder="/tmp/offnominal-no-such-station")))))
TAKEN = [one for one in ROUTES if one not in OPEN]


def filled(path: str, text: str = "1") -> str:
    return re.sub(r"\{[^}]+\}", text, path)


class Scripts(HTMLParser):
    """What the policy would refuse: scripts and styles that stand in the page itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        odd = [name for name in given if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and "src" not in given):
            odd += [] if given.get("type") == "application/json" else [tag]
        odd += [name for name, value in attrs if str(value).lower().startswith("javascript:")]
        self.found += [f"<{tag}>: {name}" for name in odd]


def test_there_are_some() -> None:
    assert len(ROUTES) > 30, "the pages were not found"
    assert {one for one in OPEN if "language" not in one[1]} <= set(ROUTES)


@pytest.mark.slow
def test_strangers_see_nothing(client: TestClient) -> None:
    browser = another(client)
    for method, path in TAKEN:
        answer = browser.request(method, filled(path), follow_redirects=False)
        where = answer.headers.get("location", "")
        told = f"{method} {path}: {answer.status_code} {where}"
        bare = path.startswith(("/v1/", "/metrics"))
        assert answer.status_code == 401 if bare else where.startswith("/login"), told


@pytest.mark.slow
def test_nothing_is_changed_by_another_sites_form(client: TestClient) -> None:
    del client.headers["X-CSRF-Token"]
    for method, path in TAKEN:
        if method not in ("GET", "HEAD"):
            for sent in ({}, {"csrf": ""}, {"csrf": "x"}):
                answer = client.request(method, filled(path), data=sent, follow_redirects=False)
                told = f"{method} {path}: {answer.status_code}"
                # What is not even a form of this page is refused before its token is looked at.
                assert answer.status_code in (403, 422), told


@pytest.mark.slow
def test_operators_do_not_do_what_engineers_do(
    as_role: Callable[[str], TestClient],
) -> None:
    """A page that changes products, models, accounts or storage is none of an operator's."""
    browser = as_role("operator")
    kept = ("/products", "/review", "/people", "/tokens", "/audit", "/keep", "/v1/products")
    for method, path in TAKEN:
        reads = path.startswith("/v1/products") and method == "GET"
        # Which part comes next is known to who stands beside the line.
        if path.startswith(kept) and not reads and not path.endswith("/activate"):
            answer = browser.request(method, filled(path), follow_redirects=False)
            assert answer.status_code in (403, 422), f"{method} {path}: {answer.status_code}"


ODD = ["..%2f..%2fsecret.txt", "%2e%2e%2fsecret.txt", "..%5csecret.txt", "%2fetc%2fpasswd"]
ODD += [
    "secret.txt",
    "..",
    "%00",
    "a%0d%0ax",
    "-1",
    "0",
    "9" * 30,
    "1e3",
    "%F0%9F%98%80",
    "' OR 1=1",
]


@pytest.mark.slow
def test_odd_names_lead_nowhere(client: TestClient, station: Station) -> None:
    """No path, whatever stands for its names, gives a file or fails inside."""
    for place in (station.files.folder, station.files.folder.parent):
        (place / "secret.txt").write_text("a file that is nobody's")
    (station.files / "references/1").mkdir(parents=True)
    for method, path in TAKEN:
        if method == "GET" and "{" in path and "events" not in path:
            for odd in ODD:
                for text in {filled(path, odd), re.sub(r"\{[^}]+\}$", odd, path)}:
                    place = filled(text)
                    answer = client.get(place, follow_redirects=False)
                    assert answer.status_code < 500, f"{place}: {answer.status_code}"
                    assert "nobody's" not in answer.text, place
                    assert "root:" not in answer.text, place


HOSTILE = [
    '<script>alert("x")</script>',
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "{{7*7}}",
]


@pytest.mark.slow
def test_hostile_texts_are_shown_as_they_are(client: TestClient, station: Station) -> None:
    """Names, serial numbers, notes and metadata on every page that shows any."""
    now = datetime.now(UTC)
    with station.database.writing() as session:
        for text in HOSTILE:
            made = Product(name=text, created=now, barcode=text)
            session.add(made)
            session.flush()
            session.add(
                Inspection(
                    request=text, product_id=made.id, source=text, serial=text, meta={text: text},
                    received=now, finished=now, verdict="not-inspected", reason=text,
                    told="nothing", regions=[], milliseconds=1.0, label="bad", kind=text,
                    labelled_by=text, labelled=now,
                )
            )  # fmt: skip
    pages = [filled(path) for method, path in TAKEN if method == "GET" and "events" not in path]
    asked = [f"/history?serial={text}" for text in HOSTILE[:2]] + [
        "/history",
        "/history/2",
        "/history/3",
    ]
    for place in [*pages, *asked]:
        answer = client.get(place)
        assert answer.status_code < 500, f"{place}: {answer.status_code}"
        if answer.headers["content-type"].startswith("text/html"):
            for hostile in HOSTILE[:2]:
                assert hostile not in answer.text, place
            assert ">49<" not in answer.text, place
            wrong = Scripts()
            wrong.feed(answer.text)
            assert wrong.found == [], place


def test_the_schema_tells_nothing_to_strangers(client: TestClient) -> None:
    assert client.get(SCHEMA).status_code == 200
    paths = client.get(SCHEMA).json()["paths"]
    assert all(path.startswith(("/v1/", "/metrics")) for path in paths)
