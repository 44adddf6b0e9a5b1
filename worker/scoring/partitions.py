"""Partitions for the scores that a batch is about to write, where there are none yet: of a backfill, say.

They are made in a transaction of their own, so that no lock is held while rows are scored. Where one cannot be made the
scores go into the default partition.
"""

from __future__ import annotations

import time
from datetime import date

import psycopg
import structlog
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from pgoutlier.db.errors import first_line
from pgoutlier.db.scoring import score_partitions
from pgoutlier.db.scoring.rows import FeatureRows
from pgoutlier.db.source.definition import Source
from pgoutlier.worker.runtime import Runtime

log = structlog.get_logger()

# Upkeep drops some; and one that could not be made is tried for again.
_KNOWN_FOR_SECONDS = 60.0
# Until when, by source, which were there or could not be made.
_known: dict[tuple[URL, int], tuple[float, set[date]]] = {}


class PartitionsWanted(Exception):
    """What the transaction that raised it has read keeps partitions from being made beside it. days: see `make`."""

    def __init__(self, source: Source, days: set[date]) -> None:
        super().__init__(f"partitions of the scores of {source.name}")
        self.source = source
        self.days = days


def wanted(runtime: Runtime, source: Source, rows: FeatureRows) -> set[date]:
    """First days of the partitions that many of these rows belong in and that may not be there; mostly none."""
    definition = source.definition
    if definition.score_partitions is None or len(rows) < score_partitions.WORTH_A_PARTITION:
        return set()
    found = score_partitions.periods(definition, rows.keys)
    until, known = _known.get((runtime.engine.url, source.id), (0.0, set()))
    days = {day for day, n_rows in found.items() if n_rows >= score_partitions.WORTH_A_PARTITION}
    return days - known if time.monotonic() < until else days


def make(runtime: Runtime, source: Source, days: set[date]) -> None:
    """Make the partitions that begin with these days, where they are not there.

    Never raises for what PostgreSQL refuses: then these are not wanted for a while.
    """
    if not days:
        return
    which = (runtime.engine.url, source.id)
    until, known = _known.get(which, (0.0, set()))
    if time.monotonic() >= until:
        until, known = time.monotonic() + _KNOWN_FOR_SECONDS, set()
    try:
        with runtime.engine.begin() as connection:
            known |= {partition.first for partition in score_partitions.listed(connection, source.definition)}
        n_free = max(0, score_partitions.MOST_PARTITIONS - len(known))
        for first in sorted(days - known)[:n_free]:
            with runtime.engine.begin() as connection:
                score_partitions.make(connection, source.definition, first)
    except (SQLAlchemyError, psycopg.Error) as error:
        log.info("no_score_partition", source=source.name, error=first_line(error))
    _known[which] = until, known | days
