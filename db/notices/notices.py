"""Notices of flagged rows: turned on and off by source, counted, pruned. Their delivery is in db.notices.deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import errors
from sqlalchemy import Connection

from pgoutlier.db.ddl import installation, notice_objects
from pgoutlier.db.errors import MissingPrivilege
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, identifier
from pgoutlier.db.sql.statements import compose, run


@dataclass(frozen=True)
class NoticeFigures:
    """n_pending: notices to be delivered; n_dead: those in dead letters; problem: why none are delivered; sends:
    whether there is a URL."""

    n_pending: int
    n_dead: int
    enabled: bool
    problem: str | None
    sends: bool


def turn_on(connection: Connection, source: Source) -> None:
    """Make the triggers that write the source's notices. Raises MissingPrivilege if the role may not."""
    _change(connection, source, on=True)


def turn_off(connection: Connection, source: Source) -> None:
    """Drop the triggers. Raises MissingPrivilege if the role may not."""
    _change(connection, source, on=False)


def _change(connection: Connection, source: Source, *, on: bool) -> None:
    statements = notice_objects.create(source.definition) if on else notice_objects.drop(source.name)
    try:
        installation.run_our_ddl(connection, source.definition, statements)
    except errors.InsufficientPrivilege:
        raise MissingPrivilege(
            f"This role may not {'make' if on else 'drop'} the triggers on the scores of {source.name}; the role that"
            " attached it has to do that, by the same command."
        ) from None


def triggers_enabled(connection: Connection, source_name: str) -> dict[str, bool]:
    """For each of the triggers: whether it exists and fires for ordinary sessions."""
    live = catalog.live_triggers(connection, Relation(SCHEMA, f"scores_{source_name}"))
    return {event: notice_objects.trigger_name(event) in live for event in notice_objects.EVENTS}


def figures(connection: Connection, source_names: Sequence[str]) -> dict[str, NoticeFigures]:
    """What waits and what was given up of the notices of these sources, of those where notices are on."""
    rows = run(
        connection,
        "SELECT w.source, (SELECT count(*) FROM outlier.notices n WHERE n.source = w.source AND n.waits)"
        " + (SELECT coalesce(sum(d.n_notices), 0) FROM outlier.deliveries d WHERE d.source = w.source)"
        " AS n_pending, (SELECT coalesce(sum(l.n_notices), 0) FROM outlier.dead_letters l"
        " WHERE l.source = w.source) AS n_dead, w.enabled, w.problem, w.sends"
        " FROM outlier.webhook_states w WHERE w.source = ANY (%s)",
        (list(source_names),),
    ).fetchall()
    return {row[0]: NoticeFigures(int(row[1]), int(row[2]), *row[3:]) for row in rows}


def prune(
    connection: Connection, source_name: str, *, keep_seconds: float, keep_undelivered_seconds: float
) -> int:
    """Delete notices that are older than keep_seconds and are delivered or were not to be, and those that are older
    than keep_undelivered_seconds, with deliveries and dead letters. Returns how many notices."""
    values = {
        "source": source_name,
        "keep": keep_seconds,
        "keep_undelivered": max(keep_seconds, keep_undelivered_seconds),
    }
    for table in ("deliveries", "dead_letters"):
        run(
            connection,
            compose(
                "DELETE FROM {table} WHERE source = %(source)s"
                " AND created_at < now() - make_interval(secs => %(keep_undelivered)s)",
                table=identifier(SCHEMA, table),
            ),
            values,
        )
    # One that is in a delivery or a dead letter stays as long as that: what is sent again is the same.
    return run(
        connection,
        "DELETE FROM outlier.notices n WHERE source = %(source)s AND created_at < now() - make_interval(secs =>"
        " CASE WHEN waits THEN %(keep_undelivered)s ELSE %(keep)s END)"
        " AND NOT EXISTS (SELECT FROM outlier.deliveries d WHERE d.id = n.delivery_id)"
        " AND NOT EXISTS (SELECT FROM outlier.dead_letters l WHERE l.id = n.delivery_id)",
        values,
    ).rowcount
