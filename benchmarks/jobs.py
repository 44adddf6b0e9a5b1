"""What jobs take: rows a second of each kind, against draining the same rows, and what one does to new rows.

python -m benchmarks.jobs --rows 300000
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks import latency, throughput
from benchmarks.challenger import second_version
from benchmarks.ground import Ground, ground, median, seconds_of
from pgoutlier.worker.history import keeping
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.jobs.job_control import Started
from pgoutlier.worker.logs import configure_logs

SOURCE = "transactions"
_BUDGET_SECONDS = 3_600.0


def job_seconds(base: Ground, start: Callable[[], Started]) -> float:
    """From the command to the end of the job, by this process alone."""
    n_rows = len(base.rows)

    def work() -> None:
        job = start()
        job_control.work(base.runtime, job.id, budget_seconds=_BUDGET_SECONDS)
        done = job_control.described(base.runtime, job.id)
        if (done.status, done.n_done) != ("succeeded", n_rows):
            raise RuntimeError(f"the job did {done.n_done} of {n_rows} rows: {done.problem}")

    return seconds_of(work)


def measure(base: Ground, *, n_rounds: int) -> dict[str, float]:
    """Medians; ratios are of one round each."""
    runtime, n_rows = base.runtime, len(base.rows)
    other = second_version(base)
    rounds: list[dict[str, float]] = []
    for number in range(n_rounds + 1):
        taken = {"drain": throughput.drain_seconds(base, n_rows)}
        base.connection.execute(f"TRUNCATE outlier.scores_{SOURCE}, outlier.queue_{SOURCE}")
        taken["backfill"] = job_seconds(base, lambda: job_control.backfill(runtime, SOURCE))
        taken["rescore"] = job_seconds(base, lambda: job_control.rescore(runtime, SOURCE, other))
        keeping.keep(runtime, SOURCE)
        taken["rescore_with_history"] = job_seconds(base, lambda: job_control.rescore(runtime, SOURCE))
        keeping.stop(runtime, SOURCE, drop=True)
        threshold = 5.0 + number
        taken["reflag"] = job_seconds(base, lambda: job_control.reflag(runtime, SOURCE, threshold))  # noqa: B023
        if number:  # the first round compiles and fills caches
            rounds.append(taken)
    figures: dict[str, float] = {}
    for name in rounds[0]:
        figures[f"{name}_rows_per_second"] = round(n_rows / median([taken[name] for taken in rounds]))
        if name != "drain":
            figures[f"{name}_time_over_drain"] = round(
                median([taken[name] / taken["drain"] for taken in rounds]), 2
            )
    return figures


@contextmanager
def rescoring(base: Ground, other: int) -> Iterator[None]:
    """The workers rescore all the time, by one version and the other in turn."""
    os.environ["PGOUTLIER_DATABASE_URL"] = base.servers.database_url
    os.environ["PGOUTLIER_BROKER_URL"] = base.servers.broker_url
    from pgoutlier.worker import tasks  # reads the settings

    stop = threading.Event()

    def go_on() -> None:
        versions = [other, None]
        while not stop.is_set():
            job = job_control.rescore(base.runtime, SOURCE, versions[0])
            tasks.ask_for_work(job.id)
            while job_control.described(base.runtime, job.id).status == "running" and not stop.wait(0.2):
                pass
            job_control.cancel(base.runtime, job.id)
            versions.reverse()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="how long latency is measured")
    given = parser.parse_args()
    configure_logs("console", level=40)
    with ground(given.rows) as base:
        other = second_version(base)
        alone = latency.measure(base, seconds=given.seconds, per_second=100)
        beside = latency.measure(base, seconds=given.seconds, per_second=100, beside=rescoring(base, other))
        base.connection.execute("DELETE FROM transactions WHERE id > %s", (given.rows,))
        figures = measure(base, n_rounds=given.rounds)
    print(json.dumps({"latency_ms": alone, "latency_beside_a_rescore_ms": beside, **figures}))


if __name__ == "__main__":
    main()
