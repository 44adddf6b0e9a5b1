"""Turns of upkeep: all keys of a table are looked at once in a stated time, a stretch of them in each transaction.

Where a turn has come to is kept in outlier.upkeep_places. So a look costs the same however many rows there are, until
they are so many that the time would not do for them at the usual pace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.sql import key_ranges
from pgoutlier.db.sql.identifiers import Relation
from pgoutlier.db.sql.key_columns import KeyColumns
from pgoutlier.db.sql.key_ranges import Stretch
from pgoutlier.db.sql.statements import as_text, one, run

SWEEP = "sweep"
# How long a look waits for a lock on one table.
PATIENCE = "5s"
# Keys that one transaction looks at, and the fewest that a look does.
KEYS_PER_STRETCH = 50_000
# Of fewer rows than this in a day a turn takes no longer for it, so a look costs the same up to there.
_LEAST_KEYS_PER_SECOND = 150.0
# Rows that come while a turn is under way are looked at in it, too.
_ROOM = 1.1


@dataclass(frozen=True)
class Place:
    """Where a task stands in the keys of a source. seconds_ago: since its last look, None where there was none.

    Others: as in outlier.upkeep_places.
    """

    place: str | None = None
    seen_to: str | None = None
    seconds_ago: float | None = None
    turn_ended_at: datetime | None = None


@dataclass(frozen=True)
class Keys:
    """Keys that there is a turn over: rows is FROM and WHERE of them, key is the key there.

    relation: whose rows they are, to estimate how many.
    """

    rows: sql.Composable
    key: KeyColumns
    relation: Relation


def wait_shortly(connection: Connection) -> None:
    """For the rest of the transaction a lock that somebody has is not waited for for long: other sources wait, too."""
    run(connection, "SELECT set_config('lock_timeout', %s, true)", (PATIENCE,))


def longest_ago_first(connection: Connection, *, sweep: bool) -> list[str]:
    """Names of all sources, that which was swept, or pruned, longest ago or never first.

    So each has its turn, also where a look at all of them is not seen to the end.
    """
    rows = run(
        connection,
        "SELECT s.name FROM outlier.sources s LEFT JOIN outlier.upkeep_places p ON p.source_id = s.id"
        " AND (p.task = %s) = %s GROUP BY s.name ORDER BY max(p.looked_at) NULLS FIRST, s.name",
        (SWEEP, sweep),
    )
    return [name for (name,) in rows]


def place(connection: Connection, source_id: int, task: str) -> Place:
    """Where a task stands; at the first key, where it has never looked."""
    row = run(
        connection,
        "SELECT place, seen_to, extract(epoch from now() - looked_at)::float8, turn_ended_at"
        " FROM outlier.upkeep_places WHERE source_id = %s AND task = %s",
        (source_id, task),
    ).fetchone()
    return Place() if row is None else Place(*row)


def n_due(connection: Connection, keys: Keys, standing: Place, *, turn_seconds: float) -> int:
    """How many keys a look has to look at, so that a turn over all of them is through in that time."""
    elapsed = min(standing.seconds_ago or 0.0, turn_seconds)
    pace = max(_LEAST_KEYS_PER_SECOND, _ROOM * n_rows(connection, keys.relation) / turn_seconds)
    return max(KEYS_PER_STRETCH, math.ceil(elapsed * pace))


def n_rows(connection: Connection, relation: Relation) -> int:
    """Rows of a table or of its partitions, as PostgreSQL estimates them."""
    return int(
        one(
            connection,
            # The partitions once, and not for each relation of the database. A table without any is in no tree.
            "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c WHERE c.relkind = 'r'"
            " AND c.oid IN (SELECT to_regclass(%(table)s)::oid"
            " UNION ALL SELECT relid FROM pg_partition_tree(to_regclass(%(table)s)))",
            {"table": as_text(relation.sql())},
        )
    )


def next_stretch(connection: Connection, keys: Keys, after: str | None, *, n_keys: int) -> Stretch:
    """The so many keys behind one, or all that there are."""
    found = key_ranges.end_of_stretch(keys.rows, keys.key, after=after, n_keys=n_keys)
    return Stretch(after, one(connection, found))


def go_on(connection: Connection, source_id: int, task: str, stretch: Stretch) -> None:
    """Note that a stretch was looked at; at the end of the keys the next turn begins."""
    run(
        connection,
        "INSERT INTO outlier.upkeep_places AS p (source_id, task, place, turn_ended_at)"
        " VALUES (%(source)s, %(task)s, %(place)s::text, CASE WHEN %(place)s::text IS NULL THEN now() END)"
        " ON CONFLICT (source_id, task) DO UPDATE SET place = excluded.place,"
        " turn_began_at = CASE WHEN excluded.place IS NULL THEN now() ELSE p.turn_began_at END,"
        " turn_ended_at = coalesce(excluded.turn_ended_at, p.turn_ended_at)",
        {"source": source_id, "task": task, "place": stretch.up_to},
    )


def note_whole(connection: Connection, source_ids: Sequence[int], task: str) -> None:
    """Note of these sources that a task looked at all keys at once."""
    run(
        connection,
        "INSERT INTO outlier.upkeep_places (source_id, task, turn_began_at, turn_ended_at, looked_at)"
        " SELECT id, %s, now(), now(), now() FROM unnest(%s::bigint[]) s (id)"
        " ON CONFLICT (source_id, task) DO UPDATE SET place = NULL, turn_began_at = now(), turn_ended_at = now(),"
        " looked_at = now()",
        (task, list(source_ids)),
    )


def end_look(connection: Connection, source_id: int, task: str, *, seen_to: str | None = None) -> None:
    """Note when a task looked, and up to where it has seen what is new."""
    run(
        connection,
        "UPDATE outlier.upkeep_places SET looked_at = now(), seen_to = coalesce(%s, seen_to)"
        " WHERE source_id = %s AND task = %s",
        (seen_to, source_id, task),
    )
