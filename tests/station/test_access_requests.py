"""What every request passes: the host's name, other sites' pages, sizes, headers, errors."""

import asyncio
from collections.abc import Iterator
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, File, Request, UploadFile
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from sqlalchemy.exc import DataError

from offnominal.errors import OptionError
from offnominal.station.access.doors import guard
from offnominal.station.access.headers import Headers
from offnominal.station.access.limits import STRANGERS, TEXT
from offnominal.station.access.who import Who, allowed
from offnominal.station.app import create_app
from offnominal.station.inspection.request import BusyError
from offnominal.station.settings import Settings
from tests.station.conftest import another


@pytest.fixture(autouse=True)
def pages(stranger: TestClient) -> None:
    """Pages of the test's own, which read what they are sent and fail as they are told."""
    app = stranger.app
    assert isinstance(app, FastAPI)

    @app.post("/swallow")
    @app.post("/v1/swallow")
    async def swallow(request: Request) -> int:
        return len(await request.body())

    @app.post("/form")
    def form(
        who: Annotated[Who, Depends(allowed("operator"))],
        files: Annotated[list[UploadFile], File()],
    ) -> int:
        return len(files)

    @app.get("/fail/{how}")
    @app.get("/v1/fail/{how}")
    def fail(how: str) -> None:
        errors = {
            "bug": RuntimeError("/secret/place"),
            "option": OptionError("--x: <b>wrong</b>"),
            "busy": BusyError(1.2),
            "data": DataError("SELECT secret", {}, Exception()),
            "big": OverflowError("secret"),
        }
        kept_here = "a secret in a variable"
        raise errors[how] if kept_here else KeyError


HOSTS = ["127.0.0.1:8765", "localhost", "LOCALHOST:1", "[::1]:8765", "10.1.2.3", "localhost."]
FOREIGN = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8765", "evil:8765"]
NONE = ["", "a@127.0.0.1", "127.0.0.1/", "127.0.0.1 x", "127.0.0.1\\evil", "[::1", "localhost:x"]


@pytest.mark.parametrize("host", HOSTS)
def test_own_names_are_answered(stranger: TestClient, host: str) -> None:
    assert stranger.get("/login", headers={"Host": host}).status_code != 421


@pytest.mark.parametrize("host", FOREIGN)
def test_a_name_that_was_led_here_is_refused(client: TestClient, host: str) -> None:
    answer = client.get("/people", headers={"Host": host})
    assert answer.status_code == 421
    assert "ada" not in answer.text
    assert client.get("/v1/health", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", NONE)
def test_what_is_no_name_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/people", headers={"Host": host}).status_code in (400, 421)


def test_names_of_the_settings_are_answered(settings: Settings) -> None:
    named = settings.model_copy(update={"names": ["Line3.factory.example"]})
    app = create_app(named)
    with TestClient(app) as client:
        assert client.get("/x", headers={"Host": "line3.FACTORY.example:443"}).status_code == 404
        assert client.get("/x", headers={"Host": "factory.example"}).status_code == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8765"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8765"}, 401),
        ({"Origin": "http://127.0.0.1:8765"}, 401),
        ({}, 401),
    ],
)
@pytest.mark.slow
def test_another_sites_page_cannot_log_anybody_in(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    browser = another(client)
    sent = {"name": "ada", "password": "wrong"}
    assert browser.post("/login", data=sent, headers=headers).status_code == status


def chunks(size: int) -> Iterator[bytes]:
    while size > 0:
        yield b"x" * min(size, 30_000)
        size -= 30_000


@pytest.mark.parametrize("place", ["/swallow", "/v1/swallow"])
@pytest.mark.parametrize("declared", [True, False], ids=["length", "chunked"])
@pytest.mark.slow
def test_strangers_send_little(client: TestClient, place: str, declared: bool) -> None:
    browser = another(client)
    much = b"x" * (STRANGERS + 1) if declared else chunks(STRANGERS + 1)
    answer = browser.post(place, content=much, headers={"Content-Type": "image/png"})
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    for false in ({"Cookie": "offnominal=x"}, {"Authorization": "Bearer x"}):
        sent = browser.post(place, content=b"x" * (STRANGERS + 1), headers=false)
        assert sent.status_code == 413
    little = b"x" * STRANGERS if declared else chunks(STRANGERS)
    assert browser.post(place, content=little).json() == STRANGERS


@pytest.mark.parametrize("declared", [True, False], ids=["length", "chunked"])
@pytest.mark.parametrize(
    ("kind", "most"), [("image/png", 200_000), ("", 200_000), ("application/json", TEXT)]
)
@pytest.mark.slow
def test_bodies_are_bounded_while_they_are_read(
    client: TestClient, declared: bool, kind: str, most: int
) -> None:
    client.app.state.station.settings.upload_bytes = 200_000
    much = b"x" * (most + 1) if declared else chunks(most + 1)
    headers = {"Content-Type": kind} if kind else {}
    assert client.post("/swallow", content=much, headers=headers).status_code == 413
    enough = b"x" * most if declared else chunks(most)
    assert client.post("/swallow", content=enough, headers=headers).json() == most


def test_a_false_length_does_not_help(client: TestClient) -> None:
    """An application that is told of two bytes gets no more than it may."""
    client.app.state.station.settings.upload_bytes = 2000
    headers = {"Content-Length": "2", "Content-Type": "image/png"}
    answer = client.post("/swallow", content=chunks(10_000), headers=headers)
    assert answer.status_code == 413
    sent = client.post("/swallow", content=b"xx", headers={"Content-Length": "-1"})
    assert sent.status_code in (200, 413)


def test_forms_have_so_many_parts(client: TestClient) -> None:
    client.app.state.station.settings.upload_files = 3
    few = [("files", (f"{n}.png", b"x")) for n in range(203)]
    assert client.post("/form", files=few[:200]).json() == 200
    assert client.post("/form", files=[*few, ("files", ("x", b"x"))]).status_code == 413
    assert client.post("/form", files=few, data={"a": ["1"] * 400}).status_code == 413


@pytest.mark.slow
def test_answers_say_what_browsers_keep_to(client: TestClient) -> None:
    for place in ("/people", "/login", "/nowhere", "/v1/health", "/fail/bug"):
        headers = client.get(place).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert "camera=(self)" in headers["permissions-policy"]
        assert headers["cache-control"] == "no-store"
        assert "strict-transport-security" not in headers
    assert client.get("/static/station.css").headers["cache-control"] == "no-cache"
    over_tls = TestClient(client.app, base_url="https://127.0.0.1")
    assert "max-age" in over_tls.get("/nowhere").headers["strict-transport-security"]


def test_proxies_are_believed_only_if_they_are_trusted(settings: Settings) -> None:
    told = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https"}
    for trusted, seen in (([], ["http", "10.0.0.9"]), (["10.0.0.9"], ["https", "6.6.6.6"])):
        app = FastAPI()
        guard(app, settings.model_copy(update={"trusted_proxies": trusted}))

        @app.get("/who")
        def who(request: Request) -> list[str]:
            return [request.url.scheme, request.client.host if request.client else ""]

        client = TestClient(app, base_url="http://127.0.0.1", client=("10.0.0.9", 1))
        assert client.get("/who", headers=told).json() == seen


def test_streams_are_not_held_back() -> None:
    """Each event leaves before the next one is made, through all doors."""

    async def main() -> list[str]:
        order: list[str] = []
        app = FastAPI()

        async def events() -> object:
            for number in range(3):
                order.append(f"made {number}")
                yield f"data: {number}\n\n"

        @app.get("/events")
        async def stream() -> StreamingResponse:
            return StreamingResponse(events(), media_type="text/event-stream")

        guard(app, Settings())

        async def receive() -> dict[str, object]:
            await asyncio.sleep(10)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, object]) -> None:
            if message.get("body"):
                order.append(f"sent {bytes(message['body']).decode()[6]}")  # type: ignore[call-overload]

        scope = {"type": "http", "method": "GET", "path": "/events", "query_string": b""}
        scope |= {"headers": [(b"host", b"localhost")], "scheme": "http", "app": app}
        scope |= {"http_version": "1.1", "raw_path": b"/events", "server": ("localhost", 80)}
        await app(scope, receive, send)  # type: ignore[arg-type]
        return order

    told = asyncio.run(main())
    assert told == [f"{what} {n}" for n in range(3) for what in ("made", "sent")]


@pytest.mark.parametrize(
    ("how", "status"), [("bug", 500), ("option", 422), ("busy", 503), ("data", 422), ("big", 422)]
)
@pytest.mark.slow
def test_errors_are_told_in_words(
    client: TestClient, how: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    page = client.get(f"/fail/{how}")
    assert page.status_code == status
    assert 'href="/"' in page.text
    assert "<main" in page.text
    told = client.get(f"/v1/fail/{how}")
    assert told.status_code == status
    assert set(told.json()) == {"detail"}
    for text in (page.text, told.text):
        for inner in ("secret", "Traceback", "RuntimeError", "site-packages", "<b>"):
            assert inner not in text or text == told.text
    assert "secret" not in told.text
    if how == "busy":
        assert page.headers["retry-after"] == told.headers["retry-after"] == "2"
    log = caplog.text
    assert ("/secret/place" in log) == (how == "bug")
    assert client.cookies["offnominal"] not in log
    assert "in a variable" not in log.replace('kept_here = "a secret in a variable"', "")


def test_pages_that_are_not_there(client: TestClient) -> None:
    for place in ("/nowhere", "/products/999999999999999999999", "/history/%2e%2e%2fx"):
        answer = client.get(place)
        assert answer.status_code in (404, 422), place
        assert 'href="/"' in answer.text
    assert client.get("/v1/nowhere").json() == {"detail": "Not Found"}
    assert client.delete("/login").status_code == 405
    assert client.get("/people?x=%00").status_code == 400


def test_static_files_stay_in_their_folder(client: TestClient) -> None:
    for place in ("../page.py", "..%2fpage.py", "%2e%2e/page.py", "/etc/passwd", "..\\page.py"):
        assert client.get(f"/static/{place}").status_code in (404, 422)


def test_other_kinds_of_connections_pass() -> None:
    seen = []

    async def app(scope: dict[str, str], receive: object, send: object) -> None:
        seen.append(scope["type"])

    asyncio.run(Headers(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
