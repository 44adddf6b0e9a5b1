"""The aliases of model versions, champion and challenger: what they point at, and who moved them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql

from pgoutlier.db.errors import ModelError, NoChampion
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sql import locks
from pgoutlier.db.sql.statements import run
from pgoutlier.db.tables import LONGEST_NOTE, alias_events, model_aliases

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


@dataclass(frozen=True)
class AliasMove:
    """From where to where an alias was moved, by whom, when and why; None where it was, or is, on no version."""

    id: int
    action: str
    from_version: int | None
    to_version: int | None
    reason: str | None
    created_at: datetime
    created_by: str


def alias(connection: Connection, source_id: int, name: str = CHAMPION) -> Pointed | None:
    """What an alias points at, or None."""
    found = both(connection, source_id)
    return found.champion if name == CHAMPION else found.challenger


def champion_of(connection: Connection, source: Source) -> int:
    """The version that is the champion. Raises NoChampion."""
    found = alias(connection, source.id)
    if found is None:
        raise NoChampion(source.name)
    return found.version


def both(connection: Connection, source_id: int) -> Aliases:
    """Both aliases by one statement, since they are read in every scoring transaction."""
    return of_each(connection, [source_id])[source_id]


def of_each(connection: Connection, source_ids: Sequence[int]) -> dict[int, Aliases]:
    """Both aliases of each of these sources, by its id."""
    rows = run(
        connection,
        "SELECT a.source_id, a.alias, v.id, v.version, a.problem, coalesce(a.paused_until > now(), false)"
        " FROM outlier.model_aliases a JOIN outlier.model_versions v USING (source_id, version)"
        " WHERE a.source_id = ANY (%s)",
        (list(source_ids),),
    ).fetchall()
    found = {(row[0], row[1]): row[2:] for row in rows}
    return {
        source_id: Aliases(
            champion=Pointed(*champion[:2]) if (champion := found.get((source_id, CHAMPION))) else None,
            challenger=Challenger(*challenger)
            if (challenger := found.get((source_id, CHALLENGER)))
            else None,
        )
        for source_id in source_ids
    }


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
    """Point an alias at a version, or at none, and record who moved it and why. The caller holds `lock_alias`.

    Raises ModelError if the reason is longer than it may be.
    """
    if len(reason) > LONGEST_NOTE:
        raise ModelError(f"The reason has {len(reason):,} characters; shorten it to {LONGEST_NOTE:,}.")
    columns = model_aliases.c
    if to_version is None:
        connection.execute(
            model_aliases.delete().where(columns.source_id == source_id, columns.alias == name)
        )
    else:
        # Whatever was wrong with the version before says nothing of this one.
        moved = {"version": to_version, "moved_at": func.now(), "problem": None, "paused_until": None}
        connection.execute(
            postgresql.insert(model_aliases)
            .values(source_id=source_id, alias=name, **moved)
            .on_conflict_do_update(index_elements=[columns.source_id, columns.alias], set_=moved)
        )
    connection.execute(
        alias_events.insert().values(
            source_id=source_id,
            alias=name,
            from_version=from_version,
            to_version=to_version,
            action=action,
            reason=reason,
        )
    )


def note_challenger(
    connection: Connection, source_id: int, version: int, problem: str | None, *, pause_seconds: float
) -> None:
    """Record why a challenger does not score, or that it does; nothing if it is the challenger no more."""
    columns = model_aliases.c
    pause = func.now() + timedelta(seconds=pause_seconds) if pause_seconds else None
    connection.execute(
        model_aliases.update()
        .where(columns.source_id == source_id, columns.alias == CHALLENGER, columns.version == version)
        .values(problem=problem, paused_until=pause)
    )


def alias_history(connection: Connection, source_id: int, name: str = CHAMPION) -> list[AliasMove]:
    """Every move of an alias, the newest first."""
    columns = alias_events.c
    rows = connection.execute(
        select(*(columns[field.name] for field in fields(AliasMove)))
        .where(columns.source_id == source_id, columns.alias == name)
        .order_by(columns.id.desc())
    )
    return [AliasMove(*row) for row in rows]
