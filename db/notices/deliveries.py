"""Deliveries: notices put together to be sent, sent again, and given up. worker.notices.delivering sends them.

A delivery is written down with its notices before it is sent, so that it is the same whenever it is sent again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString
from uuid import UUID

from psycopg import sql
from sqlalchemy import Connection, Engine

from pgoutlier.db.sql import long_locks
from pgoutlier.db.sql.long_locks import LongLock
from pgoutlier.db.sql.statements import compose, one, records, run
from pgoutlier.db.tables import TopFeature


@dataclass(frozen=True)
class Notice:
    """What is sent of a flagged row. threshold: that its error exceeded. top_features: None where none are known."""

    id: int
    key: str
    reconstruction_error: float
    threshold: float
    model_version: int
    scored_at: datetime
    top_features: list[TopFeature] | None


@dataclass(frozen=True)
class Delivery:
    """id: the webhook-id. attempts: requests begun, this one included. notices: in the order of their ids."""

    id: UUID
    source: str
    attempts: int
    notices: list[Notice]


@dataclass(frozen=True)
class DeadLetter:
    """A delivery that was given up. first_id, last_id: of its notices, None where they were pruned."""

    id: UUID
    n_notices: int
    first_id: int | None
    last_id: int | None
    attempts: int
    last_error: str
    created_at: datetime
    died_at: datetime


@dataclass(frozen=True)
class Retried:
    """How many dead letters are to be sent again, and how many notices are in them."""

    n_deliveries: int
    n_notices: int


def deliverer(engine: Engine, source_id: int) -> AbstractContextManager[LongLock | None]:
    """The lock of the only one who delivers for the source; None if that is another."""
    return long_locks.held(engine, "webhook", source_id)


# Of the webhook w.
_SOMETHING_DUE: LiteralString = (
    "(EXISTS (SELECT FROM outlier.notices n WHERE n.source = w.source AND n.waits)"
    " OR EXISTS (SELECT FROM outlier.deliveries d WHERE d.source = w.source"
    " AND coalesce(d.not_before <= clock_timestamp(), true)))"
)


def due(connection: Connection) -> list[str]:
    """Sources for which something can be sent now."""
    rows = run(
        connection,
        compose(
            "SELECT w.source FROM outlier.webhooks w WHERE w.enabled AND w.url IS NOT NULL"
            " AND coalesce(w.not_before <= clock_timestamp(), true) AND {something_due} ORDER BY 1",
            something_due=sql.SQL(_SOMETHING_DUE),
        ),
    ).fetchall()
    return [name for (name,) in rows]


def seconds_to_next(connection: Connection, source_name: str) -> float | None:
    """How long the webhook's next request has to wait: 0 if not at all, None if there is nothing to send."""
    row = run(
        connection,
        compose(
            "SELECT extract(epoch FROM greatest(coalesce(w.not_before, '-infinity'), clock_timestamp())"
            " - clock_timestamp()) FROM outlier.webhooks w WHERE w.source = %s AND w.enabled"
            " AND w.url IS NOT NULL AND {something_due}",
            something_due=sql.SQL(_SOMETHING_DUE),
        ),
        (source_name,),
    ).fetchone()
    return None if row is None else max(0.0, float(row[0]))


def begin(connection: Connection, source_name: str, *, most_notices: int) -> Delivery | None:
    """The delivery that is to be sent now, its attempt and the webhook's pause before the next one noted.

    The oldest one that is due, else a new one of the oldest notices that wait; None if there is none. To be called
    by whoever has the lock, and committed before anything is sent.
    """
    found = one(
        connection,
        "SELECT id FROM outlier.deliveries WHERE source = %s AND coalesce(not_before <= clock_timestamp(), true)"
        " ORDER BY created_at, id LIMIT 1",
        (source_name,),
    ) or _gather(connection, source_name, most_notices)
    if found is None:
        return None
    attempts = one(
        connection,
        "UPDATE outlier.deliveries SET attempts = attempts + 1 WHERE id = %s RETURNING attempts",
        (found,),
    )
    run(
        connection,
        "UPDATE outlier.webhooks SET not_before = clock_timestamp() + make_interval(secs => 60.0 / per_minute)"
        " WHERE source = %s",
        (source_name,),
    )
    return Delivery(found, source_name, int(attempts), _notices(connection, found))


def _gather(connection: Connection, source_name: str, most_notices: int) -> UUID | None:
    """Put notices that wait into a new delivery."""
    found: UUID | None = one(
        connection,
        "WITH picked AS (SELECT id FROM outlier.notices WHERE source = %(source)s AND waits ORDER BY id"
        " LIMIT %(most)s FOR UPDATE), made AS (INSERT INTO outlier.deliveries (source, n_notices, created_at)"
        " SELECT %(source)s, count(*), clock_timestamp() FROM picked HAVING count(*) > 0 RETURNING id)"
        " UPDATE outlier.notices n SET waits = false, delivery_id = made.id FROM made, picked"
        " WHERE n.id = picked.id RETURNING n.delivery_id",
        {"source": source_name, "most": most_notices},
    )
    return found


def _notices(connection: Connection, delivery_id: UUID) -> list[Notice]:
    return records(
        connection,
        Notice,
        "SELECT id, key, reconstruction_error, threshold, model_version, scored_at, top_features"
        " FROM outlier.notices WHERE delivery_id = %s ORDER BY id",
        (delivery_id,),
    )


def succeed(connection: Connection, delivery: Delivery) -> None:
    """Note that the receiver has it."""
    run(connection, "DELETE FROM outlier.deliveries WHERE id = %s", (delivery.id,))
    run(
        connection,
        "UPDATE outlier.notices SET delivered_at = clock_timestamp() WHERE delivery_id = %s",
        (delivery.id,),
    )


def postpone(
    connection: Connection, delivery: Delivery, *, error: str, seconds: float, others_too: bool
) -> None:
    """Have it sent again after these seconds. others_too: nothing else is sent to the webhook earlier."""
    run(
        connection,
        "UPDATE outlier.deliveries SET last_error = %s, not_before = clock_timestamp() + make_interval(secs => %s)"
        " WHERE id = %s",
        (error, seconds, delivery.id),
    )
    if others_too:
        run(
            connection,
            "UPDATE outlier.webhooks SET not_before ="
            " greatest(not_before, clock_timestamp() + make_interval(secs => %s)) WHERE source = %s",
            (seconds, delivery.source),
        )


def give_up(connection: Connection, delivery: Delivery, *, error: str) -> None:
    """Move it to the dead letters."""
    run(
        connection,
        "WITH dead AS (DELETE FROM outlier.deliveries WHERE id = %s"
        " RETURNING id, source, n_notices, attempts, created_at)"
        " INSERT INTO outlier.dead_letters (id, source, n_notices, attempts, last_error, created_at)"
        " SELECT id, source, n_notices, attempts, %s, created_at FROM dead",
        (delivery.id, error),
    )


def dead(connection: Connection, source_name: str, *, limit: int) -> list[DeadLetter]:
    """Dead letters of a source, the newest first."""
    return records(
        connection,
        DeadLetter,
        "SELECT l.id, l.n_notices, n.first_id, n.last_id, l.attempts, l.last_error, l.created_at, l.died_at"
        " FROM outlier.dead_letters l LEFT JOIN LATERAL (SELECT min(n.id) AS first_id, max(n.id) AS last_id"
        " FROM outlier.notices n WHERE n.delivery_id = l.id) n ON true"
        " WHERE l.source = %s ORDER BY l.died_at DESC, l.id LIMIT %s",
        (source_name, limit),
    )


def retry(connection: Connection, source_name: str) -> Retried:
    """Have all dead letters of a source sent again, under their old ids."""
    row = run(
        connection,
        "WITH back AS (DELETE FROM outlier.dead_letters WHERE source = %s RETURNING id, source, n_notices, last_error,"
        " created_at), made AS (INSERT INTO outlier.deliveries (id, source, n_notices, last_error, created_at)"
        " SELECT id, source, n_notices, last_error, created_at FROM back RETURNING n_notices)"
        " SELECT count(*), coalesce(sum(n_notices), 0) FROM made",
        (source_name,),
    ).fetchone()
    return Retried(0, 0) if row is None else Retried(int(row[0]), int(row[1]))
