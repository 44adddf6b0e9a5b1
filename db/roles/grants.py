"""Rights on our objects, and on what of the user's they need, for the kinds of roles there are."""

from __future__ import annotations

from typing import Literal

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.ddl import source_views, written_columns
from pgoutlier.db.errors import SourceError
from pgoutlier.db.source import catalog
from pgoutlier.db.sources import sources
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, display, identifier, ours
from pgoutlier.db.sql.statements import compose, one

# An analyst reads the views, a worker scores and trains, an operator looks at schedules and changes them.
Kind = Literal["analyst", "worker", "operator"]
_VIEWS_OF_CHALLENGER = ("compared", "comparison")


def grants(connection: Connection, role: str, kind: Kind) -> list[sql.Composed]:
    """Statements that give a role just what one of its kind needs. Raises SourceError if there is no such role."""
    to = _existing_role(connection, role)
    found = sources.every(connection)
    statements = [compose("GRANT USAGE ON SCHEMA outlier TO {role}", role=to)]
    if kind == "operator":
        return [
            *statements,
            compose("GRANT SELECT ON outlier.alembic_version, outlier.sources TO {role}", role=to),
            compose("GRANT SELECT, INSERT, UPDATE, DELETE ON outlier.schedules TO {role}", role=to),
            compose("GRANT SELECT ON outlier.schedule_events, outlier.beats TO {role}", role=to),
        ]
    if kind == "analyst":
        # The command line looks at these two before it shows a view.
        books = compose("GRANT SELECT ON outlier.alembic_version, outlier.sources TO {role}", role=to)
        # Who gave a verdict and when is left to PostgreSQL, and what was said cannot be unsaid.
        read = compose("GRANT SELECT ON outlier.verdicts, outlier.current_verdicts TO {role}", role=to)
        told = compose("GRANT SELECT ON outlier.flagged_notices TO {role}", role=to)
        say = compose("GRANT INSERT (source, key, verdict, note) ON outlier.verdicts TO {role}", role=to)
        return [*statements, books, read, say, told] + [
            compose("GRANT SELECT ON {view} TO {role}", view=ours(view, source.name), role=to)
            for source in found
            for view in (*source_views.VIEWS, *_VIEWS_OF_CHALLENGER)
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


def _existing_role(connection: Connection, role: str) -> sql.Composable:
    if not one(connection, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s)", (role,)):
        raise SourceError(
            f"There is no role {display(role)}; make it first: CREATE ROLE {display(role)} LOGIN;"
        )
    return identifier(role)
