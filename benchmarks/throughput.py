"""Rows per second of the whole loop, against the floor of moving the bytes alone."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from benchmarks.ground import COLUMNS, Ground, copy_in, median, seconds_of
from pgoutlier.db.scoring import queue
from pgoutlier.db.sql.wire import COPY_HEADER, COPY_TRAILER
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.upkeep import maintenance


@dataclass(frozen=True)
class Throughput:
    """rows/s, and ratios that are medians of pairs measured one after the other."""

    floor: float
    drain: float
    over_floor: float
    drain_two_threads: float
    two_threads_over_floor: float


def fill_queue(ground: Ground, *, at_most: int | None = None) -> None:
    """Every row queued, or about as many as said, and none scored."""
    ground.connection.execute("TRUNCATE outlier.scores_transactions")
    ground.connection.execute("TRUNCATE outlier.queue_transactions")
    maintenance.sweep(ground.runtime, "transactions", whole=True)
    if at_most is not None:
        ground.connection.execute(
            "DELETE FROM outlier.queue_transactions WHERE id NOT IN"
            " (SELECT id FROM outlier.queue_transactions ORDER BY id LIMIT %s)",
            (max(1, at_most // queue.KEYS_PER_QUEUE_ROW),),
        )
    ground.connection.execute("VACUUM ANALYZE outlier.queue_transactions")
    ground.connection.execute("CHECKPOINT")


def floor_seconds(ground: Ground, n_rows: int) -> float:
    """One binary COPY out of keys and features, one COPY in of scores with their primary key; nothing parsed."""
    ground.connection.execute("DROP TABLE IF EXISTS floor_scores")
    ground.connection.execute(
        "CREATE TABLE floor_scores (key bigint PRIMARY KEY, reconstruction_error double precision, flagged boolean)"
    )
    wire = np.zeros(
        n_rows,
        dtype=[
            ("n", ">i2"),
            ("a", ">i4"),
            ("key", ">i8"),
            ("b", ">i4"),
            ("e", ">f8"),
            ("c", ">i4"),
            ("f", "u1"),
        ],
    )
    wire["n"], wire["a"], wire["b"], wire["c"] = 3, 8, 8, 1
    wire["key"] = np.arange(n_rows)
    body = wire.tobytes()
    ground.connection.execute("CHECKPOINT")

    def move() -> None:
        with ground.connection.cursor() as cursor:
            with cursor.copy(
                f"COPY (SELECT id, {COLUMNS} FROM transactions) TO STDOUT (FORMAT binary)"
            ) as out:
                while out.read():
                    pass
            with cursor.copy("COPY floor_scores FROM STDIN (FORMAT binary)") as into:
                for block in (COPY_HEADER, body, COPY_TRAILER):
                    into.write(block)

    return seconds_of(move)


def drain_seconds(ground: Ground, n_rows: int, *, n_threads: int = 1) -> float:
    """The product's own loop, from a full queue to an empty one."""
    fill_queue(ground)
    results: list[draining.DrainResult] = []

    def one() -> None:
        results.append(draining.drain(ground.runtime, "transactions"))

    def drain() -> None:
        threads = [threading.Thread(target=one) for _ in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    seconds = seconds_of(drain)
    scored = sum(result.n_scored for result in results)
    if scored != n_rows:
        raise RuntimeError(f"{scored} rows were scored instead of {n_rows}")
    return seconds


def measure(ground: Ground, *, n_rounds: int) -> Throughput:
    n_rows = len(ground.rows)
    for n_threads in (1, 2):  # unmeasured: compiles, fills caches and pools
        drain_seconds(ground, n_rows, n_threads=n_threads)
    floors, drains, doubles = [], [], []
    for _ in range(n_rounds):
        floors.append(floor_seconds(ground, n_rows))
        drains.append(drain_seconds(ground, n_rows))
        doubles.append(drain_seconds(ground, n_rows, n_threads=2))
    return Throughput(
        floor=n_rows / median(floors),
        drain=n_rows / median(drains),
        over_floor=median([f / d for f, d in zip(floors, drains, strict=True)]),
        drain_two_threads=n_rows / median(doubles),
        two_threads_over_floor=median([f / d for f, d in zip(floors, doubles, strict=True)]),
    )


def add_rows(ground: Ground, n_rows: int) -> None:
    """Make the table one of n_rows, a multiple of those it has; nothing is queued."""
    ground.connection.execute("ALTER TABLE transactions DISABLE TRIGGER USER")
    for _ in range(n_rows // len(ground.rows) - 1):
        copy_in(ground.connection, "transactions", ground.copy_body)
    ground.connection.execute("ALTER TABLE transactions ENABLE TRIGGER USER")
    ground.connection.execute("VACUUM ANALYZE transactions")


def remove_rows(ground: Ground) -> None:
    """Take out what was put into the table since it was made."""
    ground.connection.execute("DELETE FROM transactions WHERE id > %s", (len(ground.rows),))
    ground.connection.execute("VACUUM FULL ANALYZE transactions")
