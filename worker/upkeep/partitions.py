"""Upkeep of scores in partitions: new ones are made ahead, those that have come to their end are dropped.

Each is made or dropped in a transaction of its own, and waits a short while for a lock, some times over. What is not to
be had is left to the next look: a score whose partition is not there lies in the default one.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from psycopg import errors
from sqlalchemy import Connection

from pgoutlier.db.errors import first_line
from pgoutlier.db.scoring import score_partitions
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sql.statements import run
from pgoutlier.db.upkeep import score_partitions as ended_partitions
from pgoutlier.worker.runtime import Runtime

log = structlog.get_logger()

_PAUSES_SECONDS = (0.1, 0.4, 1.6)
_IN_THE_WAY = (errors.LockNotAvailable, errors.DeadlockDetected)


def keep(runtime: Runtime, source: Source) -> int:
    """Make what is to come and drop what has ended, of scores in partitions. Returns how many were dropped."""
    if source.definition.score_partitions is None:
        return 0
    try:
        return _keep(runtime, source)
    except errors.InsufficientPrivilege as error:
        # Of a role that had its rights before the source was attached: what is left to delete is deleted all the same.
        log.warning("score_partitions_not_kept", source=source.name, error=first_line(error))
        return 0


def _keep(runtime: Runtime, source: Source) -> int:
    definition = source.definition
    with runtime.engine.begin() as connection:
        ended = ended_partitions.ended(connection, source)
    dropped = [
        partition.first
        for partition in ended
        if _in_turn(runtime, source, lambda c, p=partition: ended_partitions.drop(c, source, p))  # type: ignore[misc]
    ]
    if dropped:
        log.info("score_partitions_dropped", source=source.name, first_days=[f"{day}" for day in dropped])
    _in_turn(runtime, source, lambda connection: bool(run(connection, score_partitions.ahead(definition))))
    with runtime.engine.begin() as connection:
        outside = score_partitions.outside(connection, definition)
    for first in outside:
        _in_turn(runtime, source, lambda c, day=first: score_partitions.make(c, definition, day))  # type: ignore[misc]
    return len(dropped)


def _in_turn(runtime: Runtime, source: Source, work: Callable[[Connection], bool]) -> bool:
    """Do it in a transaction, again after a pause while somebody is in the way. False: it was not to be done."""
    for pause in (*_PAUSES_SECONDS, None):
        try:
            with runtime.engine.begin() as connection:
                return work(connection)
        except (*_IN_THE_WAY, errors.QueryCanceled) as error:
            # What took long under a lock would do so again.
            if pause is None or not isinstance(error, _IN_THE_WAY) or runtime.stopping.wait(pause):
                log.info("score_partitions_in_use", source=source.name, error=first_line(error))
                return False
    return False
