"""The challenger's scores: of the rows that the champion scores, in the same transaction, behind a savepoint.

Whatever goes wrong here, the champion's scores are committed: what failed is taken back to the savepoint and noted with
the alias, and the challenger is left alone for a while.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import structlog
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection

from pgoutlier.db.engine import driver_connection
from pgoutlier.db.scoring import scores
from pgoutlier.db.scoring.queue import Claim
from pgoutlier.db.scoring.rows import ClaimedRows
from pgoutlier.db.scoring.scores import ScoredRows
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sql.key_types import Keys
from pgoutlier.db.sql.keys import Key
from pgoutlier.db.versions import aliases, challenger_scores
from pgoutlier.db.versions.aliases import Aliases, Challenger
from pgoutlier.detector import Detector, exceeds
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring import sequences
from pgoutlier.worker.scoring.failures import is_last_whole_try, sentence

log = structlog.get_logger()

# After a failure, so that one that takes its time does not slow down every batch.
PAUSE_SECONDS = 60.0
NOT_FINITE = "reconstruction errors of the challenger are not finite; such rows get no shadow score"


# From this many rows on the challenger computes while PostgreSQL takes the champion's scores; for fewer, handing them
# to another thread takes as long.
_ROWS_WORTH_A_THREAD = 2_000


@dataclass(frozen=True)
class Outcome:
    """What became of the challenger's scores of a batch. problem: why rows have none; failed: that no row has one."""

    challenger: Challenger
    problem: str | None = None
    failed: bool = False


class ChallengerScorer:
    """The challenger's part in one batch: `begin` when the champion has scored, `finish` when that is written."""

    def __init__(
        self,
        runtime: Runtime,
        connection: Connection,
        source: Source,
        claim: Claim,
        challenger: Challenger,
    ) -> None:
        self._runtime = runtime
        self._connection = connection
        self._source = source
        self._claim = claim
        self._challenger = challenger
        self._ahead: Future[_Errors] | None = None

    def begin(self, batch: ClaimedRows) -> None:
        """Start computing in another thread, if that is worth it and needs nothing from PostgreSQL.

        batch: one row a key, in the order of `db.sql.keys.Key.sortable`.
        """
        detector = self._runtime.cache.loaded(self._challenger.version_id)
        if detector is None or detector.recipe.window > 1 or len(batch) < _ROWS_WORTH_A_THREAD:
            return
        with suppress(RuntimeError):  # no thread can be had any more
            self._ahead = self._runtime.readers.submit(_errors, batch, detector)

    def finish(self, batch: ClaimedRows, scored: npt.NDArray[np.bool_]) -> Outcome:
        """Write the challenger's scores of those rows of the batch that the champion has scored.

        Raises nothing unless the transaction itself is lost.
        """
        try:
            with self._connection.begin_nested(), challenger_scores.bounded(self._connection):
                finite = self._write(batch, scored)
        except Exception as error:
            if driver_connection(self._connection).info.transaction_status != TransactionStatus.INTRANS:
                raise
            return Outcome(self._challenger, problem=sentence(error), failed=True)
        return Outcome(self._challenger, problem=None if finite else NOT_FINITE)

    def _write(self, batch: ClaimedRows, scored: npt.NDArray[np.bool_]) -> bool:
        """Whether all errors were finite."""
        challenger, source = self._challenger, self._source
        detector = self._runtime.cache.get(self._connection, source, challenger)
        if detector.recipe.window > batch.window:
            # Only now: rows that nobody but the challenger wants must not make the champion's batch fail.
            wanted = batch.keys if scored.all() else batch.keys[scored]
            careful = is_last_whole_try(self._runtime, self._claim)
            batch = sequences.read_for(
                self._connection, source, self._claim, detector.recipe, careful=careful
            ).latest_by_key(source.definition.key)
            scored = _among(batch.keys, wanted, source.definition.key)
        found = self._ahead.result() if self._ahead else _errors(batch, detector)
        rows = _scored_rows(batch, found, scored & found.sound, detector)
        scores.write(
            self._connection,
            source.definition,
            rows,
            model_version=challenger.version,
            may_exist=self._claim.rescore,
            into=scores.CHALLENGER_SCORES,
        )
        return bool(np.isfinite(found.values).all())


def scorer(
    runtime: Runtime,
    connection: Connection,
    source: Source,
    claim: Claim,
    pointed: Aliases,
) -> ChallengerScorer | None:
    """What scores a claim's rows with the challenger as well, if there is one that is not left alone for now."""
    challenger = pointed.challenger
    if challenger is None or challenger.paused:
        return None
    return ChallengerScorer(runtime, connection, source, claim, challenger)


def note(runtime: Runtime, source: Source, outcome: Outcome) -> None:
    """Record with the alias what became of a batch, where that is news."""
    known = outcome.challenger.problem
    if outcome.problem != known and outcome.problem is not None:
        log.warning(
            "challenger_failed", source=source.name, version=outcome.challenger.version, error=outcome.problem
        )
    if outcome.failed or outcome.problem != known:
        with runtime.engine.begin() as connection:
            aliases.note_challenger(
                connection,
                source.id,
                outcome.challenger.version,
                outcome.problem,
                pause_seconds=PAUSE_SECONDS if outcome.failed else 0,
            )


@dataclass(frozen=True)
class _Errors:
    """Of n rows: sound (n,), those that the challenger can score; values (n,), their errors, 0 for the others."""

    sound: npt.NDArray[np.bool_]
    values: npt.NDArray[np.float64]


def _errors(batch: ClaimedRows, detector: Detector) -> _Errors:
    sound = batch.sound(imputes=detector.recipe.missing == "median")
    values = np.zeros(len(batch))
    values[sound] = detector.reconstruction_error(sequences.inputs(batch, detector.recipe, sound))
    return _Errors(sound, values)


def _among(keys: Keys, wanted: Keys, key: Key) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.isin(key.sortable(keys), key.sortable(wanted))
    return found


def _scored_rows(
    batch: ClaimedRows, found: _Errors, kept: npt.NDArray[np.bool_], detector: Detector
) -> ScoredRows:
    kept = kept & np.isfinite(found.values)
    rows = slice(None) if kept.all() else kept
    errors = found.values[rows]
    return ScoredRows(
        change_ids=batch.change_ids[rows],
        keys=batch.keys[rows],
        errors=errors,
        flagged=exceeds(errors, threshold=detector.threshold),
        top_indices=np.empty((0, 0), dtype=np.int64),
        top_contributions=np.empty((0, 0), dtype=np.float32),
        top_values=np.empty((0, 0)),
    )
