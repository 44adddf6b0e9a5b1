"""One range of a job in one transaction: its rows scored or flagged, and the range marked as finished."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection

from pgoutlier.db.errors import ModelError, NoChampion, TableReplaced
from pgoutlier.db.jobs import job_ranges, jobs
from pgoutlier.db.jobs.jobs import Job
from pgoutlier.db.scoring import claimed_rows, queue, windows
from pgoutlier.db.scoring.queue import Claim
from pgoutlier.db.scoring.rows import ClaimedRows
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import sources
from pgoutlier.db.sql.key_ranges import KeyRange
from pgoutlier.db.versions import aliases, version_rows
from pgoutlier.db.versions.aliases import Pointed
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import LoadedVersion
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring import challenger, failures, partitions, sequences
from pgoutlier.worker.scoring.batches import BatchResult, score_claimed
from pgoutlier.worker.scoring.challenger import Outcome
from pgoutlier.worker.scoring.partitions import PartitionsWanted


class RangeFailed(Exception):
    """A range that raised; its transaction is rolled back. cause: what it raised."""

    def __init__(self, source: Source, keys: KeyRange, cause: Exception) -> None:
        super().__init__(str(cause))
        self.source = source
        self.keys = keys
        self.cause = cause


class Overtaken(ModelError):
    """Another version is the champion by now, so this one is not to score or flag as that."""


def work_one(runtime: Runtime, job: Job) -> bool:
    """Work the next range of a job that is due. Returns False if there is none.

    Raises RangeFailed, NoChampion, Overtaken, TableReplaced.
    """
    while True:
        try:
            return _work_one(runtime, job)
        except PartitionsWanted as wanted:  # and not what this range has claimed and read
            partitions.make(runtime, wanted.source, wanted.days)


def _work_one(runtime: Runtime, job: Job) -> bool:
    with runtime.engine.begin() as connection:
        job_ranges.prepare(connection)
        keys = job_ranges.claim_range(connection, job.id)
        if keys is None:
            return False
        source = sources.at_work(connection, job.source)
        queue.hold_tables(connection, source.definition)
        try:
            _check_still_champion(connection, job)
            if job.kind == jobs.REFLAG:
                done = _Done(*job_ranges.reflag(connection, source, job, keys))
            else:
                done = _scored(runtime, connection, source, job, keys)
        except (NoChampion, Overtaken, TableReplaced, PartitionsWanted):
            raise
        except Exception as error:
            raise RangeFailed(source, keys, error) from error
        job_ranges.finish_range(
            connection, keys, n_done=done.n_done, n_flagged=done.n_flagged, n_quarantined=done.n_quarantined
        )
    if job.kind != jobs.REFLAG:
        runtime.rates.add(job.source, done.n_done)
    if done.of_challenger is not None:
        challenger.note(runtime, source, done.of_challenger)
    return True


@dataclass(frozen=True)
class _Done:
    n_done: int
    n_flagged: int
    n_quarantined: int = 0
    of_challenger: Outcome | None = None


def _check_still_champion(connection: Connection, job: Job) -> None:
    if jobs.is_overtaken(connection, job):
        champion = aliases.alias(connection, job.source_id)
        raise Overtaken(
            f"version {champion.version if champion else None} is the champion by now; to go on with that:"
            f" pgoutlier {job.kind} {job.source}"
        )


def _scored(runtime: Runtime, connection: Connection, source: Source, job: Job, keys: KeyRange) -> _Done:
    version = _version(runtime, connection, source, job)
    claim = job_ranges.claim_rows(connection, source, job, keys)
    if not claim:
        return _Done(0, 0)
    result = _score(runtime, connection, source, claim, version)
    queue.finish(connection, source, claim.queue_ids)
    return _Done(result.n_scored, result.n_flagged, result.n_quarantined, result.of_challenger)


def _version(runtime: Runtime, connection: Connection, source: Source, job: Job) -> LoadedVersion:
    if job.version is None:
        found = registry.champion(connection, source, runtime.cache)
        if found is None:
            raise NoChampion(source.name)
        return found
    version_id = version_rows.version_id(connection, source.id, job.version)
    if version_id is None:
        raise ModelError(f"{source.name} has no model version {job.version} any more.")
    return LoadedVersion(job.version, runtime.cache.get(connection, source, Pointed(version_id, job.version)))


def _score(
    runtime: Runtime, connection: Connection, source: Source, claim: Claim, version: LoadedVersion
) -> BatchResult:
    recipe = version.detector.recipe
    careful = failures.is_last_whole_try(runtime, claim)
    if source.definition.time_column is None:
        rows = claimed_rows.read_claimed(
            connection, source.definition, claim, as_scored=claim.rescore, careful=careful
        )
    else:
        rows = sequences.read_for(connection, source, claim, recipe, careful=careful)
    if missing := partitions.wanted(runtime, source, rows):
        raise PartitionsWanted(source, missing)
    windows.queue_neighbours(connection, source.definition, claim, rows)
    rows = _without_waiting(connection, source, claim, rows)
    pointed = aliases.both(connection, source.id)
    challenger_scorer = None
    # As live: what the champion scores, the challenger scores too.
    if pointed.champion and pointed.champion.version == version.version:
        challenger_scorer = challenger.scorer(runtime, connection, source, claim, pointed)
    return score_claimed(connection, source, claim, rows, version, challenger_scorer)


def _without_waiting(connection: Connection, source: Source, claim: Claim, rows: ClaimedRows) -> ClaimedRows:
    """The rows but those that changed and are queued: whoever is told of flagged rows shall be told of these, and a
    job tells nobody."""
    waiting = set(job_ranges.waiting(connection, source, claim))
    if not waiting:
        return rows
    found = source.definition.key.to_parameters(rows.keys)
    return rows.take(np.array([key not in waiting for key in found], dtype=np.bool_))
