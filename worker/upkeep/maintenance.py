"""Keeping the books straight: sweep, quarantine retry, prune. Every one of them may run at any time, twice too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg
import structlog
from sqlalchemy.exc import DBAPIError

from pgoutlier.db.errors import PgoutlierError, first_line
from pgoutlier.db.notices import notices
from pgoutlier.db.scoring import quarantine
from pgoutlier.db.scoring.quarantine import Quarantined
from pgoutlier.db.source import typed_keys
from pgoutlier.db.source.definition import Source
from pgoutlier.db.source.typed_keys import Word
from pgoutlier.db.sources import sources
from pgoutlier.db.sql import locks
from pgoutlier.db.upkeep import pruning, sweeping, turns
from pgoutlier.db.upkeep.pruning import Prunable
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.upkeep import looking, partitions
from pgoutlier.worker.upkeep.looking import Looked, Task
from pgoutlier.worker.versions import versions

log = structlog.get_logger()


def sweep(
    runtime: Runtime,
    source_name: str,
    *,
    whole: bool = False,
    patient: bool = True,
    on_progress: Callable[[int, int], None] = lambda n_seen, n_all: None,
) -> int:
    """Queue the rows that have neither score nor queue entry: what is new since the last look, and of all rows those
    whose turn it is. Returns how many; none where another sweep of the source is under way.

    whole: look at all rows at once. patient: wait for whoever has the table locked, and not for turns.PATIENCE at most,
    after which psycopg's LockNotAvailable is raised. on_progress: is told how many were looked at, of about how many.
    Rows from before attach count once a backfill has been through them. Raises SourceError if there is no such source.
    """
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        if not patient:
            turns.wait_shortly(connection)
        if not whole and not locks.try_hold(connection, turns.SWEEP, source.id):
            return 0
        # Before anything is looked at: what comes meanwhile is new to the next look.
        newest = sweeping.newest(connection, source.definition)
    task = Task(
        turns.SWEEP,
        sweeping.keys_of(source.definition),
        lambda connection, stretch: sweeping.work(connection, source, stretch),
    )
    looked = looking.look(runtime, source, task, whole=whole, patient=patient, on_progress=on_progress)
    new = Looked(0) if looked.whole or looked.busy else _sweep_new(runtime, source, patient=patient)
    if not (looked.busy or new.busy):
        with runtime.engine.begin() as connection:
            sweeping.end_look(connection, source, newest)
    n_found = looked.n_found + new.n_found
    if n_found:
        log.info("rows_swept_up", source=source_name, n_rows=n_found)
    return n_found


def _sweep_new(runtime: Runtime, source: Source, *, patient: bool) -> Looked:
    """Queue what was missed of the rows that are new since the last look."""
    n_found = 0
    with runtime.engine.begin() as connection:
        since = turns.place(connection, source.id, turns.SWEEP).seen_to
    while since is not None:
        with runtime.engine.begin() as connection:
            if not patient:
                turns.wait_shortly(connection)
            if not locks.try_hold(connection, turns.SWEEP, source.id):
                return Looked(n_found, busy=True)
            n_here, since = sweeping.enter_new(connection, source, since)
        n_found += n_here
    return Looked(n_found)


def sweep_all(runtime: Runtime) -> dict[str, int]:
    """Sweep every source; rows found, by source. One that cannot be swept does not keep the others from it.

    Small ones first, many at once where none of their rows was missed; then those that were swept longest ago.
    """
    with runtime.engine.begin() as connection:
        groups = sweeping.small(connection, sources.every(connection))
    settled = set[int]().union(*(_settled(runtime, group) for group in groups))
    done = {source.name: 0 for group in groups for source in group if source.id in settled}
    with runtime.engine.begin() as connection:
        left = [name for name in turns.longest_ago_first(connection, sweep=True) if name not in done]
    return done | _of_each(runtime, "sweep", left, lambda name: sweep(runtime, name, patient=False))


def _settled(runtime: Runtime, group: Sequence[Source]) -> set[int]:
    """Ids of those of a group of which every row has a score. The others have to be swept."""
    try:
        with runtime.engine.begin() as connection:
            return sweeping.settled(connection, group)
    except (DBAPIError, psycopg.Error):
        # One of them is detached, locked or not to be read: the others are looked at without it.
        if len(group) == 1:
            return set()
        half = len(group) // 2
        return _settled(runtime, group[:half]) | _settled(runtime, group[half:])


def retry_quarantine(runtime: Runtime, source_name: str, words: Sequence[Word] | None) -> int:
    """Queue quarantined rows again, all or those of these keys. Returns how many.

    Raises SourceError if there is no such source, or one of them is no key of its.
    """
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        keys = None
        if words is not None:
            definition = source.definition
            keys = [typed_keys.read(definition, text) for text in typed_keys.together(definition, words)]
        n_queued = quarantine.retry(connection, source, keys)
        if n_queued:
            sources.record(connection, source_name, "retry_quarantine", f"{n_queued} rows")
    if n_queued:
        log.info("quarantine_retried", source=source_name, n_rows=n_queued)
    return n_queued


def quarantined(runtime: Runtime, source_name: str, *, limit: int) -> list[Quarantined]:
    """Rows that could not be scored, the newest entries first. Raises SourceError if there is no such source."""
    with runtime.engine.begin() as connection:
        return quarantine.entries(connection, sources.find(connection, source_name).id, limit=limit)


def prune_all(runtime: Runtime) -> dict[str, int]:
    """Remove what belongs to rows that are gone or older than scores are kept, partitions of scores that have come to
    their end, old training runs and versions; things removed, by source."""
    with runtime.engine.begin() as connection:
        names = turns.longest_ago_first(connection, sweep=False)
    return _of_each(runtime, "prune", names, lambda name: _prune(runtime, name))


def _prune(runtime: Runtime, source_name: str) -> int:
    settings = runtime.settings
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        what = pruning.prunable(connection, source, keep_history_days=settings.keep_history_days)
    # What goes with a partition need not be deleted.
    n_removed = partitions.keep(runtime, source)
    n_removed += sum(_prune_in_turn(runtime, source, rows) for rows in what)
    with runtime.engine.begin() as connection:
        n_removed += pruning.prune_books(
            connection,
            source,
            keep_training_runs=settings.keep_training_runs,
            keep_drift_reports=settings.keep_drift_reports,
            keep_jobs=settings.keep_jobs,
        )
        n_removed += notices.prune(
            connection,
            source_name,
            keep_seconds=settings.keep_notices_seconds,
            keep_undelivered_seconds=settings.keep_undelivered_seconds,
        )
    n_removed += len(versions.prune(runtime, source_name))
    if n_removed:
        log.info("pruned", source=source_name, n_removed=n_removed)
    return n_removed


def _prune_in_turn(runtime: Runtime, source: Source, rows: Prunable) -> int:
    """Remove what is to go of the rows whose turn it is. Returns how many."""
    task = Task(
        rows.task,
        rows.keys,
        lambda connection, stretch: pruning.remove(connection, source, rows, stretch),
        removes=True,
    )
    n_removed = looking.look(runtime, source, task, patient=False).n_found
    with runtime.engine.begin() as connection:
        turns.end_look(connection, source.id, rows.task)
    return n_removed


def _of_each(runtime: Runtime, what: str, names: Sequence[str], work: Callable[[str], int]) -> dict[str, int]:
    done: dict[str, int] = {}
    for name in names:
        if runtime.stopping.is_set():
            return done
        try:
            done[name] = work(name)
        except (PgoutlierError, DBAPIError, psycopg.Error) as error:
            log.error("maintenance_failed", task=what, source=name, error=first_line(error))
    return done
