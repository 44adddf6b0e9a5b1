"""The key of a source, of one column or several: its names in SQL, its values in PostgreSQL's wire format and as text.

In the user's table its columns have the user's names. In ours they are called `key`, or `key_1` to `key_4`, and a queue
row holds them as arrays, `keys`, or `keys_1` to `keys_4`, of which the n-th elements belong together. As one text, in
tables of ours that all sources share, a key of one column is what PostgreSQL prints of it, and one of several is a JSON
array of its values, times in UTC: no setting of a session changes either.

Every name in the SQL is written in full where it may be read with the search path of a role.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql

from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.identifiers import display, identifier
from pgoutlier.db.sql.key_columns import AND, COMMA, KeyColumns, named, values_in
from pgoutlier.db.sql.key_types import Keys
from pgoutlier.db.sql.statements import compose

MOST_COLUMNS = 4


@dataclass(frozen=True)
class Key:
    """columns: the user's names of them, types: one of db.sql.key_types.OIDS each."""

    columns: tuple[str, ...]
    types: tuple[str, ...]

    @property
    def is_single(self) -> bool:
        return len(self.columns) == 1

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of its columns in our tables."""
        return ("key",) if self.is_single else tuple(f"key_{n}" for n in range(1, len(self.columns) + 1))

    @cached_property
    def array_names(self) -> tuple[str, ...]:
        """Of its columns in the queue."""
        return tuple(name.replace("key", "keys") for name in self.names)

    @property
    def has_text(self) -> bool:
        """Whether its length in bytes differs from row to row."""
        return "text" in self.types

    @property
    def is_counted(self) -> bool:
        """Whether it is one number: such keys lie together where their rows came together."""
        return self.is_single and key_types.is_number(self.types[0])

    @property
    def rises(self) -> bool:
        """Whether new rows are likely to have the last keys, as those that are counted have."""
        return key_types.is_number(self.types[0])

    @property
    def shown(self) -> str:
        """Its columns as a user would type them."""
        return ",".join(map(display, self.columns))

    @property
    def type_shown(self) -> str:
        if self.is_single:
            return self.types[0]
        return f"({', '.join(f'{display(c)} {t}' for c, t in zip(self.columns, self.types, strict=True))})"

    # Lists of columns

    def in_ours(self, table: str | None) -> KeyColumns:
        """Its columns in one of our tables, or in what has their names."""
        return KeyColumns(tuple(_of(table, self.names)), self.types, self.names)

    def in_theirs(self, table: str | None) -> KeyColumns:
        """Its columns in the user's table."""
        return KeyColumns(tuple(_of(table, self.columns)), self.types, self.names)

    def ours(self, table: str | None = None) -> sql.Composable:
        """A list of the former."""
        return self.in_ours(table).listed()

    def theirs(self, table: str | None = None) -> sql.Composable:
        """A list of the latter."""
        return self.in_theirs(table).listed()

    def theirs_as_ours(self, table: str | None = None) -> sql.Composable:
        """The same, under our names."""
        return self.in_theirs(table).as_ours()

    def ours_as_theirs(self, table: str) -> sql.Composable:
        """Our columns, under the user's names."""
        return named(_of(table, self.names), self.columns)

    def arrays(self, table: str | None = None) -> sql.Composable:
        """Its columns of the queue."""
        return COMMA.join(_of(table, self.array_names))

    def definitions(self) -> list[sql.Composable]:
        """Its columns for CREATE TABLE."""
        return [
            compose("{c} {type} NOT NULL", c=identifier(name), type=key_types.scalar_type(kind))
            for name, kind in zip(self.names, self.types, strict=True)
        ]

    def array_definitions(self) -> list[sql.Composable]:
        """Those of the queue."""
        return [
            compose("{c} {type} NOT NULL", c=identifier(name), type=key_types.array_type(kind))
            for name, kind in zip(self.array_names, self.types, strict=True)
        ]

    def in_writing_order(self, table: str) -> sql.Composable:
        """SQL that orders our rows as workers write scores: as `sortable` does."""
        return COMMA.join(
            key_types.writing_order(column, kind)
            for column, kind in zip(_of(table, self.names), self.types, strict=True)
        )

    def longest_text(self, table: str) -> sql.Composable:
        """SQL of the bytes of the longest text in a key of ours."""
        return compose(
            "greatest({lengths})",
            lengths=COMMA.join(
                compose("pg_catalog.octet_length(pg_catalog.convert_to({c}, 'UTF8'))", c=column)
                for column, kind in zip(_of(table, self.names), self.types, strict=True)
                if kind == "text"
            ),
        )

    # Conditions

    def same(self, one: str, other: str) -> sql.Composable:
        """Both have the same key; both are ours."""
        return self.in_ours(one).equal(_of(other, self.names))

    def is_of(self, row: str, ours: str) -> sql.Composable:
        """A row of the user's has the key that one of ours has."""
        return self.in_theirs(row).equal(_of(ours, self.names))

    def same_row(self, one: str, other: str) -> sql.Composable:
        """Both have the same key; both are the user's."""
        return self.in_theirs(one).equal(_of(other, self.columns))

    def is_text(self, ours: str, text: sql.Composable) -> sql.Composable:
        """One of ours has the key that this text says."""
        return self.in_ours(ours).equal(values_in(self.types, text))

    def is_text_of(self, row: str, text: sql.Composable) -> sql.Composable:
        """A row of the user's has the key that this text says."""
        return self.in_theirs(row).equal(values_in(self.types, text))

    def are_among(self, row: str, keys: sql.Composable) -> sql.Composable:
        """Each column of a row of the user's is among those of keys that `to_parameters` made: true of all of them."""
        if self.is_single:
            arrays = [compose("{k}::{type}", k=keys, type=self.parameter_type())]
        else:
            arrays = [
                compose("ARRAY(SELECT {v} FROM pg_catalog.unnest({k}::text[]) AS u (key))", v=value, k=keys)
                for value in values_in(self.types, sql.SQL("u.key"))
            ]
        return AND.join(
            compose("{c} OPERATOR(pg_catalog.=) ANY ({array})", c=column, array=array)
            for column, array in zip(_of(row, self.columns), arrays, strict=True)
        )

    # Keys as one text

    def text(self, table: str) -> sql.Composable:
        """Of one of ours."""
        return self.in_ours(table).text()

    def text_of_row(self, row: str) -> sql.Composable:
        """Of a row of the user's."""
        return self.in_theirs(row).text()

    def from_text(self, text: sql.Composable) -> sql.Composable:
        """Its columns, under our names, out of a text."""
        return named(values_in(self.types, text), self.names)

    # Arrays of keys

    def unnested(self, queue: str, name: str = "k") -> sql.Composable:
        """FROM item of the keys of a queue row, under our names."""
        return compose(
            "{arrays} AS {name} ({columns})",
            arrays=_unnest(_of(queue, self.array_names)),
            name=identifier(name),
            columns=self.ours(),
        )

    def gathered(self, table: str | None, *, ordered: bool = False) -> sql.Composable:
        """Rows with our names as the arrays of one queue row."""
        order = compose(" ORDER BY {o}", o=self.ours(table)) if ordered else sql.SQL("")
        return COMMA.join(
            compose("pg_catalog.array_agg({c}{order})", c=column, order=order)
            for column in _of(table, self.names)
        )

    def given(
        self,
        name: str,
        keys: sql.Composable,
        others: dict[str, sql.Composable] | None = None,
        *,
        numbered: bool = False,
    ) -> sql.Composable:
        """FROM item of keys that `to_parameters` made, under our names.

        keys: SQL of that parameter. others: further arrays of the same length, each after the name that its elements
        get. numbered: `place` counts them from 1.
        """
        others = others or {}
        columns = [*others, *(["place"] if numbered else [])]
        arrays = _unnest([compose("{k}::{type}", k=keys, type=self.parameter_type()), *others.values()])
        ordinality = sql.SQL(" WITH ORDINALITY" if numbered else "")
        named = COMMA.join(identifier(column) for column in ("key", *columns))
        if self.is_single:
            return compose(
                "{arrays}{ordinality} AS {name} ({named})",
                arrays=arrays,
                ordinality=ordinality,
                name=identifier(name),
                named=named,
            )
        return compose(
            "(SELECT {values} FROM {arrays}{ordinality} AS u ({named})) AS {name}",
            values=COMMA.join([self.from_text(sql.SQL("u.key")), *_of("u", columns)]),
            arrays=arrays,
            ordinality=ordinality,
            named=named,
            name=identifier(name),
        )

    def parameter_type(self) -> sql.Composable:
        """The type of the array that `to_parameters` makes, of `KeyColumns.as_value` each."""
        return key_types.array_type(self.types[0] if self.is_single else "text")

    # Values

    def wire_dtype(self, *, text_bytes: int = 1) -> np.dtype[Any]:
        """Of a key as it is read; of several columns a field each, called as in our tables."""
        if self.is_single:
            return key_types.wire_dtype(self.types[0], text_bytes=text_bytes)
        return np.dtype(
            [
                (name, key_types.wire_dtype(kind, text_bytes=text_bytes))
                for name, kind in zip(self.names, self.types, strict=True)
            ]
        )

    def parts(self, keys: Keys) -> list[Keys]:
        """The keys by column."""
        return [keys] if self.is_single else [keys[name] for name in self.names]

    def sortable(self, keys: Keys) -> Keys:
        """The keys in a form that NumPy sorts and compares.

        Workers write the scores of a batch in this order, so that two of them never wait for each other in turn.
        """
        if self.is_single:
            return key_types.sortable(keys, self.types[0])
        octets: list[npt.NDArray[np.uint8]] = [
            key_types.octets(part, kind) for part, kind in zip(self.parts(keys), self.types, strict=True)
        ]
        return key_types.as_bytes(np.concatenate(octets, axis=1))

    def to_parameters(self, keys: Keys) -> list[Any]:
        """The keys as a list for the driver, see `given`; for the few rows that do not go through COPY."""
        if self.is_single:
            return key_types.to_values(keys, self.types[0])
        columns = [
            key_types.to_values(part, kind) for part, kind in zip(self.parts(keys), self.types, strict=True)
        ]
        return [_json(values) for values in zip(*columns, strict=True)]

    def to_texts(self, keys: Keys) -> list[str]:
        """The keys as one text each."""
        return [str(key) for key in self.to_parameters(keys)]

    def canonical(self, text: str) -> str:
        """A key that somebody wrote as one text, as `to_texts` has it.

        Of several columns: a JSON array of their values, or a JSON object of them by the user's names. Raises
        ValueError, with what is wrong, if it is no key.
        """
        if self.is_single:
            return key_types.canonical(text, self.types[0])
        form = f"write it as JSON: [{', '.join(map(display, self.columns))}]"
        try:
            found = json.loads(text, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError):
            raise ValueError(form) from None
        if isinstance(found, dict):
            if set(found) != set(self.columns):
                raise ValueError(f"it needs {', '.join(self.columns)}, no more and no less")
            found = [found[column] for column in self.columns]
        if not isinstance(found, list):
            raise ValueError(form)
        return self.of_values(found)

    def of_values(self, values: Sequence[Any]) -> str:
        """The text of a key whose columns somebody wrote. Raises ValueError, with what is wrong, if it is no key."""
        if len(values) != len(self.columns):
            raise ValueError(
                f"it has {len(self.columns)} columns ({self.shown}), and {len(values)} are given"
            )
        parts: list[Any] = []
        for value, column, kind in zip(values, self.columns, self.types, strict=True):
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise ValueError(f"{display(column)} is neither text nor a whole number")
            try:
                part = key_types.canonical(str(value), kind)
            except ValueError as error:
                raise ValueError(f"{display(column)}: {error}" if len(values) > 1 else str(error)) from None
            parts.append(int(part) if key_types.is_number(kind) else part)
        return str(parts[0]) if self.is_single else _json(parts)

    def by_column(self, text: str) -> str | dict[str, Any]:
        """A key as others are told of it: its text, or of several columns their values by the user's names.

        A text of before the source had this key is told as it is.
        """
        if self.is_single:
            return text
        try:
            return dict(zip(self.columns, json.loads(text), strict=True))
        except (TypeError, ValueError):
            return text


def _unnest(arrays: list[sql.Composable]) -> sql.Composable:
    """Of several arrays at once it is a form of its own, which is always PostgreSQL's and cannot say its schema."""
    name = sql.SQL("pg_catalog.unnest" if len(arrays) == 1 else "unnest")
    return compose("{name}({arrays})", name=name, arrays=COMMA.join(arrays))


def _json(values: Iterable[Any]) -> str:
    """As PostgreSQL prints a jsonb array."""
    return json.dumps(
        [value if isinstance(value, int) else str(value) for value in values], ensure_ascii=False
    )


def _of(table: str | None, names: Iterable[str]) -> list[sql.Composable]:
    if table is None:
        return [identifier(name) for name in names]
    return [identifier(table, name) for name in names]
