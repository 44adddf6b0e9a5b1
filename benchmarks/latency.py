"""From commit to visible score, with the real processes, at a steady 100 inserts a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import psutil
import psycopg

from benchmarks.ground import COLUMNS, FEATURES, Ground
from benchmarks.throughput import fill_queue
from pgoutlier.worker.processes import Supervisor, plans
from pgoutlier.worker.scoring import draining

_POLL_SECONDS = 0.001


def measure(
    ground: Ground,
    *,
    seconds: float,
    per_second: int,
    beside: AbstractContextManager[object] | None = None,
) -> tuple[dict[str, float], float]:
    """({p50, p95, p99} in ms, accurate to about 1 ms; resident memory of the score worker in MB).

    beside: what else the workers are given to do while it is measured.
    """
    with started(ground) as supervisor:
        with psycopg.connect(ground.servers.database_url, autocommit=True) as watcher:
            _insert_and_time(ground, watcher, n_rows=per_second * 3, per_second=per_second)  # warms up
            with beside or nullcontext():
                times = _insert_and_time(
                    ground, watcher, n_rows=int(seconds * per_second), per_second=per_second
                )
        rss = psutil.Process(supervisor.pids()["score"]).memory_info().rss / 2**20
    values = np.percentile(times, [50, 95, 99])
    return {name: round(float(v), 1) for name, v in zip(("p50", "p95", "p99"), values, strict=True)}, rss


@contextmanager
def started(ground: Ground) -> Iterator[Supervisor]:
    """All processes of `pgoutlier up`, over an empty queue. Raises RuntimeError at the end if one died."""
    fill_queue(ground)
    draining.drain(ground.runtime, "transactions")
    supervisor = Supervisor(
        plans(score_threads=2, log_level="WARNING"),
        on_line=lambda name, line: None,
        environment={
            "PGOUTLIER_DATABASE_URL": ground.servers.database_url,
            "PGOUTLIER_BROKER_URL": ground.servers.broker_url,
            "PGOUTLIER_DATA_DIR": str(ground.data_dir),
        },
    )
    supervisor.start()
    try:
        yield supervisor
        if dead := supervisor.dead():
            raise RuntimeError(f"processes died: {dead}")
    finally:
        supervisor.stop()


def _insert_and_time(
    ground: Ground, watcher: psycopg.Connection, *, n_rows: int, per_second: int
) -> list[float]:
    """Insert single rows in autocommit and wait for each one's score; milliseconds, one a row."""
    waiting: dict[int, float] = {}
    times: list[float] = []
    done = threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + n_rows / per_second + 60
        while not (done.is_set() and not waiting):
            keys = list(waiting)
            if keys:
                query = "SELECT key FROM outlier.scores_transactions WHERE key = ANY (%s)"
                for (key,) in watcher.execute(query, (keys,)).fetchall():
                    times.append(1_000 * (time.perf_counter() - waiting.pop(key)))
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(waiting)} rows were not scored in time")
            time.sleep(_POLL_SECONDS)

    thread = threading.Thread(target=watch)
    thread.start()
    statement = (
        f"INSERT INTO transactions ({COLUMNS}) VALUES ({', '.join(['%s'] * len(FEATURES))}) RETURNING id"
    )
    started = time.perf_counter()
    for number, row in enumerate(ground.rows[:n_rows].tolist()):
        found = ground.connection.execute(statement, row).fetchone()
        waiting[found[0]] = time.perf_counter()  # type: ignore[index]
        ahead = started + (number + 1) / per_second - time.perf_counter()
        if ahead > 0:
            time.sleep(ahead)
    done.set()
    thread.join()
    return times
