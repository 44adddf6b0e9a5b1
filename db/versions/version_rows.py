"""Model versions as they are stored: added, found, listed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime

from psycopg import sql
from sqlalchemy import Connection, func, select

from pgoutlier.db.sql import locks
from pgoutlier.db.sql.statements import compose, one, records, run
from pgoutlier.db.tables import JsonObject, model_versions

# Of the versions v and k of a source.
SAME_ERRORS = sql.SQL("coalesce(v.errors_of, v.version) = coalesce(k.errors_of, k.version)")
_OF_ARTIFACT = sql.SQL(
    "v.training_from, v.training_to, v.signature IS NOT NULL AS signed, octet_length(v.artifact) AS n_bytes"
)
_NOTHING_OF_ARTIFACT = sql.SQL(
    "NULL AS training_from, NULL AS training_to, NULL::boolean AS signed, NULL::integer AS n_bytes"
)
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
    recipe: JsonObject
    threshold: float
    metrics: JsonObject
    n_training_rows: int
    training_from: str | None
    training_to: str | None
    drift_reference: JsonObject | None
    errors_of: int | None
    created_at: datetime
    created_by: str


@dataclass(frozen=True)
class DescribedVersion:
    """A version as it is shown, with its tags and aliases in alphabetical order; None where it has none.

    parent_version: the champion of when it was trained. errors_of, training_from, training_to: as in `VersionRow`.
    signed: its artifact has a signature. n_bytes: of its artifact. These two and what it was trained on are None for
    a role that may read none of it. imported_from: what it was in the database that it
    comes from, None if it was trained here.
    """

    version: int
    recipe_name: str
    threshold: float
    n_training_rows: int
    training_from: str | None
    training_to: str | None
    parent_version: int | None
    errors_of: int | None
    metrics: JsonObject
    created_at: datetime
    created_by: str
    sha256: str
    signed: bool | None
    n_bytes: int | None
    feature_names: list[str]
    recipe: JsonObject
    imported_from: JsonObject | None
    tags: list[str] | None
    aliases: list[str] | None


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The columns of a version that hold its detector. artifact: see `models_store.artifact`."""

    recipe: JsonObject
    artifact: bytes
    sha256: str
    signature: str | None
    threshold: float


@dataclass(frozen=True, kw_only=True)
class NewVersion(Packed):
    """A version that is to be stored; fields as in `VersionRow` and `DescribedVersion`."""

    recipe_name: str
    feature_names: list[str]
    metrics: JsonObject
    n_training_rows: int
    training_from: str | None
    training_to: str | None
    parent_version: int | None
    drift_reference: JsonObject | None
    imported_from: JsonObject | None
    errors_of: int | None


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


def copy_version(connection: Connection, source_id: int, version: int, packed: Packed) -> int:
    """Add a version like this one, with the same errors, but for its detector. Metrics that say something of the
    threshold are left out. Returns its number."""
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
    same = {**row._mapping, "metrics": metrics}
    return insert_version(connection, source_id, NewVersion(**same, **vars(packed)))


def insert_version(connection: Connection, source_id: int, new: NewVersion) -> int:
    """Add an immutable version, numbered one past the source's highest. Returns its number."""
    locks.hold(connection, "versions", source_id)
    columns = model_versions.c
    number = select(func.coalesce(func.max(columns.version), 0) + 1).where(columns.source_id == source_id)
    statement = model_versions.insert().values(
        **vars(new), source_id=source_id, version=number.scalar_subquery()
    )
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


def versions(connection: Connection, source_id: int) -> list[DescribedVersion]:
    """All versions of a source without their artifacts, the newest first."""
    # Monitors may not read values of rows, nor detectors.
    readable = one(connection, "SELECT has_table_privilege('outlier.model_versions', 'SELECT')")
    return records(
        connection,
        DescribedVersion,
        compose(
            """
        SELECT v.version, v.recipe_name, v.threshold, v.n_training_rows,
               v.parent_version, v.errors_of, v.metrics, v.created_at, v.created_by, v.sha256,
               {of_artifact}, v.feature_names, v.recipe, v.imported_from,
               (SELECT array_agg(t.tag ORDER BY t.tag) FROM outlier.model_tags t
                WHERE t.source_id = v.source_id AND t.version = v.version) AS tags,
               (SELECT array_agg(a.alias::text ORDER BY a.alias) FROM outlier.model_aliases a
                WHERE a.source_id = v.source_id AND a.version = v.version) AS aliases
        FROM outlier.model_versions v WHERE v.source_id = %s ORDER BY v.version DESC
        """,
            of_artifact=_OF_ARTIFACT if readable else _NOTHING_OF_ARTIFACT,
        ),
        (source_id,),
    )
