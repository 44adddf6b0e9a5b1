"""Scores in partitions by the time in their key: which there are, which the keys of a batch want, making and dropping.

A partition is called scores_<source>$<its first day>, and covers a day, a week from Monday on, a month or a year, in
UTC. Its like of the challenger's scores comes and goes with it. A default partition, scores_<source>$rest, takes what
has none: times before the year 1 or after 9998, infinite ones, and periods with few rows. Workers own no table:
functions that run with the rights of whoever attached make and drop them (db.ddl.partition_objects).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.source.definition import Period, SourceDefinition
from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.identifiers import as_literal, identifier, ours
from pgoutlier.db.sql.statements import compose, one, run

KINDS = ("scores", "shadow_scores")
# Of a period with fewer rows no partition is made but for those of now.
WORTH_A_PARTITION = 1_000
# FROM item of the tables that scores of a source s lie in: one, or its partitions.
TABLES_OF_SCORES = sql.SQL(
    "(SELECT to_regclass('outlier.scores_' || s.name)::oid AS oid UNION SELECT relid FROM"
    " pg_partition_tree(to_regclass('outlier.scores_' || s.name))) c"
)
# No more than so many are made for rows that come: each takes locks and memory of those that read the scores.
MOST_PARTITIONS = 1_000
# Periods that there are partitions for ahead of time.
AHEAD: dict[Period, int] = {"day": 7, "week": 4, "month": 2, "year": 1}
# Scores of the default partition that are moved into a new one, in its transaction.
MOST_MOVED = 100_000
# Scores of the default partition that are looked at for periods worth a partition.
_LOOKED_AT = 200_000
_NUMPY: dict[Period, str] = {"day": "D", "week": "D", "month": "M", "year": "Y"}
_DAY_IN_US = 86_400_000_000
_EPOCH = np.datetime64("2000-01-01", "D")
_MONDAY = np.datetime64("2000-01-03", "D")
# Days from _EPOCH: the years 1 to 9998, whose partitions have names and ends that Python and PostgreSQL write alike.
_FIRST, _LAST = -730_119, 2_921_574


@dataclass(frozen=True)
class Partition:
    """first: its first day. lower, upper: SQL of the bounds, the second one excluded."""

    first: date
    lower: sql.Composable
    upper: sql.Composable

    def covers(self, column: sql.Composable) -> sql.Composed:
        """The condition that a time lies in it."""
        return compose("{c} >= {lower} AND {c} < {upper}", c=column, lower=self.lower, upper=self.upper)


def column(source: SourceDefinition) -> str:
    """The column of our tables that they are partitioned by. Raises ValueError for a key without a time."""
    if source.key_time is None:
        raise ValueError(f"no time in the key of {source.name}")
    return source.key.names[source.key_time]


def name(kind: str, source_name: str, first: date | None = None) -> str:
    """That of a partition, or of the default one. No source can have such a name, so that no other table has it."""
    return f"{kind}_{source_name}${'rest' if first is None else f'{first:%Y%m%d}'.rjust(8, '0')}"


def listed(connection: Connection, source: SourceDefinition) -> list[Partition]:
    """Those that there are, but for the default one, in order of time."""
    if source.score_partitions is None or source.key_time is None:
        return []
    prefix = name("scores", source.name, None).removesuffix("rest")
    found = run(
        connection,
        "SELECT to_date(substr(c.relname, length(%(prefix)s) + 1), 'YYYYMMDD') FROM pg_inherits i"
        " JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass(%(scores)s)"
        " AND starts_with(c.relname, %(prefix)s) AND substr(c.relname, length(%(prefix)s) + 1) ~ '^[0-9]{8}$'"
        " ORDER BY 1",
        {"prefix": prefix, "scores": ours("scores", source.name).as_string(None)},
    ).fetchall()
    return [_partition(source, first) for (first,) in found]


def _partition(source: SourceDefinition, first: date) -> Partition:
    kind = key_types.scalar_type(source.key.types[source.key_time or 0])
    period = sql.SQL(source.score_partitions or "month")
    day = as_literal(f"{first.isoformat()} 00:00:00")
    end = compose("({day}::timestamp + interval '1 {period}')", day=day, period=period)

    def bound(moment: sql.Composable) -> sql.Composable:
        if source.key.types[source.key_time or 0] == "timestamptz":
            return compose("timezone('UTC', {m}::timestamp)", m=moment)
        return compose("{m}::timestamp::{kind}", m=moment, kind=kind)

    return Partition(first, bound(day), bound(end))


def periods(source: SourceDefinition, keys: key_types.Keys) -> dict[date, int]:
    """How many of these keys, in wire form, lie in each period that there can be a partition of, by its first day."""
    if source.score_partitions is None or source.key_time is None:
        return {}
    days = _days(source.key.parts(keys)[source.key_time], source.key.types[source.key_time])
    days = days[(days >= _FIRST) & (days <= _LAST)]
    if not len(days):
        return {}
    days, n_of_a_day = np.unique(days, return_counts=True)
    firsts = _first_days(days, source.score_partitions)  # in order, as the days are
    begins = np.flatnonzero(np.append(True, firsts[1:] != firsts[:-1]))
    counts = np.add.reduceat(n_of_a_day, begins)
    return dict(zip(firsts[begins].astype("datetime64[D]").tolist(), counts.tolist(), strict=True))


def _days(times: key_types.Keys, kind: str) -> npt.NDArray[np.int64]:
    counted = times.astype(np.int64)
    return counted if kind == "date" else np.floor_divide(counted, _DAY_IN_US)


def _first_days(days: npt.NDArray[np.int64], period: Period) -> npt.NDArray[np.datetime64]:
    dates = _EPOCH + days
    if period == "week":
        return _MONDAY + np.floor_divide((dates - _MONDAY).astype(np.int64), 7) * 7
    return dates.astype(f"datetime64[{_NUMPY[period]}]")


def make(connection: Connection, source: SourceDefinition, first: date) -> bool:
    """Make the partition that begins with this day, with what the default one has of it; locks are waited for a second.

    Returns False, and makes none, where the default one has too much of it to be moved in one transaction. Raises
    LockNotAvailable.
    """
    made = compose("SELECT {make}(%s::date)", make=ours("make_scores", source.name))
    return bool(one(connection, made, (first,)))


def ahead(source: SourceDefinition) -> sql.Composed:
    """The statement that makes those of now and of the next periods, where they are not there."""
    period = source.score_partitions or "month"
    return compose(
        "SELECT {make}(d::date) FROM generate_series(date_trunc({period}, timezone('UTC', now())),"
        " date_trunc({period}, timezone('UTC', now())) + {n} * interval '1 {word}', interval '1 {word}') d",
        make=ours("make_scores", source.name),
        period=sql.Literal(period),
        n=sql.Literal(AHEAD[period]),
        word=sql.SQL(period),
    )


def drop(connection: Connection, source: SourceDefinition, first: date) -> None:
    """Drop the partition that begins with this day, and what is in it. Raises LockNotAvailable after 100 ms."""
    run(connection, compose("SELECT {drop}(%s::date)", drop=ours("drop_scores", source.name)), (first,))


def outside(connection: Connection, source: SourceDefinition) -> dict[date, int]:
    """How many scores in the default partition belong to each period that is worth a partition, of the first there."""
    period = source.score_partitions or "month"
    time = identifier(column(source))
    found = run(
        connection,
        compose(
            "SELECT date_trunc({period}, {moment})::date, count(*) FROM (SELECT {time} FROM {rest}"
            # Some days from the ends, whatever the session's time zone.
            " WHERE {time} >= '0001-02-01' AND {time} < '9998-12-01' LIMIT {most}) s"
            " GROUP BY 1 HAVING count(*) >= {worth} ORDER BY 1",
            period=sql.Literal(period),
            moment=compose("timezone('UTC', {t})", t=time)
            if source.key.types[source.key_time or 0] == "timestamptz"
            else compose("{t}::timestamp", t=time),
            time=time,
            rest=identifier("outlier", name("scores", source.name)),
            most=sql.Literal(_LOOKED_AT),
            worth=sql.Literal(WORTH_A_PARTITION),
        ),
    )
    return dict(found.fetchall())


def n_outside(connection: Connection, source: SourceDefinition) -> int:
    """Scores in the default partition, as PostgreSQL estimates them."""
    return int(
        one(
            connection,
            "SELECT greatest(pg_stat_get_live_tuples(to_regclass(%s)), 0)",
            (identifier("outlier", name("scores", source.name)).as_string(None),),
        )
        or 0
    )
