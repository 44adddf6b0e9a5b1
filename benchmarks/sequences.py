"""What scoring with the rows before costs: the same rows drained by a plain champion and by one with windows.

python -m benchmarks.sequences --rows 200000
"""

from __future__ import annotations

import argparse
import json

from benchmarks.ground import COLUMNS, FEATURES, Ground, ground, median, seconds_of
from pgoutlier import detector
from pgoutlier.db.sources import sources
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import TrainingWindow
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.sources import attaching
from pgoutlier.worker.upkeep import maintenance

RECIPES = ("default", "iforest-lstm-32-16")


def prepare(base: Ground, *, n_entities: int) -> dict[str, int]:
    """A table of the rows in order of time, of entities that take turns; versions of both recipes, by recipe."""
    base.connection.execute(
        f"CREATE TABLE readings AS SELECT id, id % {n_entities} AS machine,"
        f" timestamptz '2026-01-01' + id * interval '1 s' AS taken_at, {COLUMNS} FROM transactions"
    )
    base.connection.execute("ALTER TABLE readings ADD PRIMARY KEY (id)")
    base.connection.execute("CREATE INDEX ON readings (machine, taken_at, id)")
    base.connection.execute("VACUUM ANALYZE readings")
    request = AttachRequest(
        relation="readings", key="id", features=",".join(FEATURES), time="taken_at", entity="machine"
    )
    versions = {}
    source = attaching.attach(
        base.runtime, request, detector.recipe_named("default"), old_rows="swept"
    ).source
    for name in RECIPES:
        fitted = detector.fit(detector.recipe_named(name), base.rows[:20_000], FEATURES)
        with base.runtime.engine.begin() as connection:
            versions[name] = registry.register(
                connection,
                source,
                fitted.detector,
                window=TrainingWindow(20_000, None, None),
                metrics=fitted.metrics,
                seal=base.runtime.seal,
            )
    return versions


def drain_seconds(base: Ground, version: int) -> float:
    """From every row queued and none scored to an empty queue."""
    with base.runtime.engine.begin() as connection:
        source = sources.find(connection, "readings")
        registry.promote(connection, source, version, reason="bench", seal=base.runtime.seal)
    base.connection.execute("TRUNCATE outlier.scores_readings, outlier.queue_readings")
    maintenance.sweep(base.runtime, "readings", whole=True)
    base.connection.execute("VACUUM ANALYZE outlier.queue_readings")
    base.connection.execute("CHECKPOINT")
    return seconds_of(lambda: draining.drain(base.runtime, "readings"))


def late_seconds(base: Ground) -> float:
    """Median from the commit of one late row to its score and those of the rows behind it, one worker."""
    taken = []
    for number in range(1, 22):
        key = -number
        base.connection.execute(
            f"INSERT INTO readings SELECT %s, machine, taken_at + interval '1 ms', {COLUMNS} FROM readings"
            " WHERE id = %s",
            (key, 1_000 * number),
        )
        taken.append(seconds_of(lambda: draining.drain(base.runtime, "readings")))
    return median(taken)


def measure(base: Ground, *, n_entities: int, n_rounds: int) -> dict[str, float]:
    versions = prepare(base, n_entities=n_entities)
    n_rows = len(base.rows)
    seconds: dict[str, list[float]] = {name: [] for name in RECIPES}
    for number in range(n_rounds + 1):
        for name in RECIPES:
            taken = drain_seconds(base, versions[name])
            if number:  # the first one compiles and fills caches
                seconds[name].append(taken)
    plain, windowed = (seconds[name] for name in RECIPES)
    return {
        "plain_rows_per_second": round(n_rows / median(plain)),
        "sequence_rows_per_second": round(n_rows / median(windowed)),
        "sequence_over_plain": round(median([p / w for p, w in zip(plain, windowed, strict=True)]), 3),
        "late_row_ms": round(1_000 * late_seconds(base), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--entities", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    configure_logs("console", level=40)
    with ground(given.rows) as base:
        figures = measure(base, n_entities=given.entities, n_rounds=given.rounds)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
