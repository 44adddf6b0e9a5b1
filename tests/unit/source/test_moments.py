"""Which rows are strays in time: few, and farther from the others than these reach."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pgoutlier.db.source.moments import STRAY_SHARE, Moments, without_strays

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def daily(n_days: int, *, rows: int = 100, start: datetime = START) -> list[Moments]:
    days = [start + i * DAY for i in range(n_days)]
    return [Moments(day, day + DAY * 0.9, rows) for day in days]


def at(year: int, n_rows: int = 1) -> Moments:
    moment = datetime(year, 1, 1, tzinfo=UTC)
    return Moments(moment, moment, n_rows)


@pytest.mark.parametrize(
    "strays",
    [
        [at(9999)],
        [at(1900)],
        [at(1970)],
        [at(2099)],
        [at(1, 3), at(9999, 7)],
        [at(1900), at(1970), at(2099), at(2999), at(9999)],
        [at(9999, 100)],
    ],
)
def test_placeholders_at_either_end_are_strays(strays: list[Moments]) -> None:
    days = daily(40)
    assert without_strays([*strays, *days]) == days


@pytest.mark.parametrize(
    "days",
    [
        [],
        daily(1),
        daily(2),
        daily(400)[::7],
        [*daily(3), *daily(3, start=START + 20 * DAY)],
        # A history of years, a few rows a month, before the busy weeks.
        [*(Moments(START - i * 25 * DAY, START - i * 25 * DAY, 1) for i in range(1, 60)), *daily(20)],
        # All of a table brought over at once, then what comes day by day.
        [Moments(START, START + timedelta(seconds=10), 100_000), *daily(90, rows=10, start=START + DAY)],
        [Moments(START, START, 1_000), Moments(START + 5 * DAY, START + 5 * DAY, 20)],
    ],
)
def test_rows_that_come_as_they_come_are_no_strays(days: list[Moments]) -> None:
    assert without_strays(reversed(days)) == sorted(days)


def test_more_than_a_few_rows_are_no_strays() -> None:
    days = daily(40)
    n_rows = sum(day.n_rows for day in days)
    few = int(n_rows * STRAY_SHARE / (1 - STRAY_SHARE))
    assert without_strays([at(1900, few), *days]) == days
    assert without_strays([at(1900, few + 10), *days]) == [at(1900, few + 10), *days]


def test_what_is_dated_in_a_far_future_is_a_stray_however_many_rows_it_is() -> None:
    days = daily(40)
    assert without_strays([*days, at(2999, 4_000), at(9999, 4_000)]) == days


def test_rows_that_go_on_into_the_future_are_no_strays() -> None:
    days = daily(800, start=datetime.now(UTC) - 400 * DAY)
    assert without_strays(days) == days
    assert without_strays([*days, at(9999, 5)]) == days
