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
from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.identifiers import ours
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
    """n rows with their scores in the order of `db.sql.key_types.sortable`, and the top k features of each flagged row.

    change_ids, keys, errors, flagged: (n,). top_indices, top_contributions: (number flagged, k).
    """

    change_ids: npt.NDArray[np.int64]
    keys: key_types.Keys
    errors: npt.NDArray[np.float64]
    flagged: npt.NDArray[np.bool_]
    top_indices: npt.NDArray[np.int64]
    top_contributions: npt.NDArray[np.float32]


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
        except errors.UniqueViolation:
            pass
    _upsert(connection, source, rows, features, model_version, into)


def _copy(
    connection: Connection,
    source: SourceDefinition,
    rows: ScoredRows,
    features: dict[int, str],
    model_version: int,
    into: Destination,
) -> None:
    key_bytes = rows.keys.dtype["bytes"].shape[0] if source.key_type == "text" else rows.keys.dtype.itemsize
    wire_key: Any = ("u1", (key_bytes,)) if source.key_type == "text" else (rows.keys.dtype,)
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
            ("key_length", ">i4"),
            ("key", *wire_key),
        ]
    )
    wire = np.empty(len(rows.keys), dtype=layout)
    wire["n_fields"] = 5 + into.explained
    wire["change_length"], wire["change"] = 8, rows.change_ids
    wire["error_length"], wire["error"] = 8, rows.errors
    wire["version_length"], wire["version"] = 4, model_version
    wire["flagged_length"], wire["flagged"] = 1, rows.flagged
    if into.explained:
        wire["features_length"] = -1  # NULL
    if source.key_type == "text":
        wire["key_length"], wire["key"] = rows.keys["length"], rows.keys["bytes"]
        body = _without_padding(wire, key_bytes, rows.keys["length"])
        sizes = wire.dtype.itemsize - key_bytes + rows.keys["length"].astype(np.int64)
        starts = np.cumsum(sizes) - sizes
    else:
        wire["key_length"], wire["key"] = key_bytes, rows.keys
        body = wire.tobytes()
        starts = np.arange(len(wire)) * wire.dtype.itemsize
    statement = compose(
        "COPY {scores} ({features}change_id, reconstruction_error, model_version, {flag}, key)"
        " FROM STDIN (FORMAT binary)",
        scores=ours(into.kind, source.name),
        features=sql.SQL("top_features, " if into.explained else ""),
        flag=sql.SQL(into.flag),
    )
    # The length of the top features comes right after the number of fields.
    fields = {row: int(starts[row]) + 2 for row in features}
    copy_in(connection, statement, [COPY_HEADER, _with_features(body, fields, features), COPY_TRAILER])


def _without_padding(wire: npt.NDArray[Any], key_bytes: int, lengths: npt.NDArray[np.int32]) -> bytes:
    """Rows that end in a padded text key, with the padding taken out."""
    octets = wire.view(np.uint8).reshape(len(wire), wire.dtype.itemsize)
    kept = np.ones(octets.shape, dtype=np.bool_)
    kept[:, -key_bytes:] = np.arange(key_bytes) < lengths[:, None]
    return octets[kept].tobytes()


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
        "keys": key_types.to_parameters(rows.keys, source.key_type),
        "changes": rows.change_ids.tolist(),
        "errors": rows.errors.tolist(),
        "flagged": rows.flagged.tolist(),
    }
    if into.explained:
        parameters["features"] = [features.get(row) for row in range(len(rows.keys))]
    run(connection, _upserting(source, into), parameters)


@lru_cache(maxsize=64)
def _upserting(source: SourceDefinition, into: Destination) -> sql.SQL:
    explained: tuple[LiteralString, ...] = ("top_features", "scored_at") if into.explained else ()
    written: tuple[LiteralString, ...] = ("change_id", "reconstruction_error", "model_version", into.flag)
    statement = compose(
        """
        INSERT INTO {scores} AS s
            (key, change_id, reconstruction_error, model_version, {flag}{feature_column})
        SELECT r.key, r.change_id, r.error, %(version)s, r.flagged{feature_value}
        FROM unnest(%(keys)s::{key_array}, %(changes)s::bigint[], %(errors)s::double precision[],
                    %(flagged)s::boolean[]{feature_array})
             WITH ORDINALITY AS r (key, change_id, error, flagged{feature_name}, position)
        ORDER BY r.position
        ON CONFLICT (key) DO UPDATE SET {assignments}
        WHERE s.change_id <= excluded.change_id
        """,
        scores=ours(into.kind, source.name),
        key_array=key_types.array_type(source.key_type),
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
    for row, indices, values in zip(
        np.flatnonzero(rows.flagged).tolist(), rows.top_indices.tolist(), contributions, strict=True
    ):
        pairs = zip(indices, values, strict=True)
        members = [f'{{"feature": {labels[i]}, "contribution": {value}}}' for i, value in pairs]
        texts[row] = f"[{', '.join(members)}]"
    return texts
