"""Keeping the books straight: sweep, quarantine retry, prune. Every one of them may run at any time, twice too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg
import structlog
from sqlalchemy.exc import DBAPIError

from pgoutlier.db.errors import PgoutlierError, first_line
from pgoutlier.db.notices import notices
from pgoutlier.db.scoring import quarantine, queue
from pgoutlier.db.scoring.quarantine import Quarantined
from pgoutlier.db.source import typed_keys
from pgoutlier.db.source.typed_keys import Word
from pgoutlier.db.sources import sources
from pgoutlier.db.upkeep import pruning
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.versions import versions

log = structlog.get_logger()


def sweep(runtime: Runtime, source_name: str) -> int:
    """Queue the rows that have neither score nor queue entry. Returns how many.

    Rows from before attach count once a backfill has been through them. Raises SourceError if there is no such source.
    """
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        n_found = queue.sweep(connection, source)
    if n_found:
        log.info("rows_swept_up", source=source_name, n_rows=n_found)
    return n_found


def sweep_all(runtime: Runtime) -> dict[str, int]:
    """Sweep every source; rows found, by source. One that cannot be swept does not keep the others from it."""
    return _of_each(runtime, "sweep", lambda name: sweep(runtime, name))


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
    """Remove what belongs to rows that are gone, old training runs and versions; things removed, by source."""
    return _of_each(runtime, "prune", lambda name: _prune(runtime, name))


def _prune(runtime: Runtime, source_name: str) -> int:
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        n_removed = pruning.prune(
            connection,
            source,
            keep_training_runs=runtime.settings.keep_training_runs,
            keep_drift_reports=runtime.settings.keep_drift_reports,
            keep_history_days=runtime.settings.keep_history_days,
            keep_jobs=runtime.settings.keep_jobs,
        )
        n_removed += notices.prune(
            connection,
            source_name,
            keep_seconds=runtime.settings.keep_notices_seconds,
            keep_undelivered_seconds=runtime.settings.keep_undelivered_seconds,
        )
    n_removed += len(versions.prune(runtime, source_name))
    if n_removed:
        log.info("pruned", source=source_name, n_removed=n_removed)
    return n_removed


def _of_each(runtime: Runtime, what: str, work: Callable[[str], int]) -> dict[str, int]:
    with runtime.engine.begin() as connection:
        names = [source.name for source in sources.every(connection)]
    done = {}
    for name in names:
        try:
            done[name] = work(name)
        except (PgoutlierError, DBAPIError, psycopg.Error) as error:
            log.error("maintenance_failed", task=what, source=name, error=first_line(error))
    return done
