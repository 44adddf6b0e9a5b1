"""Bulk write of scores: COPY where the keys are new, a set-based upsert where they may not be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, LiteralString

import numpy as np
import numpy.typing as npt
from psycopg import errors, sql
from sqlalchemy import Connection

from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql import key_types, wire
from pgoutlier.db.sql.identifiers import ours
from pgoutlier.db.sql.keys import Key
from pgoutlier.db.sql.statements import compose, copy_in, in_one_piece, run
from pgoutlier.db.sql.wire import COPY_HEADER, COPY_TRAILER

# So few rows are written by one statement: the savepoint for a COPY and the COPY itself take five.
_FEW_ROWS = 16


@dataclass(frozen=True)
class Destination:
    """A table of scores: what stands before the source in its name, its column of flags, and whether it keeps the
    top features and the time of flagged rows."""

    kind: str
    flag: LiteralString
    explained: bool


SCORES = Destination("scores", "flagged", explained=True)
CHALLENGER_SCORES = Destination("shadow_scores", "would_flag", explained=False)


@dataclass(frozen=True)
class ScoredRows:
    """n rows with their scores in the order of `db.sql.keys.Key.sortable`, and the top k features of each flagged row.

    change_ids, keys, errors, flagged: (n,). top_indices, top_contributions, top_values: (number flagged, k); the last
    are what the detector got, NaN where there was none.
    """

    change_ids: npt.NDArray[np.int64]
    keys: key_types.Keys
    errors: npt.NDArray[np.float64]
    flagged: npt.NDArray[np.bool_]
    top_indices: npt.NDArray[np.int64]
    top_contributions: npt.NDArray[np.float32]
    top_values: npt.NDArray[np.float64]


def write(
    connection: Connection,
    source: SourceDefinition,
    rows: ScoredRows,
    *,
    model_version: int,
    may_exist: bool,
    into: Destination = SCORES,
) -> None:
    """Write one score a key. Of two scores for one key, the one of the later change stays, in either order.

    Rows are written in the order of their keys, whichever way they go, so that workers with the same keys
    wait for each other and never in a circle.
    may_exist: some of the keys may have a score already; when False and one has, that is found and mended.
    """
    if len(rows.keys) == 0:
        return
    features = _top_features(source.feature_names, rows) if into.explained else {}
    if not may_exist and len(rows.keys) > _FEW_ROWS:
        try:
            with connection.begin_nested():
                _copy(connection, source, rows, features, model_version, into)
            return
        except (errors.UniqueViolation, errors.CheckViolation):
            pass
    if source.score_partitions is None:
        _upsert(connection, source, rows, features, model_version, into)
        return
    try:
        with connection.begin_nested():
            _upsert(connection, source, rows, features, model_version, into)
    except (
        errors.CheckViolation
    ):  # it was on its way into the default partition when a new one took the row's place
        _upsert(connection, source, rows, features, model_version, into)


def _copy(
    connection: Connection,
    source: SourceDefinition,
    rows: ScoredRows,
    features: dict[int, str],
    model_version: int,
    into: Destination,
) -> None:
    key = source.key
    columns = list(zip(key.names, key.types, key.parts(rows.keys), strict=True))
    layout = np.dtype(
        [
            ("n_fields", ">i2"),
            *([("features_length", ">i4")] if into.explained else []),
            ("change_length", ">i4"),
            ("change", ">i8"),
            ("error_length", ">i4"),
            ("error", ">f8"),
            ("version_length", ">i4"),
            ("version", ">i4"),
            ("flagged_length", ">i4"),
            ("flagged", "u1"),
            *(
                field
                for name, kind, part in columns
                for field in (
                    (f"{name}_length", ">i4"),
                    (name, part.dtype["bytes"] if kind == "text" else part.dtype),
                )
            ),
        ]
    )
    written = np.empty(len(rows.keys), dtype=layout)
    written["n_fields"] = 4 + into.explained + len(columns)
    written["change_length"], written["change"] = 8, rows.change_ids
    written["error_length"], written["error"] = 8, rows.errors
    written["version_length"], written["version"] = 4, model_version
    written["flagged_length"], written["flagged"] = 1, rows.flagged
    if into.explained:
        written["features_length"] = -1  # NULL
    texts = {}
    for name, kind, part in columns:
        if kind == "text":
            texts[name] = part["length"]
        written[f"{name}_length"] = part["length"] if kind == "text" else part.dtype.itemsize
        written[name] = part["bytes"] if kind == "text" else part
    body, starts = _without_padding(written, texts)
    statement = compose(
        "COPY {scores} ({features}change_id, reconstruction_error, model_version, {flag}, {key})"
        " FROM STDIN (FORMAT binary)",
        scores=ours(into.kind, source.name),
        features=sql.SQL("top_features, " if into.explained else ""),
        flag=sql.SQL(into.flag),
        key=key.ours(),
    )
    # The length of the top features comes right after the number of fields.
    fields = {row: int(starts[row]) + 2 for row in features}
    copy_in(connection, statement, [COPY_HEADER, _with_features(body, fields, features), COPY_TRAILER])


def _without_padding(
    written: npt.NDArray[Any], lengths: dict[str, npt.NDArray[np.int32]]
) -> tuple[bytes, npt.NDArray[np.int64]]:
    """The rows with the padding of texts taken out, and where each row begins. lengths (n,): of texts, by field."""
    if not lengths:
        return written.tobytes(), np.arange(len(written)) * written.dtype.itemsize
    octets = written.view(np.uint8).reshape(len(written), written.dtype.itemsize)
    kept = np.ones(octets.shape, dtype=np.bool_)
    for name, length in lengths.items():
        field, first = _field(written.dtype, name)
        kept[:, first : first + field.itemsize] = np.arange(field.itemsize) < length[:, None]
    sizes = np.count_nonzero(kept, axis=1)
    return octets[kept].tobytes(), np.cumsum(sizes) - sizes


def _field(layout: np.dtype[Any], name: str) -> tuple[np.dtype[Any], int]:
    """The type of a field, and where it begins."""
    if layout.fields is None:
        raise AssertionError("rows have fields")
    return layout.fields[name][0], layout.fields[name][1]


def _with_features(body: bytes, fields: dict[int, int], features: dict[int, str]) -> bytes:
    """Rows whose top features are all NULL, with these put in; fields: where the length of each stands."""
    pieces, done = [], 0
    for row, text in features.items():
        jsonb = b"\x01" + text.encode()
        pieces += [body[done : fields[row]], len(jsonb).to_bytes(4, "big"), jsonb]
        done = fields[row] + 4
    return b"".join([*pieces, body[done:]])


def _upsert(
    connection: Connection,
    source: SourceDefinition,
    rows: ScoredRows,
    features: dict[int, str],
    model_version: int,
    into: Destination,
) -> None:
    parameters = {
        "version": model_version,
        **_key_parameters(source.key, rows.keys),
        "changes": rows.change_ids.tolist(),
        "errors": rows.errors.tolist(),
        "flagged": rows.flagged.tolist(),
    }
    if into.explained:
        parameters["features"] = [features.get(row) for row in range(len(rows.keys))]
    run(connection, _upserting(source, into), parameters)


def _key_parameters(key: Key, keys: key_types.Keys) -> dict[str, Any]:
    """The keys as one array a column; but for texts as they came, so that nothing is made of each row."""
    return {
        name: key_types.to_values(part, kind) if kind == "text" else wire.Array(key_types.OIDS[kind], part)
        for name, kind, part in zip(key.array_names, key.types, key.parts(keys), strict=True)
    }


@lru_cache(maxsize=64)
def _upserting(source: SourceDefinition, into: Destination) -> sql.SQL:
    explained: tuple[LiteralString, ...] = ("top_features", "scored_at") if into.explained else ()
    written: tuple[LiteralString, ...] = ("change_id", "reconstruction_error", "model_version", into.flag)
    statement = compose(
        """
        INSERT INTO {scores} AS s
            ({key}, change_id, reconstruction_error, model_version, {flag}{feature_column})
        SELECT {key_of_r}, r.change_id, r.error, %(version)s, r.flagged{feature_value}
        FROM unnest({keys}, %(changes)s::bigint[], %(errors)s::double precision[],
                    %(flagged)s::boolean[]{feature_array})
             WITH ORDINALITY AS r ({key}, change_id, error, flagged{feature_name}, position)
        ORDER BY r.position
        ON CONFLICT ({key}) DO UPDATE SET {assignments}
        WHERE s.change_id <= excluded.change_id
        """,
        scores=ours(into.kind, source.name),
        key=source.key.ours(),
        key_of_r=source.key.ours("r"),
        keys=sql.SQL(", ").join(
            compose("{p}::{type}", p=sql.Placeholder(name), type=key_types.array_type(kind))
            for name, kind in zip(source.key.array_names, source.key.types, strict=True)
        ),
        flag=sql.SQL(into.flag),
        feature_column=sql.SQL(", top_features" if into.explained else ""),
        feature_value=sql.SQL(", r.features" if into.explained else ""),
        feature_array=sql.SQL(", %(features)s::jsonb[]" if into.explained else ""),
        feature_name=sql.SQL(", features" if into.explained else ""),
        assignments=sql.SQL(", ").join(
            compose("{c} = excluded.{c}", c=sql.SQL(column)) for column in (*written, *explained)
        ),
    )
    return in_one_piece(statement)


def _top_features(names: tuple[str, ...], rows: ScoredRows) -> dict[int, str]:
    """JSON of the top features of each flagged row, by its position.

    Few rows are flagged, so they are written here: a statement that picks them out of array parameters by
    position converts the whole arrays again for every row, once its plan is a generic one.
    """
    labels = [json.dumps(name) for name in names]
    texts = {}
    # The shortest digits that give the same float32; JSON has no infinity.
    contributions = np.nan_to_num(rows.top_contributions.astype(np.float32)).astype(str).tolist()
    known = np.isfinite(rows.top_values)
    values = np.where(known, rows.top_values.astype(str), "null").tolist()
    for row, indices, of_row, added in zip(
        np.flatnonzero(rows.flagged).tolist(), rows.top_indices.tolist(), values, contributions, strict=True
    ):
        members = [
            f'{{"feature": {labels[i]}, "value": {value}, "contribution": {contribution}}}'
            for i, value, contribution in zip(indices, of_row, added, strict=True)
        ]
        texts[row] = f"[{', '.join(members)}]"
    return texts
