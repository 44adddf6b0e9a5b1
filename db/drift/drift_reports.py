"""What drift is measured on, block by block, and the reports of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, select

from pgoutlier.db.report import report_rows
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql.statements import compose, dicts, run
from pgoutlier.db.tables import drift_reports
from pgoutlier.db.training.training_rows import newest_rows

_ROWS_PER_BLOCK = 5_000


@dataclass(frozen=True)
class ScoredBlock:
    """Rows that a version scored. matrix (n, d) float64, NaN where a value is missing; errors (n,); flagged (n,)."""

    matrix: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float64]
    flagged: npt.NDArray[np.bool_]


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
            " ON h.source_id = %(source_id)s AND h.key = w.key::text",
            window=newest_rows(source.definition, newest),
        ),
        {"source_id": source.id},
    ).fetchone()
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


def keep(connection: Connection, source_id: int, row: dict[str, Any]) -> int:
    """Store a report. Returns its id."""
    statement = drift_reports.insert().values(**row, source_id=source_id)
    return int(connection.execute(statement.returning(drift_reports.c.id)).scalar_one())


def reports(connection: Connection, source_id: int, *, limit: int) -> list[dict[str, Any]]:
    """The newest reports of a source first."""
    kept = [column for column in drift_reports.c if column.name not in {"id", "source_id"}]
    newest = select(*kept).where(drift_reports.c.source_id == source_id).order_by(drift_reports.c.id.desc())
    return dicts(connection, newest.limit(limit))


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
