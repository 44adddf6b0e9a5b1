"""A worker whose threads are all busy holds messages that it has not begun."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from tests.acceptance.stack import Started, Table
from tests.support import until

N_THREADS = 2


def test_a_worker_that_loses_its_broker_works_off_what_it_has_not_begun(alone: Table) -> None:
    with worker_that_holds_a_message(alone) as worker:
        broker = alone.stack.kit.valkey.process()
        assert broker is not None
        broker.kill()
        broker.wait()
        until(lambda: "Connection to broker lost" in worker.output(), "the loss is noticed")
        alone.stack.kit.valkey.start()
    until(alone.drained, "the rows are scored")
    alone.insert(1)
    _ring(alone)
    until(alone.drained, "the worker takes messages again")
    alone.assert_scored_once()
    assert worker.alive()
    assert "EMERGENCY DUMP" not in worker.output()


@contextmanager
def worker_that_holds_a_message(table: Table) -> Iterator[Started]:
    """A worker whose threads wait for a lock, which is released at the end, and that received another message."""
    worker = table.stack.score_worker(threads=N_THREADS)
    table.stack.until_ready(worker)
    with table.stack.connect() as connection, connection.transaction():
        connection.execute(f"LOCK TABLE outlier.scores_{table.name}".encode())
        table.insert(1)
        # A worker that is ready rings for what waits, so that one ring may have two threads wait.
        while (n_busy := _n_waiting(table)) < N_THREADS:
            _ring(table)
            until(lambda n=n_busy: _n_waiting(table) > n, "a thread waits for the lock")
        _ring(table)
        until(lambda: _n_messages(table) == 0, "the message is received")
        yield worker


def _ring(table: Table) -> None:
    arguments = json.dumps([table.name])
    done = table.stack.module("celery", "-A", "pgoutlier.worker", "call", "score.drain", "--args", arguments)
    assert done.returncode == 0, done.stderr


def _n_messages(table: Table) -> int:
    with redis.Redis(unix_socket_path=str(table.stack.kit.valkey.socket)) as client:
        return int(str(client.llen("score")))


def _n_waiting(table: Table) -> int:
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
    return int(str(table.stack.one(waiting, f"outlier.scores_{table.name}")))
