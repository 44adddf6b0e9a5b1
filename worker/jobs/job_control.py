"""Jobs over rows that are there already: started, worked by all score workers, watched, cancelled and resumed.

Live scoring goes first: before each range a worker drains whatever is queued, and one process works on no more ranges
at a time than leaves a thread for new rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection

from pgoutlier.db.errors import JobError, NoChampion, TableReplaced
from pgoutlier.db.jobs import job_ranges, jobs
from pgoutlier.db.jobs.jobs import Job, JobFigures, Kind
from pgoutlier.db.scoring import queue
from pgoutlier.db.source import identity
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import sources
from pgoutlier.db.versions import aliases
from pgoutlier.models_store import registry
from pgoutlier.worker.jobs.job_work import Overtaken, RangeFailed, work_one
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring import batches, draining, failures
from pgoutlier.worker.versions import versions

log = structlog.get_logger()

_HELP_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Started:
    """A job, and whether this made it: False if one like it was running already.

    n_left_out: rows that a backfill leaves out since they are older than scores are kept; None where nobody counted.
    """

    id: int
    made: bool
    version: int | None = None
    n_left_out: int | None = None


def backfill(runtime: Runtime, source_name: str) -> Started:
    """Score the rows that have no score, also those from before attach.

    Raises SourceError if there is no such source.
    """
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        return _start(runtime, connection, source, jobs.BACKFILL, None)


def rescore(runtime: Runtime, source_name: str, version: int | None = None) -> Started:
    """Score again, with a version, the rows that another version has scored.

    version: None for the champion; when that becomes another one meanwhile, the job fails.

    Raises SourceError or ModelError if there is no such source or version, or it cannot be used, and JobError if the
    rows are being scored by another version.
    """
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        as_champion = version is None
        version = aliases.champion_of(connection, source) if version is None else version
        registry.load(connection, source, version, seal=runtime.seal)
        return _start(runtime, connection, source, jobs.RESCORE, version, as_champion=as_champion)


def reflag(runtime: Runtime, source_name: str, threshold: float | None = None) -> Started:
    """Flag stored scores by the champion's threshold, no row being scored: those of versions with the same errors.

    threshold: make this the threshold first, by a version that is the champion in all else, and promote that.
    Raises SourceError or ModelError if there is no such source or champion, or the threshold is not a finite number,
    and JobError if the scores are being flagged by another version.
    """
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        champion = aliases.champion_of(connection, source)
        jobs.lock(connection, source.id)
        if threshold is not None:
            champion = versions.promote_with_threshold(runtime, connection, source, champion, threshold)
        return _start(runtime, connection, source, jobs.REFLAG, champion, as_champion=True)


def _start(
    runtime: Runtime,
    connection: Connection,
    source: Source,
    kind: Kind,
    version: int | None,
    *,
    as_champion: bool = False,
) -> Started:
    jobs.lock(connection, source.id)
    present = jobs.running(connection, source.id, kind)
    if present is None:
        job = jobs.start(connection, source.id, kind, version, as_champion=as_champion)
        at_most = batches.with_rows_before(source, runtime.settings.job_range_rows)
        job_ranges.cut(connection, source, job, at_most=at_most)
        identity.check(connection, source)
        log.info("job_started", job=job.id, source=source.name, kind=kind, version=version)
        _close_if_done(connection, job)
        return Started(job.id, True, version, job_ranges.n_left_out(connection, source, kind))
    if present.version != version:
        raise JobError(
            f"Job {present.id} is at work on {source.name} already, with version {present.version}; let it end, or stop"
            f" it: pgoutlier jobs cancel {present.id}"
        )
    return Started(present.id, False, version)


def work(
    runtime: Runtime,
    job_id: int,
    *,
    budget_seconds: float | None = None,
    call_for_help: Callable[[], object] | None = None,
) -> bool:
    """Work ranges of a job until none is due or the time is up. Returns whether there is more to do now.

    call_for_help is called now and then while there is. Raises JobError if there is no such job.
    """
    if not runtime.places_beside_scoring.acquire(blocking=False):
        return False
    try:
        return _work(runtime, job_id, budget_seconds or runtime.settings.drain_budget_seconds, call_for_help)
    finally:
        runtime.places_beside_scoring.release()


def _work(runtime: Runtime, job_id: int, seconds: float, call_for_help: Callable[[], object] | None) -> bool:
    started = helped = time.monotonic()
    with runtime.engine.begin() as connection:
        job = jobs.find(connection, job_id)
    while not runtime.stopping.is_set():
        for name in draining.sources_with_work(runtime):
            draining.drain(runtime, name)
        try:
            if not _work_one(runtime, job):
                return _end(runtime, job)
        except (NoChampion, TableReplaced) as waiting:
            _note(runtime, job_id, waiting.sentence)
            return False
        except Overtaken as overtaken:
            _fail(runtime, job, overtaken.sentence)
            return False
        except RangeFailed as failed:
            if not _handle(runtime, job, failed):
                return False
        now = time.monotonic()
        if now - started > seconds:
            break
        if call_for_help is not None and now - helped > _HELP_EVERY_SECONDS:
            helped = now
            call_for_help()
    with runtime.engine.begin() as connection:
        return jobs.has_due(connection, job_id)


def _work_one(runtime: Runtime, job: Job) -> bool:
    """`work_one`, after which whatever the job stood still for is over."""
    worked = work_one(runtime, job)
    if worked and job.problem is not None:
        _note(runtime, job.id, None)
    return worked


def _end(runtime: Runtime, job: Job) -> bool:
    """No range is due: if all are finished, so is the job. A transaction of its own sees those of all workers."""
    with runtime.engine.begin() as connection:
        _close_if_done(connection, job)
    return False


def _close_if_done(connection: Connection, job: Job) -> None:
    if jobs.close_if_done(connection, job.id):
        if job.kind == jobs.BACKFILL:
            sources.include_old_rows(connection, job.source_id)
        log.info("job_succeeded", job=job.id, source=job.source, kind=job.kind)


def _note(runtime: Runtime, job_id: int, problem: str | None) -> None:
    with runtime.engine.begin() as connection:
        jobs.note_problem(connection, job_id, problem)


def _handle(runtime: Runtime, job: Job, failed: RangeFailed) -> bool:
    """Put a failed range off, or give it up. Returns whether to go on with another one."""
    error, keys = failed.cause, failed.keys
    text = failures.sentence(error)
    if failures.is_passing(error):
        log.warning("job_interrupted", job=job.id, range=keys.number, error=text)
        return False
    log.warning("range_failed", job=job.id, range=keys.number, attempt=keys.attempts + 1, error=text)
    with runtime.engine.begin() as connection:
        if keys.attempts + 1 < runtime.settings.max_attempts:
            delay = failures.retry_delay(runtime, keys.attempts)
            job_ranges.postpone_range(connection, keys, error=text, delay_seconds=delay)
            return True
        if job.kind == jobs.BACKFILL and failures.rows_to_blame(error):
            _leave_to_queue(connection, failed.source, job, failed)
            return True
        job_ranges.postpone_range(connection, keys, error=text, delay_seconds=0)
    _fail(runtime, job, text)
    return False


def _fail(runtime: Runtime, job: Job, problem: str) -> None:
    with runtime.engine.begin() as connection:
        jobs.fail(connection, job.id, problem)
    log.error("job_failed", job=job.id, source=job.source, error=problem)


def _leave_to_queue(connection: Connection, source: Source, job: Job, failed: RangeFailed) -> None:
    """Queue the rows of a range: the queue finds those that are to blame, and scores the others."""
    if not job_ranges.lock_range(connection, failed.keys):
        return
    job_ranges.claim_rows(connection, source, job, failed.keys)
    queue.wake(connection, source.definition)
    job_ranges.finish_range(connection, failed.keys, n_done=0, n_flagged=0, n_quarantined=0)


def work_all(runtime: Runtime, ring: Callable[[int], object]) -> list[int]:
    """Ring the bell for every running job; their ids."""
    with runtime.engine.begin() as connection:
        found = jobs.unfinished(connection)
    for job_id in found:
        ring(job_id)
    return found


def cancel(runtime: Runtime, job_id: int) -> bool:
    """Stop a job after the ranges at hand; what is done stays. False if it is not running. Raises JobError if there is
    no such job."""
    with runtime.engine.begin() as connection:
        jobs.find(connection, job_id)
        stopped = jobs.cancel(connection, job_id)
    if stopped:
        log.info("job_cancelled", job=job_id)
    return stopped


def resume(runtime: Runtime, job_id: int) -> bool:
    """Let a cancelled or failed job go on where it stopped. False if it is running.

    Raises JobError if there is no such job, it has succeeded, another one of its kind is running, or its version is no
    more the champion, which it was to be.
    """
    with runtime.engine.begin() as connection:
        job = jobs.find(connection, job_id)
        jobs.lock(connection, job.source_id)
        job = jobs.find(connection, job_id)
        if job.status == "succeeded":
            raise JobError(f"Job {job_id} has succeeded; to do it again: pgoutlier {job.kind} {job.source}")
        other = jobs.running(connection, job.source_id, job.kind)
        if other is not None and other.id != job_id:
            raise JobError(f"Job {other.id} is at work on {job.source} meanwhile; see: pgoutlier jobs list")
        if jobs.is_overtaken(connection, job):
            raise JobError(
                f"Job {job_id} was to work with version {job.version} as the champion, which is another one by now;"
                f" start again: pgoutlier {job.kind} {job.source}"
            )
        resumed = jobs.resume(connection, job_id)
    if resumed:
        log.info("job_resumed", job=job_id)
    return resumed


def described(runtime: Runtime, job_id: int) -> JobFigures:
    """A job with how far it is. Raises JobError if there is no such job."""
    with runtime.engine.begin() as connection:
        jobs.find(connection, job_id)
        return jobs.listed(connection, job_id=job_id, limit=1)[0]


def listed(runtime: Runtime, source_name: str | None, *, limit: int) -> list[JobFigures]:
    """Jobs, of one source or of all, the newest first. Raises SourceError if there is no such source."""
    with runtime.engine.begin() as connection:
        if source_name is not None:
            sources.find(connection, source_name)
        return jobs.listed(connection, source=source_name, limit=limit)
