"""Training: which rows, what is recorded, one at a time, and what becomes of runs that fail or are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import Connection

from pgoutlier.db.errors import ModelError, SourceError, TrainingBusy
from pgoutlier.db.versions import aliases, version_rows
from pgoutlier.detector import Progress
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.training import training
from tests.support import FEATURES, Table, attach_table, make_detector, plain_recipe, until

# The statements are plain; most tests train.
pytestmark = pytest.mark.postgres18

User = psycopg.Connection[Any]

SMALL = plain_recipe(name="small", epochs=2, early_stopping=None, batch_size=64)
TRAIN = """
from pgoutlier.db.settings import load_settings
from pgoutlier.worker.training import training
from pgoutlier.worker.runtime import make_runtime
training.train(make_runtime(load_settings()), "payments")
"""
LOCKS = (
    "SELECT FROM pg_locks WHERE locktype = 'advisory' AND database ="
    " (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@pytest.fixture
def payments(user: User, runtime: Runtime) -> Table:
    """300 rows that were there before attach, with a time and a label."""
    user.execute(
        "CREATE TABLE payments (id bigint PRIMARY KEY, amount float8, hour float8, distance float8,"
        " at timestamptz, fraud text)"
    )
    add_rows(user, 1, 300)
    return attach_table(
        user,
        runtime,
        recipe=SMALL,
        relation="payments",
        key="id",
        features=",".join(FEATURES),
        time="at",
        label="fraud",
    )


def add_rows(user: User, first: int, last: int) -> None:
    user.execute(
        "INSERT INTO payments SELECT i, sin(i) * 50, i %% 24, sqrt(i),"
        " '2024-01-01'::timestamptz + i * '1 hour'::interval FROM generate_series(%s::int, %s::int) i",
        (first, last),
    )


def runs(table: Table) -> list[dict[str, Any]]:
    """Training runs, the oldest first."""
    with table.user.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT * FROM outlier.training_runs ORDER BY id").fetchall()


def champion(table: Table) -> int | None:
    with table.runtime.engine.begin() as connection:
        found = aliases.alias(connection, table.source.id)
    return found.version if found else None


def test_a_run_is_recorded_with_its_progress_and_scores_at_once(payments: Table) -> None:
    seen: list[Progress] = []
    states: set[str] = set()

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        states.update(payments.keys("SELECT state FROM pg_stat_activity WHERE application_name = 'tests'"))
        [run] = runs(payments)
        assert (run["status"], run["epoch"], run["n_epochs"]) == ("running", progress.epoch, 2)
        assert run["loss"] == pytest.approx(progress.loss)

    made = training.train(payments.runtime, "payments", on_progress=on_progress)
    assert [progress.epoch for progress in seen] == [1, 2]
    assert states == {"idle"}, "no transaction stays open while the network is fitted"
    assert (made.version, made.promoted, made.n_rows, made.left_out) == (1, True, 300, {})
    [run] = runs(payments)
    assert (run["status"], run["version"], run["promoted"], run["error"]) == ("succeeded", 1, True, None)
    assert (run["n_rows"], run["left_out"], run["seed"]) == (300, {}, SMALL.seed)
    assert run["finished_at"] >= run["started_at"]
    assert set(run["versions"]) == {"python", "pgoutlier", "tensorflow"}
    with payments.runtime.engine.begin() as connection:
        [version] = version_rows.versions(connection, payments.source.id)
    assert (version.n_training_rows, version.threshold) == (300, made.threshold)
    assert version.training_from.startswith("2024-01-01")
    assert len(version.metrics["history"]["loss"]) == 2
    add_rows(payments.user, 301, 301)
    payments.drain()
    assert payments.scored() == [301]


def test_the_first_version_is_promoted_and_later_ones_only_when_asked(payments: Table) -> None:
    assert training.train(payments.runtime, "payments").promoted
    assert not training.train(payments.runtime, "payments", seed=1).promoted
    assert champion(payments) == 1
    assert training.train(payments.runtime, "payments", promote=True).version == 3
    assert champion(payments) == 3
    assert [run["promoted"] for run in runs(payments)] == [True, False, True]


def test_a_first_version_that_shall_not_score_is_not_promoted(payments: Table) -> None:
    assert not training.train(payments.runtime, "payments", promote=False).promoted
    assert champion(payments) is None


def test_a_seed_makes_a_training_repeatable(payments: Table) -> None:
    thresholds = [
        training.train(payments.runtime, "payments", seed=seed).metrics["loss"] for seed in (7, 7, 8)
    ]
    assert thresholds[0] == thresholds[1] != thresholds[2]
    shas = payments.keys("SELECT sha256 FROM outlier.model_versions ORDER BY version")
    assert shas[0] == shas[1] != shas[2]


def test_rows_that_are_not_known_to_be_normal_are_left_out(payments: Table) -> None:
    user = payments.user
    errors = make_detector(FEATURES).score([[1e6, 1, 1]]).reconstruction_error
    payments.promote(make_detector(FEATURES, threshold=float(errors[0]) / 100))
    user.execute("UPDATE payments SET amount = 1e6 WHERE id <= 3")
    user.execute("UPDATE payments SET amount = NULL WHERE id IN (10, 11)")
    payments.drain()
    assert payments.keys("SELECT key FROM outlier.scores_payments WHERE flagged ORDER BY 1") == [1, 2, 3]
    assert set(payments.quarantined()) == {"10", "11"}
    labels = ["1", "t", "TRUE", "Fraud", "yes", "0", "false", "no", ""]
    for key, label in enumerate(labels, start=20):
        user.execute("UPDATE payments SET fraud = %s WHERE id = %s", (label, key))
    user.execute("UPDATE payments SET hour = 'NaN' WHERE id = 30")
    user.execute("UPDATE payments SET hour = NULL WHERE id = 31")
    made = training.train(payments.runtime, "payments")
    assert made.left_out == {"flagged": 3, "quarantined": 2, "labelled_fraud": 5, "incomplete": 2}
    assert made.n_rows == 300 - 12
    [run] = runs(payments)
    assert (run["left_out"], run["n_rows"]) == (made.left_out, made.n_rows)


def test_the_newest_rows_are_trained_on(payments: Table) -> None:
    few = payments.with_settings(training_rows=250)
    training.train(few.runtime, "payments")
    [(first, last)] = payments.rows("SELECT training_from, training_to FROM outlier.model_versions")
    oldest, newest = payments.rows("SELECT at::text FROM payments WHERE id IN (51, 300) ORDER BY id")
    assert (first, last) == (oldest[0], newest[0])


def test_a_recipe_that_imputes_is_trained_on_rows_with_gaps(payments: Table) -> None:
    payments.user.execute(
        "UPDATE payments SET amount = NULL WHERE id % 2 = 0; UPDATE payments SET hour = 'NaN' WHERE id % 2 = 1"
    )
    recipe = SMALL.model_copy(update={"missing": "median"}).model_dump(mode="json")
    payments.user.execute("UPDATE outlier.sources SET recipe = %s::jsonb", (json.dumps(recipe),))
    made = training.train(payments.runtime, "payments")
    assert (made.n_rows, made.left_out) == (300, {})


@pytest.mark.parametrize("key", ["text", "uuid"])
def test_a_source_without_a_time_is_trained_by_its_keys(user: User, runtime: Runtime, key: str) -> None:
    user.execute(f"CREATE TABLE t (k {key} PRIMARY KEY, x float8, v real[])")  # type: ignore[arg-type]
    user.execute(
        "INSERT INTO t SELECT "
        + {"text": "'größe ' || i", "uuid": "md5(i::text)::uuid"}[key]
        + ", sin(i), ARRAY[i, i % 7] FROM generate_series(1, 250) i"  # type: ignore[arg-type]
    )
    table = attach_table(user, runtime, recipe=SMALL, relation="t", key="k", features="x,v[2]")
    assert training.train(runtime, "t").n_rows == 250
    assert table.source.definition.feature_names == ("x", "v[1]", "v[2]")


def test_too_few_rows_end_in_a_failed_run_and_a_sentence(payments: Table) -> None:
    payments.user.execute("DELETE FROM payments WHERE id > 50")
    with pytest.raises(
        ModelError, match=r"payments cannot be trained: .*at least 200 normal rows and there are 50"
    ):
        training.train(payments.runtime, "payments")
    [run] = runs(payments)
    assert run["status"] == "failed"
    assert "there are 50" in run["error"]
    assert run["finished_at"] is not None
    add_rows(payments.user, 51, 300)
    assert training.train(payments.runtime, "payments").version == 1


def test_an_interrupted_run_is_recorded_as_failed_and_frees_the_lock(payments: Table) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(payments.runtime, "payments", on_progress=interrupt)
    [run] = runs(payments)
    assert (run["status"], run["error"]) == ("failed", "KeyboardInterrupt: ")
    training.train(payments.runtime, "payments")


def test_what_is_not_there_is_named(payments: Table) -> None:
    with pytest.raises(SourceError, match=r"There is no source nothing\. Sources: payments"):
        training.train(payments.runtime, "nothing")
    with pytest.raises(ModelError, match="There is no recipe named 'grand'; choose one of: default"):
        training.train(payments.runtime, "payments", recipe_name="grand")
    assert runs(payments) == []


def test_a_recipe_of_another_release_is_refused_with_a_sentence(payments: Table) -> None:
    payments.user.execute("UPDATE outlier.sources SET recipe = recipe || '{\"quantum\": true}'")
    with pytest.raises(ModelError, match="The recipe is invalid at quantum"):
        training.train(payments.runtime, "payments")


def test_one_training_at_a_time_and_a_killed_one_makes_room(
    payments: Table, environment: dict[str, str]
) -> None:
    endless = SMALL.model_copy(update={"epochs": 10_000}).model_dump(mode="json")
    payments.user.execute("UPDATE outlier.sources SET recipe = %s::jsonb", (json.dumps(endless),))
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAIN], env={**environment, "TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    try:
        until(lambda: any(run["epoch"] for run in runs(payments)))
        with pytest.raises(TrainingBusy, match="payments is being trained already"):
            training.train(payments.runtime, "payments")
    finally:
        trainer.kill()
        trainer.wait()
    payments.user.execute(
        "UPDATE outlier.sources SET recipe = %s::jsonb", (json.dumps(SMALL.model_dump(mode="json")),)
    )
    until(lambda: not payments.rows(LOCKS))
    assert training.train(payments.runtime, "payments").version == 1
    killed, second = runs(payments)
    assert (killed["status"], second["status"]) == ("abandoned", "succeeded")
    assert killed["error"] == "the training process ended without a word"


def test_a_training_that_has_ended_is_in_nobody_s_way(
    payments: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is free before its session ends, which the server sees at some later time."""
    close, held = Connection.close, []

    def look_and_close(connection: Connection) -> None:
        held.append(len(payments.rows(LOCKS)))
        close(connection)

    monkeypatch.setattr(Connection, "close", look_and_close)
    training.train(payments.runtime, "payments")
    # The last one to be closed is the one that held the lock.
    assert held[-2:] == [1, 0]


def test_a_source_is_retrained_when_its_last_run_is_old(payments: Table) -> None:
    assert training.sources_due(payments.runtime) == {}
    training.train(payments.runtime, "payments")
    assert training.sources_due(payments.runtime) == {}
    payments.user.execute("UPDATE outlier.training_runs SET started_at = now() - interval '2 days'")
    assert list(training.sources_due(payments.runtime)) == ["payments"]


def test_triggers_that_asked_for_the_same_training_bring_one(payments: Table) -> None:
    training.train(payments.runtime, "payments")
    payments.user.execute("UPDATE outlier.training_runs SET started_at = now() - interval '2 days'")
    asked = [training.sources_due(payments.runtime)["payments"] for _ in range(3)]
    assert training.train(payments.runtime, "payments", after_run=asked[0]).version == 2
    for after_run in asked[1:]:
        with pytest.raises(TrainingBusy, match="trained since this training was asked for"):
            training.train(payments.runtime, "payments", after_run=after_run)
    assert len(runs(payments)) == 2


def test_of_more_rows_than_shall_be_in_memory_the_same_sample_is_trained_on_each_time(
    payments: Table,
) -> None:
    add_rows(payments.user, 301, 4_300)
    some = payments.with_settings(training_sample_rows=2_000)
    first, second = (training.train(some.runtime, payments.source_name, seed=1) for _ in range(2))
    assert 1_000 < first.n_rows < 2_500
    n_normal = first.n_rows + first.left_out["not_sampled"]
    assert n_normal == 4_300
    assert (second.n_rows, second.left_out) == (first.n_rows, first.left_out)
    prints = payments.keys("SELECT DISTINCT data_fingerprint FROM outlier.training_runs")
    assert len(prints) == 1
