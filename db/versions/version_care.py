"""SQL of what becomes of model versions: tags, what was done with them, and which of them are kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql

from pgoutlier.db.sql.statements import records, run
from pgoutlier.db.tables import model_tags, model_versions, version_events
from pgoutlier.db.versions.aliases import CHAMPION


@dataclass(frozen=True)
class VersionEvent:
    """What was done with a version, by whom and when.

    Of a move of an alias, version is where the alias went, None for nowhere, and detail why; alias and from_version
    are None of everything else.
    """

    created_at: datetime
    created_by: str
    action: str
    alias: str | None
    from_version: int | None
    version: int | None
    detail: str | None


def tag(connection: Connection, source_id: int, version: int, name: str) -> bool:
    """Give a version that there is a tag. Returns False if it has it already."""
    given = (
        postgresql.insert(model_tags)
        .values(source_id=source_id, version=version, tag=name)
        .on_conflict_do_nothing()
        .returning(model_tags.c.tag)
    )
    return connection.scalar(given) is not None


def untag(connection: Connection, source_id: int, version: int, name: str) -> bool:
    """Take a tag away. Returns False if the version does not have it."""
    columns = model_tags.c
    taken = model_tags.delete().where(
        columns.source_id == source_id, columns.version == version, columns.tag == name
    )
    return bool(connection.execute(taken).rowcount)


def record(
    connection: Connection, source_id: int, version: int, action: str, detail: str | None = None
) -> None:
    """Note who did what with a version, and when."""
    connection.execute(
        version_events.insert().values(source_id=source_id, version=version, action=action, detail=detail)
    )


def history(
    connection: Connection, source_id: int, *, alias: str | None = None, limit: int | None = None
) -> list[VersionEvent]:
    """Every move of an alias and whatever else was done with a version, the newest first.

    alias: leave out all but the moves of this one.
    """
    return records(
        connection,
        VersionEvent,
        """
        SELECT created_at, created_by, action, alias, from_version, to_version AS version, reason AS detail
        FROM outlier.alias_events
        WHERE source_id = %(source_id)s AND alias = coalesce(%(alias)s, alias)
        UNION ALL
        SELECT created_at, created_by, action, NULL, NULL, version, detail
        FROM outlier.version_events WHERE source_id = %(source_id)s AND %(alias)s::text IS NULL
        ORDER BY created_at DESC, alias, version DESC LIMIT %(limit)s
        """,
        {"source_id": source_id, "alias": alias, "limit": limit},
    )


def same_artifact(connection: Connection, source_id: int, sha256: str) -> int | None:
    """The version of the source with this artifact, the newest of several, or None."""
    columns = model_versions.c
    found: int | None = connection.scalar(
        select(func.max(columns.version)).where(columns.source_id == source_id, columns.sha256 == sha256)
    )
    return found


def dispensable(connection: Connection, source_id: int, *, keep: int) -> list[int]:
    """Versions that are none of the newest `keep`, were never champion, have no alias, no job and no tag; rising.

    A job may have left scores of its version, whose threshold and recipe have to stay known, and may be resumed.
    """
    return [
        row[0]
        for row in run(
            connection,
            """
            SELECT v.version FROM outlier.model_versions v
            WHERE v.source_id = %(source_id)s
              AND v.version NOT IN (SELECT n.version FROM outlier.model_versions n
                  WHERE n.source_id = %(source_id)s ORDER BY n.version DESC LIMIT %(keep)s)
              AND NOT EXISTS (SELECT FROM outlier.model_aliases a
                              WHERE a.source_id = v.source_id AND a.version = v.version)
              AND NOT EXISTS (SELECT FROM outlier.alias_events e WHERE e.source_id = v.source_id
                              AND e.alias = %(champion)s AND v.version IN (e.from_version, e.to_version))
              AND NOT EXISTS (SELECT FROM outlier.jobs j
                              WHERE j.source_id = v.source_id AND j.version = v.version)
              AND NOT EXISTS (SELECT FROM outlier.model_tags t
                              WHERE t.source_id = v.source_id AND t.version = v.version)
            ORDER BY v.version
            """,
            {"source_id": source_id, "keep": keep, "champion": CHAMPION},
        ).fetchall()
    ]


def delete(connection: Connection, source_id: int, versions: list[int]) -> None:
    """Remove versions with their artifacts and reports. The caller holds `db.versions.aliases.lock_alias`."""
    columns = model_versions.c
    connection.execute(
        model_versions.delete().where(columns.source_id == source_id, columns.version.in_(versions))
    )
