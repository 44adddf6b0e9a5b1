"""Advisory locks: each is known by a name, and held for one source or for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

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


def try_hold(connection: Connection, name: str, source_id: int) -> bool:
    """Whether the lock was free, and is held until the transaction ends."""
    return bool(
        one(
            connection,
            "SELECT pg_try_advisory_xact_lock(hashtext('outlier.' || %s::text), %s)",
            (name, source_id),
        )
    )


@contextmanager
def held_by_session(engine: Engine, name: str, source_id: int) -> Iterator[Connection | None]:
    """A session outside of the pool that has the lock, or None where another one has it.

    The session's end frees the lock, whatever ends it. No transaction is open meanwhile, however long that is.
    """
    with engine.connect() as connection:
        connection.detach()
        with connection.begin():
            locked = bool(
                one(
                    connection,
                    "SELECT pg_try_advisory_lock(hashtext('outlier.' || %s::text), %s)",
                    (name, source_id),
                )
            )
        try:
            yield connection if locked else None
        finally:
            # Free at once: of a session that ends the server hears only some time after this.
            if locked:
                with suppress(SQLAlchemyError, psycopg.Error), connection.begin():
                    run(
                        connection,
                        "SELECT pg_advisory_unlock(hashtext('outlier.' || %s::text), %s)",
                        (name, source_id),
                    )
