"""From queue to score: what is written, what is quarantined and why, and what becomes of failures."""

from __future__ import annotations

import math
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import psycopg
import pytest

from pgoutlier.db.errors import ModelError, SourceError
from pgoutlier.detector import Detector, exceeds
from pgoutlier.detector.recipes import DropColumns, Standardise
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.upkeep import maintenance
from pgoutlier.worker.versions import versions
from tests.conftest import Connect
from tests.support import (
    HUNG_SECONDS,
    Table,
    attach_table,
    detach_table,
    make_detector,
    plain_recipe,
    register,
    until,
    waits,
)

User = psycopg.Connection[Any]

SOUND = "INSERT INTO transactions VALUES (%s, 1, 1, 1)"


def problem(table: Table) -> str | None:
    found: str | None = table.source.last_problem
    return found


def imputing(table: Table, **changes: Any) -> None:
    """Give the table a champion whose recipe imputes."""
    names = table.source.definition.feature_names
    table.promote(make_detector(names, recipe=plain_recipe(missing="median"), **changes))


# -- what is written


@pytest.mark.parametrize(
    ("key_type", "keys"),
    [
        ("smallint", [-32768, -1, 0, 32767]),
        ("integer", [-(2**31), 7, 2**31 - 1]),
        ("bigint", [-(2**63), 2**53 + 1, 2**63 - 1]),
        ("uuid", [uuid.UUID(int=i) for i in (0, 1, 2**128 - 1)]),
        ("text", ["", "a", "größe 😀", "x" * 2000, "\\N", '"{,}']),
        ("varchar(10)", ["a", "b "]),
    ],
)
def test_scores_are_those_of_the_detector_for_every_key_type(
    user: User, runtime: Runtime, key_type: str, keys: list[Any]
) -> None:
    user.execute(f"CREATE TABLE t (k {key_type} PRIMARY KEY, a float8, b real, c numeric, d bool, e bigint)")  # type: ignore[arg-type]
    table = attach_table(user, runtime, relation="t", key="k", features="a,b,c,d,e")
    matrix = np.random.default_rng(1).normal(size=(len(keys), 5)).astype(np.float32).astype(np.float64)
    matrix[:, 2] = matrix[:, 2].round(3)
    matrix[:, 3] = matrix[:, 3] > 0
    matrix[:, 4] = np.arange(len(keys)) * 2.0**40
    detector = make_detector(("a", "b", "c", "d", "e"))
    table.promote(detector)
    with user.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO t VALUES (%s, %s, %s, %s::float8::numeric, %s, %s)",
            [(k, a, b, c, bool(d), int(e)) for k, (a, b, c, d, e) in zip(keys, matrix.tolist(), strict=True)],
        )
    table.drain()
    expected = detector.score(matrix).reconstruction_error
    assert table.errors() == pytest.approx(dict(zip(keys, expected.tolist(), strict=True)), rel=1e-6)
    user.execute("UPDATE t SET a = a + 1")
    table.drain()
    matrix[:, 0] += 1
    expected = detector.score(matrix).reconstruction_error
    assert table.errors() == pytest.approx(dict(zip(keys, expected.tolist(), strict=True)), rel=1e-6)


@pytest.mark.parametrize("n_scalars", [1, 2, 3, 4, 5, 8, 9])
def test_every_number_of_columns_is_read_in_its_place(user: User, runtime: Runtime, n_scalars: int) -> None:
    """Scalars, with arrays before, between and after them."""
    names = [f"c{i}" for i in range(n_scalars)]
    half = n_scalars // 2
    columns = ["v[2]", *names[:half], "w[3]", *names[half:], "x[1]"]
    user.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v real[], w float8[], x float8[],"  # type: ignore[arg-type]
        + ",".join(f"{name} float8" for name in names)
        + ")"
    )
    table = attach_table(user, runtime, relation="t", key="id", features=",".join(columns))
    detector = make_detector(table.source.definition.feature_names)
    table.promote(detector)
    matrix = np.random.default_rng(2).normal(size=(5, n_scalars + 6)).astype(np.float32).astype(np.float64)
    for key, row in enumerate(matrix.tolist()):
        v, first, w, second, x = (
            row[:2],
            row[2 : 2 + half],
            row[2 + half : 5 + half],
            row[5 + half : -1],
            row[-1:],
        )
        user.execute(
            f"INSERT INTO t VALUES ({', '.join(['%s'] * (4 + n_scalars))})",  # type: ignore[arg-type]
            (key, v, w, x, *first, *second),
        )
    table.drain()
    expected = detector.score(matrix).reconstruction_error
    assert table.errors() == pytest.approx(dict(enumerate(expected.tolist())), rel=1e-6)


def test_times_are_read_in_utc_whatever_the_session_says(
    user: User, runtime: Runtime, connect: Connect
) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamptz, day date)")
    features = "hour(at),hour_sin(at),hour_cos(at),weekday(at),monthday(day),epoch(at)"
    table = attach_table(user, runtime, relation="t", key="id", features=features)
    detector = make_detector(table.source.definition.feature_names)
    table.promote(detector)
    user.execute("SET timezone = 'Pacific/Auckland'")
    user.execute(f"ALTER DATABASE {user.info.dbname} SET timezone = 'Pacific/Auckland'")  # type: ignore[arg-type]
    moment = datetime(2024, 2, 29, 23, 30, 18, tzinfo=UTC)
    user.execute("INSERT INTO t VALUES (1, %s, %s)", (moment, date(2024, 2, 29)))
    table.drain()
    hour = 23 + 30 / 60 + 18 / 3600
    turn = 2 * math.pi * hour / 24
    row = [hour, math.sin(turn), math.cos(turn), 3, 29, moment.timestamp()]
    assert table.errors()[1] == pytest.approx(detector.score([row]).reconstruction_error[0], rel=1e-6)


def test_a_feature_view_gives_the_features(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id text PRIMARY KEY, customer int, amount float8)")
    user.execute("CREATE TABLE customer (id int PRIMARY KEY, mean float8)")
    user.execute("INSERT INTO customer VALUES (1, 10), (2, 20)")
    user.execute(
        "CREATE VIEW f AS SELECT t.id, amount, amount / mean AS ratio FROM t JOIN customer c ON c.id = t.customer"
    )
    table = attach_table(user, runtime, relation="t", key="id", feature_view="f")
    detector = make_detector(("amount", "ratio"))
    table.promote(detector)
    user.execute("INSERT INTO t VALUES ('a', 1, 5), ('b', 2, 5), ('c', 3, 5), ('d', 1, NULL)")
    table.drain()
    expected = detector.score([[5, 0.5], [5, 0.25]]).reconstruction_error.tolist()
    assert table.errors() == pytest.approx(dict(zip("ab", expected, strict=True)), rel=1e-6)
    assert table.quarantined() == {"c": ("missing", None), "d": ("null", "amount")}
    user.execute("INSERT INTO customer VALUES (3, 30)")
    assert maintenance.retry_quarantine(runtime, "t", ["c"]) == 1
    table.drain()
    assert sorted(table.scored()) == ["a", "b", "c"]


def test_flagged_rows_carry_their_top_features(transactions: Table) -> None:
    names = transactions.source.definition.feature_names
    unflagged = make_detector(names).score([[1, 2, 3]]).reconstruction_error[0]
    detector = make_detector(names, threshold=float(unflagged), recipe=plain_recipe(top_features=2))
    transactions.promote(detector)
    transactions.user.execute(
        "INSERT INTO transactions VALUES (1, 1, 2, 3), (2, 1e5, 2, 3), (3, 1, -7e3, 50)"
    )
    transactions.drain()
    rows = transactions.rows(
        "SELECT key, flagged, model_version, top_features FROM outlier.scores_{source} ORDER BY key"
    )
    assert [row[:3] for row in rows] == [(1, False, 1), (2, True, 1), (3, True, 1)]
    assert rows[0][3] is None
    for row, features in zip(rows[1:], ([1e5, 2, 3], [1, -7e3, 50]), strict=True):
        contributions = detector.score([features]).contributions[0]
        order = np.argsort(-contributions)[:2]
        assert [top["feature"] for top in row[3]] == [names[i] for i in order]
        assert [top["contribution"] for top in row[3]] == pytest.approx(
            contributions[order].tolist(), rel=1e-5
        )


def test_an_error_at_the_threshold_is_not_flagged(transactions: Table) -> None:
    names = transactions.source.definition.feature_names
    errors = make_detector(names).score([[1, 2, 3]]).reconstruction_error
    assert not exceeds(errors, threshold=errors[0]).any()
    transactions.promote(make_detector(names, threshold=float(errors[0])))
    transactions.user.execute("INSERT INTO transactions VALUES (1, 1, 2, 3)")
    transactions.drain()
    assert transactions.keys("SELECT flagged FROM outlier.scores_{source}") == [False]


def test_the_views_show_the_user_s_columns_and_the_score(transactions: Table) -> None:
    names = transactions.source.definition.feature_names
    transactions.promote(make_detector(names, threshold=1e6))
    transactions.user.execute("INSERT INTO transactions VALUES (1, 1, 2, 3, 'fine'), (2, 1e6, 2, 3, 'odd')")
    transactions.insert(3)
    transactions.drain()
    transactions.insert(4)  # not scored yet
    assert transactions.rows("SELECT id, note, flagged FROM outlier.scored_{source} ORDER BY id") == [
        (1, "fine", False),
        (2, "odd", True),
        (3, "shop 3", False),
    ]
    assert transactions.rows(
        "SELECT id, note, top_features ->0->>'feature' FROM outlier.flagged_{source}"
    ) == [(2, "odd", "amount")]


def test_updating_an_unflagged_row_may_flag_it_and_back(transactions: Table) -> None:
    names = transactions.source.definition.feature_names
    transactions.promote(make_detector(names, threshold=1e6))
    transactions.insert(1)
    seen = []
    for amount in (1.0, 1e6, 1.0):
        transactions.user.execute("UPDATE transactions SET amount = %s", (amount,))
        transactions.drain()
        seen += transactions.rows("SELECT flagged, top_features IS NULL FROM outlier.scores_{source}")
    assert seen == [(False, True), (True, False), (False, True)]


# -- the champion


def test_without_a_champion_rows_wait_and_the_status_says_so(transactions: Table) -> None:
    transactions.insert(1, 3)
    assert transactions.drain().n_batches == 0
    assert problem(transactions) == (
        "transactions has no champion yet; train one: pgoutlier train transactions; rows stay queued until then"
    )
    transactions.promote()
    assert problem(transactions) is None
    transactions.drain()
    assert transactions.scored() == [1, 2, 3]
    assert problem(transactions) is None


def test_a_promotion_is_seen_by_the_next_batch(transactions: Table) -> None:
    names = transactions.source.definition.feature_names
    transactions.promote(make_detector(names, seed=1))
    transactions.insert(1)
    transactions.drain()
    transactions.promote(make_detector(names, seed=2))
    transactions.insert(2)
    transactions.drain()
    versions.rollback(transactions.runtime, "transactions", reason="test")
    transactions.insert(3)
    transactions.drain()
    assert transactions.rows("SELECT key, model_version FROM outlier.scores_{source} ORDER BY key") == [
        (1, 1),
        (2, 2),
        (3, 1),
    ]


def test_a_champion_of_other_features_is_refused_and_the_rows_wait(transactions: Table) -> None:
    version = register(transactions.runtime, transactions.source, make_detector(("amount", "hour")))
    with pytest.raises(ModelError, match="trained on other features than the source has now"):
        versions.promote(transactions.runtime, "transactions", version, reason="test")
    transactions.insert(1)
    transactions.drain()
    assert transactions.queued() == [1]


# -- rows that cannot be scored


@pytest.mark.parametrize(
    ("amount", "hour", "expected"),
    [
        ("NULL", "1", ("null", "amount")),
        ("1", "NULL", ("null", "hour")),
        ("'NaN'", "1", ("nan", "amount")),
        ("1", "'Infinity'", ("infinite", "hour")),
        ("'-Infinity'", "'NaN'", ("infinite", "amount")),
        ("'NaN'", "NULL", ("null", "hour")),
    ],
)
def test_a_row_with_a_gap_is_quarantined_and_the_others_are_scored(
    transactions: Table, amount: str, hour: str, expected: tuple[str, str]
) -> None:
    transactions.promote()
    transactions.insert(1, 3)
    transactions.user.execute(f"INSERT INTO transactions VALUES (4, {amount}, {hour}, 1)")  # type: ignore[arg-type]
    result = transactions.drain()
    assert (result.n_scored, result.n_quarantined) == (3, 1)
    assert transactions.scored() == [1, 2, 3]
    assert transactions.quarantined() == {"4": expected}
    assert transactions.queued() == []
    assert transactions.drain().n_batches == 0


def test_an_array_with_a_gap_or_of_another_length_is_quarantined(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, v real[], w float8[])")
    table = attach_table(user, runtime, relation="t", key="id", features="v[2],w[3]")
    detector = make_detector(table.source.definition.feature_names)
    table.promote(detector)
    user.execute(
        """
        INSERT INTO t VALUES (1, '{1,2}', '{3,4,5}'), (2, NULL, '{3,4,5}'), (3, '{1,NULL}', '{3,4,5}'),
            (4, '{1,2,3}', '{3,4,5}'), (5, '{1,2}', '{}'), (6, '{{1,2}}', '{3,4,5}'),
            (7, '{1,NaN}', '{3,4,5}'), (8, '[5:6]={1,2}', '{3,4,5}'), (9, '{1,2}', '{3,4,Infinity}')
        """
    )
    table.drain()
    [expected] = detector.score([[1, 2, 3, 4, 5]]).reconstruction_error
    assert table.errors() == pytest.approx({1: expected, 8: expected}, rel=1e-6)
    assert table.quarantined() == {
        "2": ("null", "v"),
        "3": ("null", "v"),
        "4": ("wrong_length", "v"),
        "5": ("wrong_length", "w"),
        "6": ("wrong_length", "v"),
        "7": ("nan", "v[2]"),
        "9": ("infinite", "w[3]"),
    }


def test_a_recipe_that_imputes_scores_gaps_by_the_median(transactions: Table) -> None:
    imputing(transactions)
    names = transactions.source.definition.feature_names
    detector = make_detector(names, recipe=plain_recipe(missing="median"))
    median = detector.arrays["missing.median"]
    transactions.user.execute(
        "INSERT INTO transactions VALUES (1, 1, 2, 3), (2, NULL, 2, 3), (3, 1, 'NaN', 3), (4, 1, 2, 'Infinity')"
    )
    transactions.drain()
    assert transactions.quarantined() == {}
    rows = np.array([[1, 2, 3], [median[0], 2, 3], [1, median[1], 3], [1, 2, median[2]]])
    expected = detector.score(rows).reconstruction_error.tolist()
    assert transactions.errors() == pytest.approx(dict(enumerate(expected, start=1)), rel=1e-6)


def test_huge_values_are_scored_and_flagged(transactions: Table) -> None:
    transactions.promote(make_detector(transactions.source.definition.feature_names, threshold=1e6))
    transactions.user.execute(
        "INSERT INTO transactions VALUES (1, 1e300, 1, 1), (2, -1.7e308, 1, 1), (3, 4e-320, -0.0, 1)"
    )
    transactions.drain()
    assert transactions.rows("SELECT key, flagged FROM outlier.scores_{source} ORDER BY key") == [
        (1, True),
        (2, True),
        (3, False),
    ]
    assert all(math.isfinite(error) for error in transactions.errors().values())


def test_numbers_of_every_size_are_read(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, n numeric, b bigint)")
    table = attach_table(user, runtime, relation="t", key="id", features="n,b")
    detector = make_detector(("n", "b"))
    table.promote(detector)
    user.execute(
        "INSERT INTO t VALUES (1, 0.1, 9007199254740993), (2, 'NaN', 1), (3, 'Infinity', 1),"
        " (4, -5, -9223372036854775808)"
    )
    table.drain()
    expected = detector.score([[0.1, 9007199254740993], [-5, -(2**63)]]).reconstruction_error
    assert table.errors() == pytest.approx({1: expected[0], 4: expected[1]}, rel=1e-6)
    assert table.quarantined() == {"2": ("nan", "n"), "3": ("infinite", "n")}


def test_a_number_too_large_for_a_double_ends_alone_in_quarantine(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, n numeric)")
    table = attach_table(user, runtime, relation="t", key="id", features="n")
    table.promote()
    user.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 20) i")
    user.execute("INSERT INTO t VALUES (21, 1e400)")
    table.drain_all()
    assert table.scored() == list(range(1, 21))
    assert table.quarantined() == {"21": ("error", None)}
    [(detail,)] = table.rows("SELECT detail FROM outlier.quarantine")
    assert "NumericValueOutOfRange" in detail


def enlarging(table: Table, factor: float) -> Detector:
    """A detector whose errors and contributions are the residuals times about this factor."""
    names = table.source.definition.feature_names
    detector = make_detector(names, recipe=plain_recipe(preprocessing=(), error_metric="mahalanobis"))
    arrays = {**detector.arrays, "residual.whitening": np.eye(3) * factor}
    return Detector(detector.recipe, names, arrays, 1.0)


def test_an_error_that_is_not_finite_is_quarantined(transactions: Table) -> None:
    transactions.promote(enlarging(transactions, 1e300))
    transactions.insert(1, 3)
    transactions.drain_all()
    assert transactions.scored() == []
    assert transactions.quarantined() == {str(key): ("error", None) for key in (1, 2, 3)}


def test_contributions_too_large_for_json_are_written_as_the_largest_number(transactions: Table) -> None:
    transactions.promote(enlarging(transactions, 1e45))
    transactions.insert(1)
    transactions.drain()
    assert transactions.quarantined() == {}
    [(flagged, top)] = transactions.rows("SELECT flagged, top_features FROM outlier.scores_{source}")
    assert flagged
    assert all(0 <= feature["contribution"] < 4e38 for feature in top)


# -- leaving and entering quarantine


def test_a_quarantined_row_that_is_mended_is_scored(transactions: Table) -> None:
    transactions.promote()
    transactions.user.execute("INSERT INTO transactions VALUES (1, NULL, 1, 1), (2, NULL, 1, 1)")
    transactions.drain()
    transactions.user.execute("UPDATE transactions SET amount = 1 WHERE id = 1")
    transactions.drain()
    assert transactions.scored() == [1]
    assert transactions.quarantined() == {"2": ("null", "amount")}


def test_a_scored_row_that_is_spoilt_loses_its_score(transactions: Table) -> None:
    transactions.promote()
    transactions.insert(1, 2)
    transactions.drain()
    transactions.user.execute("UPDATE transactions SET amount = NULL WHERE id = 1")
    transactions.drain()
    assert transactions.scored() == [2]
    assert transactions.quarantined() == {"1": ("null", "amount")}
    transactions.user.execute("UPDATE transactions SET hour = NULL, amount = 2 WHERE id = 1")
    transactions.drain()
    assert transactions.quarantined() == {"1": ("null", "hour")}


def test_a_row_spoilt_and_mended_within_one_batch_is_scored(transactions: Table) -> None:
    transactions.promote()
    transactions.insert(1)
    transactions.user.execute("UPDATE transactions SET amount = NULL")
    transactions.user.execute("UPDATE transactions SET amount = 7")
    transactions.drain()
    assert transactions.scored() == [1]
    assert transactions.quarantined() == {}
    assert transactions.keys("SELECT change_id FROM outlier.scores_{source}") == [3]


def test_retried_rows_are_scored_once_the_cause_is_gone(transactions: Table) -> None:
    transactions.promote()
    transactions.user.execute(
        "INSERT INTO transactions SELECT i, CASE WHEN i > 2 THEN 1 END, 1, 1 FROM generate_series(1, 4) i"
    )
    transactions.drain()
    assert maintenance.retry_quarantine(transactions.runtime, "transactions", None) == 2
    assert transactions.quarantined() == {}
    transactions.drain()
    assert transactions.quarantined() == {"1": ("null", "amount"), "2": ("null", "amount")}
    imputing(transactions)
    assert maintenance.retry_quarantine(transactions.runtime, "transactions", ["2", "77"]) == 1
    transactions.drain()
    assert transactions.scored() == [2, 3, 4]
    assert set(transactions.quarantined()) == {"1"}


@pytest.mark.parametrize("key_type", ["smallint", "uuid", "text"])
def test_keys_of_every_type_go_into_quarantine_and_out_again(
    user: User, runtime: Runtime, key_type: str
) -> None:
    keys = {
        "smallint": ["-5", "7"],
        "uuid": [str(uuid.UUID(int=i)) for i in (1, 2)],
        "text": ["a,'b\"\\", "{}"],
    }
    user.execute(f"CREATE TABLE t (k {key_type} PRIMARY KEY, x float8)")  # type: ignore[arg-type]
    table = attach_table(user, runtime, relation="t", key="k", features="x")
    table.promote()
    for key in keys[key_type]:
        user.execute(f"INSERT INTO t VALUES (%s::{key_type}, NULL)", (key,))  # type: ignore[arg-type]
    table.drain()
    assert sorted(table.quarantined()) == sorted(keys[key_type])
    assert maintenance.sweep(runtime, "t") == 0
    user.execute("ALTER TABLE t DISABLE TRIGGER USER; UPDATE t SET x = 1; ALTER TABLE t ENABLE TRIGGER USER")
    maintenance.retry_quarantine(runtime, "t", keys[key_type])
    table.drain()
    assert table.quarantined() == {}
    assert sorted(map(str, table.scored())) == sorted(keys[key_type])


# -- rows that go


def test_rows_deleted_before_they_are_scored_leave_nothing(transactions: Table) -> None:
    transactions.promote()
    transactions.insert(1, 3)
    transactions.user.execute("DELETE FROM transactions WHERE id = 2")
    transactions.drain()
    assert transactions.scored() == [1, 3]
    assert transactions.queued() == []
    transactions.insert(4)
    transactions.user.execute("DELETE FROM transactions WHERE id = 4")
    transactions.drain()
    assert transactions.queued() == []
    assert transactions.quarantined() == {}


def test_prune_removes_what_belongs_to_rows_that_are_gone(transactions: Table) -> None:
    transactions.promote()
    transactions.insert(1, 3)
    transactions.user.execute("INSERT INTO transactions (id) VALUES (4), (5)")
    transactions.drain()
    transactions.user.execute("DELETE FROM transactions WHERE id IN (2, 5)")
    transactions.user.execute("UPDATE transactions SET id = 30 WHERE id = 3")
    transactions.drain()
    assert maintenance.prune_all(transactions.runtime) == {"transactions": 3}
    assert transactions.scored() == [1, 30]
    assert set(transactions.quarantined()) == {"4"}
    transactions.user.execute("TRUNCATE transactions")
    assert maintenance.prune_all(transactions.runtime) == {"transactions": 3}
    assert transactions.scored() == []
    assert transactions.quarantined() == {}


# -- duplicates


def test_a_key_that_is_queued_many_times_has_one_score(transactions: Table) -> None:
    transactions.promote()
    transactions.insert(1, 2)
    for amount in range(5):
        transactions.user.execute("UPDATE transactions SET amount = %s WHERE id = 1", (amount,))
    transactions.drain()
    assert transactions.scored() == [1, 2]
    transactions.user.execute("INSERT INTO outlier.queue_transactions (keys, n_keys) VALUES ('{1,1,2,2}', 4)")
    transactions.drain()
    assert transactions.scored() == [1, 2]


def test_a_key_deleted_and_inserted_again_is_scored_anew(transactions: Table) -> None:
    transactions.promote()
    transactions.insert(1)
    transactions.drain()
    before = transactions.errors()
    transactions.user.execute("DELETE FROM transactions")
    transactions.user.execute("INSERT INTO transactions VALUES (1, 1e6, 1, 1)")
    transactions.drain()
    assert transactions.errors() != before


# -- failures


@pytest.fixture
def poisonable(user: User, runtime: Runtime) -> Table:
    """A source whose feature view divides by a column: a row with zero there fails the whole statement."""
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8, n int)")
    user.execute("CREATE VIEW f AS SELECT id, x / n AS ratio FROM t")
    table = attach_table(user, runtime, relation="t", key="id", feature_view="f")
    table.promote()
    return table


@pytest.mark.parametrize("statements", ["one", "many", "mixed"])
def test_a_poison_row_ends_alone_in_quarantine(poisonable: Table, statements: str) -> None:
    rows = [(key, 1.0, 0 if key in {7, 60} else 2) for key in range(100)]
    sizes = {"one": [100], "many": [1] * 100, "mixed": [40, 1, 1, 50, 3, 5]}[statements]
    start = 0
    for size in sizes:
        with poisonable.user.transaction(), poisonable.user.cursor() as cursor:
            keys, x, n = zip(*rows[start : start + size], strict=True)
            cursor.execute(
                "INSERT INTO t SELECT * FROM unnest(%s::int[], %s::float8[], %s::int[])",
                (list(keys), list(x), list(n)),
            )
        start += size
    poisonable.drain_all()
    assert poisonable.scored() == [key for key in range(100) if key not in {7, 60}]
    assert poisonable.quarantined() == {"7": ("error", None), "60": ("error", None)}
    details = poisonable.keys("SELECT detail FROM outlier.quarantine")
    assert all("division by zero" in detail for detail in details)
    poisonable.user.execute("UPDATE t SET n = 1 WHERE n = 0")
    poisonable.drain_all()
    assert poisonable.quarantined() == {}
    assert len(poisonable.scored()) == 100


def test_a_failing_batch_is_retried_with_a_growing_delay_first(poisonable: Table) -> None:
    poisonable = poisonable.with_settings(retry_base_seconds=100.0)
    poisonable.user.execute("INSERT INTO t VALUES (1, 1, 1), (2, 1, 0)")
    delays = []
    for seconds in (100, 200):
        [before] = poisonable.keys("SELECT clock_timestamp()")
        assert poisonable.drain().n_failed_batches == 1
        delays += poisonable.rows(
            "SELECT attempts, not_before - make_interval(secs => %s) BETWEEN %s AND clock_timestamp()"
            " FROM outlier.queue_{source}",
            *(seconds, before),
        )
        poisonable.make_due()
    assert delays == [(1, True), (2, True)]
    assert poisonable.quarantined() == {}
    poisonable.drain()
    assert (poisonable.scored(), set(poisonable.quarantined())) == ([1], {"2"})


def test_other_rows_are_scored_while_a_failing_batch_waits(poisonable: Table) -> None:
    poisonable = poisonable.with_settings(retry_base_seconds=100.0)
    poisonable.user.execute("INSERT INTO t VALUES (1, 1, 0), (2, 1, 1)")
    poisonable.drain()
    poisonable.user.execute("INSERT INTO t VALUES (3, 1, 1)")
    poisonable.drain()
    assert poisonable.scored() == [3]
    assert poisonable.queued() == [1, 2]


def test_a_dropped_feature_column_makes_scoring_stand_still_and_loses_nothing(transactions: Table) -> None:
    transactions.promote()
    transactions.insert(1, 5)
    transactions.user.execute("ALTER TABLE transactions RENAME distance TO way")
    for _ in range(5):
        result = transactions.drain()
        transactions.make_due()
        assert (result.n_scored, result.n_quarantined) == (0, 0)
    assert transactions.queued() == [1, 2, 3, 4, 5]
    assert transactions.quarantined() == {}
    assert transactions.keys("SELECT max(attempts) FROM outlier.queue_{source}") == [0]
    assert "UndefinedColumn" in (problem(transactions) or "")
    assert "distance" in (problem(transactions) or "")
    transactions.user.execute("ALTER TABLE transactions RENAME way TO distance")
    transactions.drain()
    assert transactions.scored() == [1, 2, 3, 4, 5]
    assert problem(transactions) is None


def test_a_feature_that_is_gone_makes_scoring_stand_still_and_loses_nothing(transactions: Table) -> None:
    transactions.promote()
    transactions.insert(1)
    transactions.user.execute("ALTER TABLE transactions RENAME amount TO elsewhere")
    transactions.drain()
    assert "UndefinedColumn" in (problem(transactions) or "")
    assert transactions.queued() == [1]
    transactions.user.execute("ALTER TABLE transactions RENAME elsewhere TO amount")
    transactions.make_due()
    transactions.drain()
    assert transactions.scored() == [1]
    assert problem(transactions) is None


def test_a_connection_lost_in_the_middle_of_a_batch_loses_nothing(
    transactions: Table, connect: Connect
) -> None:
    transactions.promote()
    transactions.insert(1, 5)
    locker = connect(autocommit=False)
    locker.execute("LOCK TABLE outlier.scores_transactions")
    observer = connect()
    with ThreadPoolExecutor(1) as pool:
        draining = pool.submit(transactions.drain)
        until(lambda: waits(observer))
        observer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database()"
        )
        result = draining.result(HUNG_SECONDS)
    assert (result.n_scored, result.n_failed_batches) == (0, 1)
    locker.rollback()
    assert transactions.queued() == [1, 2, 3, 4, 5]
    assert transactions.keys("SELECT max(attempts) FROM outlier.queue_{source}") == [0]
    transactions.drain()
    assert transactions.scored() == [1, 2, 3, 4, 5]


def test_a_drain_stops_when_its_time_is_up_and_says_that_there_is_more(transactions: Table) -> None:
    transactions.promote()
    for start in range(0, 200, 10):
        transactions.insert(start, start + 9)
    small = transactions.with_settings(batch_rows=10)
    result = draining.drain(small.runtime, "transactions", budget_seconds=1e-6)
    assert result.more
    assert 0 < result.n_scored < 200
    assert transactions.drain().n_scored == 200 - result.n_scored


def test_a_drain_calls_for_help_once_when_there_is_more_than_one_batch(transactions: Table) -> None:
    transactions.promote()
    calls: list[str] = []
    small = transactions.with_settings(batch_rows=10)
    for start in range(0, 50, 10):
        transactions.insert(start, start + 9)
    draining.drain(small.runtime, "transactions", call_for_help=lambda: calls.append("help"))
    assert calls == ["help"]
    transactions.insert(100)
    draining.drain(small.runtime, "transactions", call_for_help=lambda: calls.append("help"))
    assert calls == ["help"]


def test_a_source_that_is_detached_while_it_is_drained_does_no_harm(transactions: Table) -> None:
    transactions.promote()
    detach_table(transactions)
    with pytest.raises(SourceError, match="There is no source transactions"):
        transactions.drain()


def test_two_sources_do_not_touch_each_other(transactions: Table, user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE other (LIKE transactions INCLUDING ALL)")
    other = attach_table(user, runtime, relation="other", key="id", features="amount,hour,distance")
    transactions.promote()
    transactions.insert(1, 3)
    user.execute("INSERT INTO other SELECT * FROM transactions; INSERT INTO other (id) VALUES (4)")
    assert draining.sources_with_work(runtime) == ["other", "transactions"]
    transactions.drain()
    assert (transactions.scored(), other.scored(), other.queued()) == ([1, 2, 3], [], [1, 2, 3, 4])
    other.promote()
    other.drain()
    assert other.scored() == [1, 2, 3]
    assert maintenance.prune_all(runtime) == {"other": 0, "transactions": 0}
    assert maintenance.sweep_all(runtime) == {"other": 0, "transactions": 0}


def test_a_recipe_that_drops_columns_is_stored_loaded_and_scored(transactions: Table) -> None:
    names = transactions.source.definition.feature_names
    detector = make_detector(
        names, recipe=plain_recipe(preprocessing=(DropColumns(names=("hour",)), Standardise()))
    )
    transactions.promote(detector)
    transactions.user.execute(SOUND, (1,))
    transactions.drain()
    expected = detector.score([[1, 1, 1]]).reconstruction_error
    assert transactions.errors()[1] == pytest.approx(expected[0], rel=1e-6)


def test_the_key_may_be_a_feature(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    table = attach_table(user, runtime, relation="t", key="id", features="id,x")
    table.promote()
    user.execute("INSERT INTO t VALUES (1, 2)")
    table.drain()
    assert table.scored() == [1]
