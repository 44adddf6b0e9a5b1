"""Advisory locks: each is known by a name, and held for one source or for all of them."""

from __future__ import annotations

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.sql.statements import compose, one, run


def number(name: str) -> sql.Composable:
    """SQL for the number that PostgreSQL knows a name by."""
    return compose("hashtext({name})", name=sql.Literal(f"outlier.{name}"))


def hold(connection: Connection, name: str, source_id: int | None = None) -> None:
    """Wait for a lock, and hold it until the transaction ends. Without a source it is one for all."""
    if source_id is None:
        run(connection, "SELECT pg_advisory_xact_lock(hashtext('outlier.' || %s::text))", (name,))
    else:
        run(
            connection,
            "SELECT pg_advisory_xact_lock(hashtext('outlier.' || %s::text), %s)",
            (name, source_id),
        )


def try_for_session(connection: Connection, name: str, source_id: int) -> bool:
    """Whether this session now holds the lock, until it frees it or ends, however it ends."""
    return bool(
        one(
            connection,
            "SELECT pg_try_advisory_lock(hashtext('outlier.' || %s::text), %s)",
            (name, source_id),
        )
    )


def free(connection: Connection, name: str, source_id: int) -> None:
    """Free a lock of `try_for_session` at once: of a session that ends the server hears only some time after."""
    run(connection, "SELECT pg_advisory_unlock(hashtext('outlier.' || %s::text), %s)", (name, source_id))
