"""Sending composed statements over the driver's connection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, LiteralString, TypeVar, cast

import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row
from sqlalchemy import Connection

from pgoutlier.db.engine import driver_connection

Params = Sequence[Any] | Mapping[str, Any]
Record = TypeVar("Record")


def compose(template: LiteralString, /, **parts: sql.Composable) -> sql.Composed:
    """A statement with {name} placeholders for identifiers and literals. Percent signs are placeholders."""
    return sql.SQL(template).format(**parts)


def in_one_piece(statement: sql.Composable) -> sql.SQL:
    """The statement put together, to be kept: for one of many parts that takes longer than PostgreSQL does."""
    return sql.SQL(statement.as_string(None))


def as_text(statement: sql.Composable) -> str:
    """The statement as PostgreSQL will receive it, for --dry-run and for logs of our own DDL."""
    return statement.as_string(None).replace("%%", "%")


def dollar_quote(body: str) -> sql.SQL:
    """A quote that the body of a function, which may hold the user's names, does not end."""
    tag = "outlier"
    while f"${tag}$" in body:
        tag += "_"
    return sql.SQL(f"${tag}$")


def run(
    connection: Connection,
    statement: sql.SQL | sql.Composed | LiteralString,
    params: Params = (),
    *,
    binary: bool = False,
) -> psycopg.Cursor[Any]:
    """Execute with parameters (always, see db.sql.identifiers.identifier); rows come as tuples."""
    query = sql.SQL(statement) if isinstance(statement, str) else statement
    return driver_connection(connection).execute(query, params, binary=binary)


def run_dicts(
    connection: Connection, statement: sql.Composed | LiteralString, params: Params = ()
) -> list[dict[str, Any]]:
    """Execute and return every row as a dict."""
    query = sql.SQL(statement) if isinstance(statement, str) else statement
    with driver_connection(connection).cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, params).fetchall()


def records(
    connection: Connection, kind: type[Record], statement: sql.Composed | LiteralString, params: Params = ()
) -> list[Record]:
    """Execute and return every row as one of these dataclasses, whose fields are named like the columns."""
    query = sql.SQL(statement) if isinstance(statement, str) else statement
    with driver_connection(connection).cursor(row_factory=class_row(kind)) as cursor:
        return cursor.execute(query, params).fetchall()


def one(connection: Connection, statement: sql.Composed | LiteralString, params: Params = ()) -> Any:
    """The first column of the first row, or None without a row."""
    row = run(connection, statement, params).fetchone()
    return None if row is None else row[0]


def show_what_policies_allow(connection: Connection) -> None:
    """For the rest of the transaction: rows that row-level security hides are left out, where a session of ours fails.

    For what is only shown to somebody. What counts, scores or removes rows takes a hidden one for one that is gone.
    """
    run(connection, "SET LOCAL row_security = on")


def binary_rows(
    connection: Connection, statement: sql.SQL | sql.Composed, params: Params = ()
) -> list[tuple[Any, ...]]:
    """Every value of every row in PostgreSQL's binary format, as bytes that nothing has parsed; None for NULL."""
    with driver_connection(connection).cursor(binary=True) as cursor:
        result = cursor.execute(statement, params).pgresult
        if result is None:
            return []
        columns = range(result.nfields)
        return [tuple(result.get_value(row, c) for c in columns) for row in range(result.ntuples)]


def copy_in(connection: Connection, statement: sql.Composed, blocks: Iterable[memoryview | bytes]) -> None:
    """Send blocks to a COPY ... FROM STDIN."""
    with driver_connection(connection).cursor() as cursor, cursor.copy(statement, ()) as copy:
        for block in blocks:
            copy.write(cast(bytes, block))


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's five-character error code of an error from the driver or from SQLAlchemy around it."""
    original = getattr(error, "orig", error)
    return getattr(original, "sqlstate", None)
