"""Records: SQLite as it is embedded, and the schema that migrations make of it."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from offnominal.errors import OptionError
from offnominal.station.store.database import Database
from offnominal.station.store.tables import Base, Picture


@pytest.fixture
def database(tmp_path: Path) -> Database:
    found = Database(f"sqlite:///{tmp_path / 'x.sqlite'}")
    found.upgrade()
    return found


def test_migrations_make_the_tables_that_the_code_has(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_what_is_written_is_on_the_disk_when_the_block_ends(database: Database) -> None:
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_times_keep_their_moment(database: Database) -> None:
    at = datetime(2026, 3, 29, 3, 30, tzinfo=timezone(timedelta(hours=2)))
    with database.writing() as session:
        session.add(Picture(digest="a", file="a", size=1, kept=at))
    with database.reading() as session:
        kept = session.scalars(sa.select(Picture.kept)).one()
    assert (kept, kept.tzinfo) == (at, UTC)
    with (
        pytest.raises(sa.exc.StatementError, match="without a zone"),
        database.writing() as session,
    ):
        session.add(Picture(digest="b", file="b", size=1, kept=datetime(2026, 1, 1)))


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(OptionError, match="--database"):
        Database(url)
