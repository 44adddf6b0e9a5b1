"""Sending composed statements over the driver's connection."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, LiteralString, TypeVar, cast

import psycopg
from psycopg import sql
from psycopg.adapt import Transformer
from psycopg.pq import Format
from psycopg.rows import class_row, dict_row
from psycopg.types.json import set_json_loads
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from pgoutlier.db.engine import driver_connection

# SQLSTATEs and classes of them (https://www.postgresql.org/docs/current/errcodes-appendix.html) that another batch, or
# a smaller one, may not have: cardinality, data exceptions, integrity, errors raised by functions of the user's; what
# PostgreSQL does not do with some values, limits of size and memory; a row that is corrupt.
_ROWS_TO_BLAME = ("21", "22", "23", "38", "39", "P0", "0A", "53200", "54", "XX")

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


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    """In a transaction that SQLAlchemy has begun, if need be now: the driver would begin one without our settings."""
    if not connection.in_transaction():
        connection.begin()
    return driver_connection(connection)


def run(
    connection: Connection,
    statement: sql.SQL | sql.Composed | LiteralString,
    params: Params = (),
    *,
    binary: bool = False,
) -> psycopg.Cursor[Any]:
    """Execute with parameters (always, see db.sql.identifiers.identifier); rows come as tuples."""
    query = sql.SQL(statement) if isinstance(statement, str) else statement
    return _driver(connection).execute(query, params, binary=binary)


def run_dicts(
    connection: Connection, statement: sql.Composed | LiteralString, params: Params = ()
) -> list[dict[str, Any]]:
    """Execute and return every row as a dict."""
    query = sql.SQL(statement) if isinstance(statement, str) else statement
    with _driver(connection).cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, params).fetchall()


def users_rows(connection: Connection, statement: sql.Composed, params: Params = ()) -> list[dict[str, Any]]:
    """Execute and return every row as a dict, where the columns may be the user's, of any type.

    A value that Python has no object for is there as the text that PostgreSQL prints: infinite times, years before
    Christ or of five digits, 24 o'clock, ranges and arrays of such.
    """
    with _driver(connection).cursor() as cursor:
        result = cursor.execute(statement, params).pgresult
        if result is None:
            return []
        set_json_loads(partial(json.loads, parse_float=_finite), cursor)
        transformer = Transformer.from_context(cursor)
        loads = [transformer.get_loader(result.ftype(c), Format.TEXT).load for c in range(result.nfields)]
        names = [column.name for column in cursor.description or ()]
        return [
            {
                name: _loaded(load, result.get_value(row, c))
                for c, (name, load) in enumerate(zip(names, loads, strict=True))
            }
            for row in range(result.ntuples)
        ]


def _finite(number: str) -> float | Decimal:
    found = float(number)
    return found if math.isfinite(found) else Decimal(number)


def _loaded(load: Callable[[bytes], Any], text: bytes | None) -> Any:
    if text is None:
        return None
    try:
        return load(text)
    except (
        Exception
    ):  # what it raises differs from type to type: DataError, ValueError, OverflowError, RecursionError
        return bytes(text).decode()


def records(
    connection: Connection, kind: type[Record], statement: sql.Composed | LiteralString, params: Params = ()
) -> list[Record]:
    """Execute and return every row as one of these dataclasses, whose fields are named like the columns."""
    query = sql.SQL(statement) if isinstance(statement, str) else statement
    with _driver(connection).cursor(row_factory=class_row(kind)) as cursor:
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
) -> tuple[list[tuple[Any, ...]], tuple[int, ...]]:
    """Every value of every row in PostgreSQL's binary format, as bytes that nothing has parsed; None for NULL.

    And the pg_type.oid of each column.
    """
    with _driver(connection).cursor(binary=True) as cursor:
        result = cursor.execute(statement, params).pgresult
        if result is None:
            return [], ()
        columns = range(result.nfields)
        types = tuple(result.ftype(c) for c in columns)
        return [tuple(result.get_value(row, c) for c in columns) for row in range(result.ntuples)], types


def copy_in(connection: Connection, statement: sql.Composed, blocks: Iterable[memoryview | bytes]) -> None:
    """Send blocks to a COPY ... FROM STDIN."""
    with _driver(connection).cursor() as cursor, cursor.copy(statement, ()) as copy:
        for block in blocks:
            copy.write(cast(bytes, block))


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's five-character error code of an error from the driver or from SQLAlchemy around it."""
    original = getattr(error, "orig", error)
    return getattr(original, "sqlstate", None)


def blames_rows(state: str | None) -> bool:
    """Whether an error of this SQLSTATE may be due to the values of rows."""
    return (state or "").startswith(_ROWS_TO_BLAME)


def lost_connection(error: BaseException) -> bool:
    """Whether the server could not be reached, or no longer: not an error in what it was asked or has answered.

    A pooler says in words, with a SQLSTATE of class 08, that it cannot reach the server or gives up waiting for it.
    """
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    original = getattr(error, "orig", error)
    return isinstance(original, psycopg.OperationalError) and (original.sqlstate or "08").startswith("08")
