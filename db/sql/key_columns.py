"""The columns of a key in some table, the user's or one of ours: what SQL says of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql

from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.identifiers import as_literal, identifier
from pgoutlier.db.sql.statements import compose

COMMA = sql.SQL(", ")
AND = sql.SQL(" AND ")
# Of a moment with a time zone the JSON that PostgreSQL writes depends on the session's TimeZone, unless it is told one.
_MOMENT: LiteralString = (
    "(CASE WHEN NOT pg_catalog.isfinite({c}) THEN {c}::text"
    " WHEN {c} OPERATOR(pg_catalog.<) '0001-01-01 00:00:00+00'::timestamptz"
    " THEN pg_catalog.to_char(pg_catalog.timezone('UTC', {c}), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00 BC\"')"
    " ELSE (pg_catalog.to_jsonb(pg_catalog.timezone('UTC', {c})) OPERATOR(pg_catalog.#>>) '{{}}'::text[])"
    " OPERATOR(pg_catalog.||) '+00:00' END)"
)


@dataclass(frozen=True)
class KeyColumns:
    """columns: SQL of each. types: of db.sql.key_types.OIDS. names: what they are called in our tables."""

    columns: tuple[sql.Composable, ...]
    types: tuple[str, ...]
    names: tuple[str, ...]

    def listed(self, *, descending: bool = False) -> sql.Composable:
        if not descending:
            return COMMA.join(self.columns)
        return COMMA.join(compose("{c} DESC", c=column) for column in self.columns)

    def as_ours(self) -> sql.Composable:
        """The columns, under our names."""
        return named(self.columns, self.names)

    def are_known(self) -> sql.Composable:
        return AND.join(compose("{c} IS NOT NULL", c=column) for column in self.columns)

    def equal(self, values: Iterable[sql.Composable]) -> sql.Composable:
        """They are these values, or columns of another table."""
        return AND.join(
            compose("{c} OPERATOR(pg_catalog.=) {v}", c=column, v=value)
            for column, value in zip(self.columns, values, strict=True)
        )

    def beside(self, sign: LiteralString, values: Sequence[sql.Composable]) -> sql.Composable:
        """They are before or behind (<, <=, >, >=) these values, in the order of the columns."""
        return compose(
            "({columns}) OPERATOR(pg_catalog.{sign}) ({values})",
            columns=self.listed(),
            sign=sql.SQL(sign),
            values=COMMA.join(values),
        )

    def text(self) -> sql.Composable:
        """The key as one text, see db.sql.keys."""
        if len(self.columns) == 1:
            return compose("{c}::text", c=self.columns[0])
        return compose("pg_catalog.jsonb_build_array({values})::text", values=COMMA.join(self._in_json()))

    def as_value(self) -> sql.Composable:
        """The key as one value: of one column that, of several a text."""
        return self.columns[0] if len(self.columns) == 1 else self.text()

    def _in_json(self) -> Iterable[sql.Composable]:
        for column, kind in zip(self.columns, self.types, strict=True):
            # A domain, or varchar, is of the type of our keys in JSON as well.
            cast = compose("{c}::{type}", c=column, type=key_types.scalar_type(kind))
            yield compose(_MOMENT, c=cast) if kind == "timestamptz" else cast


def values_in(types: Sequence[str], text: sql.Composable) -> list[sql.Composable]:
    """SQL of the values of a key out of SQL of its text."""
    if len(types) == 1:
        return [compose("({t})::{type}", t=text, type=key_types.scalar_type(types[0]))]
    return [
        compose(
            "(({t})::pg_catalog.jsonb OPERATOR(pg_catalog.->>) {n})::{type}",
            t=text,
            n=sql.Literal(n),
            type=key_types.scalar_type(kind),
        )
        for n, kind in enumerate(types)
    ]


def constants(types: Sequence[str], text: str) -> list[sql.Composable]:
    """The same of a text, as constants in the SQL."""
    values = [text] if len(types) == 1 else json.loads(text)
    return [
        compose("{v}::{type}", v=as_literal(str(value)), type=key_types.scalar_type(kind))
        for value, kind in zip(values, types, strict=True)
    ]


def named(values: Iterable[sql.Composable], names: Iterable[str]) -> sql.Composable:
    """A list of values, each under a name."""
    pairs = zip(values, names, strict=True)
    return COMMA.join(compose("{v} AS {name}", v=value, name=identifier(name)) for value, name in pairs)
