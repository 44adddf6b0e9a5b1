"""kill -9 of score workers, at random moments of a batch, while rows come in."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from pgoutlier.detector import Detector
from tests.acceptance.stack import Stack, Started, Table
from tests.support import until

N_KILLS = 5


@pytest.mark.timeout(400)
def test_killing_workers_at_random_moments_scores_every_row_once(
    stack: Stack, keyed_table: Table, detectors: tuple[Detector, Detector]
) -> None:
    """By the champion, and by the challenger in the same transaction; whatever the key is."""
    table = keyed_table
    table.challenge(detectors[1])
    moments = random.Random(20260301)
    workers = [_worker(stack, number) for number in range(2)]
    stack.listener()
    for n_killed in range(N_KILLS):
        stack.until_ready(workers[0])
        with rows_coming_in(table):
            before = table.n_scored
            until(lambda before=before: table.n_scored > before, "rows are scored")
            stack.kill_amid(workers, f"outlier.queue_{table.name}", moments)
            # It gets ready while the one before it works.
            workers.append(_worker(stack, n_killed + 2))
    stack.until_ready(*workers)
    stack.beat()
    until(table.drained, "the queue is drained")
    assert table.n_rows >= 17_000
    table.assert_scored_once()
    assert stack.one(f"SELECT rows FROM outlier.comparison_{table.name}") == table.n_rows
    assert stack.one(f"SELECT count(*) FROM outlier.shadow_scores_{table.name}") == table.n_rows


def _worker(stack: Stack, number: int) -> Started:
    return stack.score_worker(f"score{number}", batch_rows=200)


@contextmanager
def rows_coming_in(table: Table) -> Iterator[None]:
    """Rows in bulk and by themselves, in the background: 3,420, and more for as long as the body takes."""
    stop = threading.Event()

    def write() -> None:
        n_written = 0
        while n_written < 3_420 or not stop.is_set():
            table.insert(500)
            table.insert_singly(70)
            n_written += 570

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        try:
            yield
        finally:
            stop.set()
        written.result()
