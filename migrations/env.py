"""Alembic environment: one schema, safe to run twice at once, never waiting long for a lock."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from pgoutlier.db.migrate import LOCK_TIMEOUT, STATEMENT_TIMEOUT, refuse_foreign
from pgoutlier.db.sql.identifiers import SCHEMA
from pgoutlier.db.tables import metadata


def _ours(name: str | None, kind: str, parent_names: object) -> bool:
    """Tables made per source by `attach` are not the migrations' business."""
    if kind == "schema":
        return name == SCHEMA
    if kind == "table":
        return f"{SCHEMA}.{name}" in metadata.tables
    return True


def _run(connection: Connection) -> None:
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
    connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('outlier.migrations'))"))
    # IF NOT EXISTS would ask for the right to create schemas where an owner has made this one for us.
    if connection.scalar(text(f"SELECT to_regnamespace('{SCHEMA}')")) is None:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    refuse_foreign(connection)
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table_schema=SCHEMA,
        include_schemas=True,
        include_name=_ours,
        compare_type=True,
        compare_server_default=True,
    )
    context.run_migrations()


_run(context.config.attributes["connection"])
