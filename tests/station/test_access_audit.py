"""The audit log: who wants to change it, and how that comes out."""

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from offnominal.station.access import audit
from offnominal.station.settings import Settings
from offnominal.station.store import triggers
from offnominal.station.store.database import Database
from offnominal.station.store.tables import Audit
from tests.station.conftest import BOTH

pytestmark = BOTH


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    found = Database(settings.database_url)
    with found.writing() as session:
        audit.note(session, "ada", "product.create", "flange", number=7)
        audit.note(session, "ada", "version.live", "flange", ratio=0.1, text="ü\u2028\0")
    with found.writing() as session:
        audit.note(session, "station", "login.failed", "x" * 300)
    yield found
    found.close()


@pytest.mark.slow
def test_the_seals_of_what_was_written_fit(database: Database) -> None:
    with database.reading() as session:
        assert audit.broken(session) is None
        rows = session.scalars(sa.select(Audit).order_by(Audit.id)).all()
        assert [row.object for row in rows] == ["flange", "flange", "x" * 200]
        assert rows[1].detail == {"ratio": 0.1, "text": "ü\u2028\0"}


STATEMENTS = [
    "UPDATE audit SET by = 'eve'",
    "UPDATE audit SET by = by WHERE id = 1",
    "DELETE FROM audit WHERE id = 3",
    "DELETE FROM audit",
    "TRUNCATE audit",
    "INSERT OR REPLACE INTO audit SELECT id, at, 'eve', action, object, detail, seal FROM audit",
    "INSERT INTO audit SELECT id, at, 'eve', action, object, detail, seal FROM audit WHERE true "
    "ON CONFLICT (id) DO UPDATE SET by = 'eve'",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_the_database_refuses_to_change_it(database: Database, statement: str) -> None:
    with (
        pytest.raises(sa.exc.DBAPIError) as refused,
        database.writing() as session,
    ):
        session.execute(sa.text(statement))
    other = "TRUNCATE" if database.is_sqlite else "OR REPLACE"
    assert "only added to" in str(refused.value) or other in statement
    with database.reading() as session:
        assert set(session.scalars(sa.select(Audit.by))) == {"ada", "station"}


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE audit SET by = 'eve' WHERE id = 2", 2),
        ("UPDATE audit SET at = '2020-01-01 00:00:00' WHERE id = 1", 1),
        ("DELETE FROM audit WHERE id = 1", 2),
        ("UPDATE audit SET seal = 'x' WHERE id = 2", 2),
        ("UPDATE audit SET id = 9 WHERE id = 1", 2),
    ],
)
def test_who_changes_the_file_itself_is_found(database: Database, statement: str, row: int) -> None:
    names = ["audit_update", "audit_delete"] if database.is_sqlite else ["audit_change ON audit"]
    with database.engine.begin() as connection:
        for name in names:
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        connection.exec_driver_sql(statement)
        triggers.put_up(connection)
    with database.reading() as session:
        assert audit.broken(session) == row
    with pytest.raises(sa.exc.DBAPIError, match="only added to"), database.writing() as session:
        session.execute(sa.text("DELETE FROM audit"))


def test_many_at_once_make_one_chain(database: Database) -> None:
    ready = threading.Barrier(6)

    def write(name: str) -> None:
        ready.wait()
        for number in range(8):
            with database.writing() as session:
                audit.note(session, name, "label", str(number))
                audit.note(session, name, "label", "again")

    threads = [threading.Thread(target=write, args=(f"user {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Audit)) == 3 + 6 * 8 * 2
        assert audit.broken(session) is None


def test_what_is_not_done_is_not_told(database: Database) -> None:
    with suppress(ZeroDivisionError), database.writing() as session:
        audit.note(session, "ada", "product.create", "bolt")
        raise ZeroDivisionError
    with database.reading() as session:
        assert session.scalar(sa.select(Audit).where(Audit.object == "bolt")) is None
    with database.reading() as session, pytest.raises(RuntimeError, match="writing"):
        audit.note(session, "ada", "product.create", "bolt")


def test_two_who_change_the_same_wait_for_each_other(database: Database) -> None:
    """One notes first and changes then, the other the other way round: neither fails."""
    begun, errors = threading.Barrier(2), []

    def work(note_first: bool) -> None:
        try:
            for _ in range(10):
                begun.wait(10)
                with database.writing() as session:
                    if note_first:
                        audit.note(session, "ada", "user.change")
                    session.execute(
                        sa.text(
                            "INSERT INTO settings (name, value) VALUES ('x', '{}') "
                            "ON CONFLICT (name) DO UPDATE SET value = '{}'"
                        )
                    )
                    if not note_first:
                        audit.note(session, "bo", "user.change")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_running_station_has_the_triggers(client: TestClient) -> None:
    station = client.app.state.station
    with station.database.writing() as session:
        audit.note(session, "ada", "x")
    with pytest.raises(sa.exc.DBAPIError), station.database.writing() as session:
        session.execute(sa.text("DELETE FROM audit"))
