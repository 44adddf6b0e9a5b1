"""Bulk read of feature rows as one float64 matrix, with no Python object per row.

The server gathers a batch into arrays (keys, and one two-dimensional array of features), which arrive in
PostgreSQL's binary array format as a handful of values and are read in place by NumPy. A batch that holds a NULL
or an array of the wrong length is read once more, with such values as NaN and the first problem of each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql
from sqlalchemy import Connection

from db import keys as key_codec
from db.definition import Feature, SourceDefinition
from db.identifiers import identifier, ours
from db.statements import binary_rows, compose, one, run

# Header of a binary array: number of dimensions, has-null flag, element type, then (length, lower bound) of
# each dimension, four bytes each. Elements follow, each after its length in four bytes (array_send in
# PostgreSQL's src/backend/utils/adt/arrayfuncs.c).
_HEADER_BYTES = {1: 20, 2: 28}
_HAS_NULL = slice(4, 8)


@dataclass(frozen=True)
class FeatureBatch:
    """Rows as read, in no particular order.

    change_ids (n,): id of the change that asked for each row's score, see db.queue.
    keys (n,): wire form, see db.keys.
    matrix (n, d): float64 in the source's units; NaN where the value was NULL.
    problems (n,): 0, or the 1-based feature slot that was NULL (positive) or of wrong length (negative).
    """

    change_ids: npt.NDArray[np.int64]
    keys: key_codec.Keys
    matrix: npt.NDArray[np.float64]
    problems: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.matrix)

    def take(self, rows: npt.NDArray[Any]) -> FeatureBatch:
        """The rows picked by a mask or by positions."""
        return FeatureBatch(self.change_ids[rows], self.keys[rows], self.matrix[rows], self.problems[rows])


def read_claimed(connection: Connection, source: SourceDefinition, queue_ids: list[int]) -> FeatureBatch:
    """The features of every row whose key stands in the queue rows `queue_ids`. Rows that are gone are absent."""
    origin = compose(
        "FROM {queue} q JOIN {features} t ON t.{key} = ANY (q.keys) WHERE q.id = ANY (%(ids)s)",
        queue=ours("queue", source.name),
        features=source.feature_relation.sql(),
        key=identifier(source.key_column),
    )
    longest_key_bytes = 0
    if source.key_type == "text":
        longest_key_bytes = one(
            connection,
            compose(
                "SELECT coalesce(max(octet_length(convert_to(k, 'UTF8'))), 0)"
                " FROM {queue} q, unnest(q.keys) k WHERE q.id = ANY (%(ids)s)",
                queue=ours("queue", source.name),
            ),
            {"ids": queue_ids},
        )
    return read(
        connection,
        source,
        origin=origin,
        params={"ids": queue_ids},
        order=sql.SQL("coalesce(q.change_id, q.id)"),
        longest_key_bytes=longest_key_bytes,
    )


def absent_from_view(
    connection: Connection, source: SourceDefinition, queue_ids: list[int]
) -> list[tuple[str, int]]:
    """(key as text, change id) of claimed rows that are in the table but not in the feature view."""
    return run(
        connection,
        compose(
            "SELECT b.{key}::text, max(coalesce(q.change_id, q.id)) FROM {queue} q"
            " JOIN {relation} b ON b.{key} = ANY (q.keys) WHERE q.id = ANY (%(ids)s)"
            " AND NOT EXISTS (SELECT FROM {features} t WHERE t.{key} = b.{key}) GROUP BY b.{key}",
            key=identifier(source.key_column),
            queue=ours("queue", source.name),
            relation=source.relation.sql(),
            features=source.feature_relation.sql(),
        ),
        {"ids": queue_ids},
    ).fetchall()


def read(
    connection: Connection,
    source: SourceDefinition,
    *,
    origin: sql.Composable,
    params: dict[str, Any],
    order: sql.Composable,
    longest_key_bytes: int,
    rows_per_block: int | None = None,
) -> FeatureBatch:
    """Rows of `origin` (a FROM clause and all that follows; the relation with the features is named t).

    order: SQL of the bigint returned as change_ids. rows_per_block: gather on the server in blocks of about
    this many rows by `order`, for reads too large for one array of at most 1 GB.
    """
    for tolerant in (False, True):
        gathered = ["change_id", "key", *(["key_bytes"] if source.key_type == "text" else []), "features"]
        statement = compose(
            "SELECT {arrays} FROM (SELECT {columns} {origin}) rows {grouped}",
            arrays=sql.SQL(", ").join(
                compose("array_agg({c})", c=identifier(name))
                for name in [*gathered, *(["problem"] if tolerant else [])]
            ),
            columns=sql.SQL(", ").join(_columns(source, order, longest_key_bytes, tolerant=tolerant)),
            origin=origin,
            grouped=sql.SQL("")
            if rows_per_block is None
            else compose("GROUP BY change_id / {n}", n=sql.Literal(rows_per_block)),
        )
        blocks = [row for row in binary_rows(connection, statement, params) if row[0] is not None]
        batch = _assemble(blocks, source, longest_key_bytes, tolerant=tolerant)
        if batch is not None:
            return batch
    raise AssertionError("a read with NULLs replaced still holds NULLs")


def _columns(
    source: SourceDefinition, order: sql.Composable, longest_key_bytes: int, *, tolerant: bool
) -> list[sql.Composable]:
    key = compose("t.{key}", key=identifier(source.key_column))
    columns: list[sql.Composable] = [compose("({order})::bigint AS change_id", order=order)]
    if source.key_type == "text":
        columns += [
            compose("octet_length(convert_to({key}::text, 'UTF8')) AS key_bytes", key=key),
            compose(
                "substring(convert_to({key}::text, 'UTF8') || decode(repeat('00', {n}), 'hex')"
                " from 1 for {n}) AS key",
                key=key,
                n=sql.Literal(max(longest_key_bytes, 1)),
            ),
        ]
    else:
        columns.append(compose("{key} AS key", key=key))
    columns.append(compose("{row} AS features", row=_feature_array(source.features, tolerant=tolerant)))
    if tolerant:
        columns.append(compose("{problem} AS problem", problem=_first_problem(source.features)))
    return columns


def _feature_array(features: tuple[Feature, ...], *, tolerant: bool) -> sql.Composable:
    """One double precision[] a row. Array columns are guarded always: rows of unequal length cannot be gathered."""
    parts: list[sql.Composable] = []
    scalars: list[sql.Composable] = []
    for feature in features:
        value = feature.expression("t")
        if not feature.length:
            scalars.append(compose("coalesce({v}, 'NaN')", v=value) if tolerant else value)
            continue
        if scalars:
            parts.append(_array_of(scalars))
        scalars = []
        parts.append(
            compose(
                "CASE WHEN {sound} THEN {v} ELSE array_fill('NaN'::double precision, ARRAY[{n}]) END",
                sound=_sound_array(value, feature.length),
                v=value,
                n=sql.Literal(feature.length),
            )
        )
    if scalars:
        parts.append(_array_of(scalars))
    return sql.SQL(" || ").join(compose("({part})", part=part) for part in parts)


def _array_of(scalars: list[sql.Composable]) -> sql.Composable:
    return compose("ARRAY[{s}]::double precision[]", s=sql.SQL(", ").join(scalars))


def _sound_array(value: sql.Composable, length: int) -> sql.Composable:
    return compose(
        "(array_ndims({v}) = 1 AND cardinality({v}) = {n} AND array_position({v}, NULL) IS NULL)",
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
                "WHEN {v} IS NULL OR array_ndims({v}) = 1 AND array_position({v}, NULL) IS NOT NULL THEN {p}"
                " WHEN NOT coalesce({sound}, false) THEN {wrong}",
                v=value,
                p=sql.Literal(position),
                sound=_sound_array(value, feature.length),
                wrong=sql.Literal(-position),
            )
        )
    return compose("(CASE {cases} ELSE 0 END)::integer", cases=sql.SQL(" ").join(cases))


def _assemble(
    blocks: list[tuple[bytes | None, ...]],
    source: SourceDefinition,
    longest_key_bytes: int,
    *,
    tolerant: bool,
) -> FeatureBatch | None:
    """The batch, or None if a NULL or a guarded array means that the tolerant read has to tell what is wrong."""
    parts = []
    has_arrays = any(feature.length for feature in source.features)
    for block in blocks:
        part = _block(block, source, longest_key_bytes, tolerant=tolerant)
        if part is None or (has_arrays and not tolerant and np.isnan(part.matrix).any()):
            return None
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    key_dtype = key_codec.wire_dtype(source.key_type, text_bytes=max(longest_key_bytes, 1))
    return FeatureBatch(
        np.concatenate([p.change_ids for p in parts]) if parts else np.empty(0, np.int64),
        np.concatenate([p.keys for p in parts]) if parts else np.empty(0, key_dtype),
        np.concatenate([p.matrix for p in parts]) if parts else np.empty((0, source.n_features)),
        np.concatenate([p.problems for p in parts]) if parts else np.empty(0, np.int32),
    )


def _block(
    block: tuple[bytes | None, ...], source: SourceDefinition, longest_key_bytes: int, *, tolerant: bool
) -> FeatureBatch | None:
    values = [value for value in block if value is not None]
    if any(value[_HAS_NULL] != bytes(4) for value in values):
        return None
    change_ids = _elements(values[0], ">i8").astype(np.int64)
    if source.key_type == "text":
        keys = np.empty(len(change_ids), key_codec.wire_dtype("text", text_bytes=max(longest_key_bytes, 1)))
        keys["bytes"] = _elements(values[1], ("u1", (max(longest_key_bytes, 1),)))
        keys["length"] = _elements(values[2], ">i4")
    else:
        keys = _elements(values[1], key_codec.wire_dtype(source.key_type)).copy()
    features = values[3 if source.key_type == "text" else 2]
    matrix = _elements(features, ">f8", n_dimensions=2).astype(np.float64).reshape(-1, source.n_features)
    problems = (
        _elements(values[-1], ">i4").astype(np.int32) if tolerant else np.zeros(len(matrix), dtype=np.int32)
    )
    return FeatureBatch(change_ids, keys, matrix, problems)


def _elements(value: bytes, element: Any, *, n_dimensions: int = 1) -> npt.NDArray[Any]:
    """The elements of a binary array without NULLs, in place."""
    layout = np.dtype([("length", ">i4"), ("value", element)])
    return np.frombuffer(value, dtype=layout, offset=_HEADER_BYTES[n_dimensions])["value"]
