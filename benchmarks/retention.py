"""What scores in partitions cost and save: drains into partitions and into one table; old scores that go, row by row
and as a partition.

python -m benchmarks.retention --rows 300000 --scores 2000000

The ratio of the drains is the median of a round's. Old scores are of one month, more than a year ago, of a table with
as many rows; seconds and WAL are of all of them, and of a transaction that deletes 50,000.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

from benchmarks.ground import COLUMNS, DECLARED, FEATURES, Ground, ground, median, seconds_of
from pgoutlier.db.scoring.queue import KEYS_PER_QUEUE_ROW
from pgoutlier.db.sources import sources
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.db.upkeep import turns
from pgoutlier.db.versions import aliases
from pgoutlier.detector import recipe_named
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import TrainingWindow
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.sources import attaching
from pgoutlier.worker.upkeep import maintenance, partitions

ONE = "transactions"
PERIODS = {"in_one": None, "by_month": "month"}
_OF_A_YEAR = f"timestamptz '2026-01-01' + (id * 360 / (SELECT max(id) FROM {ONE})) * interval '1 day'"


def attach(base: Ground, name: str, *, keep_scores: str | None = None) -> None:
    request = AttachRequest(
        relation=name,
        key="id,at",
        features=",".join(FEATURES),
        partition_scores=PERIODS[name],
        keep_scores=keep_scores,
    )
    attaching.attach(base.runtime, request, recipe_named("default"), old_rows="swept")


def make(base: Ground, name: str) -> None:
    """A table of the same rows with a time in its key, attached, with the same champion."""
    base.connection.execute(
        f"CREATE TABLE {name} (id bigint, at timestamptz, {DECLARED}, PRIMARY KEY (id, at))"
    )
    base.connection.execute(f"INSERT INTO {name} SELECT id, {_OF_A_YEAR}, {COLUMNS} FROM {ONE} ORDER BY id")
    base.connection.execute(f"CREATE INDEX ON {name} (at)")
    base.connection.execute(f"VACUUM ANALYZE {name}")
    attach(base, name)
    with base.runtime.engine.begin() as connection:
        first, source = sources.find(connection, ONE), sources.find(connection, name)
        champion = aliases.both(connection, first.id).champion
        if champion is None:
            raise RuntimeError("the ground has no champion")
        detector = base.runtime.cache.get(connection, first, champion)
        window = TrainingWindow(30_000, None, None)
        number = registry.register(
            connection, source, detector, window=window, metrics={}, seal=base.runtime.seal
        )
        registry.promote(connection, source, number, reason="bench", seal=base.runtime.seal)


def drain_seconds(base: Ground, name: str) -> float:
    """From a full queue to an empty one."""
    base.connection.execute(f"TRUNCATE outlier.scores_{name}, outlier.queue_{name}")
    base.connection.execute(
        f"INSERT INTO outlier.queue_{name} (keys_1, keys_2, n_keys) SELECT array_agg(id ORDER BY id),"
        f" array_agg(at ORDER BY id), count(*) FROM {name}"
        f" GROUP BY (id - 1) / {KEYS_PER_QUEUE_ROW} ORDER BY (id - 1) / {KEYS_PER_QUEUE_ROW}"
    )
    base.connection.execute(f"VACUUM ANALYZE outlier.queue_{name}")
    base.connection.execute("CHECKPOINT")
    results: list[draining.DrainResult] = []
    seconds = seconds_of(lambda: results.append(draining.drain(base.runtime, name)))
    if results[0].n_scored != len(base.rows):
        raise RuntimeError(f"{results[0].n_scored} rows of {name} were scored instead of {len(base.rows)}")
    return seconds


def old_scores(base: Ground, name: str, n_rows: int) -> dict[str, float]:
    """Seconds and megabytes of WAL that it takes until so many scores that are too old have gone."""
    run = base.connection.execute
    run(f"ALTER TABLE {name} DISABLE TRIGGER USER")
    run(
        f"INSERT INTO {name} SELECT 100000000 + i, timestamptz '2025-03-01' + i % 30 * interval '1 day',"
        f" {', '.join('1' * len(FEATURES))} FROM generate_series(1, {n_rows}) i"
    )
    run(f"ALTER TABLE {name} ENABLE TRIGGER USER")
    if PERIODS[name]:
        run(f"SELECT outlier.make_scores_{name}('2025-03-01')")
    run(
        f"INSERT INTO outlier.scores_{name} (key_1, key_2, change_id, reconstruction_error, model_version, flagged)"
        f" SELECT id, at, 1, 1, 1, false FROM {name} WHERE id > 100000000 ORDER BY id"
    )
    run(f"VACUUM ANALYZE {name}")
    run(f"VACUUM ANALYZE outlier.scores_{name}")
    attach(base, name, keep_scores="400d")
    run("CHECKPOINT")
    prune = partial(maintenance.prune_all, base.runtime)
    before, seconds = _wal(base), 0.0
    with base.runtime.engine.begin() as connection:
        source = sources.find(connection, name)
    while _one(base, f"SELECT count(*) FROM outlier.scores_{name} WHERE key_1 > 100000000"):
        work = partial(partitions.keep, base.runtime, source) if PERIODS[name] else prune
        seconds += seconds_of(work)
    megabytes = (_wal(base) - before) / 2**20
    return {
        "seconds": seconds,
        "wal_megabytes": megabytes,
        "wal_megabytes_of_a_transaction": megabytes
        * (1 if PERIODS[name] else turns.KEYS_PER_STRETCH / n_rows),
    }


def _wal(base: Ground) -> int:
    return _one(base, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")


def _one(base: Ground, statement: str) -> int:
    row = base.connection.execute(statement).fetchone()
    return 0 if row is None else int(row[0])


def measure(base: Ground, *, n_rounds: int, n_scores: int) -> dict[str, Any]:
    for name in PERIODS:
        make(base, name)
        drain_seconds(base, name)  # unmeasured, and partitions are made
    rounds = [{name: drain_seconds(base, name) for name in PERIODS} for _ in range(n_rounds)]
    return {
        "drain_by_month_over_in_one": median([seconds["in_one"] / seconds["by_month"] for seconds in rounds]),
        **{name: old_scores(base, name, n_scores) for name in PERIODS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scores", type=int, default=2_000_000)
    arguments = parser.parse_args()
    configure_logs("WARNING")
    with ground(arguments.rows) as base:
        print(json.dumps(measure(base, n_rounds=arguments.rounds, n_scores=arguments.scores), indent=2))


if __name__ == "__main__":
    main()
