"""All processes through a PgBouncer of few sessions for all of them; with a direct way beside it, and without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pgoutlier.detector import Detector
from tests.acceptance.stack import Servers, Stack, Table, errors_of
from tests.pgbouncer import PgBouncer, running_pgbouncer
from tests.support import until

N_SESSIONS = 3
LISTENING = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgoutlier listener'"


@pytest.fixture
def pgbouncer(shared_servers: Servers, scratch: Path) -> Iterator[PgBouncer]:
    with running_pgbouncer(shared_servers.kit.postgres.url, scratch, n_sessions=N_SESSIONS) as made:
        yield made


@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", ["pooled", "pooled and direct"])
def test_a_table_is_scored_and_trained_through_a_pooler(
    pgbouncer: PgBouncer,
    shared_servers: Servers,
    stack: Stack,
    detectors: tuple[Detector, Detector],
    way: str,
) -> None:
    direct = way == "pooled and direct"
    stack.environment["PGOUTLIER_DATABASE_URL"] = pgbouncer.url
    if direct:
        stack.environment["PGOUTLIER_DATABASE_DIRECT_URL"] = shared_servers.kit.postgres.url
    # Other tests had a beat and a listener on these servers.
    with stack.connect() as connection:
        connection.execute("TRUNCATE outlier.beats, outlier.listeners")
    try:
        for number in range(2):
            stack.score_worker(f"score{number}", batch_rows=500)
        stack.listener()
        stack.beat()
        stack.train_worker()
        table = shared_servers.table(stack)
        table.register(detectors[0])
        table.challenge(detectors[1])
        table.audit()
        stack.until_ready()
        rows_come_in_and_a_worker_is_killed(stack, table)
        until(table.drained, "the queue is drained")
        table.assert_scored_once()
        assert stack.one(LISTENING) == (1 if direct else 0)
        found = json.loads(stack.command("status", "--json").stdout)
        assert found["listeners"] == len(found["beats"]) == 1
        a_version_is_trained_and_takes_over(stack, table)
        # The trainer draws a report before it gives its lock back.
        held = "SELECT count(*) FROM outlier.held_locks"
        until(lambda: stack.one(held) == 0, "the training's lock is given back")
        assert errors_of(stack, table.name) == []
    finally:
        stack.stop()
    assert pgbouncer.left_in_sessions() == set()


def rows_come_in_and_a_worker_is_killed(stack: Stack, table: Table) -> None:
    def in_bulk() -> None:
        for _ in range(20):
            table.insert(1_000)

    with ThreadPoolExecutor(3) as pool:
        writing = [pool.submit(in_bulk), *(pool.submit(table.insert_singly, 300) for _ in range(2))]
        until(lambda: table.n_scored > 0, "rows are scored")
        killed = stack.processes[0]
        killed.kill()
        for each in writing:
            each.result()


def a_version_is_trained_and_takes_over(stack: Stack, table: Table) -> None:
    done = stack.command("train", table.name, "--queue")
    assert done.returncode == 0, done.stderr
    status = f"SELECT status FROM outlier.training_runs WHERE source_id = {table.source.id}"
    until(lambda: stack.one(f"SELECT ({status} LIMIT 1) = 'succeeded'") is True, "a version is trained")
    version = stack.one(
        f"SELECT max(version) FROM outlier.model_versions WHERE source_id = {table.source.id}"
    )
    assert version == 3
    done = stack.command("models", "promote", table.name, "3", "--reason", "test")
    assert done.returncode == 0, done.stderr
    table.insert(100)
    until(table.drained, "the queue is drained")
    assert stack.one(f"SELECT count(*) FROM outlier.scores_{table.name} WHERE model_version = 3") == 100
    assert json.loads(stack.command("flagged", table.name, "--json", "--limit", "1").stdout) is not None
