"""The newest rows of a source's table, read by an index on its time column or on its key."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.source import catalog, labels, moments
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql import key_ranges
from pgoutlier.db.sql.identifiers import display, identifier
from pgoutlier.db.sql.key_columns import KeyColumns
from pgoutlier.db.sql.key_ranges import Stretch
from pgoutlier.db.sql.statements import compose


@dataclass(frozen=True)
class Window:
    """rows: SELECT of the newest rows: the key under our names, moment (event time, else key), entity, verdict, fraud.

    fraud: whether the row is known to be fraud, by a verdict or a label; NULL where nobody knows. span: where all of
    their keys lie with few others, None where they are scattered.
    """

    rows: sql.Composable
    span: Stretch | None

    def beside(self, key: KeyColumns) -> sql.Composable:
        """SQL to follow `key = w.key` in a join with the rows: it says where that key lies, so that the other table is
        read there and not probed for each row."""
        if self.span is None:
            return sql.SQL("")
        return compose(" AND {there}", there=self.span.has(key))


def newest_rows(connection: Connection, source: SourceDefinition, newest: int) -> Window:
    """The so many newest rows of the table; those without a time are older than all others.

    Rows whose dates are placeholders in the future would be the newest for ever: see `db.source.moments.until`.
    """
    by_index = _by_index(connection, source, newest)
    rows = compose(
        "SELECT {key}, r.moment, r.entity, v.verdict, {known} AS fraud FROM ({by_index}) r{verdicts}",
        key=source.key.ours("r"),
        known=labels.known(source, sql.SQL("r.label")),
        by_index=by_index,
        verdicts=labels.with_verdicts(source, "r", ours=True),
    )
    span = key_ranges.span(connection, compose("({rows}) k", rows=by_index), source.key)
    return Window(rows, span)


def missing_index(connection: Connection, source: SourceDefinition) -> str | None:
    """The CREATE INDEX that finds the newest rows by the time column, or None if there is one, or no such column."""
    time = source.time_column
    if time is None or catalog.index_on(connection, source.relation, time) is not None:
        return None
    # PostgreSQL makes none on a partitioned table without its writers waiting.
    partitioned = catalog.inspect(connection, source.relation).kind == "p"
    return f"CREATE INDEX{'' if partitioned else ' CONCURRENTLY'} ON {source.relation} ({display(time)});"


def _by_index(connection: Connection, source: SourceDefinition, newest: int) -> sql.Composed:
    """SELECT of key, moment, entity and label of the newest rows."""
    by = source.moment_column
    moment = compose("b.{by}", by=identifier(by))
    until = moments.until(connection, source, newest=newest)
    select = compose(
        "SELECT {key}, {moment} AS moment, {entity} AS entity, {label} AS label FROM {relation} b",
        key=source.key.theirs_as_ours("b"),
        moment=moment,
        # One entity for all, where there is no column that tells them apart.
        entity=compose("b.{e}", e=identifier(source.entity_column)) if source.entity_column else sql.SQL("0"),
        label=labels.by_column(source, "b"),
        relation=source.relation.sql(),
    )
    dated = compose(
        "{select} WHERE {moment} {limit} ORDER BY {order} LIMIT {newest}",
        select=select,
        moment=moment,
        limit=sql.SQL("IS NOT NULL") if until is None else compose("<= {until}", until=sql.Literal(until)),
        order=catalog.newest_first(connection, source.relation, by, "b"),
        newest=sql.Literal(newest),
    )
    if until is not None or catalog.inspect(connection, source.relation).column(by).not_null:
        return dated
    # The second part is not begun where the first one has enough.
    return compose(
        "SELECT * FROM (({dated}) UNION ALL ({select} WHERE {moment} IS NULL LIMIT {newest})) b LIMIT {newest}",
        dated=dated,
        select=select,
        moment=moment,
        newest=sql.Literal(newest),
    )
