"""The product's own processes on the servers of a measurement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.ground import Ground, median, seconds_of
from benchmarks.throughput import fill_queue
from pgoutlier.worker.processes import Supervisor, plans

_PROGRAM = str(Path(sys.executable).parent / "pgoutlier")
_POLL_SECONDS = 0.005
_LONGEST_SECONDS = 300.0


def environment(ground: Ground) -> dict[str, str]:
    """Where the servers are, for a process."""
    return {
        "PGOUTLIER_DATABASE_URL": ground.servers.database_url,
        "PGOUTLIER_DATABASE_DIRECT_URL": "",
        "PGOUTLIER_BROKER_URL": ground.servers.broker_url,
        "PGOUTLIER_DATA_DIR": str(ground.data_dir),
    }


@contextmanager
def running(ground: Ground, *names: str) -> Iterator[Supervisor]:
    """The processes that `up` starts, or those of these names."""
    chosen = [p for p in plans(score_threads=2, log_level="WARNING") if not names or p.name in names]
    supervisor = Supervisor(chosen, on_line=lambda name, line: None, environment=environment(ground))
    supervisor.start()
    try:
        yield supervisor
        if dead := supervisor.dead():
            raise RuntimeError(f"processes died: {dead}")
    finally:
        supervisor.stop()


def start_to_first_score_seconds(ground: Ground, *, n_rounds: int) -> float:
    """From the start of a score worker, rows waiting, to the first scores that can be seen; the median."""

    taken = []
    for _ in range(n_rounds):
        fill_queue(ground)
        started = time.perf_counter()
        with running(ground, "score"):
            until(lambda: exists(ground, "outlier.scores_transactions"))
            taken.append(time.perf_counter() - started)
    return median(taken)


def draining_memory_mb(ground: Ground, *, n_before: int) -> tuple[float, float]:
    """Resident memory of a score worker: the most while it drains every row of the table, and how much more it is by
    then than after about n_before rows."""
    with running(ground, "score") as supervisor:
        process = psutil.Process(supervisor.pids()["score"])
        _drained(ground, process, at_most=n_before)
        before = process.memory_info().rss / 2**20
        peak = _drained(ground, process)
    return peak, peak - before


def _drained(ground: Ground, process: psutil.Process, *, at_most: int | None = None) -> float:
    """Queue rows and have them drained; the most resident memory meanwhile, in MB."""
    fill_queue(ground, at_most=at_most)
    seen = [0]

    def done() -> bool:
        seen.append(process.memory_info().rss)
        return not exists(ground, "outlier.queue_transactions")

    _run(ground, [sys.executable, "-m", "celery", "-A", "pgoutlier.worker", "call", "score.drain_all"])
    until(done)
    return max(seen) / 2**20


def pgoutlier_seconds(ground: Ground, *words: str, n_rounds: int = 5) -> float:
    """How long `pgoutlier` takes with these words, from its start to its end; the median."""
    command = [_PROGRAM, *words]
    _run(ground, command)  # unmeasured: the files come off the disk
    return median([seconds_of(lambda: _run(ground, command)) for _ in range(n_rounds)])


def until_answered(ground: Ground) -> None:
    """Wait until the workers answer, as `status` asks them."""

    def answered() -> bool:
        found = json.loads(_run(ground, [_PROGRAM, "status", "--json"]))
        return len(found["workers"] or []) == 2

    until(answered)


def _run(ground: Ground, command: list[str]) -> bytes:
    return subprocess.run(
        command, check=True, capture_output=True, env={**os.environ, **environment(ground)}
    ).stdout


def exists(ground: Ground, table: str) -> bool:
    """Whether there is a row in the table."""
    found = ground.connection.execute(f"SELECT EXISTS (SELECT FROM {table})").fetchone()
    return bool(found and found[0])


def until(done: Callable[[], bool]) -> None:
    """Raises RuntimeError if that takes longer than whatever is measured."""
    deadline = time.monotonic() + _LONGEST_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not done after {_LONGEST_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)
