"""What becomes of a version when it has been trained, by the source's promotion policy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import psycopg
import pytest

from pgoutlier.db.errors import ModelError
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.training import gate, training
from pgoutlier.worker.verdicts import judging
from pgoutlier.worker.versions import versions
from tests.support import Table, attach_table, plain_recipe, until

# The statements are plain; each test trains two or three times.
pytestmark = pytest.mark.postgres18

User = psycopg.Connection[Any]
N_ROWS, N_FRAUD = 3_000, 12


@pytest.fixture
def payments(user: User, runtime: Runtime) -> Table:
    """3,000 rows of three features, scored by a first version; the last twelve are far out in x."""
    user.execute("CREATE TABLE payments (id bigint PRIMARY KEY, x float8, y float8, z float8)")
    user.execute("SELECT setseed(0.5)")
    recipe = plain_recipe(
        name="small",
        epochs=2,
        early_stopping=None,
        error_metric="mahalanobis",
        join_input=True,
        threshold={"policy": "quantile", "contamination": 0.01},
    )
    table = attach_table(user, runtime, recipe=recipe, relation="payments", key="id", features="x,y,z")
    user.execute(
        "INSERT INTO payments SELECT i, random_normal() + CASE WHEN i > %s THEN 8 ELSE 0 END, random_normal(),"
        " random_normal() FROM generate_series(1, %s) i",
        (N_ROWS - N_FRAUD, N_ROWS),
    )
    training.train(runtime, "payments")
    table.drain_all()
    return table


def frauds(table: Table) -> None:
    keys = [str(key) for key in range(N_ROWS - N_FRAUD + 1, N_ROWS + 1)]
    judging.label(table.runtime, "payments", keys, "fraud")


def champion(table: Table) -> int:
    return int(table.keys("SELECT version FROM outlier.model_aliases WHERE alias = 'champion'")[0])


def gate_of(table: Table, version: int) -> dict[str, Any]:
    (found,) = table.keys("SELECT metrics -> 'gate' FROM outlier.model_versions WHERE version = %s", version)
    (same,) = table.keys("SELECT metrics -> 'gate' FROM outlier.training_runs WHERE version = %s", version)
    assert found == same
    return dict(found)


def test_a_version_is_left_to_an_administrator_unless_something_else_was_said(payments: Table) -> None:
    made = training.train(payments.runtime, "payments", seed=5)
    assert (made.promoted, made.n_held_out, champion(payments)) == (False, 0, 1)
    assert made.reason == "an administrator promotes versions of this source"
    assert gate_of(payments, 2)["promotion"] == "manual"


def test_a_better_version_is_promoted_and_a_worse_one_is_kept_with_the_reason(payments: Table) -> None:
    frauds(payments)
    assert gate.set_promotion(payments.runtime, "payments", "if_better")
    assert not gate.set_promotion(payments.runtime, "payments", "if_better")
    bad = spoilt(payments)
    versions.promote(payments.runtime, "payments", bad, reason="test")
    made = training.train(payments.runtime, "payments", seed=5)
    assert (made.promoted, champion(payments)) == (True, made.version)
    assert made.n_held_out == 300
    judged = gate_of(payments, made.version)
    assert judged["decided_by"] == "labels"
    assert judged["new"]["average_precision"] > judged["champion"]["average_precision"]
    (event,) = payments.rows(
        "SELECT from_version, reason FROM outlier.alias_events WHERE to_version = %s", made.version
    )
    assert event == (bad, made.reason)
    again = training.train(payments.runtime, "payments", seed=5)
    assert (again.promoted, champion(payments)) == (False, made.version)
    assert again.reason == "it is no better than the champion"


def spoilt(table: Table) -> int:
    """A version that does not see the feature in which the frauds are far out."""
    table.user.execute("UPDATE outlier.sources SET promotion = 'manual'")
    table.user.execute("CREATE TABLE kept AS SELECT * FROM payments")
    table.user.execute("UPDATE payments SET x = x * 1000")
    made = training.train(table.runtime, "payments", seed=3)
    table.user.execute("UPDATE payments p SET x = k.x FROM kept k WHERE k.id = p.id")
    table.user.execute("UPDATE outlier.sources SET promotion = 'if_better'")
    table.drain_all()
    return made.version


def test_without_verdicts_a_sound_version_is_promoted(payments: Table) -> None:
    payments.user.execute("DELETE FROM payments WHERE id > %s", (N_ROWS - N_FRAUD,))
    gate.set_promotion(payments.runtime, "payments", "if_better")
    made = training.train(payments.runtime, "payments", seed=5)
    assert made.promoted, made.reason
    assert gate_of(payments, 2)["decided_by"] == "proxies"


def test_what_is_unlike_what_came_before_is_not_promoted_without_verdicts(payments: Table) -> None:
    gate.set_promotion(payments.runtime, "payments", "if_better")
    payments.user.execute("UPDATE payments SET y = y + 1.5 WHERE id > 2700")
    payments.user.execute("UPDATE outlier.scores_payments SET flagged = false")
    payments.user.execute("DELETE FROM outlier.queue_payments")
    made = training.train(payments.runtime, "payments", seed=5)
    assert not made.promoted
    assert "PSI" in made.reason
    assert champion(payments) == 1


def test_a_version_of_too_few_rows_is_never_promoted_by_its_training(payments: Table) -> None:
    gate.set_promotion(payments.runtime, "payments", "always")
    few = payments.with_settings(gate_min_rows=100_000)
    made = training.train(few.runtime, "payments", seed=5)
    assert made.promoted is False
    assert "rows, fewer than 100,000" in made.reason
    assert training.train(payments.runtime, "payments", seed=5).promoted


def test_a_training_can_be_repeated_from_what_its_run_holds(payments: Table) -> None:
    for _ in range(2):
        training.train(payments.runtime, "payments", seed=11)
    runs = payments.rows(
        "SELECT r.recipe_hash, r.data_fingerprint, r.window_from, r.window_to, v.sha256 FROM outlier.training_runs r"
        " JOIN outlier.model_versions v USING (source_id, version) WHERE r.seed = 11"
    )
    assert len(runs) == 2
    assert runs[0] == runs[1]
    assert all(runs[0])
    payments.user.execute("UPDATE payments SET x = x + 1 WHERE id = 17")
    training.train(payments.runtime, "payments", seed=11)
    (changed,) = payments.rows("SELECT data_fingerprint FROM outlier.training_runs ORDER BY id DESC LIMIT 1")
    assert changed[0] != runs[0][1]


def test_so_many_new_rows_make_a_training_due(payments: Table) -> None:
    """Counted since the last training began: the 3,000 rows that are scored already count as well."""

    def due(n_rows: int) -> bool:
        counting = payments.with_settings(retrain_every_seconds=86_400, retrain_after_rows=n_rows)
        return list(training.sources_due(counting.runtime)) == ["payments"]

    # What a session has done is in the statistics a moment after its transaction ends.
    until(lambda: due(N_ROWS), "the rows scored so far are counted")
    assert not due(2 * N_ROWS)
    payments.user.execute("INSERT INTO payments SELECT i, 0, 0, 0 FROM generate_series(10001, 13000) i")
    payments.drain_all()
    until(lambda: due(2 * N_ROWS), "as many more are counted")
    assert training.sources_due(payments.runtime) == {}


def test_the_command_says_what_the_policy_is_and_refuses_others(
    payments: Table, environment: dict[str, str]
) -> None:
    def said(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pgoutlier.worker.cli", "models", "policy", "payments", *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr

    assert said() == (0, "Promotion of payments: manual.\n")
    assert said("if_better") == (0, "Promotion of payments: if_better (set now).\n")
    assert json.loads(said("--json")[1]) == {"source": "payments", "promotion": "if_better", "changed": False}
    shown = subprocess.run(
        [sys.executable, "-m", "pgoutlier.worker.cli", "models", "show", "payments", "1"],
        env={**os.environ, **environment, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "By its training it was promoted (promotion manual): first version." in shown.stdout
    code, text = said("sometimes")
    assert code == 2
    assert "'sometimes' is no promotion policy; there are manual, if_better, always." in text
    with pytest.raises(ModelError):
        gate.set_promotion(payments.runtime, "payments", "")
    (by,) = payments.keys("SELECT promotion_set_by FROM outlier.sources")
    assert by == "postgres"
