"""The queue of keys to be scored: one row holds up to 10,000 keys put there by one statement of a writer.

A queue row carries the id of the change that asked for the scores; a row made by a trigger is its own
change. For any one key a later change has the larger id, because the writer holds the row's lock while the
trigger draws it. Swept-up rows are change 0: any change a trigger saw outranks them.

For a source with a time column this does not do, because a row is also scored again when a row before it changes:
there each claim draws an id for all the scores that follow from it, see db.scoring.windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.errors import TableReplaced
from pgoutlier.db.source import identity
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql.identifiers import CHANNEL, identifier, ours
from pgoutlier.db.sql.statements import as_text, compose, one, run

KEYS_PER_QUEUE_ROW = 10_000
# Queues that one transaction looks into: each that it has read stays locked, with its indexes, to its end, in memory
# that all sessions share. There is room for some 64 such locks a connection; who finds none fails, whoever took them.
AT_ONCE = 100
# The change id of rows that did not change themselves: a row before them did.
NEIGHBOUR = -1
# How far behind the oldest due row a batch may look for further rows of its size, in queue ids.
_LOOK_AHEAD = 50_000
_LONGEST_HOLD = "5min"


@dataclass(frozen=True)
class Claim:
    """Queue rows locked by this transaction. attempts: the highest number of earlier failures among them.

    change_id: the id that all scores of this claim are written under, of a source with a time column.
    """

    queue_ids: list[int]
    n_keys: int
    attempts: int
    rescore: bool
    change_id: int | None = None

    def __bool__(self) -> bool:
        return bool(self.queue_ids)


@dataclass(frozen=True)
class Depth:
    """What waits in a queue, in keys and in the rows that hold them. n_postponed: keys put off after a failure.

    oldest_seconds: since the oldest of them was put there, None where nothing waits. last_error: of a failure.
    """

    n_keys: int
    n_rows: int
    oldest_seconds: float | None
    n_postponed: int
    last_error: str | None


def prepare(connection: Connection) -> None:
    """Set a transaction up that claims.

    The claim and the scores are lost together or not at all, so neither needs to wait for the disk. A worker that hangs
    with its claim loses it after a while, for others to take.
    """
    run(
        connection,
        "SELECT set_config('synchronous_commit', 'off', true),"
        " set_config('idle_in_transaction_session_timeout', %s, true)",
        (_LONGEST_HOLD,),
    )


def claim(
    connection: Connection, source: SourceDefinition, *, at_most: int, whole_batch_attempts: int
) -> Claim:
    """Lock the oldest due queue rows that nobody else holds, with about `at_most` keys in all.

    The oldest row decides the size class: rows with no more keys than it join, as many as fit, so that
    thousands of one-key rows make one batch and a 10,000-key row is a batch by itself. Rows that failed more
    than `whole_batch_attempts` times are tried in ever smaller groups, down to a single one.
    """
    statement = compose(
        """
        WITH held AS MATERIALIZED ({held}),
        head AS MATERIALIZED (
            SELECT id, n_keys, attempts, rescore,
                   greatest(1, %(at_most)s / n_keys
                               >> least(30, 2 * greatest(0, attempts - %(whole)s + 1))) AS room
            FROM {queue} WHERE (not_before IS NULL OR not_before <= now()) AND NOT EXISTS (SELECT FROM held)
            ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
        ), others AS MATERIALIZED (
            SELECT q.id, q.n_keys, q.attempts, q.rescore
            FROM {queue} q, head
            WHERE q.id > head.id AND q.id < head.id + %(look_ahead)s AND q.n_keys <= head.n_keys
              AND (q.not_before IS NULL OR q.not_before <= now())
              AND (q.attempts >= %(whole)s) = (head.attempts >= %(whole)s)
            ORDER BY q.id LIMIT (SELECT room - 1 FROM head) FOR UPDATE OF q SKIP LOCKED
        )
        SELECT array_agg(id), coalesce(sum(n_keys), 0), coalesce(max(attempts), 0), coalesce(bool_or(rescore), false),
               CASE WHEN count(*) > 0 THEN {change_id} END
        FROM (SELECT id, n_keys, attempts, rescore FROM head UNION ALL SELECT * FROM others) claimed
        """,
        held=_held(source),
        queue=ours("queue", source.name),
        change_id=next_id(source) if source.time_column else sql.SQL("NULL::bigint"),
    )
    row = run(
        connection,
        statement,
        {"at_most": at_most, "whole": whole_batch_attempts, "look_ahead": _LOOK_AHEAD},
    ).fetchone()
    if row is None:
        raise AssertionError("an aggregate always returns one row")
    return Claim(
        queue_ids=row[0] or [], n_keys=int(row[1]), attempts=row[2], rescore=row[3], change_id=row[4]
    )


def next_id(source: SourceDefinition) -> sql.Composable:
    """SQL that draws an id for a change."""
    queue = as_text(ours("queue", source.name))
    return compose("nextval(pg_get_serial_sequence({queue}, 'id'))", queue=sql.Literal(queue))


def hold_tables(connection: Connection, source: SourceDefinition) -> None:
    """Lock the source's tables as a reader does, in the order in which a claim does."""
    run(connection, _held(source))


def _held(source: SourceDefinition) -> sql.Composed:
    """SELECT of nothing, which locks the user's table and then the scores.

    Writers lock their table and then the queue. Workers lock both tables before it, so that whoever changes one of our
    tables and then the queue, which writers wait for, is in no worker's way.
    """
    return compose(
        "SELECT 1 FROM {relation} WHERE false UNION ALL SELECT 1 FROM {scores} WHERE false",
        relation=source.relation.sql(),
        scores=ours("scores", source.name),
    )


def finish(connection: Connection, source: Source, queue_ids: Sequence[int]) -> None:
    """Take finished queue rows out; with the scores in the same transaction, this is exactly once.

    Raises TableReplaced if what was read by the table's name was another table's.
    """
    n_finished = run(
        connection,
        compose(
            "DELETE FROM {queue} WHERE id = ANY (%(ids)s) AND {same_table}",
            queue=ours("queue", source.name),
            same_table=identity.same_table(source),
        ),
        {"ids": list(queue_ids)},
    ).rowcount
    if n_finished < len(queue_ids):
        raise TableReplaced(
            f"{source.definition.relation} was replaced or changed while rows of it were being scored."
        )


def postpone(
    connection: Connection,
    source: SourceDefinition,
    queue_ids: Sequence[int],
    *,
    delay_seconds: float,
    error: str,
    count_attempt: bool,
) -> None:
    """Put claimed rows off after a failure. count_attempt=False: the rows are not to blame."""
    run(
        connection,
        compose(
            "UPDATE {queue} SET attempts = attempts + %(count)s, last_error = %(error)s,"
            " not_before = now() + make_interval(secs => %(delay)s)"
            " WHERE id IN (SELECT id FROM {queue} WHERE id = ANY (%(ids)s) FOR UPDATE SKIP LOCKED)",
            queue=ours("queue", source.name),
        ),
        {"ids": list(queue_ids), "delay": delay_seconds, "error": error, "count": int(count_attempt)},
    )


def bisect(connection: Connection, source: SourceDefinition, queue_ids: Sequence[int], *, error: str) -> None:
    """Make the groups of a failing batch smaller: rows of many keys are split in two, all are due at once.

    Rows of one key only get their attempt counted, which makes `claim` put fewer of them in a group.
    """
    queue = ours("queue", source.name)
    locked = compose(
        "SELECT id FROM {queue} WHERE id = ANY (%(ids)s) ORDER BY id FOR UPDATE SKIP LOCKED", queue=queue
    )
    params = {"ids": list(queue_ids), "error": error}
    run(
        connection,
        compose(
            """
            WITH split AS (
                DELETE FROM {queue} WHERE id IN ({locked}) AND n_keys > 1
                RETURNING id, change_id, {keys}, n_keys, queued_at, attempts, rescore
            )
            INSERT INTO {queue} (change_id, {keys}, n_keys, queued_at, attempts, rescore, last_error)
            SELECT coalesce(change_id, id), {halves}, upto - after, queued_at, attempts + 1, rescore, %(error)s
            FROM split, LATERAL (VALUES (0, n_keys / 2), (n_keys / 2, n_keys)) AS half (after, upto)
            """,
            queue=queue,
            locked=locked,
            keys=source.key.arrays(),
            halves=sql.SQL(", ").join(
                compose("{keys}[after + 1 : upto]", keys=identifier(name)) for name in source.key.array_names
            ),
        ),
        params,
    )
    run(
        connection,
        compose(
            "UPDATE {queue} SET attempts = attempts + 1, not_before = NULL, last_error = %(error)s"
            " WHERE id IN ({locked})",
            queue=queue,
            locked=locked,
        ),
        params,
    )


def take_single(connection: Connection, source: SourceDefinition, queue_id: int) -> tuple[str, int] | None:
    """Take out a queue row of one key; returns (key as text, change id), or None if it is no longer there."""
    return run(
        connection,
        compose(
            "WITH taken AS (DELETE FROM {queue} WHERE id = %(id)s AND n_keys = 1 RETURNING *)"
            " SELECT {key}, coalesce(q.change_id, q.id) FROM taken q, {keys}",
            queue=ours("queue", source.name),
            key=source.key.text("k"),
            keys=source.key.unnested("q"),
        ),
        {"id": queue_id},
    ).fetchone()


def enqueue(connection: Connection, source: SourceDefinition, keys: Sequence[tuple[str, int]]) -> int:
    """Queue (key as text, change id) pairs again, for instance out of quarantine. Returns how many.

    They keep the id of the change that asked for the score: a newer id could outrank a change that is not
    committed yet.
    """
    if not keys:
        return 0
    run(
        connection,
        compose(
            "INSERT INTO {queue} (change_id, {arrays}, n_keys, rescore)"
            " SELECT s.change_id, {gathered}, count(*), true FROM (SELECT {keys}, r.change_id, row_number()"
            " OVER (PARTITION BY r.change_id) / {chunk} AS chunk"
            " FROM unnest(%(keys)s::text[], %(changes)s::bigint[]) AS r (key, change_id)) s"
            " GROUP BY s.change_id, s.chunk",
            queue=ours("queue", source.name),
            arrays=source.key.arrays(),
            gathered=source.key.gathered("s"),
            keys=source.key.from_text(sql.SQL("r.key")),
            chunk=sql.Literal(KEYS_PER_QUEUE_ROW),
        ),
        {"keys": [key for key, _ in keys], "changes": [change for _, change in keys]},
    )
    wake(connection, source)
    return len(keys)


def enter_missing(connection: Connection, source: Source, without_score: sql.Composable) -> int:
    """Queue those keys that have neither queue entry nor quarantine entry. Returns how many.

    without_score: SELECT of keys, under our names and none of them NULL, of rows of the table that have no score.
    Raises TableReplaced if it was another table that was read.
    """
    key = source.definition.key
    found = one(
        connection,
        compose(
            """
            WITH held AS MATERIALIZED ({held}),
            without_score AS MATERIALIZED ({without_score}),
            queued AS MATERIALIZED (SELECT {key_of_k} FROM {queue} q, {keys}
                                    WHERE (SELECT EXISTS (SELECT FROM without_score))),
            missing AS (
                SELECT {key_of_m} FROM without_score m WHERE NOT EXISTS (SELECT FROM held)
                  AND NOT EXISTS (SELECT FROM queued q WHERE {is_queued})
                  AND NOT EXISTS (SELECT FROM outlier.quarantine h
                                  WHERE h.source_id = %(source_id)s AND h.key = {text})
            ), entered AS (
                INSERT INTO {queue} (change_id, {arrays}, n_keys)
                SELECT 0, {gathered}, count(*)
                FROM (SELECT {key}, (row_number() OVER (ORDER BY {key}) - 1) / {chunk} AS chunk FROM missing) s
                GROUP BY chunk ORDER BY chunk RETURNING n_keys
            )
            SELECT coalesce(sum(n_keys), 0) FROM entered
            """,
            held=_held(source.definition),
            without_score=without_score,
            queue=ours("queue", source.name),
            keys=key.unnested("q"),
            key_of_k=key.ours("k"),
            key_of_m=key.ours("m"),
            is_queued=key.same("q", "m"),
            text=key.text("m"),
            arrays=key.arrays(),
            gathered=key.gathered("s", ordered=True),
            key=key.ours(),
            chunk=sql.Literal(KEYS_PER_QUEUE_ROW),
        ),
        {"source_id": source.id},
    )
    identity.check(connection, source)
    if found:
        wake(connection, source.definition)
    return int(found)


def wake(connection: Connection, source: SourceDefinition) -> None:
    """Ring the listener's bell when this transaction commits."""
    run(connection, "SELECT pg_notify(%s, %s)", (CHANNEL, source.name))


def has_due(connection: Connection, source: SourceDefinition) -> bool:
    """Whether anything could be claimed now."""
    return bool(with_due(connection, [source.name]))


def with_due(connection: Connection, source_names: Sequence[str]) -> list[str]:
    """Those of these sources of whose queue anything could be claimed now. One index probe each in the usual case."""
    # EXISTS would read the table from its start, where the rows that were finished last lie dead.
    probes = [
        compose(
            "SELECT {name} WHERE (SELECT id FROM {queue} WHERE not_before IS NULL OR not_before <= now()"
            " ORDER BY id LIMIT 1) IS NOT NULL",
            name=sql.Literal(name),
            queue=ours("queue", name),
        )
        for name in source_names
    ]
    return [name for (name,) in run(connection, sql.SQL(" UNION ALL ").join(probes))] if probes else []


def readable(connection: Connection, source_names: Sequence[str]) -> dict[str, bool | None]:
    """Whether this role may read something of the queue of each source; None where there is no queue."""
    found = run(
        connection,
        "SELECT n, has_any_column_privilege(to_regclass(format('outlier.%%I', 'queue_' || n)), 'SELECT')"
        " FROM unnest(%s::text[]) n",
        (list(source_names),),
    )
    return dict(found.fetchall())


def depth(connection: Connection, source: SourceDefinition) -> Depth:
    """What waits in the queue of a source."""
    return depths(connection, [source.name])[source.name]


def depths(connection: Connection, source_names: Sequence[str]) -> dict[str, Depth]:
    """What waits in the queue of each of these sources."""
    looks = [
        compose(
            "SELECT {name}, coalesce(sum(n_keys), 0)::bigint, count(*),"
            " extract(epoch from clock_timestamp() - min(queued_at))::float8,"
            " coalesce(sum(n_keys) FILTER (WHERE not_before > now()), 0)::bigint, max(last_error) FROM {queue}",
            name=sql.Literal(name),
            queue=ours("queue", name),
        )
        for name in source_names
    ]
    rows = run(connection, sql.SQL(" UNION ALL ").join(looks)).fetchall() if looks else []
    return {name: Depth(*found) for name, *found in rows}
