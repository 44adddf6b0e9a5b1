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


def make_for(runtime: Runtime, source: Source, rows: FeatureRows) -> None:
    """Make the partitions that many of these rows belong in. Never raises for what PostgreSQL refuses."""
    definition = source.definition
    if definition.score_partitions is None or len(rows) < score_partitions.WORTH_A_PARTITION:
        return
    found = score_partitions.periods(definition, rows.keys)
    wanted = {day for day, n_rows in found.items() if n_rows >= score_partitions.WORTH_A_PARTITION}
    which = (runtime.engine.url, source.id)
    until, known = _known.get(which, (0.0, set()))
    if wanted <= known and time.monotonic() < until:
        return
    try:
        known = _make(runtime, source, wanted)
    except (SQLAlchemyError, psycopg.Error) as error:
        log.info("no_score_partition", source=source.name, error=first_line(error))
    _known[which] = time.monotonic() + _KNOWN_FOR_SECONDS, known | wanted


def _make(runtime: Runtime, source: Source, wanted: set[date]) -> set[date]:
    with runtime.engine.begin() as connection:
        known = {partition.first for partition in score_partitions.listed(connection, source.definition)}
    for first in sorted(wanted - known)[: max(0, score_partitions.MOST_PARTITIONS - len(known))]:
        with runtime.engine.begin() as connection:
            score_partitions.make(connection, source.definition, first)
    return known
