"""What the database itself refuses: to change, take out or replace a row of the audit log."""

from sqlalchemy import Connection

__all__ = ["put_up"]

_TOLD = "the audit log is only added to"
_SQLITE = [
    *(
        f"CREATE TRIGGER IF NOT EXISTS audit_{act.lower()} BEFORE {act} ON audit "
        f"BEGIN SELECT RAISE(ABORT, '{_TOLD}'); END"
        for act in ("UPDATE", "DELETE")
    ),
    # INSERT OR REPLACE takes a row out without asking the trigger of DELETE.
    "CREATE TRIGGER IF NOT EXISTS audit_replace BEFORE INSERT ON audit "
    "WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) "
    f"BEGIN SELECT RAISE(ABORT, '{_TOLD}'); END",
]
_POSTGRESQL = [
    "CREATE OR REPLACE FUNCTION audit_is_only_added_to() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{_TOLD}'; END $$",
    "CREATE OR REPLACE TRIGGER audit_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_is_only_added_to()",
]


def put_up(connection: Connection) -> None:
    """Make the triggers that are missing: at each start, since a migration may rebuild a table."""
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
        connection.exec_driver_sql(statement)
