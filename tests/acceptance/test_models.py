"""What workers do when a champion is damaged, and training by the train worker."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from pgoutlier.detector import Detector
from tests.acceptance.stack import Servers, Stack, Table, quick_recipe
from tests.support import until


def test_a_damaged_champion_is_refused_by_name_and_the_last_good_one_goes_on(
    stack: Stack, table: Table, detectors: tuple[Detector, Detector]
) -> None:
    assert table.register(detectors[1]) == 2
    with stack.connect() as connection:
        connection.execute(
            "UPDATE outlier.model_versions SET artifact = overlay(artifact placing '\\x00ff00'::bytea from 900)"
            " WHERE version = 2 AND source_id = %s",
            (table.source.id,),
        )
    worker, _ = stack.score_worker(), stack.listener()
    stack.until_ready()
    problem = f"SELECT last_problem FROM outlier.sources WHERE name = '{table.name}'"
    for _ in range(3):
        table.insert(200)
        until(lambda: table.n_unscored == 0, "rows are scored")
        until(lambda: stack.one(problem) is not None, "the problem is recorded")
    assert stack.one(f"SELECT array_agg(DISTINCT model_version) FROM outlier.scores_{table.name}") == [1]
    table.assert_scored_once()
    assert worker.output().count("artifact_refused") == 1
    refusal = f"version 2 of {table.name} is refused: its bytes do not have the recorded sha256"
    sources = stack.status()["sources"]
    assert isinstance(sources, list)
    assert refusal in sources[0]["problem"]
    assert "version 1 goes on scoring" in sources[0]["problem"]
    doctor = stack.command("doctor", "--json")
    assert doctor.returncode == 1
    finding = next(f for f in json.loads(doctor.stdout) if f["what"] == f"{table.name} champion")
    assert refusal in finding["detail"]
    assert finding["mend"].startswith(f"pgoutlier models rollback {table.name}")


@pytest.fixture
def untrained(shared_servers: Servers, stack: Stack) -> Table:
    """A table of 600 rows whose training takes long enough to be interrupted."""
    table = shared_servers.table(stack)
    table.insert(600)
    with stack.connect() as connection:
        recipe = json.dumps(quick_recipe(epochs=10_000).model_dump(mode="json"))
        connection.execute("UPDATE outlier.sources SET recipe = %s::jsonb", (recipe,))
    return table


def test_a_training_killed_in_the_train_worker_is_abandoned_and_the_next_one_succeeds(
    stack: Stack, untrained: Table
) -> None:
    worker = stack.train_worker()
    stack.until_ready()
    _call_train(stack, untrained)
    epoch = "SELECT coalesce(max(epoch), 0) FROM outlier.training_runs WHERE status = 'running'"
    until(lambda: int(str(stack.one(epoch))) > 2, "the training reports its progress")
    for child in psutil.Process(worker.pid).children():
        if _has_tensorflow(child.pid):
            child.kill()
            child.wait()
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = %s"
    until(lambda: stack.one(locks, untrained.source.id) == 0, "the server has seen its session end")
    with stack.connect() as connection:
        recipe = json.dumps(quick_recipe().model_dump(mode="json"))
        connection.execute("UPDATE outlier.sources SET recipe = %s::jsonb", (recipe,))
    statuses = "SELECT array_agg(status::text ORDER BY id) FROM outlier.training_runs"

    def trained() -> bool:
        return stack.one(statuses) == ["abandoned", "succeeded"]

    _call_train(stack, untrained)
    until(trained, "the next training succeeds")
    progress = "SELECT (epoch, n_epochs, version, promoted)::text FROM outlier.training_runs ORDER BY id DESC"
    assert stack.one(progress) == "(2,2,1,t)"
    assert stack.one("SELECT count(*) FROM outlier.model_versions") == 1
    assert worker.alive()
    assert not _has_tensorflow(worker.pid)


def test_score_worker_listener_and_beat_do_without_tensorflow(
    stack: Stack, table: Table, detectors: tuple[Detector, Detector]
) -> None:
    table.challenge(detectors[1])
    worker = stack.score_worker()
    processes = [worker, stack.listener(), stack.beat()]
    stack.until_ready()
    table.insert(500)
    until(table.drained, "the rows are scored")
    assert "onnxruntime" in Path(f"/proc/{worker.pid}/maps").read_text()
    for process in processes:
        for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
            assert not _has_tensorflow(each.pid)


def _call_train(stack: Stack, table: Table) -> None:
    arguments = json.dumps([table.name])
    done = stack.module("celery", "-A", "pgoutlier.worker", "call", "models.train", f"--args={arguments}")
    assert done.returncode == 0, done.stderr


def _has_tensorflow(pid: int) -> bool:
    return "libtensorflow" in Path(f"/proc/{pid}/maps").read_text()
