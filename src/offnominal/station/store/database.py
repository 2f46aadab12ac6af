"""Opening the database: SQLite with a write-ahead log, or PostgreSQL; its schema brought up."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker

from offnominal.errors import OptionError
from offnominal.station.store import triggers

__all__ = ["Database", "revisions"]

_MIGRATIONS = Path(__file__).with_name("migrations")


def revisions() -> set[str]:
    """Every schema that this release knows."""
    return {one.revision for one in ScriptDirectory(str(_MIGRATIONS)).walk_revisions()}


class Database:
    """Sessions on the station's records.

    Parameters
    ----------
    url : str
        As SQLAlchemy has them.

    Raises
    ------
    OptionError
        If it is no URL of a database that this is for.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sqlalchemy.make_url(url)
        except (sqlalchemy.exc.ArgumentError, ValueError) as error:
            raise OptionError(
                "--database: no URL of a database; give sqlite:///FILE or "
                "postgresql+psycopg://USER@HOST/NAME"
            ) from error
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise OptionError(
                f"--database: {parsed.get_backend_name()} is neither sqlite nor postgresql"
            )
        self.url = url
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        more: dict[str, Any] = {} if self.is_sqlite else {"pool_size": 10, "pool_pre_ping": True}
        # What is wrong with a statement is told without what was to be stored by it.
        try:
            self.engine = sqlalchemy.create_engine(parsed, hide_parameters=True, **more)
        except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
            raise OptionError(
                f"--database: nothing here speaks to {parsed.drivername}; give "
                "postgresql+psycopg://USER@HOST/NAME, for which "
                "`pip install 'offnominal[postgresql]'`"
            ) from error
        if self.is_sqlite:
            event.listen(self.engine, "connect", _set_up_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self.sessions = sessionmaker(self.engine, expire_on_commit=False)

    def upgrade(self, revision: str = "head") -> None:
        """Bring the schema up, from any that was ever released.

        Raises
        ------
        OptionError
            If it cannot be reached, or a newer Offnominal has brought it up already.
        """
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        try:
            with self.engine.begin() as connection:
                found = MigrationContext.configure(connection).get_current_revision()
                if found is not None and found not in revisions():
                    raise OptionError(
                        f"--database: its schema ({found}) is of a newer Offnominal than this one, "
                        f"which knows {', '.join(sorted(revisions()))}: install that version, or "
                        "restore a backup that was made with this one"
                    )
                config.attributes["connection"] = connection
                command.upgrade(config, revision)
                triggers.put_up(connection)
        except sqlalchemy.exc.DatabaseError as error:
            where = sqlalchemy.make_url(self.url).render_as_string(hide_password=True)
            told = " ".join(str(error.orig).split())
            raise OptionError(
                f"--database: {where} cannot be used ({told}); mend that, or name another"
            ) from error

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that changes nothing."""
        with self.sessions() as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose changes are kept, and on the disk, when the block ends without error."""
        with self.sessions.begin() as session:
            session.info["writes"] = True
            session.connection(execution_options={"offnominal_writes": True})
            yield session

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()


def _set_up_sqlite(connection: Any, _: object) -> None:
    # SQLAlchemy begins transactions itself, so that a writer can say at once that it is one.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # Answered is kept, whatever happens to the power.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    # A reader that becomes a writer later would find the database changed under it, and fail.
    writes = connection.get_execution_options().get("offnominal_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
