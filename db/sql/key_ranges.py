"""Ranges and stretches of a source's keys, in the order of its column; the keys at both ends are kept as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.key_columns import KeyColumns, constants, values_in
from pgoutlier.db.sql.keys import Key
from pgoutlier.db.sql.statements import compose, run

# Reading so many keys one after the other takes no longer than looking for one of them.
_MOST_GAPS = 8


@dataclass(frozen=True)
class KeyRange:
    """A range of a job, both ends included. attempts: how often it has failed."""

    job_id: int
    number: int
    first_key: str
    last_key: str
    attempts: int

    @property
    def params(self) -> dict[str, str]:
        """The parameters of `within`."""
        return {"first_key": self.first_key, "last_key": self.last_key}


def plan(key: Key, columns: KeyColumns, to_do: sql.Composable) -> sql.Composed:
    """The statement that cuts rows into ranges of so many (%(size)s) keys, for a job (%(job)s).

    columns: those of the key of these rows. to_do: FROM and WHERE of the rows.
    """
    return compose(
        """
        INSERT INTO outlier.job_ranges (job_id, number, first_key, last_key, n_keys)
        SELECT %(job)s, place / %(size)s, max({text}) FILTER (WHERE place %% %(size)s = 0),
               max({text}) FILTER (WHERE place %% %(size)s = %(size)s - 1 OR is_last), max(place) - min(place) + 1
        FROM (SELECT k.*, row_number() OVER w - 1 AS place, lead(true) OVER w IS NULL AS is_last
              FROM (SELECT {columns} FROM {to_do}) k WINDOW w AS (ORDER BY {key})) ends
        WHERE place %% %(size)s IN (0, %(size)s - 1) OR is_last
        GROUP BY place / %(size)s
        """,
        text=key.text("ends"),
        columns=columns.as_ours(),
        key=key.ours("k"),
        to_do=to_do,
    )


def within(key: KeyColumns) -> sql.Composed:
    """The condition that a key is in a range, see KeyRange.params."""
    return compose(
        "{from_first} AND {to_last}",
        from_first=key.beside(">=", values_in(key.types, sql.SQL("%(first_key)s"))),
        to_last=key.beside("<=", values_in(key.types, sql.SQL("%(last_key)s"))),
    )


@dataclass(frozen=True)
class Stretch:
    """Keys behind one, up to another and with that; None: from the first, to the last."""

    after: str | None
    up_to: str | None

    def has(self, key: KeyColumns) -> sql.Composed:
        """SQL for whether a key lies in it.

        The ends stand there as literals: a plan for any ends whatever would read all keys.
        """
        conditions: list[sql.Composable] = []
        if self.after is not None:
            conditions.append(key.beside(">", constants(key.types, self.after)))
        if self.up_to is not None:
            conditions.append(key.beside("<=", constants(key.types, self.up_to)))
        return sql.SQL(" AND ").join(conditions or [key.are_known()])


def end_of_stretch(rows: sql.Composable, key: KeyColumns, *, after: str | None, n_keys: int) -> sql.Composed:
    """SELECT of the last key, as text, of the so many behind `after`; no row where there are fewer.

    rows: FROM, and WHERE if there is one, of rows in which an index finds the keys in order.
    """
    return compose(
        "SELECT {text} FROM {rows} AND {behind} ORDER BY {key} OFFSET {n} LIMIT 1",
        text=key.text(),
        key=key.listed(),
        rows=rows,
        behind=Stretch(after, None).has(key),
        n=sql.Literal(n_keys - 1),
    )


def span(connection: Connection, rows: sql.Composable, key: Key) -> Stretch | None:
    """Where the keys of `rows`, k in SQL, lie, if there are few others between them; None where that is not known."""
    if not key.is_counted:
        return None
    row = run(
        connection, compose("SELECT min(k.key), max(k.key), count(k.key) FROM {rows}", rows=rows)
    ).fetchone()
    return None if row is None else _dense(row[0], row[1], row[2], key.types[0])


@contextmanager
def read_in_order(connection: Connection, span: Stretch | None) -> Iterator[None]:
    """Have PostgreSQL join what lies in a span by reading it, and not by a probe for each row, which it takes for as
    cheap; where there is no span it is left to it."""
    if span is None:
        yield
        return
    run(connection, "SET LOCAL enable_nestloop = off")
    yield
    run(connection, "SET LOCAL enable_nestloop TO DEFAULT")


def span_of(keys: Sequence[Any], key: Key) -> Stretch | None:
    """The same of keys that are there."""
    if not (keys and key.is_counted):
        return None
    return _dense(min(keys), max(keys), len(keys), key.types[0])


def _dense(first: int | None, last: int | None, n_keys: int, key_type: str) -> Stretch | None:
    if first is None or last is None or last - first >= _MOST_GAPS * n_keys:
        return None
    return Stretch(key_types.before(first, key_type), str(last))
