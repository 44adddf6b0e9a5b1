"""What becomes of a batch that raised: nothing is lost, only rows that are to blame end in quarantine."""

from __future__ import annotations

import psycopg
import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from pgoutlier.db.errors import KeysTooLong, PgoutlierError, TableReplaced, first_line
from pgoutlier.db.scoring import quarantine, queue
from pgoutlier.db.scoring.quarantine import Entry
from pgoutlier.db.scoring.queue import Claim
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import sources
from pgoutlier.db.sql.statements import blames_rows, lost_connection, sqlstate
from pgoutlier.models_store.artifact import ArtifactRefused
from pgoutlier.worker.runtime import Runtime

log = structlog.get_logger()

_LONGEST_DELAY_SECONDS = 300.0
# A problem of the set-up (a dropped column, a lost grant, a full disk) is looked at again after this time.
_SETUP_DELAY_SECONDS = 5.0
# Lost connection, shutdown and crash, a lock that was not to be had: simply try again later.
_PASSING = ("08", "57P", "55P03")
# Deadlock and serialisation failure: try again after a short pause.
_LOST_RACE = "40"
_RACE_PAUSE_SECONDS = 0.05
# A statement timeout may be due to the size of the batch, so the batch is made smaller.
_TOO_SLOW = "57014"


def handle(runtime: Runtime, source: Source, claim: Claim, error: Exception) -> bool:
    """Record a failed batch. Returns whether the drain should go on with the next one."""
    state = sqlstate(error) or ""
    if is_passing(error):
        log.warning("batch_interrupted", source=source.name, sqlstate=state, error=sentence(error))
        if not state.startswith(_LOST_RACE):
            return False
        runtime.stopping.wait(_RACE_PAUSE_SECONDS)
        return True
    try:
        with runtime.engine.begin() as connection:
            now = next((s for s in sources.every(connection) if s.id == source.id), None)
            if now is None:
                log.info("source_detached_meanwhile", source=source.name)
                return False
            if now.table_problem is not None:  # whatever the error is, no row is to blame
                _stand_still(connection, now, claim, TableReplaced(now.table_problem))
                return False
            if isinstance(error, TableReplaced):  # by one that was adopted meanwhile
                return False
            if not claim or _is_setup_problem(error, state):
                _stand_still(connection, source, claim, error)
                return False
            _blame_rows(connection, runtime, source, claim, error)
    except (SQLAlchemyError, psycopg.Error) as second:
        log.warning("failure_not_recorded", source=source.name, error=sentence(second))
        return False
    return True


def retry_delay(runtime: Runtime, earlier_attempts: int) -> float:
    """Seconds until what has failed once more than so often is tried again."""
    return min(runtime.settings.retry_base_seconds * 2.0**earlier_attempts, _LONGEST_DELAY_SECONDS)


def is_last_whole_try(runtime: Runtime, claim: Claim) -> bool:
    """Whether a batch, or the range of a job, is tried as a whole for the last time, or is part of one that was."""
    return claim.attempts + 1 >= runtime.settings.max_attempts


def is_passing(error: Exception) -> bool:
    """Whether it is worth nothing more than another try: a lost connection, a lock, a lost race."""
    return lost_connection(error) or (sqlstate(error) or "").startswith((*_PASSING, _LOST_RACE))


def rows_to_blame(error: Exception) -> bool:
    """Whether it may be due to the values of rows, so that smaller batches can tell which."""
    return not _is_setup_problem(error, sqlstate(error) or "")


def _is_setup_problem(error: Exception, state: str) -> bool:
    """Whether no row is to blame: a model, a grant, a column, a server, or this process itself."""
    if state:
        return state != _TOO_SLOW and not blames_rows(state)
    ours = (ArtifactRefused, PgoutlierError, SQLAlchemyError, ImportError, OSError, MemoryError)
    return isinstance(error, ours)


def _stand_still(connection: Connection, source: Source, claim: Claim, error: Exception) -> None:
    if source.last_problem != sentence(error):
        log.error("scoring_stands_still", source=source.name, error=sentence(error), sqlstate=sqlstate(error))
    sources.set_problem(connection, source.id, sentence(error))
    if claim:
        queue.postpone(
            connection,
            source.definition,
            claim.queue_ids,
            delay_seconds=_SETUP_DELAY_SECONDS,
            error=sentence(error),
            count_attempt=False,
        )


def _blame_rows(
    connection: Connection, runtime: Runtime, source: Source, claim: Claim, error: Exception
) -> None:
    settings = runtime.settings
    text = sentence(error)
    attempts = claim.attempts + 1
    log.warning("batch_failed", source=source.name, n_keys=claim.n_keys, attempt=attempts, error=text)
    if claim.n_keys > 1 and (attempts >= settings.max_attempts or isinstance(error, KeysTooLong)):
        queue.bisect(connection, source.definition, claim.queue_ids, error=text)
    elif attempts < settings.max_attempts or not _quarantined(connection, source, claim, text):
        queue.postpone(
            connection,
            source.definition,
            claim.queue_ids,
            delay_seconds=retry_delay(runtime, claim.attempts),
            error=text,
            count_attempt=True,
        )


def _quarantined(connection: Connection, source: Source, claim: Claim, text: str) -> bool:
    """Put a row into quarantine. False if that cannot take it either, such as a key too long for its index."""
    try:
        with connection.begin_nested():
            single = queue.take_single(connection, source.definition, claim.queue_ids[0])
            if single:
                change_id = single[1] if claim.change_id is None else claim.change_id
                entry = Entry(key=single[0], change_id=change_id, reason="error", detail=text)
                quarantine.take_places(connection, source.definition, [entry])
                quarantine.put(connection, source, [entry])
    except psycopg.Error as refused:
        if not rows_to_blame(refused):
            raise
        log.warning("row_not_quarantined", source=source.name, error=sentence(refused))
        return False
    return True


def note_problem(runtime: Runtime, source: Source, problem: str | None) -> None:
    """Record why scoring stands still, or None that it goes on, in a transaction of its own."""
    with runtime.engine.begin() as connection:
        sources.set_problem(connection, source.id, problem)


def note_problem_in(connection: Connection, source: Source, problem: str) -> None:
    """The same in the caller's transaction, unless it is recorded already."""
    if source.last_problem != problem:
        sources.set_problem(connection, source.id, problem)


def sentence(error: BaseException) -> str:
    """What went wrong and what kind of error it was, short enough for a column."""
    if isinstance(error, TableReplaced):  # which says what to do
        return error.sentence[:500]
    return f"{type(getattr(error, 'orig', None) or error).__name__}: {first_line(error)}"[:500]
