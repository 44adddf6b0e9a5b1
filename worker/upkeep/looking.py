"""One look of a task of upkeep at a source: the stretches of keys whose turn it is, each in its own transaction."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from pgoutlier.db.source.definition import Source
from pgoutlier.db.sql import locks
from pgoutlier.db.sql.key_ranges import Stretch
from pgoutlier.db.upkeep import turns
from pgoutlier.db.upkeep.turns import Keys
from pgoutlier.worker.runtime import Runtime


@dataclass(frozen=True)
class Task:
    """What is done with each stretch of the keys. name: in outlier.upkeep_places. work: returns how many rows it found.

    removes: found rows are removed, so that they are no keys to look at the next time.
    """

    name: str
    keys: Keys
    work: Callable[[Connection, Stretch], int]
    removes: bool = False


@dataclass(frozen=True)
class Looked:
    """n_found: rows that the work found. whole: it went through all keys. busy: it did not; somebody else is at it."""

    n_found: int
    whole: bool = False
    busy: bool = False


def look(
    runtime: Runtime,
    source: Source,
    task: Task,
    *,
    whole: bool = False,
    patient: bool = True,
    on_progress: Callable[[int, int], None] = lambda n_seen, n_all: None,
) -> Looked:
    """Go on where the last look ended, for as many keys as are due, or for PGOUTLIER_DRAIN_BUDGET_SECONDS at most.

    whole: go through all keys instead, from the first on. patient: wait for a lock that somebody has. on_progress: is
    told how many were looked at, of about how many there are.
    """
    with runtime.engine.begin() as connection:
        standing = turns.place(connection, source.id, task.name)
        n_all = turns.n_rows(connection, task.keys.relation)
        n_due = turns.n_due(
            connection, task.keys, standing, turn_seconds=runtime.settings.upkeep_turn_seconds
        )
    after = began_after = None if whole else standing.place
    ends_at = time.monotonic() + runtime.settings.drain_budget_seconds
    n_found = n_seen = 0
    while True:
        with runtime.engine.begin() as connection:
            # One at a time. Who is not to go through all keys does not wait: the next look sees what this one did.
            if not patient:
                turns.wait_shortly(connection)
            if whole:
                locks.hold(connection, task.name, source.id)
            elif not locks.try_hold(connection, task.name, source.id):
                return Looked(n_found, busy=True)
            stretch = turns.next_stretch(connection, task.keys, after, n_keys=turns.KEYS_PER_STRETCH)
            n_here = task.work(connection, stretch)
            turns.go_on(connection, source.id, task.name, stretch)
        n_found += n_here
        n_seen += turns.KEYS_PER_STRETCH - (n_here if task.removes else 0)
        after = stretch.up_to
        if after is None and began_after is None:
            return Looked(n_found, whole=True)
        if after is None:
            began_after = None
        on_progress(n_seen, max(n_all, n_seen))
        if whole:
            continue
        if n_seen >= n_due or time.monotonic() > ends_at or runtime.stopping.is_set():
            return Looked(n_found)
