"""The aliases of model versions, champion and challenger: what they point at, and who moved them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from pgoutlier.db.errors import NoChampion
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sql import locks
from pgoutlier.db.sql.statements import run, run_dicts

CHAMPION = "champion"
CHALLENGER = "challenger"


@dataclass(frozen=True)
class Pointed:
    """What an alias points at: the version's id of all sources' versions, and its number among the source's own."""

    version_id: int
    version: int


@dataclass(frozen=True)
class Challenger(Pointed):
    """What the alias challenger points at. problem: why it did not score when it was tried last.

    paused: it failed a moment ago and is left alone.
    """

    problem: str | None
    paused: bool


@dataclass(frozen=True)
class Aliases:
    """What both aliases of a source point at."""

    champion: Pointed | None
    challenger: Challenger | None


def alias(connection: Connection, source_id: int, name: str = CHAMPION) -> Pointed | None:
    """What an alias points at, or None."""
    row = run(
        connection,
        "SELECT v.id, v.version FROM outlier.model_aliases a JOIN outlier.model_versions v"
        " USING (source_id, version) WHERE a.source_id = %s AND a.alias = %s",
        (source_id, name),
    ).fetchone()
    return Pointed(*row) if row else None


def champion_of(connection: Connection, source: Source) -> int:
    """The version that is the champion. Raises NoChampion."""
    found = alias(connection, source.id)
    if found is None:
        raise NoChampion(source.name)
    return found.version


def both(connection: Connection, source_id: int) -> Aliases:
    """Both aliases by one statement, since they are read in every scoring transaction."""
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
        champion=Pointed(*found[CHAMPION][:2]) if CHAMPION in found else None,
        challenger=Challenger(*challenger) if challenger else None,
    )


def lock_alias(connection: Connection, source_id: int) -> None:
    """One mover of a source's aliases at a time, until the transaction ends."""
    locks.hold(connection, "aliases", source_id)


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
