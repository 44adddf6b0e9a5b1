"""Figures for `status` and `flagged`: cheap reads over all sources."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.ddl import source_views, written_columns
from pgoutlier.db.drift import drift_reports
from pgoutlier.db.errors import SourceError
from pgoutlier.db.notices import notices
from pgoutlier.db.scoring import queue
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sources import sources as source_store
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, display, identifier, ours
from pgoutlier.db.sql.statements import compose, one, run_dicts
from pgoutlier.db.training import training_runs
from pgoutlier.db.versions import aliases

_VIEWS_OF_SHADOW = ("compared", "comparison")


def sources(connection: Connection) -> list[dict[str, Any]]:
    """What `describe` says of every source."""
    return [describe(connection, source) for source in source_store.every(connection)]


def describe(connection: Connection, source: Source) -> dict[str, Any]:
    """Name, relation, queue figures, champion, challenger, quarantine, last training and problems of a source."""
    pointed = aliases.both(connection, source.id)
    champion, challenger = pointed.champion, pointed.challenger
    depth = queue.depth(connection, source.definition)
    training = training_runs.runs(connection, source.id, limit=1)
    return {
        "name": source.name,
        "relation": str(source.definition.relation),
        "n_queued": depth["n_keys"],
        "n_postponed": depth["n_postponed"],
        "oldest_queued_seconds": depth["oldest_seconds"],
        "champion": champion.version if champion else None,
        "challenger": challenger.version if challenger else None,
        "challenger_problem": challenger.problem if challenger else None,
        "n_scored_estimate": _estimate(connection, source.definition),
        "n_quarantined": one(
            connection, "SELECT count(*) FROM outlier.quarantine WHERE source_id = %s", (source.id,)
        ),
        "training": _training(training[0]) if training else None,
        "drift": _drift(drift_reports.reports(connection, source.id, limit=1)),
        "notices": notices.figures(connection, source.name),
        "problem": source.last_problem,
    }


def _drift(reports: list[dict[str, Any]]) -> dict[str, Any] | None:
    return {k: reports[0][k] for k in ("measured_at", "drifted", "reasons")} if reports else None


def _training(row: dict[str, Any]) -> dict[str, Any]:
    kept = (
        "status",
        "epoch",
        "n_epochs",
        "loss",
        "eta_seconds",
        "version",
        "promoted",
        "error",
        "started_at",
    )
    return {key: row[key] for key in kept}


def _estimate(connection: Connection, source: SourceDefinition) -> int:
    """Live rows of the scores table as PostgreSQL estimates them: a count would read the whole table."""
    return int(
        one(
            connection,
            "SELECT coalesce(n_live_tup, 0) FROM pg_stat_user_tables"
            " WHERE schemaname = 'outlier' AND relname = %s",
            (f"scores_{source.name}",),
        )
        or 0
    )


def listeners(connection: Connection) -> int:
    """How many listener processes are connected."""
    return int(
        one(
            connection,
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgoutlier listener'"
            " AND datname = current_database()",
        )
    )


def flagged(
    connection: Connection, source: SourceDefinition, *, since: datetime | None, limit: int
) -> list[dict[str, Any]]:
    """The last flagged rows, the newest first: the user's columns and the score's."""
    return run_dicts(
        connection,
        compose(
            "SELECT * FROM {view} WHERE scored_at >= coalesce(%(since)s::timestamptz, '-infinity')"
            " ORDER BY scored_at DESC, {key} DESC LIMIT %(limit)s",
            view=ours("flagged", source.name),
            key=identifier(source.key_column),
        ),
        {"since": since, "limit": limit},
    )


def grants(connection: Connection, role: str, *, analyst: bool) -> list[sql.Composed]:
    """Statements that give a role what an analyst (reads views) or a worker (scores, trains) needs.

    Raises SourceError if there is no such role.
    """
    to = _existing_role(connection, role)
    found = source_store.every(connection)
    statements = [compose("GRANT USAGE ON SCHEMA outlier TO {role}", role=to)]
    if analyst:
        # The command line looks at these two before it shows a view.
        books = compose("GRANT SELECT ON outlier.alembic_version, outlier.sources TO {role}", role=to)
        # Who gave a verdict and when is left to PostgreSQL, and what was said cannot be unsaid.
        read = compose("GRANT SELECT ON outlier.verdicts, outlier.current_verdicts TO {role}", role=to)
        told = compose("GRANT SELECT ON outlier.flagged_notices TO {role}", role=to)
        say = compose("GRANT INSERT (source, key, verdict, note) ON outlier.verdicts TO {role}", role=to)
        return [*statements, books, read, say, told] + [
            compose("GRANT SELECT ON {view} TO {role}", view=ours(view, source.name), role=to)
            for source in found
            for view in (*source_views.VIEWS, *_VIEWS_OF_SHADOW)
            # A source that an earlier version attached has not all of them until it is attached again.
            if catalog.view_columns(connection, Relation(SCHEMA, f"{view}_{source.name}")) is not None
        ]
    relations = {r for s in found for r in (s.definition.relation, s.definition.feature_relation)}
    return [
        *statements,
        compose("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA outlier TO {role}", role=to),
        compose("GRANT USAGE ON ALL SEQUENCES IN SCHEMA outlier TO {role}", role=to),
        *(
            statement
            for relation in sorted(relations, key=str)
            for statement in (
                compose("GRANT USAGE ON SCHEMA {s} TO {role}", s=identifier(relation.schema), role=to),
                compose("GRANT SELECT ON {r} TO {role}", r=relation.sql(), role=to),
            )
        ),
        *(written_columns.grant(s.definition.relation, to) for s in found if s.definition.write_columns),
    ]


def operator_grants(connection: Connection, role: str) -> list[sql.Composed]:
    """Statements that let a role look at schedules and change them.

    Raises SourceError if there is no such role.
    """
    to = _existing_role(connection, role)
    return [
        compose("GRANT USAGE ON SCHEMA outlier TO {role}", role=to),
        compose("GRANT SELECT ON outlier.alembic_version, outlier.sources TO {role}", role=to),
        compose("GRANT SELECT, INSERT, UPDATE, DELETE ON outlier.schedules TO {role}", role=to),
        compose("GRANT SELECT ON outlier.schedule_events, outlier.beats TO {role}", role=to),
    ]


def _existing_role(connection: Connection, role: str) -> sql.Composable:
    if not one(connection, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s)", (role,)):
        raise SourceError(
            f"There is no role {display(role)}; make it first: CREATE ROLE {display(role)} LOGIN;"
        )
    return identifier(role)
