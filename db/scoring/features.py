"""Bulk read of feature rows as one float64 matrix, with no Python object per row.

The server gathers a batch into a handful of arrays, which arrive in PostgreSQL's binary array format and are
read in place by NumPy. Features travel four at a time, as the two end points of an lseg: PostgreSQL sends a
double by a function call of its own, and an lseg of four doubles by one call as well, which makes the read 1.7
times as fast (docs/decisions/0002-bulk-read-through-arrays.md). A batch that holds a NULL or an array of the
wrong length is read once more, with such values as NaN and the first problem of each row.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any, LiteralString

import numpy as np
import numpy.typing as npt
from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.scoring import past_rows, past_statements
from pgoutlier.db.scoring.rows import FeatureRows
from pgoutlier.db.source.definition import Feature, SourceDefinition
from pgoutlier.db.sql import key_types, search_path, wire
from pgoutlier.db.sql.identifiers import identifier
from pgoutlier.db.sql.statements import binary_rows, compose, in_one_piece

_PACK = 4  # doubles in an lseg, see lseg_send in PostgreSQL's src/backend/utils/adt/geo_ops.c


def read(
    connection: Connection,
    source: SourceDefinition,
    *,
    origin: sql.Composable,
    params: dict[str, Any],
    number: sql.Composable,
    longest_key_bytes: int,
    rows_per_block: int | None = None,
    blank: bool = False,
) -> tuple[npt.NDArray[np.int64], FeatureRows]:
    """The numbers (n,) and the rows of `origin`: a FROM clause and all that follows, where t has the features.

    number: SQL of a bigint that tells the caller about each row what no column does; rows come in no particular order.
    rows_per_block: gather on the server in blocks of rows whose numbers lie within so many of each other, for reads
    too large for one array of at most 1 GB. blank: read NaN for every feature, so that t need have the key alone.
    """
    for tolerant in (False, True):
        names, arrays, columns = _selected(source, number.as_string(None), longest_key_bytes, tolerant, blank)
        statement = compose(
            "SELECT {arrays} FROM (SELECT {columns} {origin}) rows {grouped}",
            arrays=arrays,
            columns=columns,
            origin=origin,
            grouped=sql.SQL("")
            if rows_per_block is None
            else compose("GROUP BY number / {n}", n=sql.Literal(rows_per_block)),
        )
        with search_path.of_the_role(connection) if source.feature_view else nullcontext():
            rows, types = binary_rows(connection, statement, params)
        blocks = [dict(zip(names, row, strict=True)) for row in rows if row[0] is not None]
        parts = _assemble(blocks, source, longest_key_bytes, tolerant=tolerant or blank)
        if parts is None:
            continue
        if source.past_features and not blank:
            oids = dict(zip(names, types, strict=True))
            for n, (block, (numbers, part)) in enumerate(zip(blocks, parts, strict=True)):
                n_cut_short = past_rows.fill(connection, source, block, oids, part.matrix)
                parts[n] = numbers, replace(part, n_cut_short=n_cut_short)
        return _together(parts, source, longest_key_bytes)
    raise AssertionError("a read with NULLs replaced still holds NULLs")


@lru_cache(maxsize=64)
def _selected(
    source: SourceDefinition, number: LiteralString, longest_key_bytes: int, tolerant: bool, blank: bool
) -> tuple[tuple[str, ...], sql.SQL, sql.SQL]:
    """Names of the columns, the arrays that they are gathered into, and the columns themselves."""
    columns = _columns(source, sql.SQL(number), longest_key_bytes, tolerant=tolerant, blank=blank)
    return (
        tuple(columns),
        in_one_piece(
            sql.SQL(", ").join(compose("pg_catalog.array_agg({c})", c=identifier(name)) for name in columns)
        ),
        in_one_piece(
            sql.SQL(", ").join(
                compose("{value} AS {name}", value=value, name=identifier(name))
                for name, value in columns.items()
            )
        ),
    )


def _columns(
    source: SourceDefinition, number: sql.Composable, longest_key_bytes: int, *, tolerant: bool, blank: bool
) -> dict[str, sql.Composable]:
    """What is read of each row, by name: number, key, scalars (packed), array0 ..., and so on."""
    columns: dict[str, sql.Composable] = {"number": compose("({number})::bigint", number=number)}
    key = source.key
    for name, column, kind in zip(key.names, key.columns, key.types, strict=True):
        # Of the type that the source's keys have, whatever the column has become: the queue has none that do not fit.
        value = compose("t.{c}::{type}", c=identifier(column), type=key_types.scalar_type(kind))
        columns[name] = value
        if kind == "text":
            columns[f"{name}_bytes"] = compose("octet_length(convert_to({v}::text, 'UTF8'))", v=value)
            columns[name] = compose(
                "substring(convert_to({v}::text, 'UTF8') || decode(repeat('00', {n}), 'hex') from 1 for {n})",
                v=value,
                n=sql.Literal(max(longest_key_bytes, 1)),
            )
    columns |= values(source, tolerant=tolerant, blank=blank)
    if not blank:
        columns |= past_statements.asked(source)
    if tolerant and not blank:
        columns["problem"] = _first_problem(source.features)
    return columns


def values(
    source: SourceDefinition, *, tolerant: bool = False, blank: bool = False
) -> dict[str, sql.Composable]:
    """SQL of the features of t, by name: scalars (packed), array0 ..., and so on."""
    columns: dict[str, sql.Composable] = {}
    scalars = [_scalar(f, tolerant=tolerant, blank=blank) for f in source.features if not f.length]
    if scalars:
        columns["scalars"] = _packed(scalars)
    arrays = [feature for feature in source.features if feature.length]
    columns |= {
        f"array{n}": _nans(feature) if blank else _guarded(feature) for n, feature in enumerate(arrays)
    }
    return columns


def _scalar(feature: Feature, *, tolerant: bool, blank: bool) -> sql.Composable:
    if blank:
        return sql.SQL("'NaN'::double precision")
    value = feature.expression("t")
    return compose("coalesce({v}, 'NaN')", v=value) if tolerant else value


def _packed(scalars: list[sql.Composable]) -> sql.Composable:
    """Doubles as an array of lsegs, the last one filled up with zeros. A NULL makes its lseg NULL."""
    padding: list[sql.Composable] = [sql.SQL("0")] * (-len(scalars) % _PACK)
    doubles = [*scalars, *padding]
    segments = [
        compose("lseg(point({a}, {b}), point({c}, {d}))", a=a, b=b, c=c, d=d)
        for a, b, c, d in zip(*(doubles[i::_PACK] for i in range(_PACK)), strict=True)
    ]
    return compose("ARRAY[{segments}]", segments=sql.SQL(", ").join(segments))


def _guarded(feature: Feature) -> sql.Composable:
    """An array column, or NaNs in its place: arrays of unequal length cannot be gathered."""
    value = feature.expression("t")
    return compose(
        # The slice counts from 1 whatever the array counts from, without which they cannot be gathered either.
        "CASE WHEN {sound} THEN ({v})[:] ELSE {nans} END",
        sound=_sound_array(value, feature.length),
        v=value,
        nans=_nans(feature),
    )


def _nans(feature: Feature) -> sql.Composable:
    return compose(
        "pg_catalog.array_fill('NaN'::double precision, ARRAY[{n}])", n=sql.Literal(feature.length)
    )


def _sound_array(value: sql.Composable, length: int) -> sql.Composable:
    return compose(
        "(pg_catalog.array_ndims({v}) = 1 AND pg_catalog.cardinality({v}) = {n}"
        " AND pg_catalog.array_position({v}, NULL) IS NULL)",
        v=value,
        n=sql.Literal(length),
    )


def _first_problem(features: tuple[Feature, ...]) -> sql.Composable:
    """0, or the 1-based position of the first feature that is NULL (positive) or a wrong array (negative)."""
    cases: list[sql.Composable] = []
    for position, feature in enumerate(features, start=1):
        value = feature.expression("t")
        if not feature.length:
            cases.append(compose("WHEN {v} IS NULL THEN {p}", v=value, p=sql.Literal(position)))
            continue
        cases.append(
            compose(
                "WHEN {v} IS NULL OR pg_catalog.array_ndims({v}) = 1"
                " AND pg_catalog.array_position({v}, NULL) IS NOT NULL THEN {p}"
                " WHEN NOT coalesce({sound}, false) THEN {wrong}",
                v=value,
                p=sql.Literal(position),
                sound=_sound_array(value, feature.length),
                wrong=sql.Literal(-position),
            )
        )
    return compose("(CASE {cases} ELSE 0 END)::integer", cases=sql.SQL(" ").join(cases))


def _assemble(
    blocks: list[dict[str, bytes]], source: SourceDefinition, longest_key_bytes: int, *, tolerant: bool
) -> list[tuple[npt.NDArray[np.int64], FeatureRows]] | None:
    """Numbers and rows of each block; None if a NULL or a guarded array calls for the tolerant read, to tell why."""
    has_arrays = any(feature.length for feature in source.features)
    key_dtype = source.key.wire_dtype(text_bytes=max(longest_key_bytes, 1))
    may_be_null = past_statements.asked(source).keys()
    parts = []
    for block in blocks:
        if any(wire.has_null(array) for name, array in block.items() if name not in may_be_null):
            return None
        part = _block(block, source, key_dtype)
        if has_arrays and not tolerant and np.isnan(part[1].matrix).any():
            return None
        parts.append(part)
    return parts


def _together(
    parts: list[tuple[npt.NDArray[np.int64], FeatureRows]], source: SourceDefinition, longest_key_bytes: int
) -> tuple[npt.NDArray[np.int64], FeatureRows]:
    if len(parts) == 1:
        return parts[0]
    key_dtype = source.key.wire_dtype(text_bytes=max(longest_key_bytes, 1))
    nothing = FeatureRows(np.empty(0, key_dtype), np.empty((0, source.n_features)), np.empty(0, np.int32))
    parts = parts or [(np.empty(0, np.int64), nothing)]
    return np.concatenate([numbers for numbers, _ in parts]), FeatureRows.together(
        [rows for _, rows in parts]
    )


def _block(
    block: dict[str, bytes], source: SourceDefinition, key_dtype: np.dtype[Any]
) -> tuple[npt.NDArray[np.int64], FeatureRows]:
    numbers = wire.elements(block["number"], ">i8").astype(np.int64)
    keys = np.empty(len(numbers), key_dtype)
    parts = zip(source.key.names, source.key.types, source.key.parts(keys), strict=True)
    for name, kind, part in parts:
        if kind == "text":
            part["bytes"] = wire.elements(block[name], ("u1", part.dtype["bytes"].shape))
            part["length"] = wire.elements(block[f"{name}_bytes"], ">i4")
        else:
            part[:] = wire.elements(block[name], part.dtype)
    problems = np.zeros(len(numbers), dtype=np.int32)
    if "problem" in block:
        problems[:] = wire.elements(block["problem"], ">i4")
    return numbers, FeatureRows(keys, _matrix(block, source, len(numbers)), problems)


def _matrix(block: dict[str, bytes], source: SourceDefinition, n_rows: int) -> npt.NDArray[np.float64]:
    """Scalars and arrays, each to the columns where its feature stands."""
    matrix = np.empty((n_rows, source.n_features), dtype=np.float64)
    scalars: list[int] = []
    column, n_arrays = 0, 0
    for feature in source.features:
        if feature.length:
            array = wire.elements(block[f"array{n_arrays}"], ">f8", n_dimensions=2)
            matrix[:, column : column + feature.length] = array.reshape(n_rows, feature.length)
            n_arrays += 1
        else:
            scalars.append(column)
        column += feature.length or 1
    if scalars:
        packed = wire.elements(block["scalars"], (">f8", (_PACK,)), n_dimensions=2).reshape(n_rows, -1)
        # A slice is copied four times as fast as a list of columns.
        whole = len(scalars) == source.n_features
        matrix[:, slice(None) if whole else scalars] = packed[:, : len(scalars)]
    return matrix
