"""How alembic reaches the database: by the connection that it is handed."""

from typing import Any, Literal

from alembic import context

from offnominal.station.store.tables import Base, Moment


def _named(kind: str, item: Any, _: object) -> str | Literal[False]:
    """Migrations stand by themselves: they name no type of today's code."""
    if kind == "type" and isinstance(item, Moment):
        return "sa.DateTime(timezone=True)"
    return False


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
    render_item=_named,
)
with context.begin_transaction():
    context.run_migrations()
