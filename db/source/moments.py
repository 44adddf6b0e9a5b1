"""Where in time the rows are: without the few whose date is a placeholder, such as 9999-12-31, 1900-01-01, infinity.

What is divided by a length of time would follow one such row: a day's share of 2,000 rows is none where they seem to
cover eight thousand years.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql.identifiers import identifier
from pgoutlier.db.sql.statements import compose, one, run

# Of this share of the rows, the first and the last, those are strays that are farther from the others than the rows
# between reach, and than this; of rows in the future all that are farther from the others than this.
STRAY_SHARE = 0.05
LEAST_STRAY_GAP = timedelta(days=30)
# Of so many of the newest rows is asked which of them are strays.
_NEWEST = 10_000
# More than the time of day differs between time zones, and between clocks.
_CLOCKS_DIFFER = timedelta(days=1)
LAST = datetime(9999, 12, 30, tzinfo=UTC)


@dataclass(frozen=True, order=True)
class Moments:
    """Rows of one day, or of less: when the first and the last of them were, and how many they are."""

    first: datetime
    last: datetime
    n_rows: int


def dated(moment: sql.Composable) -> sql.Composed:
    """SQL of a moment, of whichever type of times, as timestamptz; NULL where Python has no such time."""
    return compose("CASE WHEN {m} BETWEEN '0001-01-02' AND '9999-12-30' THEN {m} END::timestamptz", m=moment)


def next_day(moment: datetime) -> datetime:
    """The begin, in UTC, of the day after a moment's."""
    begin = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return begin + timedelta(days=1)


def day(moment: sql.Composable) -> sql.Composed:
    """SQL of the day, in UTC, of a timestamptz: rows are counted by it in one pass, without sorting them."""
    return compose("date_bin('1 day', {m}, 'epoch'::timestamptz)", m=moment)


def without_strays(found: Iterable[Moments]) -> list[Moments]:
    """The moments in order, without the rows at either end that are far from all others; `found`: of different days."""
    days = _without_far_future(sorted(found))
    if not days:
        return days
    most = STRAY_SHARE * sum(day.n_rows for day in days)
    first, last = _n_within(days, most), len(days) - 1 - _n_within(days[::-1], most)
    far = max(days[last].last - days[first].first, LEAST_STRAY_GAP)
    starts = [i for i in range(1, first + 1) if days[i].first - days[i - 1].last > far]
    ends = [i for i in range(last, len(days) - 1) if days[i + 1].first - days[i].last > far]
    return days[starts[-1] if starts else 0 : ends[0] + 1 if ends else None]


def _without_far_future(days: list[Moments]) -> list[Moments]:
    """However many rows they are: what is dated in the future, with a month between the present and the first of it."""
    present = datetime.now(UTC) + _CLOCKS_DIFFER
    n_past = sum(day.first <= present for day in days)
    if 0 < n_past < len(days) and days[n_past].first - days[n_past - 1].last > LEAST_STRAY_GAP:
        return days[:n_past]
    return days


def _n_within(days: list[Moments], most: float) -> int:
    """How many of the days, from the first on, have at most so many rows together."""
    return sum(n_rows <= most for n_rows in accumulate(day.n_rows for day in days))


def newest_of_note(connection: Connection, source: SourceDefinition) -> datetime:
    """A moment that only strays are later than: those far ahead of all others, few or, in the future, many.

    source: has a column of times. Answered by an index on it.
    """
    time = identifier(source.moment_column)
    relation = source.relation.sql()
    moment = dated(compose("n.{time}", time=time))
    rows = run(
        connection,
        compose(
            "SELECT min(r.moment), max(r.moment), count(*) FROM (SELECT {moment} AS moment FROM {relation} n"
            " WHERE n.{time} IS NOT NULL AND isfinite(n.{time}) ORDER BY {order} LIMIT {newest}) r"
            " WHERE r.moment IS NOT NULL GROUP BY {day}",
            moment=moment,
            day=day(sql.SQL("r.moment")),
            relation=relation,
            time=time,
            order=catalog.newest_first(
                connection, source.relation, source.time_column or source.key_column, "n"
            ),
            newest=sql.Literal(_NEWEST),
        ),
    ).fetchall()
    kept = without_strays(Moments(*row) for row in rows)
    newest = kept[-1].last if kept else LAST
    now = datetime.now(UTC)
    if newest <= now + _CLOCKS_DIFFER:
        return newest + _CLOCKS_DIFFER
    past, ahead = run(
        connection,
        compose(
            # Of min() and max(), unlike of ORDER BY, it does not matter where an index has its NULLs.
            "SELECT {past}, {ahead} FROM (SELECT (SELECT max(n.{time}) FROM {relation} n"
            " WHERE n.{time} <= %(now)s::timestamptz) AS past, (SELECT min(n.{time}) FROM {relation} n"
            " WHERE n.{time} > %(now)s::timestamptz) AS ahead) r",
            past=dated(sql.SQL("r.past")),
            ahead=dated(sql.SQL("r.ahead")),
            relation=relation,
            time=time,
        ),
        {"now": now + _CLOCKS_DIFFER},
    ).fetchone() or (None, None)
    if past is not None and (ahead is None or ahead - past > LEAST_STRAY_GAP):
        return now + _CLOCKS_DIFFER
    return newest


def until(connection: Connection, source: SourceDefinition, *, newest: int) -> datetime | None:
    """The moment before which the newest rows are to be sought, where rows are dated far in the future; else None.

    newest: how many are sought. Where there are not half as many before it, all rows are as good as each other.
    """
    if not catalog.is_time(connection, source.relation, source.time_column):
        return None
    parts = {
        "relation": source.relation.sql(),
        "time": identifier(source.moment_column),
    }
    ahead = compose("SELECT EXISTS (SELECT FROM {relation} n WHERE n.{time} > %s::timestamptz)", **parts)
    if not one(connection, ahead, (datetime.now(UTC) + _CLOCKS_DIFFER,)):
        return None
    found = newest_of_note(connection, source)
    before = compose(
        "SELECT count(*) FROM (SELECT FROM {relation} n WHERE n.{time} <= %s::timestamptz LIMIT %s) n",
        **parts,
    )
    return found if one(connection, before, (found, newest)) >= newest / 2 else None
