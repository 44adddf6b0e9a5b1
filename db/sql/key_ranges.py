"""Ranges of a source's keys, in the order of its columns; the keys at both ends are kept as text."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from pgoutlier.db.sql.keys import Key
from pgoutlier.db.sql.statements import compose


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


def plan(key: Key, columns: sql.Composable, to_do: sql.Composable) -> sql.Composed:
    """The statement that cuts rows into ranges of so many (%(size)s) keys, for a job (%(job)s).

    columns: those of the key of these rows, under our names. to_do: FROM and WHERE of the rows.
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
        columns=columns,
        key=key.ours("k"),
        to_do=to_do,
    )


def within(key: Key, table: str, *, of_row: bool = False) -> sql.Composed:
    """The condition that a key of ours, or of a row of the user's, is in a range, see KeyRange.params."""
    compared = key.row_compared if of_row else key.compared
    return compose(
        "{from_first} AND {to_last}",
        from_first=compared(table, sql.SQL(">="), sql.SQL("%(first_key)s")),
        to_last=compared(table, sql.SQL("<="), sql.SQL("%(last_key)s")),
    )
