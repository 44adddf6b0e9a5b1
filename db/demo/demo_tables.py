"""The tables the demo makes as a user would: a table of transactions, and beside it what is known of the truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql.identifiers import Relation, identifier, ours
from pgoutlier.db.sql.statements import compose, copy_in, run
from pgoutlier.db.tables import TopFeature

TRANSACTIONS = Relation("public", "transactions")
TRUTH = Relation("public", "transactions_truth")


@dataclass(frozen=True)
class Totals:
    """Counted when nothing writes any more. n_rewritten: scores that were written more than once."""

    n_rows: int
    n_scored: int
    n_quarantined: int
    n_flagged: int
    n_queued: int
    n_rewritten: int


@dataclass(frozen=True)
class FlaggedRow:
    """fraud_kind: None of a row that is no fraud."""

    key: int
    reconstruction_error: float
    top_features: list[TopFeature] | None
    fraud_kind: str | None


def create(connection: Connection, key: str, columns: dict[str, str]) -> None:
    """The user's table: an identity key, and columns of the given types (smallint ... text)."""
    declared = [compose("{c} {t}", c=identifier(name), t=_type(kind)) for name, kind in columns.items()]
    run(
        connection,
        compose(
            "CREATE TABLE {table} ({key} bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {columns})",
            table=TRANSACTIONS.sql(),
            key=identifier(key),
            columns=sql.SQL(", ").join(declared),
        ),
    )


def _type(kind: str) -> sql.SQL:
    known = {
        "bigint": sql.SQL("bigint"),
        "double precision": sql.SQL("double precision"),
        "boolean": sql.SQL("boolean"),
        "timestamptz": sql.SQL("timestamptz"),
        "text": sql.SQL("text"),
    }
    return known[kind]


def insert_csv(connection: Connection, columns: Iterable[str], csv: Iterable[bytes]) -> None:
    """COPY rows in, as one statement of the caller's transaction. An empty field is NULL."""
    copy_in(
        connection,
        compose(
            "COPY {table} ({columns}) FROM STDIN (FORMAT csv)",
            table=TRANSACTIONS.sql(),
            columns=sql.SQL(", ").join(identifier(column) for column in columns),
        ),
        csv,
    )


def insert_truth(connection: Connection, kinds: list[str | None]) -> None:
    """What kind of fraud each row is, in the order of the keys from 1; rows that are none are left out."""
    run(
        connection,
        compose("CREATE TABLE {t} (id bigint PRIMARY KEY, fraud_kind text NOT NULL)", t=TRUTH.sql()),
    )
    frauds = [(number, kind) for number, kind in enumerate(kinds, start=1) if kind is not None]
    run(
        connection,
        compose("INSERT INTO {t} SELECT * FROM unnest(%(ids)s::bigint[], %(kinds)s::text[])", t=TRUTH.sql()),
        {"ids": [number for number, _ in frauds], "kinds": [kind for _, kind in frauds]},
    )


def progress(connection: Connection, source: Source) -> tuple[int, int, int]:
    """(scored, flagged, quarantined) so far; flagged by the partial index, scored by a count."""
    row = run(
        connection,
        compose(
            "SELECT (SELECT count(*) FROM {scores}), (SELECT count(*) FROM {scores} WHERE flagged),"
            " (SELECT count(*) FROM outlier.quarantine WHERE source_id = %(source_id)s)",
            scores=ours("scores", source.name),
        ),
        {"source_id": source.id},
    ).fetchone()
    return row or (0, 0, 0)


def visible(connection: Connection, source: SourceDefinition, keys: list[int]) -> list[int]:
    """Those of the keys whose score can be seen."""
    rows = run(
        connection,
        compose("SELECT key FROM {scores} WHERE key = ANY (%(keys)s)", scores=ours("scores", source.name)),
        {"keys": keys},
    )
    return [row[0] for row in rows.fetchall()]


def totals(connection: Connection, source: Source) -> Totals:
    """Figures at the end. The statistics are whole once the processes that scored have ended."""
    scored, flagged, quarantined = progress(connection, source)
    row = run(
        connection,
        compose(
            "SELECT (SELECT count(*) FROM {table}), (SELECT coalesce(sum(n_keys), 0) FROM {queue}),"
            " (SELECT n_tup_upd FROM pg_stat_user_tables WHERE schemaname = 'outlier' AND relname = %(scores)s)",
            table=source.definition.relation.sql(),
            queue=ours("queue", source.name),
        ),
        {"scores": f"scores_{source.name}"},
    ).fetchone()
    n_rows, n_queued, n_rewritten = row or (0, 0, 0)
    return Totals(n_rows, scored, quarantined, flagged, int(n_queued), n_rewritten or 0)


def errors_by_key(
    connection: Connection, source: SourceDefinition
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(keys, reconstruction errors, flags) of every scored row."""
    rows = run(
        connection,
        compose(
            "SELECT array_agg(key), array_agg(reconstruction_error), array_agg(flagged) FROM {scores}",
            scores=ours("scores", source.name),
        ),
    ).fetchone()
    keys, errors, flags = rows if rows and rows[0] else ([], [], [])
    return np.array(keys, np.int64), np.array(errors, np.float64), np.array(flags, np.bool_)


def worst_flagged(
    connection: Connection, source: SourceDefinition, *, above_key: int, limit: int
) -> list[FlaggedRow]:
    """The flagged rows with the largest errors."""
    rows = run(
        connection,
        compose(
            "SELECT s.key, s.reconstruction_error, s.top_features, h.fraud_kind FROM {scores} s"
            " LEFT JOIN {truth} h ON h.id = s.key WHERE s.flagged AND s.key > %(above)s"
            " ORDER BY s.reconstruction_error DESC LIMIT %(limit)s",
            scores=ours("scores", source.name),
            truth=TRUTH.sql(),
        ),
        {"above": above_key, "limit": limit},
    )
    return [FlaggedRow(*row) for row in rows.fetchall()]
