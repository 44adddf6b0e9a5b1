"""From commit to visible score, with the real processes, at a steady pace of inserts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import psycopg

from benchmarks.ground import Ground, insert_row
from benchmarks.processes import running
from benchmarks.throughput import fill_queue
from pgoutlier.worker.processes import Supervisor
from pgoutlier.worker.scoring import draining

_POLL_SECONDS = 0.001
_INSERT = f"{insert_row('transactions')} RETURNING id"


def measure(
    ground: Ground,
    *,
    seconds: float,
    per_second: int,
    n_writers: int = 1,
    beside: AbstractContextManager[object] | None = None,
) -> dict[str, float]:
    """{p50, p95, p99} in ms, accurate to about 1 ms.

    per_second: of all writers together, each of which inserts single rows on a connection of its own.
    beside: what else the workers are given to do while it is measured.
    """
    with started(ground):
        insert_and_time(ground, seconds=3, per_second=per_second, n_writers=n_writers)  # warms up
        with beside or nullcontext():
            times = insert_and_time(ground, seconds=seconds, per_second=per_second, n_writers=n_writers)
    values = np.percentile(times, [50, 95, 99])
    return {name: round(float(v), 1) for name, v in zip(("p50", "p95", "p99"), values, strict=True)}


@contextmanager
def started(ground: Ground) -> Iterator[Supervisor]:
    """All processes of `pgoutlier up`, over an empty queue. Raises RuntimeError at the end if one died."""
    fill_queue(ground)
    draining.drain(ground.runtime, "transactions")
    with running(ground) as supervisor:
        yield supervisor


def insert_and_time(ground: Ground, *, seconds: float, per_second: int, n_writers: int) -> list[float]:
    """Insert single rows in autocommit and wait for each one's score; milliseconds, one a row."""
    waiting: dict[int, float] = {}
    times: list[float] = []
    done = threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + seconds + 60
        with psycopg.connect(ground.servers.database_url, autocommit=True) as watcher:
            while not (done.is_set() and not waiting):
                keys = list(waiting)
                if keys:
                    query = "SELECT key FROM outlier.scores_transactions WHERE key = ANY (%s)"
                    for (key,) in watcher.execute(query, (keys,)).fetchall():
                        times.append(1_000 * (time.perf_counter() - waiting.pop(key)))
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{len(waiting)} rows were not scored in time")
                time.sleep(_POLL_SECONDS)

    def write(rows: np.ndarray) -> None:
        with psycopg.connect(ground.servers.database_url, autocommit=True) as writer:
            started = time.perf_counter()
            for number, row in enumerate(rows.tolist()):
                found = writer.execute(_INSERT, row).fetchone()
                waiting[found[0]] = time.perf_counter()  # type: ignore[index]
                ahead = started + (number + 1) * n_writers / per_second - time.perf_counter()
                if ahead > 0:
                    time.sleep(ahead)

    with ThreadPoolExecutor(n_writers + 1) as pool:
        watching = pool.submit(watch)
        rows = ground.rows[: int(seconds * per_second)]
        try:
            list(pool.map(write, [rows[number::n_writers] for number in range(n_writers)]))
        finally:
            done.set()
        watching.result()
    return times
