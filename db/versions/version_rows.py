"""Model versions as they are stored: added, found, listed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from psycopg import sql
from sqlalchemy import Connection, func, select

from pgoutlier.db.sql import locks
from pgoutlier.db.sql.statements import compose, one, run, run_dicts
from pgoutlier.db.tables import model_versions

# Of the versions v and k of a source.
SAME_ERRORS = sql.SQL("coalesce(v.errors_of, v.version) = coalesce(k.errors_of, k.version)")
_METRICS_OF_THRESHOLD = [
    "threshold",
    "calibration_flag_rate",
    "calibration_precision",
    "calibration_recall",
    "not_normal_flag_rate",
    "gate",
]


@dataclass(frozen=True)
class StoredArtifact:
    """What a worker needs to rebuild a detector. artifact is None if it is larger than was asked for."""

    version_id: int
    version: int
    artifact: bytes | None
    n_bytes: int
    sha256: str
    signature: str | None
    feature_names: tuple[str, ...]


@dataclass(frozen=True)
class VersionRow:
    """A version as it is stored, but for its artifact. training_from, training_to: event time (or key), as text.

    errors_of: the version that this one is with another threshold; None if it was trained or imported itself.
    """

    id: int
    version: int
    recipe: dict[str, Any]
    threshold: float
    metrics: dict[str, Any]
    n_training_rows: int
    training_from: str | None
    training_to: str | None
    drift_reference: dict[str, Any] | None
    errors_of: int | None
    created_at: datetime
    created_by: str


def find(connection: Connection, source_id: int, version: int) -> VersionRow | None:
    """A version, or None if there is no such version."""
    columns = model_versions.c
    row = connection.execute(
        select(*(columns[field.name] for field in fields(VersionRow))).where(
            columns.source_id == source_id, columns.version == version
        )
    ).one_or_none()
    return None if row is None else VersionRow(*row)


def with_threshold(connection: Connection, source_id: int, version: int, threshold: float) -> int | None:
    """The version with this threshold whose errors are those of `version`, itself first, or None."""
    found: int | None = one(
        connection,
        compose(
            "SELECT k.version FROM outlier.model_versions k JOIN outlier.model_versions v"
            " ON v.source_id = k.source_id AND {same_errors}"
            " WHERE v.source_id = %s AND v.version = %s AND k.threshold = %s"
            " ORDER BY k.version <> v.version, k.version DESC LIMIT 1",
            same_errors=SAME_ERRORS,
        ),
        (source_id, version, threshold),
    )
    return found


def copy_version(connection: Connection, source_id: int, version: int, values: dict[str, Any]) -> int:
    """Add a version like this one, with the same errors, but for `values` (recipe, artifact, sha256, signature,
    threshold). Metrics that say something of the threshold are left out. Returns its number."""
    columns = model_versions.c
    row = connection.execute(
        select(
            columns.recipe_name,
            columns.feature_names,
            columns.metrics,
            columns.n_training_rows,
            columns.training_from,
            columns.training_to,
            columns.version.label("parent_version"),
            columns.drift_reference,
            columns.imported_from,
            func.coalesce(columns.errors_of, columns.version).label("errors_of"),
        ).where(columns.source_id == source_id, columns.version == version)
    ).one()
    metrics = {name: value for name, value in row.metrics.items() if name not in _METRICS_OF_THRESHOLD}
    return insert_version(connection, source_id, {**row._mapping, "metrics": metrics, **values})


def insert_version(connection: Connection, source_id: int, row: dict[str, Any]) -> int:
    """Add an immutable version, numbered one past the source's highest. Returns its number."""
    locks.hold(connection, "versions", source_id)
    columns = model_versions.c
    number = select(func.coalesce(func.max(columns.version), 0) + 1).where(columns.source_id == source_id)
    statement = model_versions.insert().values(**row, source_id=source_id, version=number.scalar_subquery())
    return int(connection.execute(statement.returning(columns.version)).scalar_one())


def version_id(connection: Connection, source_id: int, version: int) -> int | None:
    """The id of a version, or None if there is no such version."""
    columns = model_versions.c
    return connection.scalar(
        select(columns.id).where(columns.source_id == source_id, columns.version == version)
    )


def artifact(
    connection: Connection, source_id: int, version: int, *, max_bytes: int
) -> StoredArtifact | None:
    """A version's artifact; its bytes are not sent when there are more than max_bytes of them."""
    row = run(
        connection,
        "SELECT id, version, CASE WHEN octet_length(artifact) <= %(max)s THEN artifact END, octet_length(artifact),"
        " sha256, signature, feature_names FROM outlier.model_versions"
        " WHERE source_id = %(source_id)s AND version = %(version)s",
        {"max": max_bytes, "source_id": source_id, "version": version},
        binary=True,
    ).fetchone()
    if row is None:
        return None
    return StoredArtifact(
        version_id=row[0],
        version=row[1],
        artifact=None if row[2] is None else bytes(row[2]),
        n_bytes=row[3],
        sha256=row[4],
        signature=row[5],
        feature_names=tuple(row[6]),
    )


def versions(connection: Connection, source_id: int) -> list[dict[str, Any]]:
    """All versions of a source without their artifacts, the newest first."""
    return run_dicts(
        connection,
        """
        SELECT v.version, v.recipe_name, v.threshold, v.n_training_rows, v.training_from, v.training_to,
               v.parent_version, v.errors_of, v.metrics, v.created_at, v.created_by, v.sha256,
               v.signature IS NOT NULL AS signed,
               octet_length(v.artifact) AS n_bytes, v.feature_names, v.recipe, v.imported_from,
               (SELECT array_agg(t.tag ORDER BY t.tag) FROM outlier.model_tags t
                WHERE t.source_id = v.source_id AND t.version = v.version) AS tags,
               (SELECT array_agg(a.alias::text ORDER BY a.alias) FROM outlier.model_aliases a
                WHERE a.source_id = v.source_id AND a.version = v.version) AS aliases
        FROM outlier.model_versions v WHERE v.source_id = %s ORDER BY v.version DESC
        """,
        (source_id,),
    )
