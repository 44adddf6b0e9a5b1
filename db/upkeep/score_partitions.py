"""Partitions of scores that have come to their end: those whose range has no row of the user's any more, and those
whose scores are all older than they are kept."""

from __future__ import annotations

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.ddl.lock_waits import LOCK_WAIT
from pgoutlier.db.scoring import queue, score_partitions
from pgoutlier.db.scoring.score_partitions import Partition
from pgoutlier.db.source import catalog, expiry, identity
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql.identifiers import SCHEMA, identifier, ours
from pgoutlier.db.sql.statements import as_text, compose, one, run
from pgoutlier.db.training import training_runs

# Nobody reads or writes scores while it is looked for a row once more.
_LONGEST_LOOK = "1s"


def ended(connection: Connection, source: Source) -> list[Partition]:
    """Those that have, the oldest first. No lock is taken that anybody waits for."""
    definition = source.definition
    by_index = _finds_rows(connection, definition)
    return [
        partition
        for partition in score_partitions.listed(connection, definition)
        if one(connection, _has_ended(definition, partition, by_index=by_index))
    ]


def drop(connection: Connection, source: Source, partition: Partition) -> bool:
    """Drop one that has ended, with what is in it; False if it has not, as seen while nobody is at work on scores.

    A row that comes afterwards has its score in another partition. Raises LockNotAvailable where a lock is not to be
    had at once, QueryCanceled where looking for a row takes long, TableReplaced if it was another table that was read.
    """
    definition = source.definition
    run(
        connection,
        "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true)",
        (LOCK_WAIT, _LONGEST_LOOK),
    )
    # In the order of workers: the user's table, the scores, those of the challenger.
    queue.hold_tables(connection, definition)
    tables = sql.SQL(", ").join(
        compose("ONLY {table}", table=ours(kind, source.name)) for kind in score_partitions.KINDS
    )
    run(connection, compose("LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE", tables=tables))
    by_index = _finds_rows(connection, definition)
    if not one(connection, _has_ended(definition, partition, by_index=by_index)):
        return False
    table = identifier(SCHEMA, score_partitions.name("scores", source.name, partition.first))
    training_runs.forget_scored(connection, source.id, [as_text(table)])
    score_partitions.drop(connection, definition, partition.first)
    identity.check(connection, source)
    return True


def _has_ended(source: SourceDefinition, partition: Partition, *, by_index: bool) -> sql.Composed:
    """SELECT of that. by_index: the user's rows of its range are found without reading others."""
    scores = compose(
        "EXISTS (SELECT FROM {scores} s WHERE {there})",
        scores=ours("scores", source.name),
        there=partition.covers(identifier("s", score_partitions.column(source))),
    )
    rows = scores
    if by_index:
        rows = compose(
            "({scores} AND EXISTS (SELECT FROM {relation} t WHERE {there}))",
            scores=scores,
            relation=source.relation.sql(),
            there=partition.covers(identifier("t", source.key.columns[source.key_time or 0])),
        )
    return compose(
        "SELECT {upper} <= {now} AND (({expired}) OR NOT {rows})",
        upper=partition.upper,
        now=expiry.oldest(source, 0, source.key.types[source.key_time or 0]),
        expired=_has_expired(source, partition, scores),
        rows=rows,
    )


def _has_expired(source: SourceDefinition, partition: Partition, scores: sql.Composable) -> sql.Composable:
    if source.keep_scores_days is None:
        return sql.SQL("false")
    oldest = expiry.oldest(source, source.keep_scores_days, source.key.types[source.key_time or 0])
    expired = compose("{upper} <= {oldest}", upper=partition.upper, oldest=oldest)
    # Columns in the table follow what is deleted, which no trigger sees of a partition that is dropped.
    return (
        compose("{expired} AND NOT {scores}", expired=expired, scores=scores)
        if source.write_columns
        else expired
    )


def _finds_rows(connection: Connection, source: SourceDefinition) -> bool:
    """Whether rows of a range of time are found without reading the whole table: by partitions, or by an index."""
    time = source.key.columns[source.key_time or 0]
    if catalog.partition_columns(connection, source.relation).get(time):
        return True
    return catalog.index_on(connection, source.relation, time) is not None
