"""The rows of a claim: what is read of those whose keys stand in claimed queue rows."""

from __future__ import annotations

import numpy as np
from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.errors import KeysTooLong
from pgoutlier.db.scoring import lookups, unreadable
from pgoutlier.db.scoring.queue import Claim
from pgoutlier.db.scoring.rows import ClaimedRows
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql import search_path
from pgoutlier.db.sql.identifiers import ours
from pgoutlier.db.sql.statements import compose, one, run

# Of all keys of a batch, which are in memory some times over.
_MOST_KEY_BYTES = 128 * 2**20
# The rows t with their features, and the same rows w without them.
_AS_QUEUED = (
    "FROM {rows} WHERE {claimed}",
    "FROM {queue} q CROSS JOIN LATERAL {keys} WHERE {claimed}",
)
_AS_SCORED = (
    "FROM {rows} JOIN {scores} s ON {scored} WHERE {claimed}",
    "FROM {queue} q CROSS JOIN LATERAL {keys} JOIN {scores} s ON {same} WHERE {claimed}",
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
    key = source.key
    parts = {
        "queue": ours("queue", source.name),
        "rows": lookups.joined(connection, source, source.feature_relation, claim),
        "keys": key.unnested("q", "w"),
        "scores": ours("scores", source.name),
        "scored": key.is_of("t", "s"),
        "same": key.same("s", "w"),
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
    return ClaimedRows(
        rows.keys,
        rows.matrix,
        rows.problems,
        change_ids,
        refusals=rows.refusals,
        n_cut_short=rows.n_cut_short,
    )


def longest_claimed_key(connection: Connection, source: SourceDefinition, claim: Claim) -> int:
    """Bytes of the longest text in the keys of the claimed queue rows; 0 where they have none.

    Raises KeysTooLong where all of them, each padded to that, would take too much memory.
    """
    if not source.key.has_text:
        return 0
    longest = int(
        one(
            connection,
            compose(
                "SELECT coalesce(max({longest}), 0) FROM {queue} q, {keys} WHERE q.id = ANY (%(ids)s)",
                longest=source.key.longest_text("k"),
                queue=ours("queue", source.name),
                keys=source.key.unnested("q"),
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
        "SELECT {text}, max(coalesce(q.change_id, q.id)) FROM {rows} WHERE q.id = ANY (%(ids)s)"
        " AND NOT EXISTS (SELECT FROM {features} f WHERE {same}) GROUP BY {key}",
        text=source.key.text_of_row("t"),
        rows=lookups.joined(connection, source, source.relation, claim),
        features=source.feature_relation.sql(),
        same=source.key.same_row("f", "t"),
        key=source.key.theirs("t"),
    )
    with search_path.of_the_role(connection):
        absent = run(connection, statement, {"ids": claim.queue_ids}).fetchall()
    return [(key, claim.change_id or change_id) for key, change_id in absent]
