"""A station of its own for each test: real database, real files, real pages."""

import asyncio
import inspect
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from offnominal.station.access import sessions
from offnominal.station.access.accounts import create_user
from offnominal.station.access.roles import Role
from offnominal.station.app import create_app
from offnominal.station.settings import Settings
from offnominal.station.station import Station
from offnominal.station.store.database import Database
from offnominal.station.store.tables import Session
from tests.station.postgres import Postgres, programs, running

ADDRESS = "http://127.0.0.1:8765"
PASSWORD = "correct horse battery"


BOTH = pytest.mark.parametrize("backend", ["sqlite", "postgresql"], indirect=True)
"""Marks a test, or a module as its ``pytestmark``, that is run on both databases."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if programs() is None:
        pytest.skip("no PostgreSQL server is installed (Debian: postgresql)")
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def _empty_station(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SQLite's file with the schema in it, which takes longer to make than to copy."""
    path = tmp_path_factory.mktemp("schema") / "station.sqlite"
    made = Database(f"sqlite:///{path}")
    made.upgrade()
    made.close()
    return path


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Tests that are coroutines have an event loop of their own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """Which database the station has: SQLite, if the test is not marked with ``BOTH``."""
    chosen: str = getattr(request, "param", "sqlite")
    return chosen


@pytest.fixture
def settings(
    tmp_path: Path, backend: str, request: pytest.FixtureRequest, _empty_station: Path
) -> Settings:
    folder = tmp_path / "station"
    if backend == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        return Settings(folder=folder, database=server.migrated())
    folder.mkdir(mode=0o700)
    shutil.copy(_empty_station, folder / "station.sqlite")
    return Settings(folder=folder)


@pytest.fixture
def stranger(settings: Settings) -> Iterator[TestClient]:
    """A browser's stand-in that is not logged in, with the station running and no account."""
    app = create_app(settings)
    with TestClient(app, base_url=ADDRESS) as client:
        yield client


def another(client: TestClient) -> TestClient:
    """One more browser of the same station, in the same event loop, not logged in."""
    other = TestClient(client.app, base_url=ADDRESS)
    other.portal = client.portal
    return other


def log_in(client: TestClient, name: str, role: Role) -> TestClient:
    """Make an account and log a browser in as it; its requests carry the session's CSRF token."""
    station: Station = client.app.state.station
    with station.database.writing() as session:
        user = create_user(session, name, PASSWORD, role)
        token = sessions.begin(session, user, station.settings.session_hours)
        csrf = session.scalars(sa.select(Session.csrf).where(Session.user_id == user.id)).one()
    client.cookies.set("offnominal", token, domain="127.0.0.1", path="/")
    client.headers["X-CSRF-Token"] = csrf
    return client


@pytest.fixture
def client(stranger: TestClient) -> TestClient:
    """Logged in as the administrator ``ada``."""
    return log_in(stranger, "ada", "admin")


@pytest.fixture
def as_role(client: TestClient) -> Callable[[Role], TestClient]:
    """A function: another browser of the same station, logged in with a role."""
    return lambda role: log_in(another(client), f"{role} account", role)


@pytest.fixture
def station(client: TestClient) -> Station:
    return client.app.state.station
