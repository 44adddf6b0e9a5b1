"""How many connections a score worker takes follows from its threads, not from its sources."""

from __future__ import annotations

from collections.abc import Sequence

from pgoutlier.detector import Detector
from tests.acceptance.conftest import scored_table
from tests.acceptance.stack import Servers, Stack
from tests.support import until

N_THREADS = 4


def test_a_worker_takes_a_connection_for_each_thread_and_two_more_at_most(
    shared_servers: Servers, stack: Stack, detectors: Sequence[Detector]
) -> None:
    tables = [scored_table(shared_servers, stack, detectors[0]) for _ in range(N_THREADS + 2)]
    for table in tables:
        table.insert(10)
    with stack.connect() as locking, locking.transaction():
        locking.execute(f"LOCK TABLE {', '.join(table.name for table in tables)}".encode())
        worker = stack.score_worker(threads=N_THREADS)

        def count(condition: str = "true") -> int:
            sessions = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND {condition}"
            return int(str(stack.one(sessions, f"pgoutlier worker {worker.pid}")))

        until(lambda: count("wait_event_type = 'Lock'") == N_THREADS, "each thread is at a source")
    counts = []

    def drained() -> bool:
        counts.append(count())
        return all(table.drained() for table in tables)

    until(drained, "all is scored")
    assert N_THREADS <= max(counts) <= N_THREADS + 2
