"""kill -9 of score workers, at random moments, while rows come in."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import psutil
from conftest import Stack, Started, Table, eventually

N_KILLS = 15


def test_killing_workers_at_random_moments_scores_every_row_once(stack: Stack, table: Table) -> None:
    moments = random.Random(20260301)
    spares = [_spare(stack, 0), _spare(stack, 1)]
    stack.listener()
    stack.beat()
    n_in_transaction = 0
    for n_killed in range(N_KILLS):
        worker = spares.pop(0)
        _wake(stack, worker)
        writer = threading.Thread(target=_write, args=(table,))
        writer.start()
        before = table.n_scored
        eventually(lambda before=before: table.n_scored > before, "the new worker scores")
        time.sleep(moments.uniform(0, 0.15))
        os.kill(worker.pid, signal.SIGSTOP)
        n_in_transaction += _open_batches(stack)
        worker.kill()
        spares.append(_spare(stack, n_killed + 2))
        writer.join()
    for worker in spares:
        _wake(stack, worker)
    eventually(table.drained, "the queue is drained")
    assert table.n_rows >= 50_000
    assert n_in_transaction >= 3
    table.assert_scored_once()


def _spare(stack: Stack, number: int) -> Started:
    """A worker that gets ready while the one before it works."""
    return stack.score_worker(f"score{number}", batch_rows=200)


def _wake(stack: Stack, worker: Started) -> None:
    stack.until_ready(worker)


def _write(table: Table) -> None:
    """3,400 rows: half in bulk, half by themselves."""
    for _ in range(6):
        table.insert(500)
        table.insert_singly(70)


def _open_batches(stack: Stack) -> int:
    """Transactions that a stopped worker holds open."""
    return int(
        str(
            stack.one(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgoutlier worker'"
                " AND state = 'idle in transaction'"
            )
        )
    )


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid)
