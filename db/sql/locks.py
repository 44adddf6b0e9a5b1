"""Advisory locks: each is known by a name, and held for one source or for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from pgoutlier.db.sql.statements import compose, one, run

# Held for a source by a drain that looks into its queue by itself, every few milliseconds.
PACED = "paced"


def number(name: sql.Composable) -> sql.Composable:
    """SQL for the number that PostgreSQL knows a name by."""
    return compose("hashtext('outlier.' || {name}::text)", name=name)


def listener_sleeps(source_name: sql.Composable) -> sql.Composable:
    """SQL for the two numbers of the lock that a listener holds while it sleeps and is to be notified of a source."""
    return compose("{a}, {b}", a=number(sql.Literal("listener sleeps")), b=number(source_name))


def hold(connection: Connection, name: str, source_id: int | None = None) -> None:
    """Wait for a lock, and hold it until the transaction ends. Without a source it is one for all."""
    run(connection, compose("SELECT pg_advisory_xact_lock({lock})", lock=_lock(name, source_id)))


def try_hold(connection: Connection, name: str, source_id: int) -> bool:
    """Whether the lock was free, and is held until the transaction ends."""
    return bool(
        one(connection, compose("SELECT pg_try_advisory_xact_lock({lock})", lock=_lock(name, source_id)))
    )


def _lock(name: str, source_id: int | None) -> sql.Composable:
    known_by = number(sql.Literal(name))
    return known_by if source_id is None else compose("{n}, {s}", n=known_by, s=sql.Literal(source_id))


def is_free(name: str, source_id: int) -> sql.Composable:
    """SQL that tells whether nobody holds or shares a lock at this moment."""
    return compose("pg_try_advisory_xact_lock({lock})", lock=_lock(name, source_id))


@contextmanager
def held_by_session(engine: Engine, name: str, source_id: int) -> Iterator[Connection | None]:
    """A session outside of the pool that has the lock, or None where another one has it.

    The session's end frees the lock, whatever ends it. No transaction is open meanwhile, however long that is.
    """
    lock = _lock(name, source_id)
    take = compose("SELECT pg_try_advisory_lock({lock})", lock=lock)
    with _session(engine, take, compose("SELECT pg_advisory_unlock({lock})", lock=lock)) as (session, taken):
        yield session if taken else None


@contextmanager
def shared_by_session(engine: Engine, name: str, source_id: int) -> Iterator[None]:
    """Share the lock with other sessions, likewise, for whom it matters that it `is_free`."""
    lock = _lock(name, source_id)
    # Waits for no longer than somebody takes to ask whether it is free.
    take = compose("SELECT pg_advisory_lock_shared({lock}) IS NOT NULL", lock=lock)
    with _session(engine, take, compose("SELECT pg_advisory_unlock_shared({lock})", lock=lock)):
        yield


@contextmanager
def _session(
    engine: Engine, take: sql.Composed, give_back: sql.Composed
) -> Iterator[tuple[Connection, bool]]:
    """(a session outside of the pool, whether it took the lock)."""
    with engine.connect() as connection:
        connection.detach()
        with connection.begin():
            taken = bool(one(connection, take))
        try:
            yield connection, taken
        finally:
            # Free at once: of a session that ends the server hears only some time after this.
            if taken:
                with suppress(SQLAlchemyError, psycopg.Error), connection.begin():
                    run(connection, give_back)
