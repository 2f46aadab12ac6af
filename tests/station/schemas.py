"""The schemas that were ever released, as the databases themselves write them down.

``python -m tests.station.schemas`` writes those of the newest migration, with a row or two in each
table: once, when a release brings a new one, and never again.
"""

import re
import sqlite3
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from offnominal.station.access import audit
from offnominal.station.access.accounts import create_user
from offnominal.station.store.database import Database
from offnominal.station.store.tables import Inspection, Product, Setting, Version
from tests.station.postgres import programs, running

FOLDER = Path(__file__).with_name("schemas")


def load(url: str, revision: str) -> None:
    """Make a database that was left behind by an earlier release."""
    parsed = sa.make_url(url)
    kind = parsed.get_backend_name()
    text = (FOLDER / f"{revision}.{kind}.sql").read_text(encoding="utf-8")
    if kind == "sqlite":
        with sqlite3.connect(str(parsed.database)) as connection:
            connection.executescript(text)
        connection.close()
        return
    engine = sa.create_engine(parsed)
    with engine.begin() as connection:
        connection.connection.driver_connection.execute(text)  # type: ignore[union-attr]  # psycopg's own
    engine.dispose()


def fill(url: str) -> None:
    """Some rows that an upgrade must not lose."""
    at = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    database = Database(url)
    database.upgrade()
    with database.writing() as session:
        user = create_user(session, "ada", "correct horse battery", "admin")
        user.password, user.created = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$aGFzaA", at
        product = Product(name="flange", number=7, created=at)
        session.add_all([product, Setting(name="x", value={"a": [1, "ü"]})])
        session.flush()
        version = Version(
            product_id=product.id, number=1, file="models/1/1.offn", digest="0" * 64,
            made_by="ada", made=at, how="fit", threshold=0.25, facts={"method": "anomalydino"},
        )  # fmt: skip
        session.add(version)
        session.flush()
        product.live_id = version.id
        session.add(
            Inspection(
                request="r1", product_id=product.id, version_id=version.id, source="http",
                serial="S-1", meta={"lot": 3}, received=at, finished=at, score=0.5,
                verdict="reject", told="reject", regions=[], milliseconds=12.5,
            )
        )  # fmt: skip
        audit.note(session, "ada", "product.create", "flange", number=7)
        audit.note(session, "ada", "version.live", "flange")
    database.close()


def dumped_sqlite() -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "station.sqlite"
        fill(f"sqlite:///{path}")
        with sqlite3.connect(path) as connection:
            return "\n".join(connection.iterdump()) + "\n"


def dumped_postgresql() -> str:
    folder = programs()
    assert folder is not None
    with running() as server:
        url = server.empty()
        fill(url)
        command = [
            folder / "pg_dump",
            "--inserts",
            "--no-owner",
            "-h",
            server.folder,
            "-U",
            "postgres",
        ]
        name = str(sa.make_url(url).database)
        text = subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout
    kept = [
        line
        for line in text.splitlines()
        if line and not re.match(r"--|SET |\\|SELECT pg_catalog.set_config", line)
    ]
    return "\n".join(kept) + "\n"


def main() -> None:
    newest = sys.argv[1]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{newest}.sqlite.sql").write_text(dumped_sqlite(), encoding="utf-8")
    (FOLDER / f"{newest}.postgresql.sql").write_text(dumped_postgresql(), encoding="utf-8")


if __name__ == "__main__":
    main()
