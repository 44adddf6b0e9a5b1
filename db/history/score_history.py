"""Earlier scores of rows that another version has scored since: kept where somebody wanted it.

What it is made of: db.ddl.history_objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.ddl import history_objects, installation
from pgoutlier.db.errors import SourceError
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sources import sources
from pgoutlier.db.sql import locks
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, ours
from pgoutlier.db.sql.statements import compose, records
from pgoutlier.db.tables import TopFeature


@dataclass(frozen=True)
class RowScore:
    """A score that a row has or had. replaced_at: when another one took its place, None for the one it has.

    top_features: the largest first, None of a row that was not flagged.
    """

    model_version: int
    reconstruction_error: float
    flagged: bool
    scored_at: datetime
    replaced_at: datetime | None
    top_features: list[TopFeature] | None


def is_kept(connection: Connection, source: SourceDefinition) -> bool:
    """Whether earlier scores are kept now."""
    live = catalog.live_triggers(connection, Relation(SCHEMA, f"scores_{source.name}"))
    return history_objects.TRIGGER in live


def exists(connection: Connection, source: SourceDefinition) -> bool:
    """Whether there is a table of earlier scores."""
    return catalog.exists(connection, _table(source))


def _table(source: SourceDefinition) -> Relation:
    return Relation(SCHEMA, f"score_history_{source.name}")


def keep(connection: Connection, source: Source) -> bool:
    """Keep earlier scores from now on. Returns False if that is so already."""
    locks.hold(connection, "attach")
    if is_kept(connection, source.definition):
        return False
    table = [] if exists(connection, source.definition) else history_objects.table(source.definition)
    installation.run_our_ddl(
        connection, source.definition, [*table, *history_objects.trigger(source.definition)]
    )
    sources.record(connection, source.name, "keep_history")
    return True


def stop(connection: Connection, source: Source, *, drop: bool) -> bool:
    """Keep earlier scores no more; drop: and remove those that were kept. Returns False if there was nothing to do."""
    locks.hold(connection, "attach")
    kept = is_kept(connection, source.definition)
    if not kept and not (drop and exists(connection, source.definition)):
        return False
    statements = history_objects.drop if drop else history_objects.drop_trigger
    installation.run_our_ddl(connection, source.definition, statements(source.definition))
    sources.record(connection, source.name, "drop_history" if drop else "stop_history")
    return True


def of_key(connection: Connection, source: SourceDefinition, key: str) -> list[RowScore]:
    """Every score the row of this key has had, the newest first.

    Raises SourceError if there is no table of earlier scores.
    """
    if not exists(connection, source):
        raise SourceError(
            f"No earlier scores of {source.name} are kept; keep them from now on: pgoutlier history keep {source.name}"
        )
    return records(
        connection,
        RowScore,
        compose(
            """
            SELECT model_version, reconstruction_error, flagged, scored_at, replaced_at, top_features FROM (
                SELECT model_version, reconstruction_error, flagged, scored_at, NULL::timestamptz AS replaced_at,
                       top_features FROM {scores} s WHERE {of_key}
                UNION ALL
                SELECT model_version, reconstruction_error, flagged, scored_at, replaced_at, top_features
                FROM {history} s WHERE {of_key}
            ) s ORDER BY replaced_at DESC NULLS FIRST
            """,
            scores=ours("scores", source.name),
            history=ours("score_history", source.name),
            of_key=source.key.is_text("s", sql.SQL("%(key)s")),
        ),
        {"key": key},
    )
