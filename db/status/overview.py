"""Figures for `status` and `flagged`: cheap reads over all sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from pgoutlier.db.notices import notices
from pgoutlier.db.notices.notices import NoticeFigures
from pgoutlier.db.scoring import queue, score_partitions
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, display, ours
from pgoutlier.db.sql.statements import compose, one, run, show_what_policies_allow, users_rows
from pgoutlier.db.training import training_runs
from pgoutlier.db.training.training_runs import TrainingRun
from pgoutlier.db.versions import aliases

# A listener behind a pooler notes every five seconds that it looks.
_LATE = timedelta(seconds=20)


@dataclass(frozen=True)
class DriftFigures:
    """The last drift report of a source."""

    measured_at: datetime
    drifted: bool
    reasons: list[str]


@dataclass(frozen=True)
class SourceFigures:
    """One source at a glance. champion and challenger are versions; notices is None where they are off; problem says
    why scoring stands still. n_queued and n_postponed are None where the role may not read the queue."""

    name: str
    relation: str
    n_queued: int | None
    n_postponed: int | None
    oldest_queued_seconds: float | None
    champion: int | None
    challenger: int | None
    challenger_problem: str | None
    n_scored_estimate: int
    n_quarantined: int
    training: TrainingRun | None
    drift: DriftFigures | None
    notices: NoticeFigures | None
    # What scores are partitioned by, how many lie outside of the partitions as PostgreSQL estimates them, and how long
    # they are kept; None where they are one table, and where they are kept with their rows.
    score_partitions: str | None
    n_outside_partitions: int | None
    keep_scores_days: int | None
    problem: str | None


def describe(connection: Connection, every: Sequence[Source]) -> list[SourceFigures]:
    """Cheap figures of these sources, by the same few statements however many they are: no table of scores is read.

    Not for more of them in one transaction than queue.AT_ONCE.
    """
    names, ids = [source.name for source in every], [source.id for source in every]
    readable = queue.readable(connection, names)
    depths = queue.depths(connection, [name for name in names if readable.get(name)])
    pointed = aliases.of_each(connection, ids)
    trainings = training_runs.newest(connection, ids)
    drifts = _drifts(connection, ids)
    sent = notices.figures(connection, names)
    estimates = _estimates(connection, names)
    n_quarantined = _n_quarantined(connection, ids)
    figures = []
    for source in every:
        depth = depths.get(source.name)
        champion, challenger = pointed[source.id].champion, pointed[source.id].challenger
        figures.append(
            SourceFigures(
                name=source.name,
                relation=str(source.definition.relation),
                n_queued=depth.n_keys if depth else None,
                n_postponed=depth.n_postponed if depth else None,
                oldest_queued_seconds=depth.oldest_seconds if depth else None,
                champion=champion.version if champion else None,
                challenger=challenger.version if challenger else None,
                challenger_problem=challenger.problem if challenger else None,
                n_scored_estimate=estimates.get(source.name, 0),
                n_quarantined=n_quarantined.get(source.id, 0),
                training=trainings.get(source.id),
                drift=drifts.get(source.id),
                notices=sent.get(source.name),
                score_partitions=source.definition.score_partitions,
                n_outside_partitions=_outside(connection, source.definition),
                keep_scores_days=source.definition.keep_scores_days,
                problem=source.table_problem
                or source.last_problem
                or (None if depth else _unreadable(connection, source.name, readable.get(source.name))),
            )
        )
    return figures


def _outside(connection: Connection, source: SourceDefinition) -> int | None:
    return None if source.score_partitions is None else score_partitions.n_outside(connection, source)


def _unreadable(connection: Connection, source_name: str, readable: bool | None) -> str:
    if readable is None:
        return (
            f"its queue is gone: outlier.queue_{source_name}; attach it anew: pgoutlier detach {source_name}"
        )
    role = display(str(one(connection, "SELECT session_user::text")))
    return f"{role} may not read its queue; run again: pgoutlier db grant {role} --as monitor, or --as worker"


def _drifts(connection: Connection, source_ids: Sequence[int]) -> dict[int, DriftFigures]:
    """The last report of each."""
    rows = run(
        connection,
        "SELECT s.id, r.* FROM unnest(%s::bigint[]) s (id), LATERAL (SELECT d.measured_at, d.drifted, d.reasons"
        " FROM outlier.drift_reports d WHERE d.source_id = s.id ORDER BY d.id DESC LIMIT 1) r",
        (list(source_ids),),
    )
    return {source_id: DriftFigures(*found) for source_id, *found in rows}


def _n_quarantined(connection: Connection, source_ids: Sequence[int]) -> dict[int, int]:
    rows = run(
        connection,
        "SELECT source_id, count(*) FROM outlier.quarantine WHERE source_id = ANY (%s) GROUP BY source_id",
        (list(source_ids),),
    )
    return dict(rows.fetchall())


def _estimates(connection: Connection, source_names: Sequence[str]) -> dict[str, int]:
    """Live rows of the scores tables as PostgreSQL estimates them: a count would read the whole table."""
    rows = run(
        connection,
        compose(
            "SELECT s.name, (SELECT coalesce(sum(pg_stat_get_live_tuples(c.oid)), 0)::bigint FROM {tables})"
            " FROM unnest(%s::text[]) s (name)",
            tables=score_partitions.TABLES_OF_SCORES,
        ),
        (list(source_names),),
    )
    return dict(rows.fetchall())


def listeners(connection: Connection) -> int:
    """How many listener processes are connected, or behind a pooler have looked into the queues of late."""
    return int(
        one(
            connection,
            "SELECT (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgoutlier listener'"
            " AND datname = current_database())"
            " + (SELECT count(*) FROM outlier.listeners WHERE looked_at > now() - %s::interval)",
            (_LATE,),
        )
    )


def has_views(connection: Connection, source: SourceDefinition) -> bool:
    """Whether the view that `flagged` reads is there."""
    return catalog.exists(connection, Relation(SCHEMA, f"flagged_{source.name}"))


def flagged(
    connection: Connection, source: SourceDefinition, *, since: datetime | None, limit: int
) -> list[dict[str, Any]]:
    """The last flagged rows, the newest first: the user's columns and the score's; of those that the role may see."""
    show_what_policies_allow(connection)
    return users_rows(
        connection,
        compose(
            "SELECT * FROM {view} WHERE scored_at >= coalesce(%(since)s::timestamptz, '-infinity')"
            " ORDER BY scored_at DESC, {last_first} LIMIT %(limit)s",
            view=ours("flagged", source.name),
            last_first=source.key.in_theirs(None).listed(descending=True),
        ),
        {"since": since, "limit": limit},
    )
