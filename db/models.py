"""SQL of the model registry: versions, aliases and their history, training runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from db.identifiers import identifier
from db.statements import compose, one, run, run_dicts

CHAMPION = "champion"
CHALLENGER = "challenger"

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
class Challenger:
    """What the alias challenger points at. problem: why it did not score when it was tried last.

    paused: it failed a moment ago and is left alone.
    """

    version_id: int
    version: int
    problem: str | None
    paused: bool


@dataclass(frozen=True)
class Aliases:
    """What both aliases of a source point at. champion: (version id, version)."""

    champion: tuple[int, int] | None
    challenger: Challenger | None


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
    (row,) = run_dicts(
        connection,
        "SELECT recipe_name, feature_names, metrics - %s::text[] AS metrics, n_training_rows, training_from,"
        " training_to, version AS parent_version, drift_reference, imported_from,"
        " coalesce(errors_of, version) AS errors_of FROM outlier.model_versions WHERE source_id = %s AND version = %s",
        (_METRICS_OF_THRESHOLD, source_id, version),
    )
    return insert_version(connection, source_id, {**row, **values})


def insert_version(connection: Connection, source_id: int, row: dict[str, Any]) -> int:
    """Add an immutable version, numbered one past the source's highest. Returns its number."""
    run(connection, "SELECT pg_advisory_xact_lock(hashtext('outlier.versions'), %s)", (source_id,))
    return int(
        one(
            connection,
            """
            INSERT INTO outlier.model_versions
                (source_id, version, recipe_name, recipe, feature_names, artifact, sha256, signature, threshold,
                 metrics, n_training_rows, training_from, training_to, parent_version, drift_reference,
                 imported_from, errors_of)
            SELECT %(source_id)s, coalesce(max(version), 0) + 1, %(recipe_name)s, %(recipe)s, %(feature_names)s,
                   %(artifact)s, %(sha256)s, %(signature)s, %(threshold)s, %(metrics)s, %(n_training_rows)s,
                   %(training_from)s, %(training_to)s, %(parent_version)s, %(drift_reference)s,
                   %(imported_from)s, %(errors_of)s
            FROM outlier.model_versions WHERE source_id = %(source_id)s
            RETURNING version
            """,
            {
                **row,
                "source_id": source_id,
                "recipe": Jsonb(row["recipe"]),
                "feature_names": Jsonb(row["feature_names"]),
                "metrics": Jsonb(row["metrics"]),
                "drift_reference": Jsonb(row["drift_reference"]) if row["drift_reference"] else None,
                "imported_from": Jsonb(row["imported_from"]) if row["imported_from"] else None,
            },
        )
    )


def alias(connection: Connection, source_id: int, name: str = CHAMPION) -> tuple[int, int] | None:
    """(version id, version) that an alias points at, or None."""
    return run(
        connection,
        "SELECT v.id, v.version FROM outlier.model_aliases a JOIN outlier.model_versions v"
        " USING (source_id, version) WHERE a.source_id = %s AND a.alias = %s",
        (source_id, name),
    ).fetchone()


def aliases(connection: Connection, source_id: int) -> Aliases:
    """Both of them by one statement, since they are read in every scoring transaction."""
    rows = run(
        connection,
        "SELECT a.alias, v.id, v.version, a.problem, coalesce(a.paused_until > now(), false)"
        " FROM outlier.model_aliases a JOIN outlier.model_versions v USING (source_id, version)"
        " WHERE a.source_id = %s",
        (source_id,),
    ).fetchall()
    found = {row[0]: row[1:] for row in rows}
    challenger = found.get(CHALLENGER)
    return Aliases(
        champion=found[CHAMPION][:2] if CHAMPION in found else None,
        challenger=Challenger(*challenger) if challenger else None,
    )


def champion(connection: Connection, source_id: int) -> dict[str, Any] | None:
    """version, threshold and recipe of the champion, or None."""
    rows = run_dicts(
        connection,
        "SELECT v.version, v.threshold, v.recipe FROM outlier.model_aliases a JOIN outlier.model_versions v"
        " USING (source_id, version) WHERE a.source_id = %s AND a.alias = %s",
        (source_id, CHAMPION),
    )
    return rows[0] if rows else None


def version_id(connection: Connection, source_id: int, version: int) -> int | None:
    """The id of a version, or None if there is no such version."""
    found: int | None = one(
        connection,
        "SELECT id FROM outlier.model_versions WHERE source_id = %s AND version = %s",
        (source_id, version),
    )
    return found


def errors_of(connection: Connection, source_id: int, version: int) -> int | None:
    """The version that this one is with another threshold, or None if it was trained or imported itself."""
    found: int | None = one(
        connection,
        "SELECT errors_of FROM outlier.model_versions WHERE source_id = %s AND version = %s",
        (source_id, version),
    )
    return found


def lock_alias(connection: Connection, source_id: int) -> None:
    """One mover of a source's aliases at a time, until the transaction ends."""
    run(connection, "SELECT pg_advisory_xact_lock(hashtext('outlier.aliases'), %s)", (source_id,))


def move_alias(
    connection: Connection,
    source_id: int,
    *,
    name: str,
    from_version: int | None,
    to_version: int | None,
    action: str,
    reason: str,
) -> None:
    """Point an alias at a version, or at none, and record who moved it and why. The caller holds `lock_alias`."""
    if to_version is None:
        run(
            connection,
            "DELETE FROM outlier.model_aliases WHERE source_id = %s AND alias = %s",
            (source_id, name),
        )
    else:
        run(
            connection,
            "INSERT INTO outlier.model_aliases (source_id, alias, version) VALUES (%s, %s, %s)"
            " ON CONFLICT (source_id, alias) DO UPDATE SET version = excluded.version, moved_at = now(),"
            " problem = NULL, paused_until = NULL",
            (source_id, name, to_version),
        )
    run(
        connection,
        "INSERT INTO outlier.alias_events (source_id, alias, from_version, to_version, action, reason)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        (source_id, name, from_version, to_version, action, reason),
    )


def note_challenger(
    connection: Connection, source_id: int, version: int, problem: str | None, *, pause_seconds: float
) -> None:
    """Record why a challenger does not score, or that it does; nothing if it is the challenger no more."""
    run(
        connection,
        "UPDATE outlier.model_aliases SET problem = %s, paused_until = now() + nullif(%s, 0) * interval '1 s'"
        " WHERE source_id = %s AND alias = %s AND version = %s",
        (problem, pause_seconds, source_id, CHALLENGER, version),
    )


def alias_history(connection: Connection, source_id: int, name: str = CHAMPION) -> list[dict[str, Any]]:
    """Every move of an alias, the newest first."""
    return run_dicts(
        connection,
        "SELECT id, action, from_version, to_version, reason, created_at, created_by"
        " FROM outlier.alias_events WHERE source_id = %s AND alias = %s ORDER BY id DESC",
        (source_id, name),
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


def try_training_lock(connection: Connection, source_id: int) -> bool:
    """Whether this session now holds the one training lock of the source. Freed by closing the session."""
    return bool(
        one(connection, "SELECT pg_try_advisory_lock(hashtext('outlier.training'), %s)", (source_id,))
    )


def free_training_lock(connection: Connection, source_id: int) -> None:
    """Free the lock of `try_training_lock`."""
    run(connection, "SELECT pg_advisory_unlock(hashtext('outlier.training'), %s)", (source_id,))


def start_run(connection: Connection, source_id: int, *, recipe: dict[str, Any], seed: int) -> int:
    """Open a training run; runs left open by a process that died are closed first. Returns its id.

    The caller holds the training lock, so an open run of the same source has nobody left to finish it.
    """
    run(
        connection,
        "UPDATE outlier.training_runs SET status = 'abandoned', finished_at = now(),"
        " error = 'the training process ended without a word'"
        " WHERE source_id = %s AND status = 'running'",
        (source_id,),
    )
    return int(
        one(
            connection,
            "INSERT INTO outlier.training_runs (source_id, recipe, seed, n_scored_before)"
            " SELECT s.id, %s, %s, (SELECT n_tup_ins + n_tup_upd FROM pg_stat_user_tables"
            " WHERE schemaname = 'outlier' AND relname = 'scores_' || s.name)"
            " FROM outlier.sources s WHERE s.id = %s RETURNING id",
            (Jsonb(recipe), seed, source_id),
        )
    )


def update_run(connection: Connection, run_id: int, **values: Any) -> None:
    """Set columns of a training run, dicts as JSON, and its heartbeat."""
    assignments = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(identifier(column), sql.Placeholder(column)) for column in values
    )
    statement = sql.SQL("UPDATE outlier.training_runs SET {}, heartbeat_at = now() WHERE id = %(run_id)s")
    parameters = {k: Jsonb(v) if isinstance(v, dict) else v for k, v in values.items()}
    run(connection, statement.format(assignments), {**parameters, "run_id": run_id})


def finish_run(connection: Connection, run_id: int, *, status: str, **values: Any) -> None:
    """Close a training run as succeeded or failed."""
    update_run(connection, run_id, status=status, **values)
    run(connection, "UPDATE outlier.training_runs SET finished_at = now() WHERE id = %s", (run_id,))


def runs(connection: Connection, source_id: int, *, limit: int) -> list[dict[str, Any]]:
    """The newest training runs of a source first."""
    return run_dicts(
        connection,
        "SELECT * FROM outlier.training_runs WHERE source_id = %s ORDER BY id DESC LIMIT %s",
        (source_id, limit),
    )


def trained_lately(connection: Connection, source_id: int, *, seconds: float) -> bool:
    """Whether a training of the source was started within that time."""
    return bool(
        one(
            connection,
            "SELECT EXISTS (SELECT FROM outlier.training_runs WHERE source_id = %s"
            " AND started_at > now() - make_interval(secs => %s))",
            (source_id, seconds),
        )
    )


def last_run(connection: Connection, source_id: int) -> int:
    """Id of the training run that was started last, 0 if there was none."""
    return int(
        one(
            connection,
            "SELECT coalesce(max(id), 0) FROM outlier.training_runs WHERE source_id = %s",
            (source_id,),
        )
    )


def sources_to_retrain(
    connection: Connection, *, older_than_seconds: float, after_rows: int
) -> dict[str, int]:
    """Names of sources with a version and no training run that was started within that time, each with the id of its
    last run, 0 if there was none.

    With after_rows also those that have had about so many rows scored since their last run began. The statistics
    that tell this are lost when PostgreSQL crashes, after which the rows count from there on.
    """
    return dict(
        run(
            connection,
            "SELECT s.name, coalesce(last.id, 0) FROM outlier.sources s"
            " LEFT JOIN LATERAL (SELECT r.id, r.started_at, r.n_scored_before FROM outlier.training_runs r"
            " WHERE r.source_id = s.id ORDER BY r.id DESC LIMIT 1) last ON true"
            " WHERE EXISTS (SELECT FROM outlier.model_versions v WHERE v.source_id = s.id)"
            " AND (last.started_at IS NULL OR last.started_at <= now() - make_interval(secs => %(seconds)s)"
            " OR %(rows)s > 0 AND (SELECT n_tup_ins + n_tup_upd FROM pg_stat_user_tables"
            " WHERE schemaname = 'outlier' AND relname = 'scores_' || s.name)"
            " - last.n_scored_before >= %(rows)s) ORDER BY s.name",
            {"seconds": older_than_seconds, "rows": after_rows},
        ).fetchall()
    )
