"""The rows of a claim: what is read of those whose keys stand in claimed queue rows."""

from __future__ import annotations

import numpy as np
from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.errors import KeysTooLong
from pgoutlier.db.scoring import unreadable
from pgoutlier.db.scoring.queue import Claim
from pgoutlier.db.scoring.rows import ClaimedRows
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql import search_path
from pgoutlier.db.sql.identifiers import identifier, ours
from pgoutlier.db.sql.statements import compose, one, run

# Of all keys of a batch, which are in memory some times over.
_MOST_KEY_BYTES = 128 * 2**20
# The rows t with their features, and the same rows w without them.
_AS_QUEUED = (
    "FROM {queue} q JOIN {features} t ON t.{key} OPERATOR(pg_catalog.=) ANY (q.keys) WHERE {claimed}",
    "FROM {queue} q CROSS JOIN LATERAL unnest(q.keys) w (key) WHERE {claimed}",
)
_AS_SCORED = (
    "FROM {queue} q JOIN {features} t ON t.{key} OPERATOR(pg_catalog.=) ANY (q.keys)"
    " JOIN {scores} s ON s.key OPERATOR(pg_catalog.=) t.{key} WHERE {claimed}",
    "FROM {queue} q CROSS JOIN LATERAL unnest(q.keys) w (key) JOIN {scores} s ON s.key = w.key WHERE {claimed}",
)


def read_claimed(
    connection: Connection,
    source: SourceDefinition,
    claim: Claim,
    *,
    as_scored: bool = False,
    careful: bool = False,
) -> ClaimedRows:
    """The features of every row whose key stands in a claimed queue row. Rows that are gone are absent.

    as_scored: only rows that have a score, each under the change id of that, which is read in the same instant.
    careful: read around rows that cannot be read, see db.scoring.unreadable.
    """
    parts = {
        "queue": ours("queue", source.name),
        "features": source.feature_relation.sql(),
        "key": identifier(source.key_column),
        "scores": ours("scores", source.name),
        "claimed": sql.SQL("q.id = ANY (%(ids)s)"),
    }
    origin, chosen = _AS_SCORED if as_scored else _AS_QUEUED
    change_ids, rows = unreadable.read(
        connection,
        source,
        origin=compose(origin, **parts),
        chosen=compose(chosen, **parts) if careful else None,
        params={"ids": claim.queue_ids},
        number=sql.SQL("s.change_id" if as_scored else "coalesce(q.change_id, q.id)"),
        longest_key_bytes=longest_claimed_key(connection, source, claim),
    )
    if claim.change_id is not None:
        change_ids = np.full(len(rows), claim.change_id)
    return ClaimedRows(rows.keys, rows.matrix, rows.problems, change_ids, refusals=rows.refusals)


def longest_claimed_key(connection: Connection, source: SourceDefinition, claim: Claim) -> int:
    """Bytes of the longest text key in the claimed queue rows; 0 for other types of keys.

    Raises KeysTooLong where all of them, each padded to that, would take too much memory.
    """
    if source.key_type != "text":
        return 0
    longest = int(
        one(
            connection,
            compose(
                "SELECT coalesce(max(octet_length(convert_to(k, 'UTF8'))), 0)"
                " FROM {queue} q, unnest(q.keys) k WHERE q.id = ANY (%(ids)s)",
                queue=ours("queue", source.name),
            ),
            {"ids": claim.queue_ids},
        )
    )
    if claim.n_keys > 1 and claim.n_keys * longest > _MOST_KEY_BYTES:
        raise KeysTooLong(f"{claim.n_keys:,} rows are too many to be read beside a key of {longest:,} bytes")
    return longest


def absent_from_view(connection: Connection, source: SourceDefinition, claim: Claim) -> list[tuple[str, int]]:
    """(key as text, change id) of claimed rows that are in the table but not in the feature view."""
    statement = compose(
        "SELECT b.{key}::text, max(coalesce(q.change_id, q.id)) FROM {queue} q"
        " JOIN {relation} b ON b.{key} OPERATOR(pg_catalog.=) ANY (q.keys) WHERE q.id = ANY (%(ids)s)"
        " AND NOT EXISTS (SELECT FROM {features} t WHERE t.{key} OPERATOR(pg_catalog.=) b.{key}) GROUP BY b.{key}",
        key=identifier(source.key_column),
        queue=ours("queue", source.name),
        relation=source.relation.sql(),
        features=source.feature_relation.sql(),
    )
    with search_path.of_the_role(connection):
        absent = run(connection, statement, {"ids": claim.queue_ids}).fetchall()
    return [(key, claim.change_id or change_id) for key, change_id in absent]
