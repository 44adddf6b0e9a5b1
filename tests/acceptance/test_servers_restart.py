"""The broker and PostgreSQL are flushed, killed and restarted under workers that are not."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
import redis

from tests.acceptance.stack import Stack, Table, errors_of
from tests.support import until


@contextmanager
def rows_coming_in(table: Table) -> Iterator[None]:
    """Inserts in bulk and by themselves, by a client that tries again when PostgreSQL is away."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            try:
                with table.stack.connect() as connection:
                    while not stop.is_set():
                        for n_rows in (1, 1, 1, 300):
                            table.insert(n_rows, connection=connection)
            except psycopg.OperationalError:
                time.sleep(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def test_a_broker_that_is_flushed_or_killed_loses_nothing(mortal: Stack, mortal_table: Table) -> None:
    table = mortal_table
    with rows_coming_in(table):
        for _ in range(3):
            _scores_more(table)
            with redis.Redis(unix_socket_path=str(mortal.kit.valkey.socket)) as client:
                client.flushall()
        _scores_more(table)
        broker = mortal.kit.valkey.process()
        assert broker is not None
        broker.kill()
        queued = table.n_rows
        until(lambda: table.n_rows > queued + 2_000, "rows come in without a broker")
        mortal.kit.valkey.start()
        _scores_more(table)
    until(table.drained, "the queue is drained")
    table.assert_scored_once()
    assert errors_of(mortal, table.name) == []


def test_a_broker_that_hangs_stops_nobody_for_good(mortal: Stack, mortal_table: Table) -> None:
    table = mortal_table
    broker = mortal.kit.valkey.process()
    assert broker is not None
    broker.send_signal(signal.SIGSTOP)
    try:
        table.insert(10)
        listener = next(process for process in mortal.processes if process.name == "listener")
        before = listener.output().count("broker_unavailable")
        until(lambda: listener.output().count("broker_unavailable") > before, "the listener gives up a ring")
    finally:
        broker.send_signal(signal.SIGCONT)
    _scores_more(table)
    until(table.drained, "the queue is drained")
    table.assert_scored_once()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_postgres_restarted_under_load_is_survived_by_every_process(
    mortal: Stack, mortal_table: Table, mode: str
) -> None:
    table = mortal_table
    with rows_coming_in(table):
        for _ in range(2):
            _scores_more(table)
            mortal.kit.postgres.stop("fast" if mode == "fast" else "immediate")
            mortal.kit.postgres.start()
        _scores_more(table)
    until(table.drained, "the queue is drained")
    table.assert_scored_once()
    assert errors_of(mortal, table.name) == []
    listening = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgoutlier listener'"
    until(lambda: mortal.one(listening) == 1, "the listener listens again")


def test_beat_goes_on_when_its_servers_are_back(mortal: Stack, mortal_table: Table) -> None:
    beat = next(process for process in mortal.processes if process.name == "beat")
    assert mortal_table.drained()
    broker = mortal.kit.valkey.process()
    assert broker is not None
    _ticks_more(mortal)
    said = beat.output().count("broker_unavailable")
    broker.kill()
    until(lambda: beat.output().count("broker_unavailable") > said, "beat misses its broker")
    mortal.kit.valkey.start()
    _ticks_more(mortal)
    said = beat.output().count("schedules_unreadable")
    mortal.kit.postgres.stop("immediate")
    until(lambda: beat.output().count("schedules_unreadable") > said, "beat misses PostgreSQL")
    mortal.kit.postgres.start()
    _ticks_more(mortal)
    assert "Traceback" not in beat.output()


def _ticks_more(stack: Stack) -> None:
    n_runs = "SELECT n_runs FROM outlier.schedules WHERE name = 'drain'"
    before = int(str(stack.one(n_runs)))
    until(lambda: int(str(stack.one(n_runs))) > before, "beat sends")


def _scores_more(table: Table) -> None:
    before = table.n_scored
    until(
        lambda: table.n_scored > before or table.n_unscored == 0,
        "rows are scored",
    )
