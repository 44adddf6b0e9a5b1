"""Bulk write of scores: COPY where the keys are new, a set-based upsert where they may not be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import errors
from sqlalchemy import Connection

from db import keys as key_codec
from db.definition import SourceDefinition
from db.identifiers import ours
from db.statements import compose, copy_in, run

_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = b"\xff\xff"


@dataclass(frozen=True)
class ScoredRows:
    """n rows with their scores, and the top k features of each flagged row, in row order.

    change_ids, keys, errors, flagged: (n,). top_indices, top_contributions: (number flagged, k).
    """

    change_ids: npt.NDArray[np.int64]
    keys: key_codec.Keys
    errors: npt.NDArray[np.float64]
    flagged: npt.NDArray[np.bool_]
    top_indices: npt.NDArray[np.int64]
    top_contributions: npt.NDArray[np.float32]


def write(
    connection: Connection, source: SourceDefinition, rows: ScoredRows, *, model_version: int, may_exist: bool
) -> None:
    """Write one score a key. Of two scores for one key, the one of the later change stays, in either order.

    may_exist: some of the keys may have a score already; when False and one has, that is found and mended.
    """
    if len(rows.keys) == 0:
        return
    if not may_exist:
        try:
            with connection.begin_nested():
                _copy_unflagged(connection, source, rows, model_version)
                _upsert(connection, source, rows, model_version, mask=rows.flagged)
            return
        except errors.UniqueViolation:
            pass
    _upsert(connection, source, rows, model_version, mask=np.ones(len(rows.keys), dtype=np.bool_))


def _copy_unflagged(
    connection: Connection, source: SourceDefinition, rows: ScoredRows, model_version: int
) -> None:
    plain = ~rows.flagged
    keys = rows.keys[plain]
    if len(keys) == 0:
        return
    key_bytes = keys.dtype["bytes"].shape[0] if source.key_type == "text" else keys.dtype.itemsize
    wire_key: Any = ("u1", (key_bytes,)) if source.key_type == "text" else (keys.dtype,)
    layout = np.dtype(
        [
            ("n_fields", ">i2"),
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
    wire = np.empty(len(keys), dtype=layout)
    wire["n_fields"] = 5
    wire["change_length"], wire["change"] = 8, rows.change_ids[plain]
    wire["error_length"], wire["error"] = 8, rows.errors[plain]
    wire["version_length"], wire["version"] = 4, model_version
    wire["flagged_length"], wire["flagged"] = 1, 0
    if source.key_type == "text":
        wire["key_length"], wire["key"] = keys["length"], keys["bytes"]
        body = _without_padding(wire, key_bytes, keys["length"])
    else:
        wire["key_length"], wire["key"] = key_bytes, keys
        body = wire.tobytes()
    statement = compose(
        "COPY {scores} (change_id, reconstruction_error, model_version, flagged, key)"
        " FROM STDIN (FORMAT binary)",
        scores=ours("scores", source.name),
    )
    copy_in(connection, statement, [_HEADER, body, _TRAILER])


def _without_padding(wire: npt.NDArray[Any], key_bytes: int, lengths: npt.NDArray[np.int32]) -> bytes:
    """Rows that end in a padded text key, with the padding taken out."""
    octets = wire.view(np.uint8).reshape(len(wire), wire.dtype.itemsize)
    kept = np.ones(octets.shape, dtype=np.bool_)
    kept[:, -key_bytes:] = np.arange(key_bytes) < lengths[:, None]
    return octets[kept].tobytes()


def _upsert(
    connection: Connection,
    source: SourceDefinition,
    rows: ScoredRows,
    model_version: int,
    *,
    mask: npt.NDArray[np.bool_],
) -> None:
    if not mask.any():
        return
    statement = compose(
        """
        INSERT INTO {scores} AS s
            (key, change_id, reconstruction_error, model_version, flagged, top_features)
        SELECT DISTINCT ON (r.key) r.key, r.change_id, r.error, %(version)s, r.flagged, r.features
        FROM unnest(%(keys)s::{key_array}, %(changes)s::bigint[], %(errors)s::double precision[],
                    %(flagged)s::boolean[], %(features)s::jsonb[]) AS r (key, change_id, error, flagged, features)
        ORDER BY r.key, r.change_id DESC
        ON CONFLICT (key) DO UPDATE SET
            change_id = excluded.change_id, reconstruction_error = excluded.reconstruction_error,
            model_version = excluded.model_version, flagged = excluded.flagged,
            top_features = excluded.top_features, scored_at = excluded.scored_at
        WHERE s.change_id <= excluded.change_id
        """,
        scores=ours("scores", source.name),
        key_array=key_codec.array_type(source.key_type),
    )
    run(
        connection,
        statement,
        {
            "version": model_version,
            "keys": key_codec.to_parameters(rows.keys[mask], source.key_type),
            "changes": rows.change_ids[mask].tolist(),
            "errors": rows.errors[mask].tolist(),
            "flagged": rows.flagged[mask].tolist(),
            "features": _top_features(source.feature_names, rows, mask),
        },
    )


def _top_features(names: tuple[str, ...], rows: ScoredRows, mask: npt.NDArray[np.bool_]) -> list[str | None]:
    """JSON of the top features of each row in the mask, None where it is not flagged.

    Few rows are flagged, so they are written here: a statement that picks them out of array parameters by
    position converts the whole arrays again for every row, once its plan is a generic one.
    """
    labels = [json.dumps(name) for name in names]
    texts: list[str | None] = [None] * len(rows.keys)
    # The shortest digits that give the same float32; JSON has no infinity.
    contributions = np.nan_to_num(rows.top_contributions.astype(np.float32)).astype(str).tolist()
    for row, indices, values in zip(
        np.flatnonzero(rows.flagged).tolist(), rows.top_indices.tolist(), contributions, strict=True
    ):
        pairs = zip(indices, values, strict=True)
        members = [f'{{"feature": {labels[i]}, "contribution": {value}}}' for i, value in pairs]
        texts[row] = f"[{', '.join(members)}]"
    return [texts[row] for row in np.flatnonzero(mask).tolist()]
