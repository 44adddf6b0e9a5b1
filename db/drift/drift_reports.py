"""What drift is measured on, block by block, and the reports of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, select

from pgoutlier.db.report import report_rows
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql.statements import compose, one, run
from pgoutlier.db.tables import drift_reports
from pgoutlier.db.training.newest import newest_rows

_ROWS_PER_BLOCK = 5_000


@dataclass(frozen=True)
class ScoredBlock:
    """Rows that a version scored. matrix (n, d) float64, NaN where a value is missing; errors (n,); flagged (n,)."""

    matrix: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float64]
    flagged: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FeaturePsi:
    """The population stability index of a feature, and what it may be before that is drift."""

    # In the order in which PostgreSQL keeps the names of a jsonb, so that JSON shows them in it as well.
    psi: float
    limit: float
    feature: str


@dataclass(frozen=True)
class DriftReport:
    """How far n_rows of the newest rows have moved from those that the version was trained on.

    features: the largest index first. error_psi, error_limit: the same of the reconstruction error. flag_rate,
    quarantine_rate: shares of the rows, from 0 to 1. expected_flag_rate: by the first report of the version, None
    where this is it. reasons: a sentence, without its full stop, for each that is beyond its limit.
    """

    version: int
    measured_at: datetime
    n_rows: int
    features: list[FeaturePsi]
    error_psi: float
    error_limit: float
    flag_rate: float
    expected_flag_rate: float | None
    quarantine_rate: float
    drifted: bool
    reasons: list[str]


def scored_blocks(
    connection: Connection, source: SourceDefinition, *, version: int, newest: int
) -> Iterator[ScoredBlock]:
    """Those of the `newest` rows of the table whose score is of this version, a few thousand at a time.

    Their keys, scores and flags are read at once, their features by block.
    """
    rows = report_rows.scored_rows(connection, source, version=version, newest=newest)
    for first in range(0, len(rows), _ROWS_PER_BLOCK):
        block = rows[first : first + _ROWS_PER_BLOCK]
        places, found = report_rows.features_of(connection, source, [row[0] for row in block])
        sound = found.problems >= 0
        places = places[sound]
        yield ScoredBlock(
            matrix=found.matrix[sound],
            errors=np.array([row[1] for row in block], dtype=np.float64)[places],
            flagged=np.array([row[4] for row in block], dtype=np.bool_)[places],
        )


def quarantined_among(connection: Connection, source: Source, *, newest: int) -> tuple[int, int]:
    """(how many of the newest rows of the table are in quarantine, how many of these rows there are)."""
    row = run(
        connection,
        compose(
            "SELECT count(h.key), count(*) FROM ({window}) w LEFT JOIN outlier.quarantine h"
            " ON h.source_id = %(source_id)s AND h.key = {text}",
            text=source.definition.key.text("w"),
            window=newest_rows(connection, source.definition, newest).rows,
        ),
        {"source_id": source.id},
    ).fetchone()
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


def moment(connection: Connection) -> datetime:
    """When the transaction began, by PostgreSQL's clock."""
    found: datetime = one(connection, "SELECT now()")
    return found


def keep(connection: Connection, source_id: int, report: DriftReport) -> int:
    """Store a report. Returns its id."""
    values = {**vars(report), "features": [vars(feature) for feature in report.features]}
    statement = drift_reports.insert().values(**values, source_id=source_id)
    return int(connection.execute(statement.returning(drift_reports.c.id)).scalar_one())


def reports(connection: Connection, source_id: int, *, limit: int) -> list[DriftReport]:
    """The newest reports of a source first."""
    columns = drift_reports.c
    rows = connection.execute(
        select(*(columns[field.name] for field in fields(DriftReport)))
        .where(columns.source_id == source_id)
        .order_by(columns.id.desc())
        .limit(limit)
    ).mappings()
    return [DriftReport(**{**row, "features": [FeaturePsi(**f) for f in row["features"]]}) for row in rows]


def first_flag_rate(connection: Connection, source_id: int, version: int) -> tuple[int, int] | None:
    """(flagged rows, rows) of the first report of a version, or None."""
    columns = drift_reports.c
    row = connection.execute(
        select(columns.flag_rate, columns.n_rows)
        .where(columns.source_id == source_id, columns.version == version, columns.flag_rate.is_not(None))
        .order_by(columns.id)
        .limit(1)
    ).one_or_none()
    return None if row is None else (round(row.flag_rate * row.n_rows), row.n_rows)
