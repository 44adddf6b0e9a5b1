"""What the trigger costs the writer: the same inserts into the same table, with the trigger and without."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.ground import DECLARED, FEATURES, Ground, copy_in, insert_row, median, seconds_of
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.detector import recipe_named
from pgoutlier.worker.sources import attaching

TABLE = "written"


def measure(ground: Ground, *, n_rounds: int, n_single: int) -> tuple[float, float]:
    """(bulk, single): medians of time with the trigger over time without, pair by pair."""
    ground.connection.execute(
        f"CREATE TABLE {TABLE} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {DECLARED})"
    )
    request = AttachRequest(relation=TABLE, key="id", features=",".join(FEATURES))
    attaching.attach(ground.runtime, request, recipe_named("default"))
    bulk = [_pair(number, lambda on: _bulk(ground, on)) for number in range(n_rounds)]
    _reset(ground, with_trigger=True)
    # Many short pairs: what else the disk does hits both sides alike.
    n_pairs = 10 * n_rounds
    single = [_pair(number, lambda on: _single(ground, on, n_single // n_pairs)) for number in range(n_pairs)]
    attaching.detach(ground.runtime, TABLE)
    ground.connection.execute(f"DROP TABLE {TABLE}")
    return median(bulk), median(single)


def _pair(number: int, seconds: Callable[[bool], float]) -> float:
    """Time with the trigger over time without; the order changes, so that neither side is always the second."""
    first = number % 2 == 0
    times = {on: seconds(on) for on in (first, not first)}
    return times[True] / times[False]


def _reset(ground: Ground, with_trigger: bool) -> None:
    ground.connection.execute(f"TRUNCATE {TABLE}")
    ground.connection.execute(f"TRUNCATE outlier.queue_{TABLE}")
    _switch(ground, with_trigger)
    ground.connection.execute("CHECKPOINT")


def _switch(ground: Ground, with_trigger: bool) -> None:
    ground.connection.execute(f"ALTER TABLE {TABLE} {'ENABLE' if with_trigger else 'DISABLE'} TRIGGER USER")


def _bulk(ground: Ground, with_trigger: bool) -> float:
    """One COPY of all rows."""
    _reset(ground, with_trigger)
    return seconds_of(lambda: copy_in(ground.connection, TABLE, ground.copy_body))


def _single(ground: Ground, with_trigger: bool, n_single: int) -> float:
    """n_single inserts of one row, each its own transaction, each on disk before the next."""
    _switch(ground, with_trigger)
    statement = insert_row(TABLE)
    values = ground.rows[:n_single].tolist()

    def insert() -> None:
        for row in values:
            ground.connection.execute(statement, row)

    return seconds_of(insert)
