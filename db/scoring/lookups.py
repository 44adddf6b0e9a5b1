"""How rows of the user's table are found by the keys of claimed queue rows.

By one column it is one scan of an index. By several columns PostgreSQL looks each key up by itself, which takes three
times as long as the rest of the read: so where the table's statistics allow, an index is scanned for many keys at once
here, too. Partitions are told to the planner, which would else open, lock and plan every one of them for any batch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod
from typing import Literal

from psycopg import sql
from sqlalchemy import URL, Connection

from pgoutlier.db.scoring.queue import KEYS_PER_QUEUE_ROW, Claim
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.identifiers import Relation, as_literal, identifier, ours
from pgoutlier.db.sql.keys import Key
from pgoutlier.db.sql.statements import as_text, compose, run

# Of so many values of a column that a table is partitioned by each is named, of more the first and the last.
_FEW_VALUES = 100
# So few keys are looked up one by one, whatever the table is like.
_FEW_KEYS = 200
# Rows to a value of the index's first column, on average, up to which all of them are read to find the claimed ones.
_ALIKE = 3.0
# Keys to a group, on average, from which on a scan for each group is quicker than one for each key.
_WORTH_A_GROUP = 4.0
_KNOWN_FOR_SECONDS = 60.0


Way = Literal["each", "by_first", "in_groups"]


@dataclass(frozen=True)
class Layout:
    """What of a table says how its rows are found by a key of several columns, or in partitions.

    way: of many keys. each: key by key. by_first: by one column that is nearly unique, the others compared in memory.
    in_groups: all keys at once that differ in one column alone. place: of that column in the key.
    partitioned_by: places of the columns of the key that the table is partitioned by, on whatever level, and whether
    each is a range.
    """

    way: Way = "each"
    place: int = 0
    partitioned_by: tuple[tuple[int, bool], ...] = ()


def joined(
    connection: Connection, source: SourceDefinition, relation: Relation, claim: Claim
) -> sql.Composable:
    """FROM items of the queue rows q, which have id and change_id, and rows t of a relation whose keys stand in them.

    The claimed ones of them (`q.id = ANY (%(ids)s)`) are for the caller to ask for; of others t may be lacking.
    """
    key, of_relation = source.key, relation.sql()
    layout = _layout(connection, source)
    those = _partitions(connection, source, claim, layout)
    queue = ours("queue", source.name)
    if key.is_single:
        column = compose("{k} OPERATOR(pg_catalog.=) ANY (q.keys)", k=key.theirs("t"))
        return compose("{queue} q JOIN {t} t ON {c}{p}", queue=queue, t=of_relation, c=column, p=those)
    way = layout.way if claim.n_keys > _FEW_KEYS else "each"
    parts = {
        "queue": queue,
        "t": of_relation,
        "p": those,
        "keys": key.unnested("q", "w"),
        "same": key.is_of("t", "w"),
        "column": identifier("t", key.columns[layout.place]),
        "array": identifier("q", key.array_names[layout.place]),
    }
    if way == "by_first":
        return compose(
            "{queue} q JOIN {t} t ON {column} OPERATOR(pg_catalog.=) ANY ({array}){p}"
            # A sublink that is compared once more stays a hash table, where the planner would else join. With the queue
            # row: a key may stand in one claimed row, and its value of this column in another, of another change.
            " AND ((q.id, {theirs}) OPERATOR(pg_catalog.=) ANY (SELECT c.id, {ours} FROM {queue} c"
            " CROSS JOIN LATERAL {of_claimed} WHERE c.id OPERATOR(pg_catalog.=) ANY (%(ids)s))) IS TRUE",
            theirs=key.theirs("t"),
            ours=key.ours("w"),
            of_claimed=key.unnested("c", "w"),
            **parts,
        )
    if way == "in_groups":
        return compose(
            "(SELECT q.id, q.change_id, {others}, pg_catalog.array_agg({gathered}) AS {name} FROM {queue} q"
            " CROSS JOIN LATERAL {keys} GROUP BY q.id, q.change_id, {others}) q"
            " JOIN {t} t ON {same_others} AND {column} OPERATOR(pg_catalog.=) ANY ({array}){p}",
            others=_but(key, layout.place, "w"),
            gathered=identifier("w", key.names[layout.place]),
            name=identifier(key.array_names[layout.place]),
            same_others=_same_but(key, layout.place),
            **parts,
        )
    return compose("{queue} q CROSS JOIN LATERAL {keys} JOIN {t} t ON {same}{p}", **parts)


def _but(key: Key, place: int, table: str) -> sql.Composable:
    names = [name for n, name in enumerate(key.names) if n != place]
    return sql.SQL(", ").join(identifier(table, name) for name in names)


def _same_but(key: Key, place: int) -> sql.Composable:
    pairs = [pair for n, pair in enumerate(zip(key.columns, key.names, strict=True)) if n != place]
    return sql.SQL(" AND ").join(
        compose("{c} OPERATOR(pg_catalog.=) {k}", c=identifier("t", column), k=identifier("q", name))
        for column, name in pairs
    )


_known: dict[tuple[URL, SourceDefinition], tuple[float, Layout]] = {}


def _layout(connection: Connection, source: SourceDefinition) -> Layout:
    """Looked at anew from time to time, as tables grow: any of them finds the same rows."""
    now, which = time.monotonic(), (connection.engine.url, source)
    until, layout = _known.get(which, (0.0, Layout()))
    if now < until:
        return layout
    if len(_known) > 1_000:
        _known.clear()
    layout = _look(connection, source)
    _known[which] = now + _KNOWN_FOR_SECONDS, layout
    return layout


def _look(connection: Connection, source: SourceDefinition) -> Layout:
    key, table = source.key, as_text(source.relation.sql())
    columns = catalog.partition_columns(connection, source.relation)
    by = tuple((key.columns.index(name), ranged) for name, ranged in columns.items() if name in key.columns)
    if key.is_single:
        return Layout(partitioned_by=by)
    found = run(
        connection,
        # A partitioned table has statistics of its own only where somebody asked for them: so, those of its largest
        # partition. n_distinct is negative for a share of the rows.
        "WITH t AS (SELECT c.oid, n.nspname, c.relname, c.reltuples FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND (c.oid = to_regclass(%(table)s)"
        " OR c.oid IN (SELECT p.relid FROM pg_partition_tree(to_regclass(%(table)s)) p))"
        " ORDER BY c.reltuples DESC LIMIT 1)"
        " SELECT t.reltuples, (SELECT array_agg(CASE WHEN s.n_distinct < 0 THEN -s.n_distinct * t.reltuples"
        " ELSE s.n_distinct END ORDER BY k.place) FROM unnest(%(columns)s::text[]) WITH ORDINALITY k (name, place)"
        " LEFT JOIN pg_stats s ON s.schemaname = t.nspname AND s.tablename = t.relname AND s.attname = k.name"
        " AND NOT s.inherited),"
        " ARRAY(SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid"
        " AND a.attnum = i.indkey[0] WHERE i.indrelid = t.oid AND i.indisvalid AND i.indpred IS NULL) FROM t",
        {"table": table, "columns": list(key.columns)},
    ).fetchone()
    if found is None or found[1] is None or None in found[1] or found[0] <= 0:
        return Layout(partitioned_by=by)
    way, place = _quickest(
        key, float(found[0]), [max(1.0, float(n)) for n in found[1]], first_of_an_index=found[2]
    )
    return Layout(way, place, by)


def _quickest(
    key: Key, n_rows: float, distinct: list[float], *, first_of_an_index: list[str]
) -> tuple[Way, int]:
    """The way for many keys, and the place of the column that it goes by."""
    place = max(range(len(distinct)), key=lambda n: distinct[n])
    if key.columns[place] in first_of_an_index and n_rows / distinct[place] <= _ALIKE:
        return "by_first", place
    n_groups = prod(n for k, n in enumerate(distinct) if k != place)
    return ("in_groups" if n_groups * _WORTH_A_GROUP <= KEYS_PER_QUEUE_ROW else "each"), place


def _partitions(
    connection: Connection, source: SourceDefinition, claim: Claim, layout: Layout
) -> sql.Composable:
    """AND and a condition on rows t, of constants, that all claimed rows meet; nothing without partitions."""
    conditions = [
        _partition(connection, source, claim, place, ranged=ranged) for place, ranged in layout.partitioned_by
    ]
    return sql.SQL("").join(condition for condition in conditions if condition is not None)


def _partition(
    connection: Connection, source: SourceDefinition, claim: Claim, place: int, *, ranged: bool
) -> sql.Composable | None:
    """The same of the column at this place of the key; None where its values tell nothing."""
    key, kind = source.key, source.key.types[place]
    column = identifier("k", key.names[place])
    parts = {
        "c": column,
        "in_order": compose("{c}::text", c=column) if kind == "uuid" else column,
        "keys": compose(
            "FROM {queue} q, {keys} WHERE q.id = ANY (%(ids)s)",
            queue=ours("queue", source.name),
            keys=key.unnested("q"),
        ),
        "theirs": identifier("t", key.columns[place]),
        "type": key_types.scalar_type(kind),
        "array": key_types.array_type(kind),
    }
    ids = {"ids": claim.queue_ids}
    # Which texts lie between two of them depends on the collation of the user's column.
    by_ends = ranged and kind != "text"
    if claim.n_keys <= _FEW_VALUES or not by_ends:
        most = sql.Literal(_FEW_VALUES + 1)
        distinct = compose("SELECT DISTINCT {c}::text {keys} LIMIT {most}", most=most, **parts)
        values = [value for (value,) in run(connection, distinct, ids).fetchall()]
        if 0 < len(values) <= _FEW_VALUES:
            few = as_literal(values)
            return compose(" AND {theirs} OPERATOR(pg_catalog.=) ANY ({few}::{array})", few=few, **parts)
    if kind == "text":
        return None
    ends = compose("SELECT min({in_order})::text, max({in_order})::text {keys}", **parts)
    first, last = run(connection, ends, ids).fetchone() or (None, None)
    if first is None:
        return None
    return compose(
        " AND {theirs} OPERATOR(pg_catalog.>=) {first}::{type}"
        " AND {theirs} OPERATOR(pg_catalog.<=) {last}::{type}",
        first=as_literal(first),
        last=as_literal(last),
        **parts,
    )
