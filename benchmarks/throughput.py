"""Rows per second of the whole loop, against the floor of moving the bytes alone."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import psutil

from benchmarks.ground import COLUMNS, Ground, copy_in, median, seconds_of
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
    rss_mb: float
    rss_growth_mb: float


def fill_queue(ground: Ground) -> None:
    """Every row queued and none scored."""
    ground.connection.execute("TRUNCATE outlier.scores_transactions")
    ground.connection.execute("TRUNCATE outlier.queue_transactions")
    maintenance.sweep(ground.runtime, "transactions")
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
    process = psutil.Process()
    after_first = process.memory_info().rss
    for _ in range(n_rounds):
        floors.append(floor_seconds(ground, n_rows))
        drains.append(drain_seconds(ground, n_rows))
        doubles.append(drain_seconds(ground, n_rows, n_threads=2))
    rss = process.memory_info().rss
    return Throughput(
        floor=n_rows / median(floors),
        drain=n_rows / median(drains),
        over_floor=median([f / d for f, d in zip(floors, drains, strict=True)]),
        drain_two_threads=n_rows / median(doubles),
        two_threads_over_floor=median([f / d for f, d in zip(floors, doubles, strict=True)]),
        rss_mb=rss / 2**20,
        rss_growth_mb=(rss - after_first) / 2**20,
    )


def flat_cost(ground: Ground, *, n_large: int, n_rounds: int) -> tuple[float, float]:
    """(rows/s with n_large queued over rows/s with the table as it is, growth of memory in MB meanwhile)."""
    n_small = len(ground.rows)
    small = median([drain_seconds(ground, n_small) for _ in range(n_rounds)])
    ground.connection.execute("ALTER TABLE transactions DISABLE TRIGGER USER")
    for _ in range(n_large // n_small - 1):
        copy_in(ground.connection, "transactions", ground.copy_body)
    ground.connection.execute("ALTER TABLE transactions ENABLE TRIGGER USER")
    ground.connection.execute("VACUUM ANALYZE transactions")
    before = psutil.Process().memory_info().rss
    large = drain_seconds(ground, n_large)
    growth = (psutil.Process().memory_info().rss - before) / 2**20
    ground.connection.execute("DELETE FROM transactions WHERE id > %s", (n_small,))
    ground.connection.execute("VACUUM FULL ANALYZE transactions")
    return (n_large / large) / (n_small / small), growth
