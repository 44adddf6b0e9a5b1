"""Times as PostgreSQL counts them, and as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgoutlier.db.sql import civil_time

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
# 4714-11-24 BC to 294276-12-31, the whole range of a timestamp.
COUNTS = st.integers(-211_813_488_000_000_000, 9_223_371_331_199_999_999)
OFFSETS = st.integers(-15 * 60, 15 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(COUNTS, st.sampled_from(["timestamptz", "timestamp"]))
def test_a_moment_is_read_as_it_is_written(count: int, kind: str) -> None:
    text = civil_time.to_text(count, kind)
    assert civil_time.canonical(text, kind) == text


@given(st.integers(-2_451_545, 2_145_031_948))
def test_a_date_is_read_as_it_is_written(days: int) -> None:
    text = civil_time.to_text(days, "date")
    assert civil_time.canonical(text, "date") == text


@given(st.datetimes(timezones=OFFSETS))
def test_a_moment_is_one_text_in_every_zone(moment: datetime) -> None:
    try:
        in_utc = moment.astimezone(UTC)
    except OverflowError:
        return
    found = civil_time.canonical(moment.isoformat(sep=" "), "timestamptz")
    assert found == civil_time.to_text((in_utc - EPOCH) // timedelta(microseconds=1), "timestamptz")
    assert datetime.fromisoformat(found) == moment


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("2026-01-31 12:00", "timestamptz", "say its offset from UTC"),
        ("2026-01-31 12:00+00", "timestamp", "write it without one"),
        ("2026-01-31 12:00", "date", "write it as 2026-01-31"),
        ("2026-02-30", "date", "no such day"),
        ("2026-13-01", "date", "no such day"),
        ("2026-01-31 24:00", "timestamp", "no such time of day"),
        ("0000-01-31", "date", "no year 0"),
        ("294277-01-01", "timestamp", "no time so far away"),
        ("4714-11-24 00:00+00:01 BC", "timestamptz", "no time so far away"),
        ("5874898-01-01", "date", "no time so far away"),
        ("31.1.2026", "date", "write it as 2026-01-31"),
        ("", "timestamptz", "write it as"),
    ],
)
def test_what_is_no_moment_is_refused_with_the_form(text: str, kind: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        civil_time.canonical(text, kind)
