"""Drift of a source: found where it was put, not found where there is none, kept, shown, and acted upon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from pgoutlier.db.drift import drift_reports
from pgoutlier.db.drift.drift_reports import DriftReport
from pgoutlier.db.errors import ModelError
from pgoutlier.db.sources import sources
from pgoutlier.db.status import overview
from pgoutlier.worker.drift import measuring
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.training import training
from pgoutlier.worker.upkeep import maintenance
from tests.support import Table, attach_table, plain_recipe

# The statements are plain joins; one training takes a second.
pytestmark = pytest.mark.postgres18

User = psycopg.Connection[Any]
N_TRAINING, N_LATER = 4_000, 2_000


@pytest.fixture
def payments(user: User, runtime: Runtime) -> Table:
    """A trained table: x normal, y exponential, z of three levels; the rows after training are for the tests."""
    user.execute("CREATE TABLE payments (id bigint PRIMARY KEY, x float8, y float8, z float8)")
    user.execute("SELECT setseed(0.25)")
    recipe = plain_recipe(
        name="small", epochs=1, early_stopping=None, threshold={"policy": "quantile", "contamination": 0.01}
    )
    table = attach_table(
        user, runtime, recipe=recipe, relation="payments", key="id", features="x,y,z"
    ).with_settings(drift_rows=N_LATER)
    add(table, 1, N_TRAINING)
    training.train(table.runtime, table.source_name)
    table.drain_all()
    return table


def add(
    table: Table,
    first: int,
    n_rows: int,
    *,
    x: str = "random_normal()",
    y: str = "-ln(1 - random())",
    z: str = "floor(random() * 3)",
) -> None:
    table.user.execute(
        f"INSERT INTO payments SELECT i, {x}, {y}, {z} FROM generate_series({first}, {first + n_rows - 1}) i".encode()
    )


def later(table: Table, **shift: str) -> DriftReport:
    """Add the rows that drift is measured on, score and measure them."""
    add(table, N_TRAINING + 1, N_LATER, **shift)
    table.drain_all()
    return measuring.measure(table.runtime, table.source_name)


def test_rows_like_those_of_the_training_have_not_drifted(payments: Table) -> None:
    report = later(payments)
    assert report.reasons == []
    assert report.n_rows == N_LATER
    assert {f.feature for f in report.features} == {"x", "y", "z"}
    assert max(f.psi for f in report.features) < 0.05
    assert report.error_psi < 0.05


@pytest.mark.parametrize(
    ("feature", "expression"),
    [
        ("x", "random_normal() + 0.6"),
        ("x", "random_normal() * 2"),
        ("y", "-ln(1 - random()) * 2"),
        ("z", "CASE WHEN random() < 0.8 THEN 0 ELSE 2 END"),
        ("z", "3"),
    ],
    ids=["moved", "wider", "stretched", "other shares of levels", "a level of its own"],
)
def test_a_shift_is_found_in_its_feature_alone(payments: Table, feature: str, expression: str) -> None:
    report = later(payments, **{feature: expression})
    assert report.drifted
    assert report.features[0].feature == feature
    assert [f.feature for f in report.features if f.psi > f.limit] == [feature]
    assert any(reason.startswith(f"{feature} has PSI") for reason in report.reasons)


def test_what_is_taken_from_the_clock_is_left_out(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE logins (id bigint PRIMARY KEY, at timestamp, x float8)")
    recipe = plain_recipe(
        name="small", epochs=1, early_stopping=None, threshold={"policy": "quantile", "contamination": 0.01}
    )
    table = attach_table(user, runtime, recipe=recipe, relation="logins", key="id", features="hour(at),x")
    row = "INSERT INTO logins SELECT i, timestamp '2026-01-01' + {step} * i, random_normal() FROM generate_series"
    user.execute((row.format(step="interval '1 hour'") + "(1, 2000) i").encode())
    training.train(runtime, "logins")
    user.execute((row.format(step="interval '1 ms'") + "(2001, 22000) i").encode())
    table.drain_all()
    report = measuring.measure(runtime, "logins")
    assert [f.feature for f in report.features] == ["x"]
    assert not [reason for reason in report.reasons if "hour" in reason]


@pytest.mark.parametrize(
    ("flagged", "is_found"), [("key %% 20 = 0", True), ("false", True), ("flagged", False)]
)
def test_flags_that_get_frequent_or_stop_are_found(payments: Table, flagged: str, is_found: bool) -> None:
    add(payments, N_TRAINING + 1, N_LATER)
    payments.drain_all()
    payments.user.execute("UPDATE outlier.scores_payments SET flagged = key % 100 = 0")
    assert measuring.measure(payments.runtime, "payments").expected_flag_rate is None
    payments.user.execute(
        f"UPDATE outlier.scores_payments SET flagged = {flagged}".replace("%%", "%").encode()
    )
    report = measuring.measure(payments.runtime, "payments")
    assert report.expected_flag_rate == pytest.approx(0.01)
    assert any("were at first" in reason for reason in report.reasons) == is_found


def test_rows_in_quarantine_are_a_warning(payments: Table) -> None:
    report = later(payments, x="CASE WHEN i % 10 = 0 THEN 'NaN'::float8 ELSE random_normal() END")
    assert report.quarantine_rate == pytest.approx(0.1)
    assert [r for r in report.reasons if "quarantine" in r] == [
        "10.0% of the rows are in quarantine, above 5.0%"
    ]


def test_a_source_that_cannot_be_measured_is_refused_in_one_sentence(
    payments: Table, user: User, runtime: Runtime
) -> None:
    few = payments.with_settings(drift_rows=500)
    add(few, N_TRAINING + 1, 400)
    with pytest.raises(ModelError, match="has scored 100 of the newest 500 rows"):
        measuring.measure(few.runtime, "payments")
    user.execute("CREATE TABLE other (id int PRIMARY KEY, a float8)")
    other = attach_table(user, runtime, relation="other", key="id", features="a")
    with pytest.raises(ModelError, match="no champion yet"):
        measuring.measure(runtime, "other")
    other.promote()
    with pytest.raises(ModelError, match="kept nothing to measure drift against"):
        measuring.measure(runtime, "other")


def test_drift_trains_a_version_once_in_the_interval_if_that_is_wanted(payments: Table) -> None:
    later(payments, x="random_normal() + 2")
    asked: list[str] = []

    def ask(name: str, last_run: int) -> None:
        assert [last_run] == payments.keys("SELECT max(id) FROM outlier.training_runs")
        asked.append(name)

    assert measuring.measure_all(payments.runtime, train=ask) == {"payments": True}
    assert asked == []
    wanted = payments.with_settings(retrain_on_drift=True)
    measuring.measure_all(wanted.runtime, train=ask)
    assert asked == []  # it was trained a moment ago
    payments.user.execute("UPDATE outlier.training_runs SET started_at = now() - interval '2 days'")
    measuring.measure_all(wanted.runtime, train=ask)
    assert asked == ["payments"]


def test_a_source_that_cannot_be_measured_does_not_keep_the_others_from_it(
    payments: Table, user: User
) -> None:
    later(payments)
    user.execute("CREATE TABLE broken AS SELECT * FROM payments")
    user.execute("ALTER TABLE broken ADD PRIMARY KEY (id)")
    recipe = plain_recipe(name="small", epochs=1, early_stopping=None)
    broken = attach_table(user, payments.runtime, recipe=recipe, relation="broken", key="id", features="x,y")
    training.train(payments.runtime, "broken")
    user.execute("UPDATE broken SET x = x + 1")
    broken.drain_all()
    user.execute("ALTER TABLE broken RENAME COLUMN x TO was_x")
    with capture_logs() as logs:
        assert measuring.measure_all(payments.runtime, train=print) == {"payments": False}
    assert [entry["source"] for entry in logs if entry["event"] == "maintenance_failed"] == ["broken"]


def test_a_report_is_logged_kept_shown_in_the_status_and_pruned(payments: Table) -> None:
    with capture_logs() as logs:
        report = later(payments, x="random_normal() + 2")
    assert [entry["reasons"] for entry in logs if entry["event"] == "drift_found"] == [report.reasons]
    with payments.runtime.engine.begin() as connection:
        (described,) = overview.describe(connection, sources.every(connection))
        (kept,) = drift_reports.reports(connection, payments.source.id, limit=5)
    assert described.drift is not None
    assert described.drift.reasons == report.reasons == kept.reasons
    for _ in range(3):
        measuring.measure(payments.runtime, "payments")
    maintenance.prune_all(payments.with_settings(keep_drift_reports=2).runtime)
    assert payments.rows("SELECT count(*) FROM outlier.drift_reports") == [(2,)]


def test_the_command_shows_the_last_report(payments: Table, environment: dict[str, str]) -> None:
    def said(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pgoutlier.worker.cli", "drift", "payments", *arguments],
            env={**os.environ, **environment, "PGOUTLIER_DRIFT_ROWS": str(N_LATER), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr

    code, text = said()
    assert code == 2
    assert "No drift of payments was measured yet" in text
    later(payments, y="-ln(1 - random()) * 5")
    code, text = said("--measure")
    assert code == 0
    assert "Drift: y has PSI" in text
    assert [len(json.loads(said(*extra, "--json")[1])) for extra in ((), ("--history", "5"))] == [1, 2]
