"""Triggers on tables that we write and the user may have triggers on: those find names as in any session of the role.

Names are what says when a trigger of a statement fires: these are the first and the last.
"""

from __future__ import annotations

from psycopg import sql

from pgoutlier.db.sql.identifiers import identifier
from pgoutlier.db.sql.statements import compose

_TRIGGERS = {"BEFORE": (" outlier_path", "begin_users_path"), "AFTER": ("~outlier_path", "end_users_path")}


def create(table: sql.Composable) -> list[sql.Composed]:
    """Statements that make them on a table of ours, and mend them when they are run again."""
    return [
        compose(
            "CREATE OR REPLACE TRIGGER {name} {when} INSERT OR UPDATE OR DELETE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION outlier.{function}()",
            name=identifier(name),
            when=sql.SQL(when),
            table=table,
            function=identifier(function),
        )
        for when, (name, function) in _TRIGGERS.items()
    ]
