"""A training leaves out the few rows with a value far out, counts them, and says which feature they would decide."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from pgoutlier.worker.report import of_source
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.training import gate, training
from tests.integration.conftest import Run
from tests.support import Table, attach_table, plain_recipe

# The statements are plain; each test trains.
pytestmark = pytest.mark.postgres18

User = psycopg.Connection[Any]
N_ROWS = 3_000
SMALL = plain_recipe(
    name="small",
    epochs=2,
    early_stopping=None,
    batch_size=256,
    far_spreads=1_000.0,
    error_metric="mahalanobis",
    join_input=True,
    threshold={"policy": "quantile", "contamination": 0.01},
)


@pytest.fixture
def payments(user: User, runtime: Runtime) -> Table:
    """Amounts around 20, a second feature, and one amount of 1e12."""
    user.execute("CREATE TABLE payments (id bigint PRIMARY KEY, amount numeric, items float8)")
    table = attach_table(user, runtime, recipe=SMALL, relation="payments", key="id", features="amount,items")
    user.execute("SELECT setseed(0.5)")
    user.execute(
        "INSERT INTO payments SELECT i, exp(3 + random_normal() / 2), random_normal()"
        " FROM generate_series(1, %s) i",
        (N_ROWS,),
    )
    user.execute("UPDATE payments SET amount = 1e12 WHERE id = 1000")
    return table


def test_it_is_counted_named_and_kept_with_the_version(payments: Table) -> None:
    made = training.train(payments.runtime, "payments")
    assert (made.n_rows, made.left_out) == (N_ROWS - 1, {"far_out": 1})
    assert made.sentences()[1].startswith("Note: of 3,000 rows 1 row makes the spread of amount ")
    (run,) = payments.rows("SELECT n_rows, left_out FROM outlier.training_runs")
    assert run == (N_ROWS - 1, {"far_out": 1})
    (kept,) = payments.keys("SELECT metrics -> 'decided_by_few' FROM outlier.model_versions")
    assert [few["feature"] for few in kept] == ["amount"]


def test_errors_are_those_that_there_are_without_it(payments: Table) -> None:
    probes = "INSERT INTO payments VALUES (9001, 20, 0), (9002, 5000, 0), (9003, 1e6, 0)"
    training.train(payments.runtime, "payments")
    payments.user.execute(probes)
    payments.drain_all()
    ordinary, large, larger = (payments.errors()[key] for key in (9001, 9002, 9003))
    assert ordinary < 5 < 100 < large < larger / 50
    assert payments.keys(
        "SELECT key FROM outlier.scores_payments WHERE flagged AND key > 9000 ORDER BY 1"
    ) == [
        9002,
        9003,
    ]
    assert payments.keys("SELECT flagged FROM outlier.scores_payments WHERE key = 1000") == [True]


def test_the_command_the_version_and_the_report_say_so(payments: Table, run: Run) -> None:
    sentence = "1 row makes the spread of amount"
    assert sentence in run("train", "payments").output.replace("\n", " ")
    assert sentence in run("models", "show", "payments", "champion").output.replace("\n", " ")
    shown = json.loads(run("train", "payments", "--json").stdout)
    assert [few["n_left_out"] for few in shown["decided_by_few"]] == [1]
    payments.drain_all()
    _, page = of_source.live_page(payments.runtime, "payments")
    assert sentence in page


def test_a_placeholder_among_the_newest_rows_is_no_reason_against_a_version(payments: Table) -> None:
    """The gate asks whether each feature has a part in the errors of the hold-out: not of one row of them."""
    gate.set_promotion(payments.runtime, "payments", "if_better")
    training.train(payments.runtime, "payments")
    payments.user.execute("UPDATE payments SET amount = 1e15 WHERE id = %s", (N_ROWS - 5,))
    made = training.train(payments.runtime, "payments", seed=3)
    assert made.n_held_out
    assert "has no part in any error" not in made.reason
    assert made.promoted
