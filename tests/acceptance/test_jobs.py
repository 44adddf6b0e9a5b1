"""Jobs over old rows with real workers: kill -9 at random moments of a range, new rows meanwhile."""

from __future__ import annotations

import json
import random

import pytest

from pgoutlier.detector import Detector
from tests.acceptance.stack import Stack, Started, Table
from tests.support import until

N_OLD = 12_000
RANGE_ROWS = 100
N_KILLS = 1


@pytest.mark.timeout(300)
def test_workers_killed_at_random_moments_backfill_and_rescore_every_row_once(
    stack: Stack, table: Table, detectors: tuple[Detector, Detector]
) -> None:
    moments = random.Random(20261122)
    _insert_unseen(stack, table)
    workers = [_worker(stack, number) for number in range(2 * N_KILLS + 1)]
    stack.listener()
    stack.beat()
    stack.until_ready()
    _killed_meanwhile(stack, table, workers, moments, "backfill", table.name)
    table.assert_scored_once()
    n_rows = table.n_rows
    with stack.connect() as connection:
        connection.execute(f"TRUNCATE audit_{table.name}".encode())
    version = table.register(detectors[1])
    _killed_meanwhile(stack, table, workers, moments, "rescore", table.name)
    assert (
        stack.one(f"SELECT count(*) FROM outlier.scores_{table.name} WHERE model_version <> {version}") == 0
    )
    table.insert(1)
    until(table.drained, "the last row is scored")
    once = f"SELECT count(*) = count(DISTINCT key) AND count(*) = {table.n_rows} FROM audit_{table.name}"
    assert stack.one(once) is True
    assert table.n_rows > n_rows > N_OLD


def _insert_unseen(stack: Stack, table: Table) -> None:
    """Rows that no trigger sees, as those from before attach."""
    with stack.connect() as connection:
        connection.execute(f"ALTER TABLE {table.name} DISABLE TRIGGER USER".encode())
        table.insert(N_OLD, connection=connection)
        connection.execute(f"ALTER TABLE {table.name} ENABLE TRIGGER USER".encode())


def _killed_meanwhile(
    stack: Stack, table: Table, workers: list[Started], moments: random.Random, *command: str
) -> None:
    """Run a job while workers are killed and new rows come in, to its end.

    The score of the last old row is held until then, so that the job cannot be over before, and sooner or later one of
    the workers waits for it amid a range.
    """
    hold = (
        f"INSERT INTO outlier.scores_{table.name} VALUES ({N_OLD}, 0, 0, now(), 1, false)"
        " ON CONFLICT (key) DO UPDATE SET change_id = 0"
    )
    with stack.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute(hold.encode())
        started = stack.command(*command, "--no-wait", "--json", job_range_rows=RANGE_ROWS)
        assert started.returncode == 0, started.stderr
        job = json.loads(started.stdout)["id"]
        ranges = f"SELECT count(*) FROM outlier.job_ranges WHERE job_id = {job}"
        finished = f"SELECT count(finished_at) FROM outlier.job_ranges WHERE job_id = {job}"
        for _ in range(N_KILLS):
            until(lambda: stack.one(finished) != 0, "ranges are worked")
            table.insert_singly(5)
            stack.kill_amid(workers, "outlier.job_ranges", moments)
        assert int(str(stack.one(finished))) < int(str(stack.one(ranges)))
    watched = stack.command("jobs", "watch", str(job), "--json")
    assert watched.returncode == 0, watched.stderr
    assert json.loads(watched.stdout)["status"] == "succeeded"
    until(table.drained, "the new rows are scored")


def _worker(stack: Stack, number: int) -> Started:
    return stack.score_worker(f"score{number}", batch_rows=200)
