"""Locks that are held for longer than a transaction, such as a training's, by one process for one source.

Each has a row in outlier.held_locks that names its holder, and by which the holder finds out, in the very transaction
that this matters for, whether the lock is still its own. Beside it
- whoever has a session of the server's to itself holds an advisory lock in it, which the session's end frees, whatever
  ends it. The row is good for as long as that;
- behind a pooler it is a lease: good for a minute, and renewed meanwhile.
Either takes the advisory lock to take the row, for a moment at least, and so keeps out the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from pgoutlier.db.engine import is_shared
from pgoutlier.db.errors import LockLost
from pgoutlier.db.sql import locks
from pgoutlier.db.sql.statements import compose, one, run

# Without word of its holder, a lease is free after this time.
LEASE = timedelta(seconds=60)
_RENEWED_EVERY = LEASE / 4
# Whoever asks whether a lock is free has it for less than this.
_ASKED_SECONDS = 0.002
_ASKED_TIMES = 5


@dataclass(frozen=True)
class LongLock:
    """A lock that is held. connection: in no transaction, for the holder to work by."""

    connection: Connection
    name: str
    source_id: int
    holder: UUID = field(default_factory=uuid4)

    def require(self, connection: Connection) -> None:
        """Raise LockLost unless it is still this holder's, and will be until the transaction ends.

        The source's row is locked first, as a detach does.
        """
        found = one(
            connection,
            "SELECT true FROM outlier.sources s JOIN outlier.held_locks h ON h.source_id = s.id"
            " WHERE h.name = %s AND s.id = %s AND h.holder = %s FOR KEY SHARE OF s FOR SHARE OF h",
            (self.name, self.source_id, self.holder),
        )
        if not found:
            raise LockLost(
                f"The lock {self.name!r} is another's by now: this process had lost PostgreSQL, or stood still for too"
                " long, or the source was detached. What it was at is given up."
            )

    def take(self, *, lease: timedelta | None) -> bool:
        """Whether it was free and is this holder's now. lease: for that long; None: while its session lasts.

        Raises LockTaken if a stranger has it.
        """
        with self.connection.begin():
            try_lock = sql.SQL("pg_try_advisory_lock" if lease is None else "pg_try_advisory_xact_lock")
            lock = locks.numbers(self.name, self.source_id)
            if not one(self.connection, compose("SELECT {try_lock}({lock})", try_lock=try_lock, lock=lock)):
                locks.refuse_strangers(self.connection, self.name)
                return False
            # The row of a session says nothing once the advisory lock could be had: the session has ended.
            return bool(
                one(
                    self.connection,
                    "INSERT INTO outlier.held_locks AS h (name, source_id, holder, until)"
                    " VALUES (%s, %s, %s, coalesce(clock_timestamp() + %s::interval, 'infinity'))"
                    " ON CONFLICT (source_id, name) DO UPDATE"
                    " SET holder = excluded.holder, taken_at = clock_timestamp(), until = excluded.until"
                    " WHERE h.until = 'infinity' OR h.until < clock_timestamp() RETURNING true",
                    (self.name, self.source_id, self.holder, lease),
                )
            )

    def renew(self, connection: Connection) -> bool:
        """Have the lease begin anew. Whether it was still there."""
        renewed = run(
            connection,
            "UPDATE outlier.held_locks SET until = clock_timestamp() + %s"
            " WHERE name = %s AND source_id = %s AND holder = %s",
            (LEASE, self.name, self.source_id, self.holder),
        )
        return renewed.rowcount == 1

    def give_back(self, connection: Connection) -> None:
        run(
            connection,
            "DELETE FROM outlier.held_locks WHERE name = %s AND source_id = %s AND holder = %s",
            (self.name, self.source_id, self.holder),
        )


@contextmanager
def held(engine: Engine, name: str, source_id: int) -> Iterator[LongLock | None]:
    """Hold a lock that was free, or None where another has it. No transaction is open meanwhile, however long that is.

    engine: of sessions that are not shared, if there are any. Raises LockTaken if a stranger has it.
    """
    with engine.connect() as connection:
        connection.detach()
        lock = LongLock(connection, name, source_id)
        lease = LEASE if is_shared(connection) else None
        if not lock.take(lease=lease):
            yield None
            return
        done = threading.Event()
        if lease:
            threading.Thread(
                target=_keep, args=(engine, lock, done), name=f"lease {name}", daemon=True
            ).start()
        try:
            yield lock
        finally:
            done.set()
            _end(engine, lock, leased=lease is not None)


def _end(engine: Engine, lock: LongLock, *, leased: bool) -> None:
    """Have the next one take the lock at once. Of a server that is away, it is free when it would be anyway."""
    with suppress(SQLAlchemyError, psycopg.Error):
        if leased:
            # By another connection: a pooler may have ended this one, which had nothing to say for long.
            with engine.begin() as connection:
                lock.give_back(connection)
        else:
            with lock.connection.begin():
                lock.give_back(lock.connection)
    if not leased:
        _unlock_all(lock.connection)


def _keep(engine: Engine, lock: LongLock, done: threading.Event) -> None:
    """Renew a lease until it is done with, or lost. A server that is away for a moment is asked again."""
    while not done.wait(_RENEWED_EVERY.total_seconds()):
        with suppress(SQLAlchemyError, psycopg.Error), engine.begin() as connection:
            if not lock.renew(connection):
                return


@contextmanager
def shared(engine: Engine, name: str, source_id: int) -> Iterator[None]:
    """Share an advisory lock with other sessions, for whom it matters that it `is_free`.

    Goes on without it where somebody has it for longer than one takes to ask whether it is free, and behind a pooler.
    """
    with engine.connect() as connection:
        pooled = is_shared(connection)
        if pooled:
            connection.close()
        else:
            _share(connection, locks.numbers(name, source_id))
        try:
            yield
        finally:
            if not pooled:
                _unlock_all(connection)


def _share(connection: Connection, lock: sql.Composable) -> None:
    connection.detach()
    for _ in range(_ASKED_TIMES):
        with connection.begin():
            if one(connection, compose("SELECT pg_try_advisory_lock_shared({lock})", lock=lock)):
                return
        time.sleep(_ASKED_SECONDS)


def _unlock_all(connection: Connection) -> None:
    """Of a session outside of the pool. Free at once: of one that ends the server hears only some time after this."""
    with suppress(SQLAlchemyError, psycopg.Error), connection.begin():
        run(connection, "SELECT pg_advisory_unlock_all()")
