"""How long scores are kept: a row that is older than that is, to all upkeep, as if it were gone.

The age is the row's own, by a column of its table, and not that of the score: so what finds rows without a score can
tell which of them are to have none, and a score that has gone does not come back. Scores in partitions are kept until
all of their partition are too old, which then goes as a whole.
"""

from __future__ import annotations

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.identifiers import identifier
from pgoutlier.db.sql.statements import compose

_EVERY = sql.SQL("true")
_KINDS = {
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
    "date": "date",
}


def kept(connection: Connection, source: SourceDefinition, row: str) -> sql.Composable:
    """SQL for whether a row of the user's is young enough to have a score; true where scores are kept with their rows.

    One without a time is, and one that is dated ahead. What is no time any more expires never.
    """
    column = source.expires_by
    if source.keep_scores_days is None or column is None:
        return _EVERY
    found = catalog.inspect(connection, source.relation).columns.get(column)
    if found is None or found.type_name not in _KINDS:
        return _EVERY
    return compose(
        "({column} >= {oldest}) IS NOT FALSE",
        column=identifier(row, column),
        oldest=oldest(source, source.keep_scores_days, _KINDS[found.type_name]),
    )


def oldest(source: SourceDefinition, days: int, kind: str) -> sql.Composable:
    """SQL of the least time that is young enough, of a type of times in db.sql.key_types."""
    # In hours, for the length of a day may depend on the session's time zone.
    moment = compose("timezone('UTC', now() - make_interval(hours => {n}))", n=sql.Literal(24 * days))
    if source.score_partitions is not None:
        moment = compose("date_trunc({p}, {m})", p=sql.Literal(source.score_partitions), m=moment)
    if kind == "timestamptz":
        return compose("timezone('UTC', {m})", m=moment)
    return compose("{m}::{kind}", m=moment, kind=key_types.scalar_type(kind))
