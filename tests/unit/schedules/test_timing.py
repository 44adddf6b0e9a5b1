"""When schedules run next: strictly after the last run, by the clocks of their zone, also when these change."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgoutlier.db.errors import ScheduleError
from pgoutlier.db.tables import CRONTAB_PATTERN
from pgoutlier.worker.schedules.timing import Timing, crontab, interval

# Zones whose clocks change by an hour, by half an hour, at midnight, by a day, and never.
ZONES = (
    *("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana", "Pacific/Apia"),
    *("Africa/Casablanca", "Antarctica/Troll", "Asia/Kathmandu", "UTC"),
)
BERLIN = ZoneInfo("Europe/Berlin")

moments = st.datetimes(datetime(2007, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
zones = st.sampled_from(ZONES)


def numbers(low: int, high: int) -> st.SearchStrategy[str]:
    """One field of a crontab."""
    value = st.integers(low, high)
    item = st.one_of(
        value.map(str),
        st.tuples(value, value).map(lambda two: f"{min(two)}-{max(two)}"),
        st.integers(2, 30).map(lambda step: f"*/{step}"),
    )
    return st.one_of(st.just("*"), st.lists(item, min_size=1, max_size=3).map(",".join))


crontabs = st.tuples(
    numbers(0, 59),
    numbers(0, 23),
    st.one_of(st.just("*"), numbers(1, 28)),
    st.one_of(st.just("*"), numbers(1, 12)),
    st.one_of(st.just("*"), numbers(0, 7), st.just("mon-fri")),
).map(" ".join)


@given(crontabs, zones, moments)
def test_a_crontab_runs_strictly_after_the_last_run_and_at_times_that_it_names(
    text: str, zone: str, moment: datetime
) -> None:
    timing = crontab(text, zone)
    for _ in range(4):
        found = timing.after(moment)
        assert found > moment
        assert found.second == found.microsecond == 0
        local = found.astimezone(ZoneInfo(zone))
        just_changed = (
            found.astimezone(ZoneInfo(zone)).utcoffset()
            != (found - timedelta(hours=25)).astimezone(ZoneInfo(zone)).utcoffset()
        )
        assert just_changed or names(text, local)
        moment = found


@settings(max_examples=60)
@given(crontabs, moments)
def test_in_a_zone_that_never_changes_no_minute_is_left_out(text: str, moment: datetime) -> None:
    found = crontab(text).after(moment)
    minute = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
    for _ in range(2_000):
        if minute >= found:
            break
        assert not names(text, minute)
        minute += timedelta(minutes=1)


@given(st.floats(0.1, 1e6), moments, st.floats(0, 1e7))
def test_an_interval_keeps_its_beat_and_makes_up_no_missed_run(
    every_seconds: float, due: datetime, late_seconds: float
) -> None:
    now = due + timedelta(seconds=late_seconds)
    found = interval(every_seconds).after(now, due=due)
    assert now < found <= now + timedelta(seconds=every_seconds + 1e-5)
    passed = (found - due).total_seconds() / every_seconds
    assert abs(passed - round(passed)) * every_seconds < 1e-3 * max(1.0, passed * 1e-6)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("clock", ["30 2 * * *", "0 0 * * *", "30 1 * * *", "0 3 * * *"])
def test_a_daily_schedule_runs_once_on_every_day_of_its_zone(zone: str, clock: str) -> None:
    runs = days(crontab(clock, zone), date(2026, 1, 1), date(2026, 12, 31))
    apart = {(later - earlier).days for earlier, later in pairwise(runs)}
    assert apart == {1}
    assert len(runs) == 365


@pytest.mark.parametrize(
    ("after", "runs"),
    [
        # The clocks skip 2:00 to 3:00: it comes as soon as they have.
        ("2026-03-28T12:00+01:00", "2026-03-29T03:00+02:00"),
        ("2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"),
        # They show 2:30 twice: it comes with the first.
        ("2026-10-24T12:00+02:00", "2026-10-25T02:30+02:00"),
        ("2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"),
    ],
)
def test_half_past_two_in_the_nights_when_the_clocks_change(after: str, runs: str) -> None:
    found = crontab("30 2 * * *", "Europe/Berlin").after(datetime.fromisoformat(after))
    assert found == datetime.fromisoformat(runs)


def test_every_hour_runs_in_both_hours_that_the_clocks_show_twice() -> None:
    timing = crontab("0 * * * *", "Europe/Berlin")
    moment, seen = datetime(2026, 10, 24, 23, 30, tzinfo=UTC), []
    for _ in range(3):
        moment = timing.after(moment)
        seen.append(moment.astimezone(BERLIN).hour)
    assert seen == [2, 2, 3]


@settings(max_examples=60)
@given(st.text("0159*/,- monfri", max_size=30) | crontabs | st.from_regex(CRONTAB_PATTERN, fullmatch=True))
def test_a_crontab_is_refused_or_comes(text: str) -> None:
    try:
        timing = crontab(text)
    except ScheduleError:
        return
    assert re.fullmatch(CRONTAB_PATTERN, timing.crontab or "", re.IGNORECASE)
    assert timing.after(datetime(2026, 1, 1, tzinfo=UTC)).year < 2080


@pytest.mark.parametrize(
    "text",
    [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "0 0 0 * *",
        "0 0 * 13 *",
        "0 0 * * 8",
        "5-3 * * * *",
        "0 0 31 2 *",
        "0 0 30 feb *",
        "*/0 * * * *",
        "@daily",
        "0 0 L * *",
        "-1 * * * *",
    ],
)
def test_what_is_no_crontab_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError, match=r"crontab"):
        crontab(text)


def test_a_time_zone_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(ScheduleError, match=r"no time zone 'Europe/Berln'. Did you mean Europe/Berlin\?"):
        crontab("0 3 * * *", "Europe/Berln")
    with pytest.raises(ScheduleError, match=r"Write one such as UTC"):
        crontab("0 3 * * *", "../../etc/passwd")


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.01, 1e9, float("nan"), float("inf")])
def test_an_interval_out_of_bounds_is_refused(seconds: float) -> None:
    with pytest.raises(ScheduleError, match="cannot be kept"):
        interval(seconds)


def test_every_zone_of_this_machine_can_be_used() -> None:
    for zone in available_timezones() - {"Factory", "localtime"}:
        assert crontab("0 3 * * *", zone).after(datetime(2026, 1, 1, tzinfo=UTC))


def days(timing: Timing, first: date, last: date) -> list[date]:
    """The local dates of all runs between two days."""
    zone = ZoneInfo(timing.time_zone)
    moment = datetime(first.year, first.month, first.day, tzinfo=zone) - timedelta(seconds=1)
    found = []
    while (day := (moment := timing.after(moment)).astimezone(zone).date()) <= last:
        found.append(day)
    return found


def names(text: str, moment: datetime) -> bool:
    """Whether a crontab names this minute; written anew here, to be another opinion."""
    minute, hour, day, month, weekday = text.replace("mon-fri", "1-5").split()
    by_day = within(day, 1, 31, moment.day)
    by_weekday = any(within(weekday, 0, 7, n) for n in {moment.isoweekday(), moment.isoweekday() % 7})
    both = day.startswith("*") or weekday.startswith("*")
    return (
        within(minute, 0, 59, moment.minute)
        and within(hour, 0, 23, moment.hour)
        and within(month, 1, 12, moment.month)
        and ((by_day and by_weekday) if both else (by_day or by_weekday))
    )


def within(field: str, low: int, high: int, value: int) -> bool:
    for item in field.split(","):
        span, _, step = item.partition("/")
        first, _, last = (f"{low}-{high}" if span == "*" else span).partition("-")
        if value in range(int(first), int(last or first) + 1, int(step or 1)):
            return True
    return False
