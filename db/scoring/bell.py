"""What a listener asks PostgreSQL: which rows of the queues are new, and the lock that says that it sleeps.

A writer's trigger sends NOTIFY for a source only while a listener holds that lock, see db.ddl.queue_triggers.
A listener behind a pooler takes no such lock, and hears nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql

from pgoutlier.db.scoring.queue import AT_ONCE
from pgoutlier.db.sql import locks
from pgoutlier.db.sql.identifiers import ours
from pgoutlier.db.sql.statements import compose

Session = psycopg.Connection[tuple[Any, ...]]
# Rows looked at in a queue, from the newest: of more than these the workers take one after another anyway.
_NEWEST = 100
# A row that is in the queue for longer is rung for, although a drain looks by itself: it may be one that hangs.
_PATIENCE = timedelta(seconds=1)
_SLEEPS = locks.listener_sleeps(sql.SQL("n.name"))


def audible(session: Session) -> dict[str, int]:
    """Ids of the sources whose queue this role may read, by name; none where there is no schema yet."""
    if session.execute("SELECT to_regclass('outlier.sources')").fetchone() == (None,):
        return {}
    found = session.execute(
        "SELECT name, id FROM outlier.sources"
        " WHERE has_table_privilege(to_regclass(format('outlier.%I', 'queue_' || name)), 'SELECT') ORDER BY name"
    )
    return dict(found.fetchall())


@dataclass(frozen=True)
class Look:
    """What was seen in a queue. ids: of its newest due rows; of a paced one, of those that a drain has left too long.

    paced: a drain looks into it by itself.
    """

    ids: frozenset[int]
    paced: bool


def newest(session: Session, sources: Mapping[str, int]) -> dict[str, Look]:
    """What is in the queue of each of these sources, whose ids are given by name."""
    looks = [
        compose(
            "(SELECT {name}, NOT free, (SELECT array_agg(q.id) FROM (SELECT id FROM {queue}"
            " WHERE (not_before IS NULL OR not_before <= now()) AND (free OR queued_at < now() - {patience})"
            " ORDER BY id DESC LIMIT {most}) q) FROM (SELECT {free} AS free OFFSET 0) lock)",
            name=sql.Literal(name),
            queue=ours("queue", name),
            patience=sql.Literal(_PATIENCE),
            free=locks.is_free(locks.PACED, source_id),
            most=sql.Literal(_NEWEST),
        )
        for name, source_id in sources.items()
    ]
    found: dict[str, Look] = {}
    for first in range(0, len(looks), AT_ONCE):
        rows = session.execute(sql.SQL(" UNION ALL ").join(looks[first : first + AT_ONCE])).fetchall()
        found |= {name: Look(frozenset(ids or ()), paced) for name, paced, ids in rows}
    return found


def fall_asleep(session: Session, sources: Collection[str]) -> set[str]:
    """From now on writers notify. Returns of which sources this session has the lock: another listener may have it."""
    if not sources:
        return set()
    statement = compose(
        "SELECT name FROM unnest(%s::text[]) AS n (name) WHERE pg_try_advisory_lock({lock})", lock=_SLEEPS
    )
    return {name for (name,) in session.execute(statement, (list(sources),))}


def wake_up(session: Session, sources: Collection[str]) -> None:
    """From now on writers need not notify. Of sources whose lock this session has: PostgreSQL warns of others."""
    if sources:
        statement = compose(
            "SELECT pg_advisory_unlock({lock}) FROM unnest(%s::text[]) AS n (name)", lock=_SLEEPS
        )
        session.execute(statement, (list(sources),))


def note_looking(session: Session, listener: str) -> None:
    """Note that a listener looks by itself, as no notification comes through a pooler; others are seen as sessions."""
    session.execute(
        "INSERT INTO outlier.listeners (name) VALUES (%s)"
        " ON CONFLICT (name) DO UPDATE SET looked_at = clock_timestamp()",
        (listener,),
    )
    session.execute("DELETE FROM outlier.listeners WHERE looked_at < now() - interval '1 day'")
