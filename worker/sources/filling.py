"""Scores of before attach --write-columns, copied into the user's table."""

from __future__ import annotations

import structlog

from pgoutlier.db.scoring import write_back
from pgoutlier.db.sources import sources
from pgoutlier.worker.runtime import Runtime

log = structlog.get_logger()

_SCORES_A_TRANSACTION = 10_000


def fill(runtime: Runtime, source_name: str) -> int:
    """Copy what has not been copied yet, a transaction for every few thousand. Returns how many scores were looked at.

    What is stopped halfway begins anew the next time, and writes only rows that differ. Raises SourceError if there
    is no such source.
    """
    n_copied, last = 0, None
    while True:
        with runtime.engine.begin() as connection:
            source = sources.at_work(connection, source_name)
            if not source.definition.write_columns or source.columns_filled_at is not None:
                return n_copied
            n, last = write_back.fill(connection, source, after=last, at_most=_SCORES_A_TRANSACTION)
            n_copied += n
            if last is None:
                sources.set_filled(connection, source.id)
                log.info("columns_filled", source=source_name, n_rows=n_copied)
                return n_copied
