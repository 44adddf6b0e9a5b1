"""The main job: drain a source's queue, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psycopg

from pgoutlier.db.scoring import queue
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import sources
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring import challenger, failures, partitions
from pgoutlier.worker.scoring.batches import (
    BatchFailed,
    BatchReader,
    BatchResult,
    OpenBatch,
    most_rows,
    score_batch,
)
from pgoutlier.worker.scoring.pace import Pace

# A batch of this share of PGOUTLIER_BATCH_ROWS hints at more to come, which is worth reading ahead. A live trickle
# is not: a second thread would only delay its few rows.
_FULL_SHARE = 0.5


@dataclass
class DrainResult:
    """What a drain did; more: it stopped for want of time, and work was left."""

    n_batches: int = 0
    n_scored: int = 0
    n_flagged: int = 0
    n_quarantined: int = 0
    n_failed_batches: int = 0
    more: bool = False

    def add(self, batch: BatchResult) -> None:
        self.n_batches += 1
        self.n_scored += batch.n_scored
        self.n_flagged += batch.n_flagged
        self.n_quarantined += batch.n_quarantined

    def counts(self) -> dict[str, int]:
        return {name: int(value) for name, value in vars(self).items()}


def sources_with_work(runtime: Runtime) -> list[str]:
    """Names of the sources whose queue has something due."""
    with runtime.engine.begin() as connection:
        every = sources.names(connection)
    names = []
    for first in range(0, len(every), queue.AT_ONCE):
        names += _with_due(runtime, every[first : first + queue.AT_ONCE])
    return names


def _with_due(runtime: Runtime, source_names: Sequence[str]) -> list[str]:
    try:
        with runtime.engine.begin() as connection:
            return queue.with_due(connection, source_names)
    except psycopg.ProgrammingError:
        # Detached meanwhile, or a lost grant: no reason to leave the other sources alone.
        if len(source_names) == 1:
            return []
        return [name for each in source_names for name in _with_due(runtime, [each])]


def drain(
    runtime: Runtime,
    source_name: str,
    *,
    budget_seconds: float | None = None,
    call_for_help: Callable[[], object] | None = None,
) -> DrainResult:
    """Score batches until the queue has nothing due or the time is up.

    call_for_help is called once, when there is more work than one batch. Raises SourceError if there is no
    such source. A lost server or a lost race ends the drain quietly: everything is still queued.
    """
    deadline = time.monotonic() + (budget_seconds or runtime.settings.drain_budget_seconds)
    result = DrainResult()
    with BatchReader(runtime, source_name) as reader, Pace(runtime, reader.source.id) as pace:
        source = reader.source
        full = _FULL_SHARE * most_rows(runtime, source)
        while True:
            result.more = time.monotonic() > deadline or runtime.stopping.is_set()
            if result.more and result.n_batches + result.n_failed_batches:
                return result
            try:
                batch = _next(runtime, reader)
                if batch is None:
                    result.more = False
                    return result
                is_full = batch.claim.n_keys >= full
                if is_full and not runtime.stopping.is_set():
                    reader.read_ahead()
                scored = score_batch(runtime, source, batch)
            except BatchFailed as failed:
                result.n_failed_batches += 1
                if not failures.handle(runtime, source, failed.claim, failed.cause):
                    return result
                continue
            result.add(scored)
            runtime.rates.add(source.name, scored.n_scored)
            source = _note(runtime, source, scored.problem)
            if scored.of_challenger is not None:
                challenger.note(runtime, source, scored.of_challenger)
            # Behind a small batch there is hardly more, and asking would take as long as scoring it did.
            if is_full and result.n_batches == 1 and call_for_help is not None and _has_due(runtime, source):
                call_for_help()
            if not is_full:
                pace.rest(batch.claim, batch.started)


def _next(runtime: Runtime, reader: BatchReader) -> OpenBatch | None:
    """The next batch, when its scores have their partitions, or None if nothing is due. Raises BatchFailed."""
    batch = reader.next()
    if batch is None:
        return None
    missing = partitions.wanted(runtime, reader.source, batch.rows)
    if not missing:
        return batch
    # They take a connection: who holds one and the locks of a batch waits for no other.
    batch.abandon()
    partitions.make(runtime, reader.source, missing)
    return reader.next()


def _note(runtime: Runtime, source: Source, problem: str | None) -> Source:
    """Record a problem, or that one is over; the source with it."""
    if source.last_problem == problem:
        return source
    failures.note_problem(runtime, source, problem)
    return replace(source, last_problem=problem)


def _has_due(runtime: Runtime, source: Source) -> bool:
    with runtime.engine.begin() as connection:
        return queue.has_due(connection, source.definition)
