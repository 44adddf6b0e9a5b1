"""What a report is made of: a bounded sample of scored rows, top features of flagged ones; and the pages kept."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.scoring import unreadable
from pgoutlier.db.scoring.rows import FeatureRows
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql import key_ranges
from pgoutlier.db.sql.identifiers import ours
from pgoutlier.db.sql.statements import compose, one, run, users_rows
from pgoutlier.db.training.newest import newest_rows
from pgoutlier.db.verdicts import verdicts

_ROWS_PER_BLOCK = 10_000


@dataclass(frozen=True)
class ScoredSample:
    """The newest rows that a version scored, the oldest of them first.

    matrix (n, d) float64; errors (n,); labels (n,) True for fraud, None without a label column.
    first, last: event time (or key) of the oldest and the newest, as text.
    """

    matrix: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float64]
    labels: npt.NDArray[np.bool_] | None
    first: str | None
    last: str | None


def scored_sample(
    connection: Connection, source: SourceDefinition, *, version: int, newest: int, imputes: bool
) -> ScoredSample:
    """Those of the `newest` rows of the table whose score is of this version and whose features are complete.

    imputes: the recipe fills gaps, so a row with some is not incomplete.
    """
    rows = scored_rows(connection, source, version=version, newest=newest)
    places, found = features_of(connection, source, [row[0] for row in rows])
    complete = found.sound(imputes=imputes)
    places = places[complete]
    labels = np.array([row[2] for row in rows], dtype=np.bool_)[places]
    is_labelled = source.label_column is not None or verdicts.any_given(connection, source.name)
    moments = [rows[place][3] for place in places[[0, -1]]] if len(places) else [None, None]
    return ScoredSample(
        matrix=found.matrix[complete],
        errors=np.array([row[1] for row in rows], dtype=np.float64)[places],
        labels=labels if is_labelled else None,
        first=moments[0],
        last=moments[1],
    )


def scored_rows(
    connection: Connection, source: SourceDefinition, *, version: int, newest: int
) -> list[tuple[Any, ...]]:
    """Those of the `newest` rows of the table that have a score of this version, the oldest first.

    Of each its key, reconstruction error, whether it is known to be fraud, moment as text, and whether it is flagged.
    """
    window = newest_rows(connection, source, newest)
    statement = compose(
        "SELECT {key} AS key, s.reconstruction_error, coalesce(w.fraud, false), w.moment::text, s.flagged"
        " FROM ({window}) w JOIN {scores} s ON {same}{there} WHERE s.model_version = %(version)s"
        " ORDER BY w.moment, {columns}",
        key=source.key.in_ours("w").as_value(),
        same=source.key.same("s", "w"),
        columns=source.key.ours("w"),
        window=window.rows,
        there=window.beside(source.key.in_ours("s")),
        scores=ours("scores", source.name),
    )
    with key_ranges.read_in_order(connection, window.span):
        rows: list[tuple[Any, ...]] = run(connection, statement, {"version": version}).fetchall()
    return rows


def features_of(
    connection: Connection, source: SourceDefinition, keys: list[Any]
) -> tuple[npt.NDArray[np.int64], FeatureRows]:
    """The features of the rows with these keys, in their order, and before them the place of each one's key, (n,).

    Rows that cannot be read are UNREADABLE.
    """
    key, given = source.key, source.key.given("w", sql.SQL("%(keys)s"), numbered=True)
    # A feature view may be made of whatever, and knows best.
    span = key_ranges.span_of(keys, key) if source.feature_view is None else None
    with key_ranges.read_in_order(connection, span):
        places, rows = unreadable.read(
            connection,
            source,
            origin=compose(
                "FROM {keys} JOIN {relation} t ON {same}{there}",
                keys=given,
                relation=source.feature_relation.sql(),
                same=key.is_of("t", "w"),
                there=sql.SQL("") if span is None else compose(" AND {s}", s=span.has(key.in_theirs("t"))),
            ),
            chosen=compose("FROM {keys}", keys=given),
            params={"keys": keys},
            number=sql.SQL("w.place - 1"),
            longest_key_bytes=max((len(str(key).encode()) for key in keys), default=0),
            rows_per_block=_ROWS_PER_BLOCK,
        )
    order = np.argsort(places)
    return places[order], rows.take(order)


def columns_of(
    connection: Connection, source: SourceDefinition, keys: list[str]
) -> list[dict[str, Any] | None]:
    """The columns of the rows with these keys, which are texts, in their order; None where there is no such row."""
    statement = compose(
        "SELECT w.place AS outlier_place, t.* FROM {keys} JOIN {relation} t ON {same}",
        keys=source.key.given("w", sql.SQL("%(keys)s"), numbered=True),
        relation=source.relation.sql(),
        same=source.key.is_of("t", "w"),
    )
    by_place = {row.pop("outlier_place"): row for row in users_rows(connection, statement, {"keys": keys})}
    return [by_place.get(place) for place in range(1, len(keys) + 1)]


def flagged_features(
    connection: Connection, source: SourceDefinition, *, version: int, newest: int
) -> tuple[int, list[tuple[str, int, float]]]:
    """(how many flagged rows were looked at, the newest; name, n_rows and mean contribution of their top features)."""
    last = compose(
        "SELECT top_features FROM {scores} WHERE flagged AND model_version = %(version)s"
        " AND top_features IS NOT NULL ORDER BY scored_at DESC LIMIT {newest}",
        scores=ours("scores", source.name),
        newest=sql.Literal(newest),
    )
    params = {"version": version}
    n_rows = one(connection, compose("SELECT count(*) FROM ({last}) l", last=last), params)
    found = run(
        connection,
        compose(
            "SELECT f.feature AS name, count(*) AS n_rows, avg(f.contribution) AS contribution FROM ({last}) l"
            " CROSS JOIN LATERAL jsonb_to_recordset(l.top_features) AS f (feature text, contribution float8)"
            " GROUP BY 1 ORDER BY 2 DESC, 3 DESC",
            last=last,
        ),
        params,
    ).fetchall()
    return int(n_rows), found


def keep(connection: Connection, version_id: int, page: str) -> None:
    """Keep a page with its version, in place of one that was there."""
    run(
        connection,
        "INSERT INTO outlier.model_reports (model_version_id, page) VALUES (%s, %s)"
        " ON CONFLICT (model_version_id) DO UPDATE SET page = excluded.page, created_at = now()",
        (version_id, gzip.compress(page.encode(), mtime=0)),
    )


def kept(connection: Connection, version_id: int) -> str | None:
    """The page that is kept with a version, or None."""
    found = one(
        connection, "SELECT page FROM outlier.model_reports WHERE model_version_id = %s", (version_id,)
    )
    return None if found is None else gzip.decompress(bytes(found)).decode()
