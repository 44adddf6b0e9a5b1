"""What a key of two columns costs: the same rows drained under a key of one column, of two, and of two in partitions.

python -m benchmarks.keys --rows 300000

Rounds of drains one after the other; the ratios are medians of a round's, of rows per second over those of one column.
"""

from __future__ import annotations

import argparse
import json

from benchmarks.ground import COLUMNS, DECLARED, FEATURES, Ground, ground, median, seconds_of
from pgoutlier.db.scoring.queue import KEYS_PER_QUEUE_ROW
from pgoutlier.db.sources import sources
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.db.versions import aliases
from pgoutlier.detector import recipe_named
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import TrainingWindow
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.sources import attaching

ONE = "transactions"
N_MONTHS = 12
# The tables beside the one of the ground: the columns of the key, what they are, and what of a row of that makes them.
KEYS = {
    "two_columns": ("tenant, id", "tenant integer, id bigint", "(id % 50)::integer, id"),
    "in_months": (
        "id, at",
        "id bigint, at timestamptz",
        f"id, timestamptz '2026-01-01' + (id * {N_MONTHS * 30} / (SELECT max(id) FROM {ONE})) * interval '1 day'",
    ),
}


def make(base: Ground, name: str) -> None:
    """A table of the same rows under that key, attached, with the same champion."""
    key, declared, made_of = KEYS[name]
    partitioned = " PARTITION BY RANGE (at)" if name == "in_months" else ""
    base.connection.execute(f"CREATE TABLE {name} ({declared}, {DECLARED}, PRIMARY KEY ({key})){partitioned}")
    for month in range(N_MONTHS + 1) if partitioned else ():
        base.connection.execute(
            f"CREATE TABLE {name}_{month} PARTITION OF {name} FOR VALUES FROM ('{_day(month)}')"
            f" TO ('{_day(month + 1)}')"
        )
    base.connection.execute(f"INSERT INTO {name} SELECT {made_of}, {COLUMNS} FROM {ONE} ORDER BY id")
    base.connection.execute(f"VACUUM ANALYZE {name}")
    request = AttachRequest(relation=name, key=key.replace(" ", ""), features=",".join(FEATURES))
    source = attaching.attach(base.runtime, request, recipe_named("default"), old_rows="swept").source
    with base.runtime.engine.begin() as connection:
        first = sources.find(connection, ONE)
        champion = aliases.both(connection, first.id).champion
        if champion is None:
            raise RuntimeError("the ground has no champion")
        detector = base.runtime.cache.get(connection, first, champion)
        number = registry.register(
            connection,
            source,
            detector,
            window=TrainingWindow(30_000, None, None),
            metrics={},
            seal=base.runtime.seal,
        )
        registry.promote(connection, source, number, reason="bench", seal=base.runtime.seal)


def _day(month: int) -> str:
    return f"{2026 + month // 12}-{month % 12 + 1:02}-01"


def drain_seconds(base: Ground, name: str) -> float:
    """From a full queue to an empty one."""
    columns = "id" if name == ONE else KEYS[name][0]
    arrays = ["keys"] if name == ONE else [f"keys_{n}" for n, _ in enumerate(columns.split(","), start=1)]
    gathered = ", ".join(f"array_agg({column} ORDER BY id)" for column in columns.split(","))
    base.connection.execute(f"TRUNCATE outlier.scores_{name}, outlier.queue_{name}")
    # As triggers leave them: in the order in which the rows came.
    base.connection.execute(
        f"INSERT INTO outlier.queue_{name} ({', '.join(arrays)}, n_keys) SELECT {gathered}, count(*) FROM {name}"
        f" GROUP BY (id - 1) / {KEYS_PER_QUEUE_ROW} ORDER BY (id - 1) / {KEYS_PER_QUEUE_ROW}"
    )
    base.connection.execute(f"VACUUM ANALYZE outlier.queue_{name}")
    base.connection.execute("CHECKPOINT")
    results: list[draining.DrainResult] = []
    seconds = seconds_of(lambda: results.append(draining.drain(base.runtime, name)))
    if results[0].n_scored != len(base.rows):
        raise RuntimeError(f"{results[0].n_scored} rows of {name} were scored instead of {len(base.rows)}")
    return seconds


def measure(base: Ground, *, n_rounds: int) -> dict[str, float]:
    """Rows per second over those of a key of one column."""
    for name in KEYS:
        make(base, name)
    for name in (ONE, *KEYS):  # unmeasured
        drain_seconds(base, name)
    rounds = [{name: drain_seconds(base, name) for name in (ONE, *KEYS)} for _ in range(n_rounds)]
    return {f"{name}_over_one": median([seconds[ONE] / seconds[name] for seconds in rounds]) for name in KEYS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    configure_logs("WARNING")
    with ground(arguments.rows) as base:
        print(
            json.dumps(
                {name: round(ratio, 2) for name, ratio in measure(base, n_rounds=arguments.rounds).items()}
            )
        )


if __name__ == "__main__":
    main()
