"""One batch: a transaction that claims keys, reads their features, writes their scores and ends.

The first half (claim and read) of a full batch can be done ahead by a second thread on a connection of its own,
while the batch before it is scored and written: then PostgreSQL reads while ONNX Runtime computes.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import structlog
from sqlalchemy import Connection, RootTransaction

from pgoutlier.db.engine import driver_connection, is_shared
from pgoutlier.db.errors import NoChampion
from pgoutlier.db.scoring import claimed_rows, late_rows, quarantine, queue, scores, windows
from pgoutlier.db.scoring.quarantine import Entry
from pgoutlier.db.scoring.queue import Claim
from pgoutlier.db.scoring.rows import UNREADABLE, ClaimedRows
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import sources
from pgoutlier.db.versions import aliases
from pgoutlier.detector import exceeds, top_features
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import LoadedVersion
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring import challenger, failures, sequences
from pgoutlier.worker.scoring.challenger import ChallengerScorer, Outcome

log = structlog.get_logger()

# As many times the rows of another batch: measured by benchmarks.history.
_WITH_ROWS_BEFORE = 8
_NOTHING = Claim([], 0, 0, rescore=False)


class BatchFailed(Exception):
    """A batch that raised; its transaction is rolled back. claim: what it had claimed, cause: what it raised."""

    def __init__(self, claim: Claim, cause: Exception) -> None:
        super().__init__(str(cause))
        self.claim = claim
        self.cause = cause


@dataclass(frozen=True)
class BatchResult:
    """What one transaction wrote. problem: to be mended by an administrator although the batch was scored.

    of_challenger: what became of the challenger's scores, if it was asked for any.
    """

    n_scored: int = 0
    n_flagged: int = 0
    n_quarantined: int = 0
    problem: str | None = None
    of_challenger: Outcome | None = None


@dataclass(frozen=True)
class OpenBatch:
    """Claimed rows and their features; the transaction is open and holds the claim."""

    connection: Connection
    transaction: RootTransaction
    claim: Claim
    rows: ClaimedRows
    started: float

    def abandon(self) -> None:
        """Give the claim back."""
        _give_back(self.connection)


def most_rows(runtime: Runtime, source: Source) -> int:
    """Of a batch."""
    return with_rows_before(source, runtime.settings.batch_rows)


def with_rows_before(source: Source, n_rows: int) -> int:
    """How many rows to take at once of a source, where n_rows are taken of others.

    Rows of one entity share the rows before them, so that more rows at once read fewer of these.
    """
    return n_rows * (_WITH_ROWS_BEFORE if source.definition.past_features else 1)


def open_batch(runtime: Runtime, source: Source, begun: Connection | None = None) -> OpenBatch | None:
    """Claim and read. None if nothing is due, there is no champion or not the table. Raises BatchFailed.

    begun: a connection whose transaction has begun, to go on with.
    """
    claim = _NOTHING
    started = time.perf_counter()
    connection = begun
    try:
        if connection is None:
            connection = runtime.engine.connect()
        transaction = connection.get_transaction() or connection.begin()
        queue.prepare(connection)
        if source.table_problem is not None:
            failures.note_problem_in(connection, source, source.table_problem)
        elif aliases.alias(connection, source.id) is None:
            failures.note_problem_in(
                connection, source, f"{NoChampion(source.name)}; rows stay queued until then"
            )
        else:
            claim = queue.claim(
                connection,
                source.definition,
                at_most=most_rows(runtime, source),
                whole_batch_attempts=runtime.settings.max_attempts,
            )
        if not claim:
            transaction.commit()
            connection.close()
            return None
        rows = sequences.read(runtime, connection, source, claim)
        if rows.n_cut_short:
            log.info("rows_before_cut_short", source=source.name, n_rows=rows.n_cut_short)
    except BaseException as error:
        if connection is not None:
            _give_back(connection)
        if isinstance(error, Exception):
            raise BatchFailed(claim, error) from error
        raise
    return OpenBatch(connection, transaction, claim, rows, started)


def score_batch(runtime: Runtime, source: Source, batch: OpenBatch) -> BatchResult:
    """Score and write an open batch and commit. Raises BatchFailed."""
    connection, claim = batch.connection, batch.claim
    try:
        pointed = aliases.both(connection, source.id)
        champion = registry.what_scores(connection, source, runtime.cache, pointed.champion)
        if champion is None:
            return BatchResult()
        rows = sequences.fitting(
            connection,
            source,
            claim,
            batch.rows,
            champion.detector.recipe,
            careful=failures.is_last_whole_try(runtime, claim),
        )
        windows.queue_neighbours(connection, source.definition, claim, rows)
        late_rows.queue_behind(connection, source.definition, claim)
        challenger_scorer = challenger.scorer(runtime, connection, source, claim, pointed)
        result = score_claimed(connection, source, claim, rows, champion, challenger_scorer)
        queue.finish(connection, source, claim.queue_ids)
        batch.transaction.commit()
    except Exception as error:
        raise BatchFailed(claim, error) from error
    finally:
        _give_back(connection)
    if champion.refused:
        result = replace(result, problem=f"{champion.refused}; version {champion.version} goes on scoring")
    log.debug(
        "batch_scored",
        source=source.name,
        n_rows=result.n_scored,
        n_flagged=result.n_flagged,
        model_version=champion.version,
        seconds=round(time.perf_counter() - batch.started, 4),
    )
    return result


def _give_back(connection: Connection) -> None:
    """Close a connection. One that is lost cannot be rolled back before."""
    if not connection.invalidated and driver_connection(connection).closed:
        connection.invalidate()
    connection.close()


class BatchReader:
    """Opens one batch after the other, the next one ahead of its time when asked to. Leaves none open."""

    def __init__(self, runtime: Runtime, source_name: str) -> None:
        """Finds the source, in the transaction of the first batch: for a single row, one more takes long.

        Raises SourceError if there is none.
        """
        self._runtime = runtime
        self._ahead: Future[OpenBatch | None] | None = None
        self._begun: Connection | None = runtime.engine.connect()
        try:
            self._begun.begin()
            self._reads_ahead = not is_shared(self._begun)
            self.source = sources.find(self._begun, source_name)
        except BaseException:
            _give_back(self._begun)
            raise

    def next(self) -> OpenBatch | None:
        """The next batch, or None if nothing is due. Raises BatchFailed."""
        if self._ahead is None:
            begun, self._begun = self._begun, None
            return open_batch(self._runtime, self.source, begun)
        ahead, self._ahead = self._ahead, None
        return ahead.result()

    def read_ahead(self) -> None:
        """Open the next batch in the background; `next` will return it. Does nothing if no thread can be had.

        Nor behind a pooler, whose sessions may be few: who holds one and waits for another may wait for those who do
        the same.
        """
        if not self._reads_ahead:
            return
        with suppress(RuntimeError):
            self._ahead = self._runtime.readers.submit(open_batch, self._runtime, self.source)

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._begun is not None:
            _give_back(self._begun)
        if self._ahead is not None and self._ahead.exception() is None:
            batch = self._ahead.result()
            if batch is not None:
                batch.abandon()


def score_claimed(
    connection: Connection,
    source: Source,
    claim: Claim,
    batch: ClaimedRows,
    champion: LoadedVersion,
    challenger_scorer: ChallengerScorer | None = None,
) -> BatchResult:
    """Write the scores of claimed rows, and quarantine those that can have none, in the caller's transaction.

    challenger_scorer: what scores them with the challenger as well.
    """
    batch = batch.latest_by_key(source.definition.key)
    sound, refused = _sound_rows(source, batch, imputes=champion.detector.recipe.missing == "median")
    rows = _scored_rows(batch, sound, champion)
    if challenger_scorer is not None:
        challenger_scorer.begin(batch)
    finite = np.isfinite(rows.errors)
    if not finite.all():
        refused += _entries(source, batch.take(~finite), "error", "the reconstruction error is not finite")
    scores.write(connection, source.definition, rows, model_version=champion.version, may_exist=claim.rescore)
    if source.definition.feature_view is not None and len(batch) < claim.n_keys:
        absent = [
            Entry(key, change_id, "missing", detail="the feature view has no row with this key")
            for key, change_id in claimed_rows.absent_from_view(connection, source.definition, claim)
        ]
        quarantine.take_places(connection, source.definition, absent)
        refused += absent
    quarantine.put(connection, source, refused)
    quarantine.settle(connection, source, claim.queue_ids)
    scored = sound & finite
    return BatchResult(
        n_scored=int(scored.sum()),
        n_flagged=int(rows.flagged.sum()),
        n_quarantined=len(refused),
        of_challenger=None if challenger_scorer is None else challenger_scorer.finish(batch, scored),
    )


def _scored_rows(batch: ClaimedRows, sound: np.ndarray, champion: LoadedVersion) -> scores.ScoredRows:
    """Scores of the sound rows. The others get error 0 and no flag: their place, until they are quarantined."""
    scored = champion.detector.score(sequences.inputs(batch, champion.detector.recipe, sound))
    errors = np.zeros(len(batch))
    errors[sound] = scored.reconstruction_error
    flagged = exceeds(errors, threshold=champion.detector.threshold) & sound & np.isfinite(errors)
    indices, contributions = top_features(
        scored.contributions[flagged[sound]], champion.detector.recipe.top_features
    )
    return scores.ScoredRows(
        change_ids=batch.change_ids,
        keys=batch.keys,
        errors=errors,
        flagged=flagged,
        top_indices=indices,
        top_contributions=contributions,
        top_values=np.take_along_axis(champion.detector.encoded(batch.matrix[flagged]), indices, axis=1),
    )


def _sound_rows(source: Source, batch: ClaimedRows, *, imputes: bool) -> tuple[np.ndarray, list[Entry]]:
    """A mask of the rows that can be scored, and entries for the others with the first bad column of each."""
    sound = batch.sound(imputes=imputes)
    if sound.all():
        return sound, []
    bad = batch.take(~sound)
    finite = np.isfinite(batch.matrix)
    names = source.definition.feature_names
    columns = np.argmin(finite[~sound], axis=1)
    declared = source.definition.features
    texts = source.definition.key.to_texts(bad.keys)
    entries = []
    for row, (key, change_id, problem) in enumerate(
        zip(texts, bad.change_ids.tolist(), bad.problems.tolist(), strict=True)
    ):
        if problem == UNREADABLE:
            entries.append(Entry(key, change_id, "error", detail=batch.refusals[key]))
            continue
        if problem != 0:
            reason = "null" if problem > 0 else "wrong_length"
            feature = declared[abs(problem) - 1]
            name = feature.column if feature.length else feature.names[0]
        else:
            reason = "nan" if np.isnan(bad.matrix[row, columns[row]]) else "infinite"
            name = names[columns[row]]
        entries.append(Entry(key, change_id, reason, name))
    return sound, entries


def _entries(source: Source, batch: ClaimedRows, reason: str, detail: str) -> list[Entry]:
    texts = source.definition.key.to_texts(batch.keys)
    return [
        Entry(key, change_id, reason, detail=detail)
        for key, change_id in zip(texts, batch.change_ids.tolist(), strict=True)
    ]
