"""Removing what belongs to rows of the user's that are gone, or older than scores are kept, a stretch of the keys in
each transaction, and what is older than it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.ddl import installation
from pgoutlier.db.source import catalog, expiry, identity
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, identifier, ours
from pgoutlier.db.sql.key_ranges import Stretch
from pgoutlier.db.sql.keys import Key
from pgoutlier.db.sql.statements import compose, run
from pgoutlier.db.upkeep import sweeping
from pgoutlier.db.upkeep.turns import Keys
from pgoutlier.db.versions.aliases import CHALLENGER

_ENDED = sql.SQL("status <> 'running'")


@dataclass(frozen=True)
class Prunable:
    """Rows of ours that there is a turn over, o in SQL. task: its name. gone: the condition on those of a stretch that
    are to go. partitioned: they lie in several tables."""

    task: str
    keys: Keys
    gone: Callable[[Stretch], sql.Composable]
    partitioned: bool = False


def prunable(connection: Connection, source: Source, *, keep_history_days: int) -> list[Prunable]:
    """Scores and quarantine entries without a row that may have one, scores of challengers that say nothing any more,
    and earlier scores without such a row or replaced longer ago than that; what there is of it, and this role may
    remove."""
    found = [_scores(connection, source), _quarantine(connection, source)]
    if "shadow_scores" not in installation.lacks_for_challenger(connection, source.definition):
        found.append(_challenger_scores(source))
    if catalog.has_table_privilege(connection, Relation(SCHEMA, f"score_history_{source.name}"), "DELETE"):
        found.append(_history(connection, source, keep_history_days))
    return found


def remove(connection: Connection, source: Source, what: Prunable, stretch: Stretch) -> int:
    """Delete what is to go of a stretch. Returns how many.

    Raises TableReplaced if it was another table that was read.
    """
    parts = {
        "table": what.keys.relation.sql(),
        "rows": what.keys.rows,
        "stretch": stretch.has(what.keys.key),
        "gone": what.gone(stretch),
    }
    if what.partitioned:
        n_removed = _remove_from_partitions(connection, source.definition.key, parts)
    else:
        # By ctid: what is written anew meanwhile has moved, and stays. As an array, since a join would be planned as
        # one with the whole table.
        statement = compose(
            "DELETE FROM {table} d WHERE d.ctid = ANY (ARRAY("
            "SELECT o.ctid FROM {rows} AND {stretch} AND {gone}))",
            **parts,
        )
        n_removed = run(connection, statement).rowcount
    identity.check(connection, source)
    return n_removed


def _remove_from_partitions(connection: Connection, key: Key, parts: dict[str, sql.Composable]) -> int:
    """The same of rows in partitions, where a ctid is that of a row in each.

    Joined by key, by which the one partition is found; by ctid all of them would be looked into for each row.
    """
    statement = compose(
        "WITH found AS MATERIALIZED (SELECT {keys}, o.tableoid AS partition, o.ctid AS place FROM {rows} AND {stretch}"
        " AND {gone}) DELETE FROM {table} o USING found f WHERE {stretch} AND {same} AND o.tableoid = f.partition"
        " AND o.ctid = f.place",
        keys=key.ours("o"),
        same=key.same("o", "f"),
        **parts,
    )
    run(connection, "SET LOCAL enable_tidscan = off")
    n_removed = run(connection, statement).rowcount
    run(connection, "SET LOCAL enable_tidscan TO DEFAULT")
    return n_removed


def prune_books(
    connection: Connection,
    source: Source,
    *,
    keep_training_runs: int,
    keep_drift_reports: int,
    keep_jobs: int,
) -> int:
    """Delete all but the newest jobs, training runs and drift reports. Returns how many."""
    return sum(
        _all_but_newest(connection, table, source.id, keep, which=which)
        for table, keep, which in (
            ("training_runs", keep_training_runs, _ENDED),
            ("jobs", keep_jobs, _ENDED),
            ("drift_reports", keep_drift_reports, sql.SQL("true")),
        )
    )


def _keys(source: Source, kind: str) -> Keys:
    relation = Relation(SCHEMA, f"{kind}_{source.name}")
    rows = compose("{table} o WHERE true", table=relation.sql())
    return Keys(rows, source.definition.key.in_ours("o"), relation)


def _scores(connection: Connection, source: Source) -> Prunable:
    return Prunable(
        "scores",
        _keys(source, "scores"),
        _without_row(connection, source, "scores"),
        partitioned=source.definition.score_partitions is not None,
    )


def _without_row(connection: Connection, source: Source, kind: str) -> Callable[[Stretch], sql.Composable]:
    """The condition on o that the user's row is gone, or older than scores are kept."""
    definition = source.definition
    key, relation = definition.key, definition.relation.sql()
    kept = expiry.kept(connection, definition, "t")
    if not sweeping.same_order(connection, definition):
        missing = compose(
            "NOT EXISTS (SELECT FROM {relation} t WHERE {same} AND {kept})",
            relation=relation,
            same=key.is_of("t", "o"),
            kept=kept,
        )
        return lambda _: missing
    return lambda stretch: _among(
        key,
        ours(kind, source.name),
        compose(
            "SELECT {row} FROM {relation} t WHERE {stretch} AND {kept}",
            row=key.theirs("t"),
            relation=relation,
            stretch=stretch.has(key.in_theirs("t")),
            kept=kept,
        ),
        stretch,
    )


def _among(key: Key, table: sql.Composable, there: sql.Composable, stretch: Stretch) -> sql.Composed:
    """The condition on o that its key is in the table and not `there`: both are read in the order of their indexes,
    where NOT EXISTS may be planned as a probe for each."""
    gone = compose(
        "SELECT {keys} FROM {table} k WHERE {stretch} EXCEPT {there}",
        keys=key.ours("k"),
        table=table,
        stretch=stretch.has(key.in_ours("k")),
        there=there,
    )
    if key.is_single:
        return compose("o.key = ANY (ARRAY({gone}))", gone=gone)
    return compose("({keys}) IN ({gone})", keys=key.ours("o"), gone=gone)


def _challenger_scores(source: Source) -> Prunable:
    """Those without a score, and those of other versions once there is a new challenger.

    Until a new one is set, those of the last challenger stay to be looked at.
    """
    key = source.definition.key

    def gone(stretch: Stretch) -> sql.Composable:
        return compose(
            "(o.model_version <> (SELECT a.version FROM outlier.model_aliases a WHERE a.source_id = {source_id}"
            " AND a.alias = {challenger}) OR {without_score})",
            source_id=sql.Literal(source.id),
            challenger=sql.Literal(CHALLENGER),
            without_score=_among(
                key,
                ours("shadow_scores", source.name),
                compose(
                    "SELECT {keys} FROM {scores} s WHERE {stretch}",
                    keys=key.ours("s"),
                    scores=ours("scores", source.name),
                    stretch=stretch.has(key.in_ours("s")),
                ),
                stretch,
            ),
        )

    return Prunable(
        "challenger",
        _keys(source, "shadow_scores"),
        gone,
        partitioned=source.definition.score_partitions is not None,
    )


def _history(connection: Connection, source: Source, days: int) -> Prunable:
    without_row = _without_row(connection, source, "score_history")
    return Prunable(
        "history",
        _keys(source, "score_history"),
        lambda stretch: compose(
            "(o.replaced_at < now() - make_interval(days => {days}) OR {without_row})",
            days=sql.Literal(days),
            without_row=without_row(stretch),
        ),
    )


def _quarantine(connection: Connection, source: Source) -> Prunable:
    relation = Relation(SCHEMA, "quarantine")
    rows = compose(
        "{table} o WHERE o.source_id = {source_id}", table=relation.sql(), source_id=sql.Literal(source.id)
    )
    gone = compose(
        "NOT EXISTS (SELECT FROM {relation} t WHERE {same} AND {kept})",
        relation=source.definition.relation.sql(),
        kept=expiry.kept(connection, source.definition, "t"),
        same=source.definition.key.is_text_of("t", sql.SQL("o.key")),
    )
    as_text = Key(("key",), ("text",))
    return Prunable("quarantine", Keys(rows, as_text.in_ours("o"), relation), lambda _: gone)


def _all_but_newest(
    connection: Connection, table: str, source_id: int, keep: int, *, which: sql.Composable
) -> int:
    """Delete what is none of the source's newest, of those to which the condition applies. Returns how many."""
    return run(
        connection,
        compose(
            "DELETE FROM {table} WHERE source_id = %(source_id)s AND {which} AND id NOT IN"
            " (SELECT id FROM {table} WHERE source_id = %(source_id)s ORDER BY id DESC LIMIT %(keep)s)",
            table=identifier(SCHEMA, table),
            which=which,
        ),
        {"source_id": source_id, "keep": keep},
    ).rowcount
