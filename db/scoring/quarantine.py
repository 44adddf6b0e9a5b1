"""Rows that cannot be scored, kept with the reason until they are mended or retried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.scoring import queue
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql.identifiers import ours
from pgoutlier.db.sql.statements import compose, records, run


@dataclass(frozen=True)
class Entry:
    """One row that cannot be scored. reason: null, nan, infinite, wrong_length, missing or error."""

    key: str
    change_id: int
    reason: str
    column_name: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Quarantined:
    """An entry as it is listed; key as text."""

    key: str
    reason: str
    column_name: str | None
    detail: str | None
    quarantined_at: datetime


def put(connection: Connection, source: Source, entries: Sequence[Entry]) -> None:
    """Quarantine rows and take out scores of earlier changes of theirs. A score of a later change wins.

    The caller holds the places of their scores, see `take_places`.
    """
    if not entries:
        return
    run(
        connection,
        compose(
            """
            WITH entry AS (
                SELECT DISTINCT ON (e.key) * FROM unnest(%(keys)s::text[], %(changes)s::bigint[],
                    %(reasons)s::text[], %(columns)s::text[], %(details)s::text[])
                    AS e (key, change_id, reason, column_name, detail) ORDER BY e.key, e.change_id DESC
            ), outdated AS (
                DELETE FROM {scores} s USING entry e
                WHERE {same} AND s.change_id <= e.change_id
            )
            INSERT INTO outlier.quarantine AS h (source_id, key, change_id, reason, column_name, detail)
            SELECT %(source_id)s, e.key, e.change_id, e.reason, e.column_name, e.detail FROM entry e
            WHERE NOT EXISTS (SELECT FROM {scores} s WHERE {same} AND s.change_id > e.change_id)
            ON CONFLICT (source_id, key) DO UPDATE SET change_id = excluded.change_id,
                reason = excluded.reason, column_name = excluded.column_name, detail = excluded.detail,
                quarantined_at = excluded.quarantined_at
            WHERE h.change_id <= excluded.change_id
            """,
            scores=ours("scores", source.name),
            same=source.definition.key.is_text("s", sql.SQL("e.key")),
        ),
        {
            "source_id": source.id,
            "keys": [entry.key for entry in entries],
            "changes": [entry.change_id for entry in entries],
            "reasons": [entry.reason for entry in entries],
            "columns": [entry.column_name for entry in entries],
            "details": [entry.detail for entry in entries],
        },
    )


def take_places(connection: Connection, source: SourceDefinition, entries: Sequence[Entry]) -> None:
    """Write a score for each key, which `put` then deletes; for those that `db.scoring.scores.write` has not written.

    A score of an earlier change that another worker has written and not committed yet cannot be seen, but it
    holds this place; and a score or entry that another worker writes later has to wait for ours.
    """
    if not entries:
        return
    run(
        connection,
        compose(
            "INSERT INTO {scores} AS s ({columns}, change_id, reconstruction_error, model_version, flagged)"
            " SELECT {columns}, max(k.change_id), 0, 0, false FROM (SELECT {keys}, e.change_id"
            " FROM unnest(%(keys)s::text[], %(changes)s::bigint[]) AS e (key, change_id)) k"
            " GROUP BY {columns} ORDER BY {columns}"
            " ON CONFLICT ({columns}) DO UPDATE SET change_id = excluded.change_id"
            " WHERE s.change_id <= excluded.change_id",
            scores=ours("scores", source.name),
            columns=source.key.ours(),
            keys=source.key.from_text(sql.SQL("e.key")),
        ),
        {"keys": [entry.key for entry in entries], "changes": [entry.change_id for entry in entries]},
    )


def settle(connection: Connection, source: Source, queue_ids: Sequence[int]) -> None:
    """After scores were written for claimed rows: leave each key either a score or an entry, the later one.

    Costs one index probe while nothing is quarantined.
    """
    if not run(
        connection, "SELECT FROM outlier.quarantine WHERE source_id = %s LIMIT 1", (source.id,)
    ).rowcount:
        return
    key = source.definition.key
    parts = {
        "scores": ours("scores", source.name),
        "queue": ours("queue", source.name),
        "keys": key.unnested("q"),
        "pairs": compose(
            "q.id = ANY (%(ids)s) AND h.source_id = %(source_id)s AND h.key = {text} AND {same}",
            text=key.text("k"),
            same=key.same("s", "k"),
        ),
    }
    params = {"ids": list(queue_ids), "source_id": source.id}
    run(
        connection,
        compose(
            "DELETE FROM {scores} s USING outlier.quarantine h, {queue} q, {keys}"
            " WHERE {pairs} AND s.change_id < h.change_id",
            **parts,
        ),
        params,
    )
    run(
        connection,
        compose(
            "DELETE FROM outlier.quarantine h USING {queue} q, {keys}, {scores} s"
            " WHERE {pairs} AND s.change_id >= h.change_id",
            **parts,
        ),
        params,
    )


def entries(connection: Connection, source_id: int, *, limit: int) -> list[Quarantined]:
    """The newest entries of a source first."""
    return records(
        connection,
        Quarantined,
        "SELECT key, reason, column_name, detail, quarantined_at FROM outlier.quarantine"
        " WHERE source_id = %s ORDER BY id DESC LIMIT %s",
        (source_id, limit),
    )


def retry(connection: Connection, source: Source, keys: Sequence[str] | None) -> int:
    """Move entries (all, or those of these keys) back into the queue. Returns how many were moved."""
    moved = run(
        connection,
        "DELETE FROM outlier.quarantine WHERE source_id = %(source_id)s"
        " AND (%(keys)s::text[] IS NULL OR key = ANY (%(keys)s::text[])) RETURNING key, change_id",
        {"source_id": source.id, "keys": None if keys is None else list(keys)},
    ).fetchall()
    return queue.enqueue(connection, source.definition, moved)
