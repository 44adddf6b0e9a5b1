"""The record of each training, and which sources are to be trained again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb
from sqlalchemy import Connection, Engine, func, select

from pgoutlier.db.scoring.score_partitions import TABLES_OF_SCORES
from pgoutlier.db.sql import long_locks
from pgoutlier.db.sql.identifiers import identifier
from pgoutlier.db.sql.long_locks import LongLock
from pgoutlier.db.sql.statements import compose, one, run
from pgoutlier.db.tables import JsonObject, training_runs

# Scores of a source s that were written since the statistics began.
_N_SCORED = compose(
    "(SELECT sum(pg_stat_get_tuples_inserted(c.oid) + pg_stat_get_tuples_updated(c.oid)) FROM {tables})",
    tables=TABLES_OF_SCORES,
)


@dataclass(frozen=True)
class TrainingRun:
    """A training of a source: how far it is, or what it made. status: running, succeeded, failed or abandoned.

    eta_seconds: while it runs. version, promoted: of one that succeeded. error: of one that did not.
    """

    status: str
    epoch: int | None
    n_epochs: int | None
    loss: float | None
    eta_seconds: float | None
    version: int | None
    promoted: bool | None
    error: str | None
    started_at: datetime


def trainer(engine: Engine, source_id: int) -> AbstractContextManager[LongLock | None]:
    """The lock of the only one who trains the source, which a killed process frees; None if that is another."""
    return long_locks.held(engine, "training", source_id)


def start_run(connection: Connection, source_id: int, *, recipe: JsonObject, seed: int) -> int:
    """Open a training run; runs left open by a process that died are closed first. Returns its id.

    The caller is the `trainer`, so an open run of the same source has nobody left to finish it.
    """
    columns = training_runs.c
    connection.execute(
        training_runs.update()
        .where(columns.source_id == source_id, columns.status == "running")
        .values(status="abandoned", finished_at=func.now(), error="the training process ended without a word")
    )
    return int(
        one(
            connection,
            compose(
                "INSERT INTO outlier.training_runs (source_id, recipe, seed, n_scored_before)"
                " SELECT s.id, %s, %s, {n_scored} FROM outlier.sources s WHERE s.id = %s RETURNING id",
                n_scored=_N_SCORED,
            ),
            (Jsonb(recipe), seed, source_id),
        )
    )


def forget_scored(connection: Connection, source_id: int, tables: Sequence[str]) -> None:
    """Before tables of scores are dropped, with what the statistics know of them: what is new since the last run stays
    as many."""
    run(
        connection,
        "UPDATE outlier.training_runs r SET n_scored_before = n_scored_before"
        " - (SELECT coalesce(sum(pg_stat_get_tuples_inserted(c) + pg_stat_get_tuples_updated(c)), 0)"
        " FROM (SELECT to_regclass(t) AS c FROM unnest(%(tables)s::text[]) t) t)"
        " WHERE r.id = (SELECT max(id) FROM outlier.training_runs WHERE source_id = %(source)s)",
        {"source": source_id, "tables": list(tables)},
    )


def update_run(connection: Connection, run_id: int, **values: Any) -> None:
    """Set columns of a training run and its heartbeat."""
    connection.execute(
        training_runs.update().where(training_runs.c.id == run_id).values(**values, heartbeat_at=func.now())
    )


def finish_run(connection: Connection, run_id: int, *, status: str, **values: Any) -> None:
    """Close a training run as succeeded or failed."""
    update_run(connection, run_id, status=status, finished_at=func.now(), **values)


def newest(connection: Connection, source_ids: Sequence[int]) -> dict[int, TrainingRun]:
    """The training run of each of these sources that was started last, where there is one."""
    # By a probe of the index for each: DISTINCT ON would read all runs that there ever were.
    rows = run(
        connection,
        compose(
            "SELECT s.id, r.* FROM unnest(%s::bigint[]) s (id), LATERAL (SELECT {columns} FROM"
            " outlier.training_runs t WHERE t.source_id = s.id ORDER BY t.id DESC LIMIT 1) r",
            columns=sql.SQL(", ").join(identifier("t", field.name) for field in fields(TrainingRun)),
        ),
        (list(source_ids),),
    )
    return {row[0]: TrainingRun(*row[1:]) for row in rows}


def trained_lately(connection: Connection, source_id: int, *, seconds: float) -> bool:
    """Whether a training of the source was started within that time."""
    columns = training_runs.c
    since = func.now() - timedelta(seconds=seconds)
    lately = select(columns.id).where(columns.source_id == source_id, columns.started_at > since)
    return connection.scalar(lately.limit(1)) is not None


def last_run(connection: Connection, source_id: int) -> int:
    """Id of the training run that was started last, 0 if there was none."""
    columns = training_runs.c
    return connection.scalar(select(func.max(columns.id)).where(columns.source_id == source_id)) or 0


def sources_to_retrain(
    connection: Connection, *, older_than_seconds: float, after_rows: int
) -> dict[str, int]:
    """Names of sources with a version and no training run that was started within that time, each with the id of its
    last run, 0 if there was none.

    With after_rows also those that have had about so many rows scored since their last run began. The statistics
    that tell this are lost when PostgreSQL crashes, after which the rows count from there on.
    """
    return dict(
        run(
            connection,
            compose(
                "SELECT s.name, coalesce(last.id, 0) FROM outlier.sources s"
                " LEFT JOIN LATERAL (SELECT r.id, r.started_at, r.n_scored_before FROM outlier.training_runs r"
                " WHERE r.source_id = s.id ORDER BY r.id DESC LIMIT 1) last ON true"
                " WHERE EXISTS (SELECT FROM outlier.model_versions v WHERE v.source_id = s.id)"
                " AND (last.started_at IS NULL OR last.started_at <= now() - make_interval(secs => %(seconds)s)"
                " OR %(rows)s > 0 AND {n_scored} - last.n_scored_before >= %(rows)s) ORDER BY s.name",
                n_scored=_N_SCORED,
            ),
            {"seconds": older_than_seconds, "rows": after_rows},
        ).fetchall()
    )
