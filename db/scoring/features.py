"""Bulk read of feature rows as one float64 matrix, with no Python object per row.

The server gathers a batch into a handful of arrays, which arrive in PostgreSQL's binary array format and are
read in place by NumPy. Features travel four at a time, as the two end points of an lseg: PostgreSQL sends a
double by a function call of its own, and an lseg of four doubles by one call as well, which makes the read 1.7
times as fast (docs/decisions/0002-bulk-read-through-arrays.md). A batch that holds a NULL or an array of the
wrong length is read once more, with such values as NaN and the first problem of each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, LiteralString

import numpy as np
import numpy.typing as npt
from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.source.definition import Feature, SourceDefinition
from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.identifiers import identifier, ours
from pgoutlier.db.sql.statements import binary_rows, compose, in_one_piece, one, run

# Header of a binary array: number of dimensions, has-null flag, element type, then (length, lower bound) of
# each dimension, four bytes each. Elements follow, each after its length in four bytes (array_send in
# PostgreSQL's src/backend/utils/adt/arrayfuncs.c; lseg_send in geo_ops.c).
_HEADER_BYTES = {1: 20, 2: 28}
_HAS_NULL = slice(4, 8)
_PACK = 4  # doubles in an lseg


@dataclass(frozen=True)
class FeatureBatch:
    """Rows as read, in no particular order; a key whose score was asked for twice is there twice.

    change_ids (n,): id of the change that asked for each row's score, see db.scoring.queue.
    keys (n,): wire form, see db.sql.key_types.
    matrix (n, d): float64 in the source's units; NaN where the value was NULL.
    problems (n,): 0, or the 1-based feature slot that was NULL (positive) or of wrong length (negative).
    windows (n, window, d): each row after the rows before it, where they are scored together, see db.scoring.windows.
    """

    change_ids: npt.NDArray[np.int64]
    keys: key_types.Keys
    matrix: npt.NDArray[np.float64]
    problems: npt.NDArray[np.int32]
    windows: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.matrix)

    def take(self, rows: npt.NDArray[Any]) -> FeatureBatch:
        """The rows picked by a mask or by positions."""
        return FeatureBatch(
            self.change_ids[rows],
            self.keys[rows],
            self.matrix[rows],
            self.problems[rows],
            None if self.windows is None else self.windows[rows],
        )

    def sound(self, *, imputes: bool) -> npt.NDArray[np.bool_]:
        """Which rows can be scored, (n,). imputes: the recipe fills gaps."""
        if imputes:
            return self.problems >= 0
        complete: npt.NDArray[np.bool_] = np.isfinite(self.matrix).all(axis=1) & (self.problems == 0)
        return complete

    def latest_by_key(self, key_type: str) -> FeatureBatch:
        """One row a key, in the order of `db.sql.key_types.sortable`: the one of the latest change."""
        keys = key_types.sortable(self.keys, key_type)
        if (keys[:-1] < keys[1:]).all():
            return self
        order = np.lexsort((self.change_ids, keys))
        keys = keys[order]
        return self.take(order[np.append(keys[:-1] != keys[1:], True)])


def read_claimed(
    connection: Connection, source: SourceDefinition, queue_ids: list[int], *, as_scored: bool = False
) -> FeatureBatch:
    """The features of every row whose key stands in the queue rows `queue_ids`. Rows that are gone are absent.

    as_scored: only rows that have a score, each under the change id of that, which is read in the same instant.
    """
    scored: sql.Composable = sql.SQL("")
    if as_scored:
        scored = compose(
            " JOIN {scores} s ON s.key = t.{key}",
            scores=ours("scores", source.name),
            key=identifier(source.key_column),
        )
    origin = compose(
        "FROM {queue} q JOIN {features} t ON t.{key} = ANY (q.keys){scored} WHERE q.id = ANY (%(ids)s)",
        queue=ours("queue", source.name),
        features=source.feature_relation.sql(),
        key=identifier(source.key_column),
        scored=scored,
    )
    return read(
        connection,
        source,
        origin=origin,
        params={"ids": queue_ids},
        order=sql.SQL("s.change_id" if as_scored else "coalesce(q.change_id, q.id)"),
        longest_key_bytes=longest_claimed_key(connection, source, queue_ids),
    )


def longest_claimed_key(connection: Connection, source: SourceDefinition, queue_ids: list[int]) -> int:
    """Bytes of the longest text key in the queue rows; 0 for other types of keys."""
    if source.key_type != "text":
        return 0
    return int(
        one(
            connection,
            compose(
                "SELECT coalesce(max(octet_length(convert_to(k, 'UTF8'))), 0)"
                " FROM {queue} q, unnest(q.keys) k WHERE q.id = ANY (%(ids)s)",
                queue=ours("queue", source.name),
            ),
            {"ids": queue_ids},
        )
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
        order_text = order.as_string(None)
        names, arrays, columns = _selected(source, order_text, longest_key_bytes, tolerant)
        statement = compose(
            "SELECT {arrays} FROM (SELECT {columns} {origin}) rows {grouped}",
            arrays=arrays,
            columns=columns,
            origin=origin,
            grouped=sql.SQL("")
            if rows_per_block is None
            else compose("GROUP BY change_id / {n}", n=sql.Literal(rows_per_block)),
        )
        rows = binary_rows(connection, statement, params)
        blocks = [dict(zip(names, row, strict=True)) for row in rows if row[0] is not None]
        batch = _assemble(blocks, source, longest_key_bytes, tolerant=tolerant)
        if batch is not None:
            return batch
    raise AssertionError("a read with NULLs replaced still holds NULLs")


@lru_cache(maxsize=64)
def _selected(
    source: SourceDefinition, order: LiteralString, longest_key_bytes: int, tolerant: bool
) -> tuple[tuple[str, ...], sql.SQL, sql.SQL]:
    """Names of the columns, the arrays that they are gathered into, and the columns themselves."""
    columns = _columns(source, sql.SQL(order), longest_key_bytes, tolerant=tolerant)
    return (
        tuple(columns),
        in_one_piece(sql.SQL(", ").join(compose("array_agg({c})", c=identifier(name)) for name in columns)),
        in_one_piece(
            sql.SQL(", ").join(
                compose("{value} AS {name}", value=value, name=identifier(name))
                for name, value in columns.items()
            )
        ),
    )


def _columns(
    source: SourceDefinition, order: sql.Composable, longest_key_bytes: int, *, tolerant: bool
) -> dict[str, sql.Composable]:
    """What is read of each row, by name: change_id, key, scalars (packed), array0 ..., and so on."""
    key = compose("t.{key}", key=identifier(source.key_column))
    columns: dict[str, sql.Composable] = {"change_id": compose("({order})::bigint", order=order), "key": key}
    if source.key_type == "text":
        columns["key_bytes"] = compose("octet_length(convert_to({key}::text, 'UTF8'))", key=key)
        columns["key"] = compose(
            "substring(convert_to({key}::text, 'UTF8') || decode(repeat('00', {n}), 'hex') from 1 for {n})",
            key=key,
            n=sql.Literal(max(longest_key_bytes, 1)),
        )
    scalars = [_tolerated(f, tolerant=tolerant) for f in source.features if not f.length]
    if scalars:
        columns["scalars"] = _packed(scalars)
    arrays = [feature for feature in source.features if feature.length]
    columns |= {f"array{number}": _guarded(feature) for number, feature in enumerate(arrays)}
    if tolerant:
        columns["problem"] = _first_problem(source.features)
    return columns


def _tolerated(feature: Feature, *, tolerant: bool) -> sql.Composable:
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
        "CASE WHEN {sound} THEN ({v})[:] ELSE array_fill('NaN'::double precision, ARRAY[{n}]) END",
        sound=_sound_array(value, feature.length),
        v=value,
        n=sql.Literal(feature.length),
    )


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
    blocks: list[dict[str, bytes]], source: SourceDefinition, longest_key_bytes: int, *, tolerant: bool
) -> FeatureBatch | None:
    """The batch, or None if a NULL or a guarded array means that the tolerant read has to tell what is wrong."""
    has_arrays = any(feature.length for feature in source.features)
    key_dtype = key_types.wire_dtype(source.key_type, text_bytes=max(longest_key_bytes, 1))
    parts = []
    for block in blocks:
        if any(value[_HAS_NULL] != bytes(4) for value in block.values()):
            return None
        part = _block(block, source, key_dtype)
        if has_arrays and not tolerant and np.isnan(part.matrix).any():
            return None
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    nothing = FeatureBatch(
        np.empty(0, np.int64), np.empty(0, key_dtype), np.empty((0, source.n_features)), np.empty(0, np.int32)
    )
    parts = parts or [nothing]
    return FeatureBatch(
        np.concatenate([part.change_ids for part in parts]),
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.matrix for part in parts]),
        np.concatenate([part.problems for part in parts]),
    )


def _block(block: dict[str, bytes], source: SourceDefinition, key_dtype: np.dtype[Any]) -> FeatureBatch:
    change_ids = _elements(block["change_id"], ">i8").astype(np.int64)
    if source.key_type == "text":
        keys = np.empty(len(change_ids), key_dtype)
        keys["bytes"] = _elements(block["key"], ("u1", key_dtype["bytes"].shape))
        keys["length"] = _elements(block["key_bytes"], ">i4")
    else:
        keys = _elements(block["key"], key_dtype).copy()
    problems = np.zeros(len(change_ids), dtype=np.int32)
    if "problem" in block:
        problems[:] = _elements(block["problem"], ">i4")
    return FeatureBatch(change_ids, keys, _matrix(block, source, len(change_ids)), problems)


def _matrix(block: dict[str, bytes], source: SourceDefinition, n_rows: int) -> npt.NDArray[np.float64]:
    """Scalars and arrays, each to the columns where its feature stands."""
    matrix = np.empty((n_rows, source.n_features), dtype=np.float64)
    scalars: list[int] = []
    column, n_arrays = 0, 0
    for feature in source.features:
        if feature.length:
            array = _elements(block[f"array{n_arrays}"], ">f8", n_dimensions=2)
            matrix[:, column : column + feature.length] = array.reshape(n_rows, feature.length)
            n_arrays += 1
        else:
            scalars.append(column)
        column += feature.length or 1
    if scalars:
        packed = _elements(block["scalars"], (">f8", (_PACK,)), n_dimensions=2).reshape(n_rows, -1)
        # A slice is copied four times as fast as a list of columns.
        whole = len(scalars) == source.n_features
        matrix[:, slice(None) if whole else scalars] = packed[:, : len(scalars)]
    return matrix


def _elements(value: bytes, element: Any, *, n_dimensions: int = 1) -> npt.NDArray[Any]:
    """The elements of a binary array without NULLs, in place."""
    layout = np.dtype([("length", ">i4"), ("value", element)])
    return np.frombuffer(value, dtype=layout, offset=_HEADER_BYTES[n_dimensions])["value"]
