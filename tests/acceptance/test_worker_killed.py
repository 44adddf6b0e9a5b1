"""kill -9 of score workers, at random moments, while rows come in."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from detector import Detector
from tests.acceptance.stack import Stack, Started, Table, eventually

N_KILLS = 5


@pytest.mark.timeout(400)
def test_killing_workers_at_random_moments_scores_every_row_once(
    stack: Stack, table: Table, detectors: tuple[Detector, Detector]
) -> None:
    """By the champion, and by the challenger in the same transaction."""
    table.challenge(detectors[1])
    moments = random.Random(20260301)
    workers = [_worker(stack, number) for number in range(2)]
    stack.listener()
    n_mid_batch = 0
    for n_killed in range(N_KILLS):
        victim = workers.pop(0)
        stack.until_ready(victim)
        writer = threading.Thread(target=_write, args=(table,))
        writer.start()
        before = table.n_scored
        eventually(lambda before=before: table.n_scored > before, "rows are scored")
        time.sleep(moments.uniform(0, 0.15))
        os.kill(victim.pid, signal.SIGSTOP)
        n_mid_batch += _batches_held_up(stack)
        victim.kill()
        # It gets ready while the one before it works.
        workers.append(_worker(stack, n_killed + 2))
        writer.join()
    stack.until_ready(*workers)
    stack.beat()
    eventually(table.drained, "the queue is drained")
    assert table.n_rows >= 17_000
    assert n_mid_batch >= 1
    table.assert_scored_once()
    assert stack.one(f"SELECT rows FROM outlier.comparison_{table.name}") == table.n_rows
    assert stack.one(f"SELECT count(*) FROM outlier.shadow_scores_{table.name}") == table.n_rows


def _worker(stack: Stack, number: int) -> Started:
    return stack.score_worker(f"score{number}", batch_rows=200)


def _write(table: Table) -> None:
    """3,420 rows, most in bulk and some by themselves."""
    for _ in range(6):
        table.insert(500)
        table.insert_singly(70)


def _batches_held_up(stack: Stack) -> int:
    """Transactions that a stopped worker holds open: those of others are over within the time."""

    def open_batches() -> set[object]:
        with stack.connect() as connection:
            return set(
                connection.execute(
                    "SELECT pid, xact_start FROM pg_stat_activity"
                    " WHERE application_name = 'pgoutlier worker' AND state LIKE 'idle in transaction%'"
                )
            )

    before = open_batches()
    time.sleep(0.1)
    return len(before & open_batches())
