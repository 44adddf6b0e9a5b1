"""Jobs over rows that are there already, cut into ranges of keys: backfill, rescore, reflag.

A range is claimed, worked and marked as finished in one transaction, so that a killed worker leaves it as it was. All
that is written stays right whatever live scoring does meanwhile: a score is written under the id of the change
that the row was read at (see db.queue), so that one of a later change stays. Rows to be scored go through a row of the
source's queue that is made and removed in the same transaction, which nobody else ever sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from psycopg import sql
from sqlalchemy import Connection

from db import key_ranges
from db.definition import SourceDefinition
from db.errors import JobError
from db.identifiers import identifier, ours
from db.key_ranges import KeyRange
from db.notice_ddl import QUIET_SETTING
from db.queue import NEIGHBOUR, Claim, next_id
from db.sources import Source
from db.statements import compose, one, run, run_dicts

BACKFILL: Final = "backfill"
RESCORE: Final = "rescore"
REFLAG: Final = "reflag"
_LONGEST_HOLD = "5min"
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


def _jobs(connection: Connection, condition: Any, params: dict[str, Any]) -> list[Job]:
    rows = run_dicts(
        connection,
        compose(
            "SELECT j.id, s.name AS source, j.source_id, j.kind, j.version, j.as_champion, j.status,"
            " j.problem"
            " FROM outlier.jobs j JOIN outlier.sources s ON s.id = j.source_id WHERE {condition} ORDER BY j.id",
            condition=sql.SQL(condition),
        ),
        params,
    )
    return [Job(**row) for row in rows]


def lock(connection: Connection, source_id: int) -> None:
    """One maker of jobs of a source at a time, until the transaction ends."""
    run(connection, "SELECT pg_advisory_xact_lock(hashtext('outlier.jobs'), %s)", (source_id,))


def start(
    connection: Connection,
    source: Source,
    kind: Kind,
    version: int | None,
    *,
    as_champion: bool,
    range_rows: int,
) -> int:
    """Make a job and its ranges of the rows that there are to do now. Returns its id. The caller holds `lock`."""
    job_id = int(
        one(
            connection,
            "INSERT INTO outlier.jobs (source_id, kind, version, as_champion) VALUES (%s, %s, %s, %s) RETURNING id",
            (source.id, kind, version, as_champion),
        )
    )
    run(
        connection,
        key_ranges.plan(_key(kind, source.definition), _to_do(source, kind)),
        {**_params(source, version), "job": job_id, "size": range_rows},
    )
    _record(connection, job_id, "start")
    return job_id


def prepare(connection: Connection) -> None:
    """Set this transaction up for one range."""
    run(
        connection,
        # What is lost is lost together. Nobody is told of old rows as if they were new.
        "SELECT set_config('synchronous_commit', 'off', true), set_config(%s, 'on', true),"
        " set_config('idle_in_transaction_session_timeout', %s, true)",
        (QUIET_SETTING, _LONGEST_HOLD),
    )


def claim_range(connection: Connection, job_id: int) -> KeyRange | None:
    """Lock the first range that is due and that nobody else holds; None if there is none, or the job is not running."""
    row = run(
        connection,
        "SELECT r.number, r.first_key, r.last_key, r.attempts FROM outlier.job_ranges r"
        " WHERE r.job_id = %(job)s AND r.finished_at IS NULL AND (r.not_before IS NULL OR r.not_before <= now())"
        " AND EXISTS (SELECT FROM outlier.jobs j WHERE j.id = %(job)s AND j.status = 'running')"
        " ORDER BY r.number LIMIT 1 FOR UPDATE OF r SKIP LOCKED",
        {"job": job_id},
    ).fetchone()
    return None if row is None else KeyRange(job_id, *row)


def lock_range(connection: Connection, keys: KeyRange) -> bool:
    """Whether a range is still to be done and nobody else is at it; then it is locked."""
    return bool(
        run(
            connection,
            "SELECT FROM outlier.job_ranges WHERE job_id = %s AND number = %s AND finished_at IS NULL"
            " FOR UPDATE SKIP LOCKED",
            (keys.job_id, keys.number),
        ).rowcount
    )


def claim_rows(connection: Connection, source: Source, job: Job, keys: KeyRange) -> Claim:
    """The rows of a range that are still to be scored, as a claim of this transaction; empty if there are none.

    The claim's scores are written under change 0, those of a rescore under the id of the score that is there.
    """
    definition = source.definition
    row = run(
        connection,
        compose(
            "INSERT INTO {queue} (change_id, keys, n_keys, rescore)"
            " SELECT {change}, array_agg({key} ORDER BY {key}), count(*), {rescore} FROM {to_do} AND {within}"
            " HAVING count(*) > 0 RETURNING id, n_keys",
            queue=ours("queue", source.name),
            # Nothing changed, so the rows behind these need no new score.
            change=sql.Literal(NEIGHBOUR if definition.time_column else 0),
            key=_key(job.kind, definition),
            rescore=sql.Literal(job.kind == RESCORE),
            to_do=_to_do(source, job.kind),
            within=key_ranges.within(_key(job.kind, definition), definition.key_type),
        ),
        {**_params(source, job.version), **keys.params},
    ).fetchone()
    if row is None:
        return Claim([], 0, 0, rescore=False)
    # Drawn before the rows are read, see db.sequences.
    change_id = (
        one(connection, compose("SELECT {id}", id=next_id(definition))) if definition.time_column else None
    )
    return Claim([row[0]], row[1], keys.attempts, rescore=job.kind == RESCORE, change_id=change_id)


def waiting(connection: Connection, source: Source, claim: Claim) -> list[Any]:
    """Keys of a claim of `claim_rows` that live scoring has yet to score; asked after their rows were read.

    A change that the read saw and that is not among them has been scored and committed, so that its score outranks
    the job's. INTERSECT, whose time does not depend on what the planner takes the length of arrays for.
    """
    return [
        row[0]
        for row in run(
            connection,
            compose(
                "SELECT unnest(keys) FROM {queue} WHERE id = ANY (%(ids)s)"
                " INTERSECT SELECT unnest(keys) FROM {queue} WHERE id <> ALL (%(ids)s)",
                queue=ours("queue", source.name),
            ),
            {"ids": claim.queue_ids},
        ).fetchall()
    ]


def reflag(connection: Connection, source: Source, job: Job, keys: KeyRange) -> tuple[int, int]:
    """Flag the scores of a range by the threshold of the job's version. Returns (how many, how many are flagged).

    Those of versions with the same errors, see model_versions.errors_of. A flag is what `detector.exceeds` says.
    """
    by_bytes = sql.SQL(' COLLATE "C"' if source.definition.key_type == "text" else "")
    row = run(
        connection,
        compose(
            # Locked in the order in which workers write scores, so that none waits for another in a circle.
            "WITH place AS MATERIALIZED (SELECT s.key FROM {to_do} AND {within} ORDER BY s.key{by_bytes}"
            " FOR UPDATE OF s), written AS (UPDATE {scores} s"
            " SET flagged = s.reconstruction_error > v.threshold, model_version = v.version"
            " FROM place p, outlier.model_versions v WHERE s.key = p.key AND v.source_id = %(source)s"
            " AND v.version = %(version)s RETURNING s.flagged)"
            " SELECT count(*), count(*) FILTER (WHERE flagged) FROM written",
            to_do=_to_do(source, REFLAG),
            within=key_ranges.within(sql.SQL("s.key"), source.definition.key_type),
            by_bytes=by_bytes,
            scores=ours("scores", source.name),
        ),
        {**_params(source, job.version), **keys.params},
    ).fetchone()
    return (0, 0) if row is None else (row[0], row[1])


def _key(kind: str, source: SourceDefinition) -> sql.Composable:
    return compose("t.{key}", key=identifier(source.key_column)) if kind == BACKFILL else sql.SQL("s.key")


def _to_do(source: Source, kind: str) -> sql.Composable:
    """FROM and WHERE of the rows that a job of this kind has to do, whatever it has done already."""
    scores = ours("scores", source.name)
    if kind == BACKFILL:
        return compose(
            "{relation} t WHERE {key} IS NOT NULL AND NOT EXISTS (SELECT FROM {scores} s WHERE s.key = {key})"
            " AND NOT EXISTS (SELECT FROM outlier.quarantine h WHERE h.source_id = %(source)s AND h.key = {key}::text)",
            relation=source.definition.relation.sql(),
            key=_key(kind, source.definition),
            scores=scores,
        )
    if kind == RESCORE:
        return compose("{scores} s WHERE s.model_version <> %(version)s", scores=scores)
    return compose(
        "{scores} s WHERE s.model_version <> %(version)s AND s.model_version IN (SELECT k.version"
        " FROM outlier.model_versions k JOIN outlier.model_versions v ON v.source_id = k.source_id"
        " AND coalesce(v.errors_of, v.version) = coalesce(k.errors_of, k.version)"
        " WHERE v.source_id = %(source)s AND v.version = %(version)s)",
        scores=scores,
    )


def _params(source: Source, version: int | None) -> dict[str, Any]:
    return {"source": source.id, "version": version}


def finish_range(
    connection: Connection, keys: KeyRange, *, n_done: int, n_flagged: int, n_quarantined: int
) -> None:
    """Mark a range as done; with what it wrote in the same transaction, it is done once."""
    run(
        connection,
        "UPDATE outlier.job_ranges SET n_done = %s, n_flagged = %s, n_quarantined = %s,"
        " finished_at = clock_timestamp(), last_error = NULL WHERE job_id = %s AND number = %s",
        (n_done, n_flagged, n_quarantined, keys.job_id, keys.number),
    )


def postpone_range(connection: Connection, keys: KeyRange, *, error: str, delay_seconds: float) -> None:
    """Put a range off after a failure."""
    run(
        connection,
        "UPDATE outlier.job_ranges SET attempts = attempts + 1, last_error = %s,"
        " not_before = now() + make_interval(secs => %s) WHERE job_id = %s AND number = %s AND finished_at IS NULL",
        (error, delay_seconds, keys.job_id, keys.number),
    )


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
    connection: Connection, job_id: int, status: str, problem: str | None, *, condition: Any = "true"
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


def prune(connection: Connection, source_id: int, *, keep: int) -> int:
    """Forget jobs that do not run, all but the newest of a source. Returns how many."""
    return run(
        connection,
        "DELETE FROM outlier.jobs WHERE source_id = %(source)s AND status <> 'running' AND id NOT IN"
        " (SELECT id FROM outlier.jobs WHERE source_id = %(source)s ORDER BY id DESC LIMIT %(keep)s)",
        {"source": source_id, "keep": keep},
    ).rowcount


def listed(
    connection: Connection,
    *,
    job_id: int | None = None,
    source: str | None = None,
    running: bool = False,
    limit: int,
) -> list[dict[str, Any]]:
    """Jobs with how far they are, the newest first; of one id or source, or those that run, if that is said.

    n_rows: rows in its ranges when it was made; n_behind: those of finished ranges; n_done: rows scored or flagged;
    rows_per_second: over the last 30 s of its ranges; eta_seconds: at that rate, None where it is not known.
    """
    return run_dicts(
        connection,
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
