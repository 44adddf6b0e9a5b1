"""A source with features over the rows before, from attach to what is told of a flagged row."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pgoutlier import detector
from pgoutlier.db.scoring import claimed_rows, past_statements, queue
from pgoutlier.db.training import training_rows
from pgoutlier.detector import recipe_named
from pgoutlier.worker.console import top_features_text
from pgoutlier.worker.evaluation.declared import declared
from pgoutlier.worker.runtime import Runtime
from tests.integration.conftest import Run
from tests.support import Connection, Table, attach_table, make_champion, refusal, until

FEATURES = (
    "amount, hour(paid_at), ratio(amount, 30d) by customer, count(24h) by customer, since_last by customer,"
    " risk(shop, 7d, delay 1d), rarity(country), distinct(shop, 30d) by customer, diff(amount, 1)"
)
TABLE = """
CREATE TABLE payments (id bigint PRIMARY KEY, paid_at timestamptz, customer text, shop integer, country text,
                       amount numeric, chargeback boolean);
INSERT INTO payments SELECT i, timestamptz '2026-03-01' + i * interval '7 minutes', 'c' || i % 23, i % 7,
    (ARRAY['DE', 'FR', 'FR', 'IT', NULL])[1 + i % 5], 10 + i % 13, i % 97 = 0 FROM generate_series(1, 1500) i;
"""


@pytest.fixture
def payments(user: Connection, runtime: Runtime) -> Table:
    user.execute(TABLE)
    return attach_table(
        user,
        runtime,
        backfill=True,
        relation="payments",
        features=FEATURES,
        time="paid_at",
        label="chargeback",
        recipe=recipe_named("tails"),
    )


def trained(table: Table) -> Any:
    """What the source's recipe makes of its rows, as the champion."""
    definition = table.source.definition
    with table.runtime.engine.begin() as connection:
        rows = training_rows.read(connection, table.source, newest=10_000)
    fitted = detector.fit(
        recipe_named("tails"), rows.matrix, definition.feature_names, codes=definition.codes
    )
    make_champion(table.runtime, table.source, fitted.detector)
    return fitted.detector


def test_a_row_far_from_its_own_past_is_flagged_for_that_with_its_value(payments: Table, run: Run) -> None:
    champion = trained(payments)
    payments.user.execute(
        "INSERT INTO payments VALUES (9000, '2026-03-08 12:00:00+00', 'c5', 3, 'DE', 4000, false),"
        " (9001, '2026-03-08 12:00:01+00', 'nobody', 3, 'DE', 12, false)"
    )
    payments.drain()
    (top,) = payments.keys("SELECT top_features FROM outlier.scores_payments WHERE key = 9000 AND flagged")
    assert top[0]["feature"] == "ratio(amount, 30d) by customer"
    assert top[0]["value"] == pytest.approx(4000 / 16, rel=0.2)
    assert champion.feature_names == payments.source.definition.feature_names

    assert top_features_text(top).startswith(f"ratio(amount, 30d) by customer = {top[0]['value']:.4g} (")
    assert "ratio(amount" in run("flagged", "payments").output
    (row,) = json.loads(run("features", "payments", "9001", "--json").output)
    assert row["features"]["count(24h) by customer"] == 0
    assert row["features"]["since_last by customer"] == 30 * 86_400
    assert row["features"]["ratio(amount, 30d) by customer"] == 1
    assert row["columns"]["customer"] == "nobody"
    assert 0 < row["features"]["risk(shop, 7d, delay 1d)"] < 1
    assert row["features"]["rarity(country)"] == pytest.approx(np.log(5), rel=0.05)


def test_a_key_that_no_row_has_is_named(payments: Table, run: Run) -> None:
    refused = run("features", "payments", "1", "77777")
    assert "There is no row of payments with the key '77777'" in str(refused.exception)


def test_a_file_of_the_rows_gives_what_the_table_gives(payments: Table) -> None:
    definition = payments.source.definition
    with payments.runtime.engine.begin() as connection:
        rows = training_rows.read(connection, payments.source, newest=10_000, with_frauds_and_flagged=True)
    found = payments.rows("SELECT * FROM payments ORDER BY paid_at, id")
    columns = ["id", "paid_at", "customer", "shop", "country", "amount", "chargeback"]
    frame = pd.DataFrame(found, columns=columns).astype({"amount": float})
    times = pd.to_datetime(frame["paid_at"], utc=True).dt.tz_localize(None).to_numpy()
    of_file = declared(frame, FEATURES, times, frame["chargeback"].to_numpy(bool))
    assert of_file.names == definition.feature_names
    assert of_file.codes == definition.codes
    np.testing.assert_allclose(rows.matrix, of_file.matrix, rtol=1e-9, atol=1e-9)


def test_an_attach_says_which_indexes_are_needed_and_makes_them_when_asked(payments: Table, run: Run) -> None:
    asked = ["attach", "payments", "--features", FEATURES, "--time", "paid_at", "--label", "chargeback"]
    asked += ["--recipe", "tails"]
    advised = json.loads(run(*asked, "--json").output)["past_index_advice"]
    assert advised == [
        "CREATE INDEX CONCURRENTLY ON public.payments (customer, paid_at, id) INCLUDE (amount, shop);",
        "CREATE INDEX CONCURRENTLY ON public.payments (shop, paid_at, id);",
        "CREATE INDEX CONCURRENTLY ON public.payments (paid_at, id) INCLUDE (amount);",
    ]
    assert "no index finds them" in run("doctor").output
    made = json.loads(run(*asked, "--make-indexes", "--json").output)
    assert made["indexes_made"] == advised
    assert made["past_index_advice"] == []
    assert "no index finds them" not in run("doctor").output


def test_the_rows_before_are_read_by_these_indexes(payments: Table, run: Run) -> None:
    with payments.runtime.engine.begin() as connection:
        advised = past_statements.missing_indexes(connection, payments.source.definition)
    for statement in advised:
        payments.user.execute(statement)  # type: ignore[arg-type]
    payments.user.execute(
        "INSERT INTO payments SELECT i, timestamptz '2026-03-09' + i * interval '1 minute', 'c' || i % 800, i % 300,"
        " 'FR', 10 + i % 13, false FROM generate_series(10001, 30000) i"
    )
    payments.user.execute("VACUUM ANALYZE payments")
    trained(payments)
    payments.user.execute("TRUNCATE outlier.queue_payments")
    scans = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'payments'"
    ends_of(payments)
    before = payments.keys(scans)
    payments.user.execute(
        "INSERT INTO payments VALUES (9000, '2026-03-08 12:00:00+00', 'c5', 3, 'DE', 4000, false)"
    )
    payments.drain()
    ends_of(payments)
    used = dict(
        payments.rows("SELECT indexrelname, idx_scan FROM pg_stat_user_indexes WHERE relname = 'payments'")
    )
    assert all(n > 0 for name, n in used.items() if "paid_at" in name), used
    assert payments.keys(scans) == before


def ends_of(table: Table) -> None:
    """See the sessions end that count the scans, which tell of them then."""
    table.runtime.engine.dispose()
    table.user.execute("SELECT pg_stat_force_next_flush()")
    others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    until(lambda: not table.rows(f"{others} AND backend_type = 'client backend'"), "other sessions end")


def test_a_migration_that_renames_the_columns_of_an_entity_is_followed(payments: Table) -> None:
    champion = trained(payments)
    payments.user.execute(
        "BEGIN; SELECT outlier.before_migration('payments'); ALTER TABLE payments RENAME customer TO client;"
        " ALTER TABLE payments RENAME amount TO total; SELECT outlier.after_migration('payments'); COMMIT"
    )
    definition = payments.source.definition
    assert definition.feature_names == champion.feature_names
    assert {past.by for _, f in definition.past_features if (past := f.past)} == {"client", "shop", None}
    payments.user.execute(
        "INSERT INTO payments VALUES (9000, '2026-03-08 12:00:00+00', 'c5', 3, 'DE', 4000, false)"
    )
    payments.user.execute("UPDATE payments SET client = 'c6' WHERE id = 7")
    assert payments.queued() == [7, 9000]
    payments.drain()
    assert payments.source.last_problem is None
    # The same attach with the names of now is the same source.
    again = FEATURES.replace("amount", "total").replace("customer", "client")
    attach_table(
        payments.user, payments.runtime, relation="payments", features=again, time="paid_at", label="chargeback",
        recipe=recipe_named("tails"),
    )  # fmt: skip
    assert payments.source.definition.feature_names == champion.feature_names


@pytest.mark.parametrize(
    ("features", "said"),
    {
        "count(24h) by customer, count(24h) by customer": "is named twice",
        "count(24h) by nobody": "has no column nobody",
        "sum(country, 7d) by customer": "needs numbers, but country is text",
        "sum(amount, 7x) by customer": "The window '7x' of 'sum(amount, 7x) by customer' is not a number of s, m, h",
        "sum(amount, 401d) by customer": "is longer than 400d",
        "sum(amount) by customer": "is not written as sum(COLUMN, WINDOW) [by COLUMN]",
        "lag(amount, 0) by customer": "is not a number of rows from 1 to 1,000",
        "risk(shop, 7d, later 1d)": "is not written as risk(COLUMN, WINDOW[, delay WINDOW])",
        "rarity(amount)": "rarity is of text, whole numbers, booleans, enums or UUIDs, but amount is numeric",
        "rarity(paid_at)": "but paid_at is timestamp with time zone",
        "amounts(amount)": "There is no transform amounts; known are hour,",
    }.items(),
)
def test_an_entry_that_is_wrong_is_refused_with_what_is_right(
    user: Connection, runtime: Runtime, features: str, said: str
) -> None:
    user.execute(TABLE)
    assert said in refusal(runtime, relation="payments", features=features, time="paid_at")
    if "nobody" not in features and "amounts" not in features and "later" not in features:
        return
    assert "--time" in refusal(runtime, relation="payments", features="count(24h) by customer")


@pytest.mark.parametrize("late", ["leave", "rescore"])
def test_rows_behind_one_that_comes_late_are_scored_again_where_that_is_asked_for(
    user: Connection, runtime: Runtime, late: str
) -> None:
    user.execute(TABLE)
    table = attach_table(
        user, runtime, relation="payments", features="amount, count(2h) by shop, lag(amount, 1) by customer",
        time="paid_at", late=late,
    )  # fmt: skip
    table.promote()
    user.execute(
        "INSERT INTO payments SELECT id + 10000, paid_at, customer, shop FROM payments; TRUNCATE payments"
    )
    user.execute(TABLE.partition(";")[2])  # type: ignore[arg-type]
    table.drain_all()
    scored = table.errors()
    # Of shop 3, and of customer c5: payments of that shop within two hours behind it, and the next of that customer.
    user.execute("INSERT INTO payments VALUES (9000, '2026-03-04 12:00:00+00', 'c5', 3, 'DE', 77, false)")
    table.drain_all()
    again = {key for key, error in table.errors().items() if key in scored and error != scored[key]}
    behind = table.keys(
        "SELECT id FROM payments WHERE shop = 3"
        " AND paid_at > '2026-03-04 12:00+00' AND paid_at <= '2026-03-04 14:00+00'"
        " UNION (SELECT id FROM payments WHERE customer = 'c5' AND paid_at > '2026-03-04 12:00+00'"
        " ORDER BY paid_at LIMIT 1)"
    )
    assert again == (set(behind) if late == "rescore" else set())
    assert len(behind) > 2


def test_a_verdict_that_is_given_later_changes_nothing_of_earlier_rows(payments: Table) -> None:
    """What would leak: frauds of the very rows that a training learns from, told after these."""
    trained(payments)

    def rows_of_training() -> Any:
        with payments.runtime.engine.begin() as connection:
            return training_rows.read(
                connection, payments.source, newest=10_000, with_frauds_and_flagged=True
            ).matrix

    before = rows_of_training()
    payments.user.execute(
        "INSERT INTO outlier.verdicts (source, key, verdict) SELECT 'payments', id::text, 'fraud' FROM payments"
        " WHERE id % 10 = 0"
    )
    assert np.array_equal(rows_of_training(), before)
    # The same verdicts, had they been known from the start, would show.
    payments.user.execute("UPDATE outlier.verdicts SET created_at = '2026-02-01'")
    assert not np.array_equal(rows_of_training(), before)


def read_at_once(table: Table) -> dict[Any, list[float]]:
    """The features of all rows of the table, read in one claim, by key."""
    definition = table.source.definition
    with table.runtime.engine.begin() as connection:
        claim = queue.claim(connection, definition, at_most=100_000, whole_batch_attempts=3)
        rows = claimed_rows.read_claimed(connection, definition, claim)
    return dict(zip(definition.key.to_parameters(rows.keys), rows.matrix.tolist(), strict=True))


def test_a_row_far_behind_another_asked_for_sees_it_and_takes_nothing_from_it(
    user: Connection, runtime: Runtime
) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamptz, who text, amount float8)")
    table = attach_table(
        user,
        runtime,
        relation="t",
        time="at",
        features="lag(amount, 1) by who, lag(amount, 2) by who, count(1h) by who",
    )
    user.execute(
        "INSERT INTO t SELECT i, timestamptz '2026-01-01' + i * interval '100 days', 'a', i"
        " FROM generate_series(1, 6) i"
    )
    assert read_at_once(table) == {i: [max(i - 1, 1), i - 2 if i > 2 else i, 0] for i in range(1, 7)}


def test_equal_values_are_one_value_however_they_are_written(user: Connection, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamptz, n numeric, f float8, c char(5))")
    table = attach_table(
        user,
        runtime,
        relation="t",
        time="at",
        features="distinct(n, 1d), is_new(n, 1d), is_new(f, 1d), is_new(c, 1d)",
    )
    user.execute(
        "INSERT INTO t VALUES (1, '2026-01-01 00:00+00', 1.0, 0.0, 'x'), (2, '2026-01-01 00:01+00', 1.00, '-0', 'x  ')"
    )
    assert read_at_once(table)[2] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("time", "values"),
    [
        ("timestamptz", ["'-infinity'", "'infinity'", "'2026-01-01'", "'4000-01-01 BC'"]),
        ("float8", ["'-infinity'", "'infinity'", "'NaN'", "1e300", "5"]),
        ("numeric", ["'NaN'", "5", "5.0000001", "1e40"]),
        ("date", ["'infinity'", "'0001-01-01'"]),
    ],
)
def test_a_time_that_is_none_of_the_calendar_hinders_no_row(
    user: Connection, runtime: Runtime, time: str, values: list[str]
) -> None:
    user.execute(f"CREATE TABLE t (id int PRIMARY KEY, at {time}, who text, amount float8)")  # type: ignore[arg-type]
    table = attach_table(
        user,
        runtime,
        relation="t",
        time="at",
        features="sum(amount, 400d) by who, since_last by who, diff(amount, 1), z(amount, 1s)",
    )
    rows = ", ".join(f"({n}, {value}, 'a', {n + 1})" for n, value in enumerate([*values, *values]))
    user.execute(f"INSERT INTO t VALUES {rows}")  # type: ignore[arg-type]
    found = read_at_once(table)
    assert len(found) == 2 * len(values)
    assert np.isfinite(list(found.values())).all()


def test_a_column_with_brackets_and_words_in_its_name_is_named_in_quotes(
    user: Connection, runtime: Runtime
) -> None:
    user.execute(
        'CREATE TABLE t (id int PRIMARY KEY, at timestamptz, "a) by (b, c" text, "x(1)%" float8);'
        " INSERT INTO t VALUES (0, '2025-12-31', 'a', 1)"
    )
    features = (
        'sum("x(1)%", 7d) by "a) by (b, c", is_new("a) by (b, c", 7d), risk("a) by (b, c", 7d, delay  1d)'
    )
    table = attach_table(user, runtime, relation="t", time="at", features=features)
    user.execute("INSERT INTO t VALUES (1, '2026-01-01', 'a', 2), (2, '2026-01-02', 'a', 3)")
    assert [row[:2] for _, row in sorted(read_at_once(table).items())] == [[1, 0], [3, 0]]
    declared_again = ", ".join(feature.declaration for feature in table.source.definition.features)
    assert declared_again == features.replace("delay  1d", "delay 1d")
