"""The main job: claim, read, score, write, all in one transaction a batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import structlog
from sqlalchemy import Connection

from db import features, queue, scores, sources
from db import keys as key_codec
from db import quarantine as quarantine_store
from db.features import FeatureBatch
from db.quarantine import Entry
from db.queue import Claim
from db.sources import Source
from db.statements import run
from detector import Scores, exceeds, top_features
from models_store import registry
from models_store.registry import LoadedVersion
from worker import failures
from worker.runtime import Runtime

log = structlog.get_logger()

NO_CHAMPION = "no champion yet: train one (pgoutlier train {name}); rows stay queued until then"


@dataclass(frozen=True)
class BatchResult:
    """One transaction's work. n_claimed is 0 when nothing was due, or nothing could be scored."""

    n_claimed: int = 0
    n_scored: int = 0
    n_flagged: int = 0
    n_quarantined: int = 0
    model_version: int | None = None


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


@dataclass
class _Attempt:
    """What a batch had claimed when it failed."""

    claim: Claim = field(default_factory=lambda: Claim([], 0, 0, rescore=False))


def sources_with_work(runtime: Runtime) -> list[str]:
    """Names of the sources whose queue has something due."""
    with runtime.engine.begin() as connection:
        return [s.name for s in sources.every(connection) if queue.has_due(connection, s.definition)]


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
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
    while True:
        attempt = _Attempt()
        try:
            batch = score_batch(runtime, source, attempt)
        except Exception as error:
            result.n_failed_batches += 1
            if not failures.handle(runtime, source, attempt.claim, error):
                return result
            continue
        if batch.n_claimed == 0:
            return result
        result.add(batch)
        if source.last_problem is not None:
            failures.note_problem(runtime, source, None)
            source = replace(source, last_problem=None)
        if time.monotonic() > deadline or runtime.stopping.is_set():
            result.more = True
            return result
        if result.n_batches == 1 and call_for_help is not None:
            with runtime.engine.begin() as connection:
                if queue.has_due(connection, source.definition):
                    call_for_help()


def score_batch(runtime: Runtime, source: Source, attempt: _Attempt | None = None) -> BatchResult:
    """Claim some keys and write their scores, in one transaction. Raises whatever stands in the way."""
    attempt = attempt or _Attempt()
    settings = runtime.settings
    started = time.perf_counter()
    with runtime.engine.begin() as connection:
        # The claim and the scores are lost together or not at all, so neither needs to wait for the disk.
        run(connection, "SET LOCAL synchronous_commit = off")
        champion = registry.champion(connection, source, runtime.cache)
        if champion is None:
            failures.note_problem_in(connection, source, NO_CHAMPION.format(name=source.name))
            return BatchResult()
        attempt.claim = claim = queue.claim(
            connection,
            source.definition,
            at_most=settings.batch_rows,
            whole_batch_attempts=settings.max_attempts,
        )
        if not claim:
            return BatchResult()
        result = _score_claimed(connection, source, claim, champion)
        queue.finish(connection, source.definition, claim.queue_ids)
    if champion.refused:
        failures.note_problem(
            runtime, source, f"{champion.refused}; version {champion.version} goes on scoring"
        )
    log.debug(
        "batch_scored",
        source=source.name,
        n_rows=result.n_scored,
        n_flagged=result.n_flagged,
        model_version=champion.version,
        seconds=round(time.perf_counter() - started, 4),
    )
    return result


def _score_claimed(
    connection: Connection, source: Source, claim: Claim, champion: LoadedVersion
) -> BatchResult:
    batch = features.read_claimed(connection, source.definition, claim.queue_ids)
    sound, refused = _sound_rows(source, batch, imputes=champion.detector.recipe.missing == "median")
    if refused:
        batch = batch.take(sound)
    scored = champion.detector.score(batch.matrix)
    finite = np.isfinite(scored.reconstruction_error)
    if not finite.all():
        refused += _entries(source, batch.take(~finite), "error", "the reconstruction error is not finite")
        batch = batch.take(finite)
        scored = Scores(scored.reconstruction_error[finite], scored.contributions[finite])
    rows = _scored_rows(batch, scored, champion)
    scores.write(connection, source.definition, rows, model_version=champion.version, may_exist=claim.rescore)
    if source.definition.feature_view is not None and len(batch) + len(refused) < claim.n_keys:
        refused += [
            Entry(key, change_id, "missing", detail="the feature view has no row with this key")
            for key, change_id in features.absent_from_view(connection, source.definition, claim.queue_ids)
        ]
    quarantine_store.put(connection, source.definition, source.id, refused)
    quarantine_store.settle(connection, source.definition, source.id, claim.queue_ids)
    return BatchResult(
        n_claimed=claim.n_keys,
        n_scored=len(batch),
        n_flagged=int(rows.flagged.sum()),
        n_quarantined=len(refused),
        model_version=champion.version,
    )


def _scored_rows(batch: FeatureBatch, scored: Scores, champion: LoadedVersion) -> scores.ScoredRows:
    flagged = exceeds(scored.reconstruction_error, threshold=champion.detector.threshold)
    indices, contributions = top_features(
        scored.contributions[flagged], champion.detector.recipe.top_features
    )
    return scores.ScoredRows(
        change_ids=batch.change_ids,
        keys=batch.keys,
        errors=scored.reconstruction_error,
        flagged=flagged,
        top_indices=indices,
        top_contributions=contributions,
    )


def _sound_rows(source: Source, batch: FeatureBatch, *, imputes: bool) -> tuple[np.ndarray, list[Entry]]:
    """A mask of the rows that can be scored, and entries for the others with the first bad column of each."""
    finite = np.isfinite(batch.matrix)
    sound = batch.problems >= 0 if imputes else finite.all(axis=1) & (batch.problems == 0)
    if sound.all():
        return sound, []
    bad = batch.take(~sound)
    names = source.definition.feature_names
    columns = np.argmin(finite[~sound], axis=1)
    declared = source.definition.features
    texts = key_codec.to_texts(bad.keys, source.definition.key_type)
    entries = []
    for row, (key, change_id, problem) in enumerate(
        zip(texts, bad.change_ids.tolist(), bad.problems.tolist(), strict=True)
    ):
        if problem != 0:
            reason = "null" if problem > 0 else "wrong_length"
            feature = declared[abs(problem) - 1]
            name = feature.column if feature.length else feature.names[0]
        else:
            reason = "nan" if np.isnan(bad.matrix[row, columns[row]]) else "infinite"
            name = names[columns[row]]
        entries.append(Entry(key, change_id, reason, name))
    return sound, entries


def _entries(source: Source, batch: FeatureBatch, reason: str, detail: str) -> list[Entry]:
    texts = key_codec.to_texts(batch.keys, source.definition.key_type)
    return [
        Entry(key, change_id, reason, detail=detail)
        for key, change_id in zip(texts, batch.change_ids.tolist(), strict=True)
    ]
