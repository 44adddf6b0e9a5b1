"""Jobs over rows that are there already: backfill, rescore, reflag. How they begin, end, and how far they are.

What they do, range by range, is in db.jobs.job_ranges.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final, Literal

from sqlalchemy import ColumnElement, Connection, exists, func, or_, select

from pgoutlier.db.errors import JobError
from pgoutlier.db.sql import locks
from pgoutlier.db.sql.statements import records
from pgoutlier.db.tables import job_events, job_ranges, jobs, sources
from pgoutlier.db.versions import aliases

BACKFILL: Final = "backfill"
RESCORE: Final = "rescore"
REFLAG: Final = "reflag"
Kind = Literal["backfill", "rescore", "reflag"]
_RUNNING = jobs.c.status == "running"


@dataclass(frozen=True)
class Job:
    """A row of outlier.jobs. version: that scores or flags; None: the champion as it is when a range is worked.

    as_champion: it does so for as long as it is the champion.
    """

    id: int
    source: str
    source_id: int
    kind: str
    version: int | None
    as_champion: bool
    status: str
    problem: str | None


@dataclass(frozen=True)
class JobFigures:
    """A job with how far it is. version: as in `Job`. finished_at: None while it runs.

    n_rows: rows in its ranges when it was made; n_behind: those of finished ranges; n_done: rows scored or flagged;
    last_error: of a range that is to be tried again; rows_per_second: over the last 30 s of its ranges; eta_seconds:
    at that rate, None where it is not known.
    """

    id: int
    source: str
    kind: str
    version: int | None
    status: str
    problem: str | None
    created_at: datetime
    created_by: str
    finished_at: datetime | None
    n_ranges: int
    n_ranges_finished: int
    n_rows: int
    n_behind: int
    n_done: int
    n_flagged: int
    n_quarantined: int
    last_error: str | None
    rows_per_second: float
    eta_seconds: float | None

    @property
    def share(self) -> float:
        """How much of its rows it has behind it, from 0 to 1."""
        return self.n_behind / self.n_rows if self.n_rows else 1.0


def find(connection: Connection, job_id: int) -> Job:
    """Raises JobError if there is no such job."""
    found = _jobs(connection, jobs.c.id == job_id)
    if not found:
        raise JobError(f"There is no job {job_id}; see: pgoutlier jobs list")
    return found[0]


def running(connection: Connection, source_id: int, kind: str) -> Job | None:
    """The job of this kind that is at work on the source, or None."""
    found = _jobs(connection, jobs.c.source_id == source_id, jobs.c.kind == kind, _RUNNING)
    return found[0] if found else None


def _jobs(connection: Connection, *conditions: ColumnElement[bool]) -> list[Job]:
    columns = (sources.c.name if f.name == "source" else jobs.c[f.name] for f in fields(Job))
    statement = select(*columns).join_from(jobs, sources).where(*conditions).order_by(jobs.c.id)
    return [Job(*row) for row in connection.execute(statement)]


def is_overtaken(connection: Connection, job: Job) -> bool:
    """Whether the job was to work with its version as the champion, and another one is that by now."""
    champion = aliases.alias(connection, job.source_id) if job.as_champion else None
    return job.as_champion and (champion is None or champion.version != job.version)


def lock(connection: Connection, source_id: int) -> None:
    """One maker of jobs of a source at a time, until the transaction ends."""
    locks.hold(connection, "jobs", source_id)


def start(
    connection: Connection, source_id: int, kind: Kind, version: int | None, *, as_champion: bool
) -> Job:
    """Make a job, which has no ranges yet. The caller holds `lock`."""
    new = jobs.insert().values(source_id=source_id, kind=kind, version=version, as_champion=as_champion)
    job_id = int(connection.execute(new.returning(jobs.c.id)).scalar_one())
    _record(connection, job_id, "start")
    return find(connection, job_id)


def note_problem(connection: Connection, job_id: int, problem: str | None) -> None:
    """Record why a job stands still, or None that it goes on. Writes only on a change."""
    connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id, _RUNNING, jobs.c.problem.is_distinct_from(problem))
        .values(problem=problem)
    )


def close_if_done(connection: Connection, job_id: int) -> bool:
    """Let a job whose ranges are all finished have succeeded. Returns whether it has by this."""
    unfinished = exists().where(job_ranges.c.job_id == job_id, job_ranges.c.finished_at.is_(None))
    return _close(connection, job_id, "succeeded", None, ~unfinished)


def fail(connection: Connection, job_id: int, problem: str) -> bool:
    """Let a running job have failed. What it has done stays."""
    return _close(connection, job_id, "failed", problem)


def cancel(connection: Connection, job_id: int) -> bool:
    """Stop a running job after the ranges that are being worked; False if it is not running."""
    stopped = _close(connection, job_id, "cancelled", None)
    if stopped:
        _record(connection, job_id, "cancel")
    return stopped


def _close(
    connection: Connection, job_id: int, status: str, problem: str | None, *conditions: ColumnElement[bool]
) -> bool:
    closed = (
        jobs.update()
        .where(jobs.c.id == job_id, _RUNNING, *conditions)
        .values(status=status, problem=problem, finished_at=func.clock_timestamp())
    )
    return bool(connection.execute(closed).rowcount)


def resume(connection: Connection, job_id: int) -> bool:
    """Let a cancelled or failed job go on where it stopped; False if it is running or has succeeded.

    Its failed ranges are tried anew. The caller holds `lock` and has seen that no other job of the kind is running.
    """
    again = connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id, jobs.c.status.in_(["cancelled", "failed"]))
        .values(status="running", problem=None, finished_at=None)
    ).rowcount
    if again:
        connection.execute(
            job_ranges.update()
            .where(job_ranges.c.job_id == job_id, job_ranges.c.finished_at.is_(None))
            .values(attempts=0, not_before=None)
        )
        _record(connection, job_id, "resume")
    return bool(again)


def _record(connection: Connection, job_id: int, action: str) -> None:
    connection.execute(job_events.insert().values(job_id=job_id, action=action))


def unfinished(connection: Connection) -> list[int]:
    """Ids of the running jobs, the oldest first."""
    return list(connection.scalars(select(jobs.c.id).where(_RUNNING).order_by(jobs.c.id)))


def has_due(connection: Connection, job_id: int) -> bool:
    """Whether a range of the job could be worked now, unless somebody else is at it."""
    not_before = job_ranges.c.not_before
    due = (
        select(job_ranges.c.number)
        .join(jobs)
        .where(
            jobs.c.id == job_id,
            _RUNNING,
            job_ranges.c.finished_at.is_(None),
            or_(not_before.is_(None), not_before <= func.now()),
        )
    )
    return connection.scalar(due.limit(1)) is not None


def listed(
    connection: Connection,
    *,
    job_id: int | None = None,
    source: str | None = None,
    running: bool = False,
    limit: int,
) -> list[JobFigures]:
    """Jobs with how far they are, the newest first; of one id or source, or those that run, if that is said."""
    return records(
        connection,
        JobFigures,
        """
        SELECT j.id, s.name AS source, j.kind, j.version, j.status, j.problem, j.created_at, j.created_by,
               j.finished_at, r.*,
               CASE WHEN j.status = 'running' THEN (r.n_rows - r.n_behind) / nullif(r.rows_per_second, 0) END
                   AS eta_seconds
        FROM outlier.jobs j JOIN outlier.sources s ON s.id = j.source_id
        CROSS JOIN LATERAL (
            SELECT count(*) AS n_ranges, count(finished_at) AS n_ranges_finished,
                   coalesce(sum(n_keys), 0)::bigint AS n_rows,
                   coalesce(sum(n_keys) FILTER (WHERE finished_at IS NOT NULL), 0)::bigint AS n_behind,
                   coalesce(sum(n_done), 0)::bigint AS n_done, coalesce(sum(n_flagged), 0)::bigint AS n_flagged,
                   coalesce(sum(n_quarantined), 0)::bigint AS n_quarantined, max(last_error) AS last_error,
                   coalesce(sum(n_keys) FILTER (WHERE finished_at > now() - interval '30 s')
                       / extract(epoch from least(interval '30 s', greatest(interval '0.1 s',
                             now() - greatest(j.created_at, min(finished_at) FILTER (
                                 WHERE finished_at > now() - interval '30 s') - interval '1 s')))), 0)::float8
                       AS rows_per_second
            FROM outlier.job_ranges WHERE job_id = j.id
        ) r
        WHERE (%(job)s::bigint IS NULL OR j.id = %(job)s) AND (%(source)s::text IS NULL OR s.name = %(source)s)
          AND (NOT %(running)s OR j.status = 'running')
        ORDER BY j.id DESC LIMIT %(limit)s
        """,
        {"job": job_id, "source": source, "running": running, "limit": limit},
    )
