"""Figures for `status` and `flagged`: cheap reads over all sources."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from pgoutlier.db.drift import drift_reports
from pgoutlier.db.drift.drift_reports import DriftReport
from pgoutlier.db.notices import notices
from pgoutlier.db.notices.notices import NoticeFigures
from pgoutlier.db.scoring import queue, score_partitions
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sources import sources
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, display, ours
from pgoutlier.db.sql.statements import compose, one, show_what_policies_allow, users_rows
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


def every(connection: Connection) -> list[SourceFigures]:
    """What `describe` says of every source."""
    every = sources.every(connection)
    readable = queue.readable(connection, [source.name for source in every])
    return [
        describe(connection, source, with_queue=readable.get(source.name) is not False) for source in every
    ]


def describe(connection: Connection, source: Source, *, with_queue: bool = True) -> SourceFigures:
    """Cheap figures of one source: no table of scores is read."""
    pointed = aliases.both(connection, source.id)
    champion, challenger = pointed.champion, pointed.challenger
    depth = queue.depth(connection, source.definition) if with_queue else None
    drift = drift_reports.reports(connection, source.id, limit=1)
    return SourceFigures(
        name=source.name,
        relation=str(source.definition.relation),
        n_queued=depth.n_keys if depth else None,
        n_postponed=depth.n_postponed if depth else None,
        oldest_queued_seconds=depth.oldest_seconds if depth else None,
        champion=champion.version if champion else None,
        challenger=challenger.version if challenger else None,
        challenger_problem=challenger.problem if challenger else None,
        n_scored_estimate=_estimate(connection, source.definition),
        n_quarantined=one(
            connection, "SELECT count(*) FROM outlier.quarantine WHERE source_id = %s", (source.id,)
        ),
        training=training_runs.newest(connection, source.id),
        drift=_drift(drift[0]) if drift else None,
        notices=notices.figures(connection, source.name),
        score_partitions=source.definition.score_partitions,
        n_outside_partitions=_outside(connection, source.definition),
        keep_scores_days=source.definition.keep_scores_days,
        problem=source.table_problem or source.last_problem or (None if depth else _unreadable(connection)),
    )


def _outside(connection: Connection, source: SourceDefinition) -> int | None:
    return None if source.score_partitions is None else score_partitions.n_outside(connection, source)


def _unreadable(connection: Connection) -> str:
    role = display(str(one(connection, "SELECT session_user::text")))
    return f"{role} may not read its queue; run again: pgoutlier db grant {role} --as monitor, or --as worker"


def _drift(report: DriftReport) -> DriftFigures:
    return DriftFigures(measured_at=report.measured_at, drifted=report.drifted, reasons=report.reasons)


def _estimate(connection: Connection, source: SourceDefinition) -> int:
    """Live rows of the scores table as PostgreSQL estimates them: a count would read the whole table."""
    return int(
        one(
            connection,
            compose(
                "SELECT coalesce(sum(pg_stat_get_live_tuples(c.oid)), 0)::bigint FROM (SELECT %s::text AS name) s,"
                " LATERAL {tables}",
                tables=score_partitions.TABLES_OF_SCORES,
            ),
            (source.name,),
        )
    )


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
