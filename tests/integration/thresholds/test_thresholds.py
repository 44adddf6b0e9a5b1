"""Threshold policies on real servers: which rows they are drawn from, what is refused, and what others would flag."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import numpy as np
import psycopg
import pytest

from pgoutlier.db.errors import ModelError, SourceError
from pgoutlier.db.thresholds import what_if
from pgoutlier.db.thresholds.scored import Scored
from pgoutlier.db.training import training_rows
from pgoutlier.db.versions import aliases
from pgoutlier.detector import exceeds, parse_threshold
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.thresholds import thresholds
from pgoutlier.worker.training import training
from tests.integration.conftest import Run
from tests.support import FEATURES, Table, attach_table, make_detector, plain_recipe

User = psycopg.Connection[Any]

SMALL = plain_recipe(name="small", epochs=1, early_stopping=None, batch_size=64)
LABEL = 'is it "fraud"? 100%s'
N_ROWS = 300


@pytest.fixture
def payments(user: User, runtime: Runtime) -> Table:
    """300 rows, one an hour, with a label that is not known for one row in three; none says fraud."""
    user.execute(
        "CREATE TABLE payments (id bigint PRIMARY KEY, amount float8, hour float8, distance float8,"
        " at timestamptz, seconds integer, fraud text)"
    )
    user.execute(
        "INSERT INTO payments SELECT i, sin(i) * 50, i %% 24, sqrt(i), '2024-01-01'::timestamptz"
        " + i * '1 hour'::interval, i, CASE WHEN i %% 3 <> 0 THEN 'no' END FROM generate_series(1, %s::int) i",
        (N_ROWS,),
    )
    user.execute(
        psycopg.sql.SQL("ALTER TABLE payments RENAME fraud TO {}").format(psycopg.sql.Identifier(LABEL))
    )
    return attach_table(
        user,
        runtime,
        recipe=SMALL,
        relation="payments",
        key="id",
        features=",".join(FEATURES),
        time="at",
        label='"' + LABEL.replace('"', '""') + '"',
    )


def label(table: Table, text: str | None, condition: str) -> None:
    statement = psycopg.sql.SQL("UPDATE payments SET {} = {} WHERE " + condition)
    table.user.execute(statement.format(psycopg.sql.Identifier(LABEL), psycopg.sql.Literal(text)))


def add_frauds(table: Table) -> None:
    """Ten labelled frauds among the rows, in words of several kinds, that stand out more and more."""
    table.user.execute("UPDATE payments SET amount = id * 30 WHERE id % 30 = 0")
    label(table, "Fraud", "id % 60 = 0")
    label(table, "T", "id % 60 = 30")


def last_run(table: Table) -> tuple[Any, ...]:
    return table.rows(
        "SELECT status, error, n_rows, left_out FROM outlier.training_runs ORDER BY id DESC LIMIT 1"
    )[0]


def test_a_policy_by_labels_is_drawn_from_the_frauds_that_are_not_trained_on(payments: Table) -> None:
    add_frauds(payments)
    made = training.train(payments.runtime, "payments", threshold="target_recall:0.7")
    assert (made.n_rows, made.left_out) == (N_ROWS - 10, {"labelled_fraud": 10})
    assert made.metrics["n_not_normal"] == 10
    assert made.metrics["calibration_recall"] >= 0.7
    assert last_run(payments)[2:] == (N_ROWS - 10, {"labelled_fraud": 10})
    [(threshold, recipe, n_rows)] = payments.rows(
        "SELECT threshold, recipe -> 'threshold', n_training_rows FROM outlier.model_versions"
    )
    assert (threshold, n_rows) == (made.threshold, N_ROWS - 10)
    assert recipe == {"policy": "target_recall", "recall": 0.7}
    # The source is trained by its own policy the next time.
    assert payments.source.recipe["threshold"]["policy"] == "fixed"


def test_flagged_rows_of_which_nothing_is_known_count_as_false_alarms(payments: Table) -> None:
    add_frauds(payments)
    label(payments, None, "id % 30 = 1")
    payments.promote()
    payments.user.execute(
        "INSERT INTO outlier.scores_payments (key, change_id, reconstruction_error, model_version, flagged)"
        " SELECT id, id, 1, 1, true FROM payments WHERE id % 30 IN (0, 1)"
    )
    with payments.runtime.engine.begin() as connection:
        rows = training_rows.read(
            connection,
            payments.source,
            newest=200,
            with_frauds_and_flagged=True,
        )
    ids = np.arange(N_ROWS - 199, N_ROWS + 1)
    np.testing.assert_allclose(rows.matrix[:, 2], np.sqrt(ids))
    np.testing.assert_array_equal(rows.fraud, ids % 30 == 0)
    np.testing.assert_array_equal(rows.normal, ids % 30 > 1)
    assert rows.left_out == {"labelled_fraud": 7, "flagged": 6}
    made = training.train(payments.runtime, "payments", threshold="max_f1", promote=True)
    assert (made.n_rows, made.left_out) == (N_ROWS - 20, {"labelled_fraud": 10, "flagged": 10})
    assert made.metrics["n_not_normal"] == 20


def test_without_a_labelled_fraud_the_earlier_champion_stays(payments: Table) -> None:
    payments.promote()
    with pytest.raises(
        ModelError, match=r"payments cannot be trained: .*needs labelled anomalies and there are none"
    ):
        training.train(payments.runtime, "payments", threshold="precision_equals_recall", promote=True)
    status, error, n_rows, _ = last_run(payments)
    assert (status, n_rows) == ("failed", N_ROWS)
    assert "there are none" in error
    with payments.runtime.engine.begin() as connection:
        assert aliases.champion_of(connection, payments.source) == 1
    assert payments.keys("SELECT version FROM outlier.model_versions") == [1]


def test_an_alert_budget_is_spent_by_the_rows_of_a_day(payments: Table) -> None:
    with payments.runtime.engine.begin() as connection:
        definition = payments.source.definition
        assert training_rows.rows_per_day(connection, definition, newest=1000) == pytest.approx(
            24 * N_ROWS / (N_ROWS - 1)
        )
        assert training_rows.rows_per_day(connection, definition, newest=49) == pytest.approx(24.5)
        assert training_rows.rows_per_day(connection, definition, newest=1) is None
    metrics = training.train(payments.runtime, "payments", threshold="alert_budget:2.4").metrics
    assert 0.05 < metrics["calibration_flag_rate"] <= 0.1


def test_rows_of_a_single_moment_have_no_alert_budget(payments: Table) -> None:
    payments.user.execute("UPDATE payments SET at = '2024-01-01'")
    with pytest.raises(ModelError, match="alert_budget needs to know how many rows a day brings"):
        training.train(payments.runtime, "payments", threshold="alert_budget:2")


def test_a_policy_that_the_source_has_no_column_for_is_refused_at_attach(user: User, run: Run) -> None:
    user.execute("CREATE TABLE t (id bigint PRIMARY KEY, x float8, seconds integer)")
    attach = ("attach", "t", "--key", "id", "--features", "x")
    for words, says in (
        (
            ("--threshold", "max_f1"),
            "max_f1 needs labels and source t has none; attach it with --label COLUMN",
        ),
        (("--threshold", "alert_budget:5"), "source t has no column of times; attach it with --time COLUMN"),
        (("--threshold", "alert_budget:5", "--time", "seconds"), "has no column of times"),
        (("--threshold", "quantile:2"), "'quantile:2' cannot be used: Input should be less than 0.5."),
        (("--threshold", "max_f1", "--dry-run"), "needs labels"),
    ):
        done = run(*attach, *words)
        assert done.exit_code != 0
        assert says in str(done.exception)
        assert isinstance(done.exception, SourceError | ModelError)
    assert user.execute("SELECT count(*) FROM outlier.sources").fetchone() == (0,)
    done = run(*attach, "--threshold", "quantile:0.03")
    assert done.exit_code == 0, done.output
    assert user.execute("SELECT recipe -> 'threshold' FROM outlier.sources").fetchall() == [
        ({"policy": "quantile", "contamination": 0.03},)
    ]
    done = run("train", "t", "--queue", "--threshold", "target_recall:0.9")
    assert "needs labels" in str(done.exception)


def score_by_hand(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Stored scores with many equal errors, one row in ten by version 2. Returns ids and errors of version 1."""
    table.promote(make_detector(FEATURES, threshold=80.0, recipe=SMALL))
    table.user.execute(
        "INSERT INTO outlier.scores_payments"
        " (key, change_id, reconstruction_error, model_version, flagged, scored_at)"
        " SELECT id, id, id % 100, CASE WHEN id % 10 = 0 THEN 2 ELSE 1 END, id % 100 > 80,"
        " '2025-01-01'::timestamptz + id * '1 minute'::interval FROM payments"
    )
    ids = np.arange(1, N_ROWS + 1)
    ids = ids[ids % 10 != 0]
    return ids, (ids % 100).astype(np.float64)


@pytest.mark.parametrize("days", [None, 5])
def test_what_other_thresholds_would_flag_is_what_the_flag_rule_says(
    payments: Table, days: int | None
) -> None:
    ids, row_errors = score_by_hand(payments)
    label(payments, "yes", "id % 100 > 90")
    label(payments, None, "id % 4 = 0")
    known, fraud = (ids % 3 != 0) & (ids % 4 != 0), (ids % 100 > 90) & (ids % 4 != 0)
    known |= fraud
    if days is not None:
        recent = ids > N_ROWS - 24 * days
        ids, row_errors, known, fraud = ids[recent], row_errors[recent], known[recent], fraud[recent]
    found = thresholds.describe(
        payments.runtime,
        "payments",
        window=None if days is None else timedelta(days=days),
        others=[95.0, 94.5, 0.0, -1.0, 500.0],
    )
    assert [cut.threshold for cut in found.what_if] == [-1.0, 0.0, 80.0, 94.5, 95.0, 500.0]
    assert (found.n_scores, found.n_labelled, found.n_fraud) == (len(ids), known.sum(), fraud.sum())
    assert found.days == pytest.approx((ids[-1] - ids[0]) / 24)
    for cut in found.what_if:
        flagged = exceeds(row_errors, cut.threshold)
        n_hits, n_flagged_known = (flagged & fraud).sum(), (flagged & known).sum()
        assert cut.flags == flagged.sum()
        assert cut.share == pytest.approx(flagged.mean())
        assert cut.flags_per_day == pytest.approx(flagged.sum() / found.days)
        assert cut.recall == pytest.approx(n_hits / fraud.sum())
        assert cut.precision == (pytest.approx(n_hits / n_flagged_known) if n_flagged_known else None)
        assert cut.f1 == pytest.approx(2 * n_hits / (n_flagged_known + fraud.sum()))
        assert cut.present == (cut.threshold == 80.0)
    assert found.now == found.what_if[2]


def test_the_scores_are_counted_by_going_through_them_once(payments: Table) -> None:
    score_by_hand(payments)
    user = payments.user
    user.execute("ANALYZE payments, outlier.scores_payments")
    with payments.runtime.engine.begin() as connection:
        scored = Scored.of(connection, payments.source.definition, 1, None)
        grid = what_if.thresholds(connection, scored)
    assert len(grid) <= len(what_if.SHARES)
    explain = psycopg.sql.SQL("EXPLAIN (FORMAT JSON) ") + what_if.counting(scored)
    [(plans,)] = user.execute(
        explain, {"bounds": [-t for t in grid], "version": 1, "window": None}
    ).fetchall()
    found, waiting = [], [plans[0]["Plan"]]
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", [])
        found.append((node["Node Type"], node.get("Relation Name")))
    assert sorted(name for _, name in found if name) == ["payments", "scores_payments"]
    assert "Sort" not in {kind for kind, _ in found}, (
        "what is kept grows with the thresholds, not with the rows"
    )
    counted = user.execute(what_if.counting(scored), {"bounds": [-t for t in grid], "version": 1}).fetchall()
    assert len(counted) <= len(grid) + 1


def test_the_command_shows_the_threshold_and_a_range_of_others(payments: Table, run: Run) -> None:
    with pytest.raises(ModelError, match="payments has no champion yet; train one: pgoutlier train payments"):
        thresholds.describe(payments.runtime, "payments", window=None)
    score_by_hand(payments)
    add_frauds(payments)
    shown = run("threshold", "payments", "--window", "all").output
    assert "Version 1 of payments flags rows above 80 (policy fixed:1.0)." in shown
    assert "270 scores by at from 2024-01-01 01:00 to 2024-01-13" in shown
    assert "precision" in shown
    assert "Rows without a label count as flags, not for precision and recall." in shown
    table = run("threshold", "payments", "--what-if").output
    assert table.count(" now") == 1
    assert "pgoutlier reflag payments --threshold X" in table
    made = json.loads(run("threshold", "payments", "--what-if", "--json", "--window", "2d").output)
    assert made["version"] == 1
    assert made["time"] == "at"
    assert sum(cut["present"] for cut in made["what_if"]) == 1
    assert 3 < len(made["what_if"]) <= 15
    chosen = json.loads(run("threshold", "payments", "--at", "3", "--at", "3", "--json").output)
    assert [cut["threshold"] for cut in chosen["what_if"]] == [3.0, 80.0]
    assert "what_if" not in json.loads(run("threshold", "payments", "--json").output)


def test_a_source_without_times_counts_by_the_time_of_scoring_and_without_labels(
    user: User, run: Run
) -> None:
    user.execute("CREATE TABLE payments (id bigint PRIMARY KEY, amount float8, hour float8, distance float8)")
    done = run("attach", "payments", "--key", "id", "--all-numeric-except", "")
    assert done.exit_code == 0, done.output
    for words, says in (
        (("--window", "soon"), "--window 'soon' is not a length of time; write 12h, 7d or all."),
        (("--window", "0d"), "is not a length of time"),
        (("--window", "99999d"), "is not a length of time"),
        (("--at", "nan"), "--at takes a finite number"),
        ((), "has no champion yet"),
    ):
        assert says in str(run("threshold", "payments", *words).exception)


def test_scores_of_a_moment_tell_no_flags_a_day(transactions: Table, run: Run) -> None:
    transactions.promote(make_detector(FEATURES, threshold=0.0))
    assert "No row of this time was scored by version 1" in run("threshold", "transactions").output
    transactions.insert(1, 50)
    transactions.drain()
    shown = run("threshold", "transactions", "--what-if").output
    assert "50 scores, 50 flagged (100.000%); scored_at covers too little time for flags a day." in shown
    assert "precision" not in shown
    found = thresholds.describe(transactions.runtime, "transactions", window=timedelta(days=1))
    assert (found.time, found.days, found.label) == ("scored_at", None, None)
    assert found.now.flags_per_day is None
    assert parse_threshold(found.policy).policy == "fixed"
