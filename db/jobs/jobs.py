"""Jobs over rows that are there already: backfill, rescore, reflag. How they begin, end, and how far they are.

What they do, range by range, is in db.jobs.job_ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, LiteralString

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.errors import JobError
from pgoutlier.db.sql import locks
from pgoutlier.db.sql.statements import Params, compose, one, records, run
from pgoutlier.db.versions import aliases

BACKFILL: Final = "backfill"
RESCORE: Final = "rescore"
REFLAG: Final = "reflag"
Kind = Literal["backfill", "rescore", "reflag"]


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
    found = _jobs(connection, "j.id = %(job)s", {"job": job_id})
    if not found:
        raise JobError(f"There is no job {job_id}; see: pgoutlier jobs list")
    return found[0]


def running(connection: Connection, source_id: int, kind: str) -> Job | None:
    """The job of this kind that is at work on the source, or None."""
    found = _jobs(
        connection,
        "j.source_id = %(source)s AND j.kind = %(kind)s AND j.status = 'running'",
        {"source": source_id, "kind": kind},
    )
    return found[0] if found else None


def _jobs(connection: Connection, condition: LiteralString, params: Params) -> list[Job]:
    return records(
        connection,
        Job,
        compose(
            "SELECT j.id, s.name AS source, j.source_id, j.kind, j.version, j.as_champion, j.status,"
            " j.problem FROM outlier.jobs j JOIN outlier.sources s ON s.id = j.source_id"
            " WHERE {condition} ORDER BY j.id",
            condition=sql.SQL(condition),
        ),
        params,
    )


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
    job_id = int(
        one(
            connection,
            "INSERT INTO outlier.jobs (source_id, kind, version, as_champion) VALUES (%s, %s, %s, %s) RETURNING id",
            (source_id, kind, version, as_champion),
        )
    )
    _record(connection, job_id, "start")
    return find(connection, job_id)


def note_problem(connection: Connection, job_id: int, problem: str | None) -> None:
    """Record why a job stands still, or None that it goes on. Writes only on a change."""
    run(
        connection,
        "UPDATE outlier.jobs SET problem = %s WHERE id = %s AND status = 'running' AND problem IS DISTINCT FROM %s",
        (problem, job_id, problem),
    )


def close_if_done(connection: Connection, job_id: int) -> bool:
    """Let a job whose ranges are all finished have succeeded. Returns whether it has by this."""
    return _close(
        connection,
        job_id,
        "succeeded",
        None,
        condition="NOT EXISTS (SELECT FROM outlier.job_ranges r WHERE r.job_id = j.id AND r.finished_at IS NULL)",
    )


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
    connection: Connection,
    job_id: int,
    status: str,
    problem: str | None,
    *,
    condition: LiteralString = "true",
) -> bool:
    return bool(
        run(
            connection,
            compose(
                "UPDATE outlier.jobs j SET status = %s, problem = %s, finished_at = clock_timestamp()"
                " WHERE j.id = %s AND j.status = 'running' AND {condition}",
                condition=sql.SQL(condition),
            ),
            (status, problem, job_id),
        ).rowcount
    )


def resume(connection: Connection, job_id: int) -> bool:
    """Let a cancelled or failed job go on where it stopped; False if it is running or has succeeded.

    Its failed ranges are tried anew. The caller holds `lock` and has seen that no other job of the kind is running.
    """
    again = run(
        connection,
        "UPDATE outlier.jobs SET status = 'running', problem = NULL, finished_at = NULL"
        " WHERE id = %s AND status IN ('cancelled', 'failed')",
        (job_id,),
    ).rowcount
    if again:
        run(
            connection,
            "UPDATE outlier.job_ranges SET attempts = 0, not_before = NULL WHERE job_id = %s AND finished_at IS NULL",
            (job_id,),
        )
        _record(connection, job_id, "resume")
    return bool(again)


def _record(connection: Connection, job_id: int, action: str) -> None:
    run(connection, "INSERT INTO outlier.job_events (job_id, action) VALUES (%s, %s)", (job_id, action))


def unfinished(connection: Connection) -> list[int]:
    """Ids of the running jobs, the oldest first."""
    return [
        row[0] for row in run(connection, "SELECT id FROM outlier.jobs WHERE status = 'running' ORDER BY id")
    ]


def has_due(connection: Connection, job_id: int) -> bool:
    """Whether a range of the job could be worked now, unless somebody else is at it."""
    return bool(
        one(
            connection,
            "SELECT EXISTS (SELECT FROM outlier.job_ranges r JOIN outlier.jobs j ON j.id = r.job_id"
            " WHERE j.id = %s AND j.status = 'running' AND r.finished_at IS NULL"
            " AND (r.not_before IS NULL OR r.not_before <= now()))",
            (job_id,),
        )
    )


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
