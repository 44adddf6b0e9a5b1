"""Two score workers, two listeners and beat at work, and everything users do meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pgoutlier.detector import Detector
from pgoutlier.worker.upkeep import maintenance
from pgoutlier.worker.versions import versions
from tests.acceptance.stack import COLUMNS, Servers, Stack, Started, Table
from tests.support import until

Detectors = tuple[Detector, Detector]


def together(*calls: Callable[[], object]) -> None:
    """Run all at once; raises what one of them raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()


def test_two_workers_and_two_listeners_share_the_work_and_score_nothing_twice(
    live: Stack, live_table: Table
) -> None:
    workers = [process for process in live.processes if process.name.startswith("score")]

    def write() -> None:
        for n_rows in [100] * 50 + [5_000] * 2:
            live_table.insert(n_rows)

    together(write, write, write, lambda: live_table.insert_singly(500), lambda: live_table.insert(4_500))
    until(live_table.drained, "the queue is drained")
    assert live_table.n_rows == 50_000
    live_table.assert_scored_once()
    shares = [0, 0]

    def all_logged() -> bool:
        shares[:] = [_scored_by(worker, live_table) for worker in workers]
        return sum(shares) == 50_000

    until(all_logged, "the workers' own figures add up")
    assert min(shares) > 0


def _scored_by(worker: Started, table: Table) -> int:
    lines = [json.loads(line) for line in worker.output().splitlines() if '"drained"' in line]
    return sum(line["n_scored"] for line in lines if line["source"] == table.name)


def test_rows_of_a_transaction_that_commits_late_are_scored(live: Stack, live_table: Table) -> None:
    with live.connect() as early, early.transaction():
        live_table.insert(100, connection=early)
        live_table.insert(1, connection=early)
        live_table.insert(2_000)
        until(lambda: live_table.n_scored == 2_000, "everything else is scored")
        live_table.insert(1)
        until(lambda: live_table.n_scored == 2_001, "a later row is scored")
        assert live_table.drained()
        assert live.one(f"SELECT min(key) FROM outlier.scores_{live_table.name}") == 102
    until(lambda: live_table.n_scored == 2_102, "the late rows are scored")
    live_table.assert_scored_once()


def test_rows_of_a_transaction_that_is_rolled_back_leave_nothing(live: Stack, live_table: Table) -> None:
    with live.connect() as connection:
        connection.execute("BEGIN")
        live_table.insert(1_000, connection=connection)
        connection.execute("ROLLBACK")
    live_table.insert(1)
    until(lambda: live_table.n_scored == 1, "the row is scored")
    live_table.assert_scored_once()


def test_updates_and_deletes_meanwhile_neither_deadlock_nor_leave_a_stale_score(
    live: Stack, live_table: Table, detectors: Detectors
) -> None:
    name = live_table.name
    values = ", ".join(f"{column} = random() * 4 - 2" for column in COLUMNS)
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = live.one(deadlocks)
    live_table.insert(4_000)
    stop = threading.Event()

    def churn(part: int, *statements: str) -> None:
        """Each part has rows of its own, so that the users' statements do not stand in each other's way."""
        random = np.random.default_rng(part)
        with live.connect() as connection:
            while not stop.is_set():
                statement = statements[int(random.integers(len(statements)))]
                low = int(random.integers(4_000))
                connection.execute(
                    f"{statement} WHERE id % 4 = {part} AND id BETWEEN {low} AND"
                    f" {low + int(random.integers(1, 1_000))}".encode()
                )

    def insert() -> None:
        for n_rows in [1, 10, 400] * 30:
            live_table.insert(n_rows)
        stop.set()

    update, delete = f"UPDATE {name} SET {values}", f"DELETE FROM {name}"
    together(
        insert,
        lambda: churn(0, update),
        lambda: churn(1, update, update, update, delete),
        lambda: churn(2, update, update, delete),
        lambda: churn(3, update),
    )
    until(live_table.drained, "the queue is drained")
    stored, fresh = live_table.errors_and_expected(detectors[0])
    assert live_table.n_unscored == 0
    assert len(stored) == live_table.n_rows
    np.testing.assert_allclose(stored, fresh, rtol=1e-4)
    assert live.one(deadlocks) == before
    maintenance.prune_all(live.runtime)
    assert live_table.n_scored == live_table.n_rows


def test_a_promotion_and_a_rollback_reach_workers_that_run(
    live: Stack, live_table: Table, detectors: Detectors
) -> None:
    version_of_last = f"SELECT model_version FROM outlier.scores_{live_table.name} ORDER BY key DESC LIMIT 1"
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            live_table.insert(20)

    def move() -> None:
        try:
            until(lambda: live_table.n_scored > 100, "rows are scored")
            live_table.register(detectors[1])
            until(lambda: live.one(version_of_last) == 2, "the promoted version scores")
            versions.rollback(live.runtime, live_table.name, reason="test")
            until(lambda: live.one(version_of_last) == 1, "the version before scores again")
        finally:
            stop.set()

    together(write, move)
    until(live_table.drained, "the queue is drained")
    live_table.assert_scored_once()
    live_table.insert(50)
    until(live_table.drained, "the queue is drained")
    assert live.one(version_of_last) == 1


def test_rows_wait_for_the_first_champion_and_are_then_scored_without_a_restart(
    live: Stack, shared_servers: Servers, live_table: Table
) -> None:
    waiting = shared_servers.table(live)
    waiting.audit()
    waiting.insert(600)
    problem = f"SELECT last_problem FROM outlier.sources WHERE name = '{waiting.name}'"
    until(lambda: live.one(problem) is not None, "it is said why nothing is scored")
    row = next(row for row in _sources(live) if row["name"] == waiting.name)
    assert (row["n_queued"], row["champion"]) == (600, None)
    assert row["problem"] == (
        f"no champion yet: train one (pgoutlier train {waiting.name}); rows stay queued until then"
    )
    trained = live.command("train", waiting.name, "--json")
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["promoted"] is True
    until(waiting.drained, "the rows are scored")
    waiting.assert_scored_once()
    until(lambda: live.one(problem) is None, "the problem is over")


def _sources(stack: Stack) -> Sequence[dict[str, object]]:
    found = stack.status()["sources"]
    assert isinstance(found, list)
    return found
