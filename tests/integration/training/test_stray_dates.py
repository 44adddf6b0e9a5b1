"""Rates by time come from where the rows are: a placeholder such as 9999-12-31 makes no day of eight thousand years."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgoutlier.db.sql.statements import compose, one, run
from pgoutlier.db.training import training_rows
from pgoutlier.db.training.newest import newest_rows
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.thresholds import thresholds
from pgoutlier.worker.thresholds.thresholds import ChampionThreshold
from pgoutlier.worker.training import training
from tests.support import Table, attach_table, make_detector, plain_recipe

User = psycopg.Connection[Any]
N_ROWS = 2_000
A_DAY = 144  # one in ten minutes
SMALL = plain_recipe(
    name="small",
    epochs=1,
    early_stopping=None,
    batch_size=256,
    error_metric="mahalanobis",
    join_input=True,
    split={"order": "random"},
)
Make = Callable[..., Table]
STRAYS = ["9999-12-31", "infinity", "-infinity", "1900-01-01", "1970-01-01", "2999-01-01", "0044-03-15 BC"]


@pytest.fixture
def make(user: User, runtime: Runtime) -> Make:
    """Makes 2,000 rows ten minutes apart, up to now, scored, and then strays among them."""

    def made(*strays: str, kind: str = "timestamptz", threshold: float = 0.0) -> Table:
        user.execute(f"CREATE TABLE pay (id bigint PRIMARY KEY, x float8, y float8, at {kind})")  # type: ignore[arg-type]
        table = attach_table(user, runtime, recipe=SMALL, relation="pay", key="id", features="x,y", time="at")
        table.promote(make_detector(("x", "y"), threshold=threshold))
        user.execute(
            "INSERT INTO pay SELECT i, sin(i * 0.7), cos(i * 1.3),"
            " now() - (%(n)s::int - i) * interval '10 minutes' FROM generate_series(1, %(n)s::int) i",
            {"n": N_ROWS},
        )
        for key, stray in enumerate(strays, start=100_001):
            user.execute(f"INSERT INTO pay VALUES (%s, 0, 0, %s::{kind})", (key, stray))  # type: ignore[arg-type]
        table.drain_all()
        return table

    return made


def rate(table: Table, newest: int = 10_000) -> float | None:
    with table.runtime.engine.begin() as connection:
        return training_rows.rows_per_day(connection, table.source.definition, newest=newest)


def flags(table: Table, days: float | None) -> ChampionThreshold:
    window = None if days is None else timedelta(days=days)
    return thresholds.describe(table.runtime, "pay", window=window)


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
def test_a_day_has_as_many_rows_as_without_the_strays(make: Make, kind: str) -> None:
    table = make(*STRAYS, kind=kind)
    assert rate(table) == pytest.approx(A_DAY, rel=0.01)


def test_dates_alone_have_strays_too(make: Make) -> None:
    table = make(*STRAYS, "5874897-12-31", kind="date")
    assert rate(table) == pytest.approx(A_DAY, rel=0.1)
    assert flags(table, 5).n_scores < 10 * A_DAY


@pytest.mark.parametrize("stray", STRAYS)
def test_an_alert_budget_flags_so_many_rows_of_a_day(make: Make, stray: str) -> None:
    table = make(stray, threshold=1e12)
    made = training.train(table.runtime, "pay", threshold="alert_budget:5", promote=True)
    assert 0.5 * 5 / A_DAY < made.metrics["calibration_flag_rate"] <= 1.5 * 5 / A_DAY


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
def test_flags_a_day_are_those_of_the_days_that_the_rows_cover(make: Make, kind: str) -> None:
    table = make(*STRAYS, kind=kind)
    found = flags(table, None)
    assert found.n_scores == N_ROWS + len(STRAYS)
    assert found.days == pytest.approx((N_ROWS - 1) / A_DAY)
    assert found.now.flags_per_day == pytest.approx(A_DAY, rel=0.01)
    assert found.first is not None
    assert found.last is not None
    assert found.last - found.first < timedelta(days=15)


def test_the_window_goes_back_from_the_newest_row_that_is_no_stray(make: Make) -> None:
    found = flags(make(*STRAYS), 3)
    # Those that are dated after it are rows of the window as well.
    assert found.n_scores == 3 * A_DAY + 3
    assert found.days == pytest.approx(3, rel=0.01)


def test_a_window_has_rows_also_where_many_are_dated_in_a_far_future(make: Make) -> None:
    table = make()
    table.user.execute("UPDATE pay SET at = '2999-01-01' WHERE id % 3 = 0")
    table.drain_all()
    assert rate(table) == pytest.approx(A_DAY * 2 / 3, rel=0.01)
    found = flags(table, 3)
    assert found.n_scores > 3 * A_DAY * 0.6
    assert found.first is not None
    assert found.first.year < 2999


def test_rows_of_a_near_future_are_the_newest(make: Make) -> None:
    """Bookings, say: nothing lies between them and the present."""
    table = make()
    table.user.execute("UPDATE pay SET at = at + interval '7 days'")
    table.drain_all()
    found = flags(table, 3)
    assert found.n_scores == 3 * A_DAY


def test_what_is_dated_by_placeholders_alone_tells_no_days(make: Make) -> None:
    table = make()
    table.user.execute("UPDATE pay SET at = 'infinity'")
    table.drain_all()
    assert rate(table) is None
    assert flags(table, 30).days is None
    assert flags(table, None).days is None


@pytest.mark.parametrize("stray", ["infinity", "9999-12-31", "2999-01-01"])
@pytest.mark.parametrize("kind", ["timestamptz", "timestamp", "date"])
def test_the_newest_rows_are_not_those_of_placeholders(make: Make, stray: str, kind: str) -> None:
    """However many these are: they would be the newest for ever, and nothing be learned from what comes."""
    table = make(kind=kind)
    table.user.execute("UPDATE pay SET at = %s WHERE id <= 500", (stray,))
    with table.runtime.engine.begin() as connection:
        window = newest_rows(connection, table.source.definition, 400).rows
        keys = [key for (key,) in run(connection, compose("SELECT w.key FROM ({w}) w", w=window)).fetchall()]
    assert len(keys) == 400
    assert min(keys) > 500
    if kind != "date":
        assert sorted(keys) == list(range(N_ROWS - 399, N_ROWS + 1))


def test_a_window_of_the_whole_table_has_all_rows(make: Make) -> None:
    table = make("infinity", "9999-12-31", "-infinity")
    with table.runtime.engine.begin() as connection:
        window = newest_rows(connection, table.source.definition, 10_000).rows
        n_rows = one(connection, compose("SELECT count(*) FROM ({w}) w", w=window))
    assert n_rows == N_ROWS + 3
