"""From every schema that was released to today's, on both databases."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from offnominal.errors import OptionError
from offnominal.station.access import audit
from offnominal.station.store.database import Database, revisions
from offnominal.station.store.tables import Base, Inspection, Product, Setting, User
from tests.station.conftest import BOTH
from tests.station.schemas import FOLDER, load

pytestmark = BOTH
RELEASED = sorted({path.name.split(".")[0] for path in FOLDER.glob("*.sql")})


@pytest.fixture
def empty(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """URL of a database with nothing in it."""
    if backend == "postgresql":
        url: str = request.getfixturevalue("postgres").empty()
        return url
    return f"sqlite:///{tmp_path / 'old.sqlite'}"


def test_every_schema_was_kept(backend: str) -> None:
    assert {*RELEASED} == revisions()
    assert all((FOLDER / f"{one}.{backend}.sql").exists() for one in RELEASED)


@pytest.mark.parametrize("revision", RELEASED)
@pytest.mark.slow
def test_what_was_left_behind_is_brought_up(empty: str, revision: str) -> None:
    load(empty, revision)
    database = Database(empty)
    database.upgrade()
    database.upgrade()  # a second start changes nothing
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    with database.reading() as session:
        assert session.scalars(sa.select(User.name)).one() == "ada"
        assert session.scalars(sa.select(Setting.value)).one() == {"a": [1, "ü"]}
        product = session.scalars(sa.select(Product)).one()
        assert product.live is not None
        assert product.live.threshold == 0.25
        found = session.scalars(sa.select(Inspection)).one()
        assert (found.serial, found.meta, found.verdict) == ("S-1", {"lot": 3}, "reject")
        assert found.received.isoformat() == "2026-03-29T01:30:00+00:00"
        assert audit.broken(session) is None
    with database.writing() as session:  # numbers go on where they were
        audit.note(session, "ada", "x")
        session.add(Product(name="bolt", created=found.received))
    with pytest.raises(sa.exc.DBAPIError, match="only added to"), database.writing() as session:
        session.execute(sa.text("DELETE FROM audit"))
    database.close()


@pytest.mark.parametrize("revision", RELEASED)
def test_a_released_schema_is_not_changed_afterwards(
    empty: str, revision: str, tmp_path: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    """What a migration makes today is what it made when it was released."""
    load(empty, revision)
    fresh = f"sqlite:///{tmp_path / 'fresh.sqlite'}"
    if backend == "postgresql":
        fresh = request.getfixturevalue("postgres").empty()
    Database(fresh).upgrade(revision)
    told = []
    for url in (empty, fresh):
        engine = sa.create_engine(url)
        inspector = sa.inspect(engine)
        told.append(
            {
                table: (
                    [{**one, "type": repr(one["type"])} for one in inspector.get_columns(table)],
                    sorted(map(str, inspector.get_indexes(table))),
                    sorted(map(str, inspector.get_foreign_keys(table))),
                )
                for table in inspector.get_table_names()
            }
        )
        engine.dispose()
    assert told[0] == told[1]


def test_a_newer_schema_is_refused_in_words(empty: str) -> None:
    database = Database(empty)
    database.upgrade()
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(OptionError, match=r"\(9999\) is of a newer Offnominal"):
        database.upgrade()
    with database.engine.connect() as connection:
        kept = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    assert kept == "9999"
    database.close()


def test_a_database_that_is_not_there_is_told_without_its_password(
    tmp_path: Path, backend: str
) -> None:
    urls = {
        "sqlite": f"sqlite:///{tmp_path / 'no' / 'folder.sqlite'}",
        "postgresql": f"postgresql+psycopg://station:secret@/x?host={tmp_path}",
    }
    with pytest.raises(OptionError, match="cannot be used") as told:
        Database(urls[backend]).upgrade()
    assert "secret" not in str(told.value)
