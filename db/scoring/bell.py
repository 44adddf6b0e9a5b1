"""What a listener asks PostgreSQL: which rows of the queues are new, and the lock that says that it sleeps.

A writer's trigger sends NOTIFY for a source only while a listener holds that lock, see db.ddl.queue_triggers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import psycopg
from psycopg import sql

from pgoutlier.db.sql import locks
from pgoutlier.db.sql.identifiers import ours
from pgoutlier.db.sql.statements import compose

Session = psycopg.Connection[tuple[Any, ...]]
# Rows looked at in a queue, from the newest: of more than these the workers take one after another anyway.
_NEWEST = 100
_SLEEPS = locks.listener_sleeps(sql.SQL("n.name"))


def audible(session: Session) -> list[str]:
    """Names of the sources whose queue this role may read; none where there is no schema yet."""
    if session.execute("SELECT to_regclass('outlier.sources')").fetchone() == (None,):
        return []
    found = session.execute(
        "SELECT name FROM outlier.sources"
        " WHERE has_table_privilege(to_regclass(format('outlier.%I', 'queue_' || name)), 'SELECT') ORDER BY name"
    )
    return [name for (name,) in found]


def newest(session: Session, sources: Sequence[str]) -> dict[str, list[int]]:
    """Ids of the newest due rows in the queue of each of these sources; sources without any are left out."""
    looks = [
        compose(
            "(SELECT {name}, array_agg(q.id) FROM (SELECT id FROM {queue}"
            " WHERE not_before IS NULL OR not_before <= now() ORDER BY id DESC LIMIT {most}) q HAVING count(*) > 0)",
            name=sql.Literal(name),
            queue=ours("queue", name),
            most=sql.Literal(_NEWEST),
        )
        for name in sources
    ]
    return dict(session.execute(sql.SQL(" UNION ALL ").join(looks)).fetchall())


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
