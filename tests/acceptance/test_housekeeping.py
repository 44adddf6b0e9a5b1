"""Housekeeping never starves scoring."""

from __future__ import annotations

from contextlib import ExitStack

from tests.acceptance.stack import Servers, Stack, Table
from tests.support import until


def test_new_rows_are_scored_while_more_sweeps_than_threads_wait(
    shared_servers: Servers, stack: Stack, table: Table
) -> None:
    stack.score_worker(threads=2)
    stack.listener()
    stack.until_ready()
    others = [shared_servers.table(stack) for _ in range(3)]
    with ExitStack() as locked:
        for other in others:
            other.insert(5)
            holder = locked.enter_context(stack.connect())
            holder.autocommit = False
            holder.execute(f"LOCK TABLE {other.name} IN ACCESS EXCLUSIVE MODE")
            stack.module(
                "celery", "-A", "pgoutlier.worker", "call", "score.sweep", f'--args=["{other.name}"]'
            )
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IS NOT NULL"
        until(lambda: stack.one(waiting) == 1, "one sweep waits for its table, the others for a thread")
        table.insert(100)
        until(lambda: table.n_scored == 100, "new rows are scored")
        assert stack.one(waiting) == 1
    swept = "SELECT count(*) FROM outlier.sources WHERE swept_at IS NOT NULL AND name = ANY (%s)"
    until(lambda: stack.one(swept, [o.name for o in others]) == 3, "all sweeps are done in the end")
