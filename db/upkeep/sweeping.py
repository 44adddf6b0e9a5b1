"""The sweep: rows that have neither score nor queue entry, such as those that got past the triggers.

A look goes through what is new since the last one, which an index finds, and through the next stretches of all keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.scoring import queue
from pgoutlier.db.source import catalog, expiry
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, identifier, ours
from pgoutlier.db.sql.key_ranges import Stretch
from pgoutlier.db.sql.statements import compose, one, run
from pgoutlier.db.thresholds import error_counts
from pgoutlier.db.upkeep import turns
from pgoutlier.db.upkeep.turns import Keys

# Rows that commit out of order: so many of the last ones are looked at again.
_OVERLAP = 10_000
# Transaction numbers are compared around a circle: age() of anything older than this has wrapped.
_OLDEST_AGE = 2**31 - 2
# What the look at several tables at once may wait for a lock of somebody's, and take in all: one of them may turn out
# to be large.
_GROUP_PATIENCE = "100ms"
_GROUP_TIMEOUT = "5s"


def keys_of(source: SourceDefinition) -> Keys:
    """The keys of the user's table."""
    key = source.key.in_theirs("t")
    rows = compose("{relation} t WHERE {known}", relation=source.relation.sql(), known=key.are_known())
    return Keys(rows, key, source.relation)


def work(connection: Connection, source: Source, stretch: Stretch) -> int:
    """Queue the rows in a stretch of keys that were missed, and count its errors. Returns how many were missed."""
    definition = source.definition
    if same_order(connection, definition):
        n_rows = turns.n_rows(connection, definition.relation)
        error_counts.add(connection, source, stretch, n_rows=n_rows)
    return enter(connection, source, stretch)


def enter(connection: Connection, source: Source, stretch: Stretch) -> int:
    """Queue the rows in a stretch of keys that were missed. Returns how many.

    Rows written by transactions before source.attached_xid are left alone (they were there before attach); where that
    is None they are taken too. Those that are too old to have a score never are. Raises TableReplaced if it was
    another table that was read.
    """
    candidates = compose(
        "{rows} AND {stretch}",
        rows=_candidates(connection, source, _now_xid(connection)),
        stretch=stretch.has(keys_of(source.definition).key),
    )
    return queue.enter_missing(
        connection, source, _without(connection, source.definition, candidates, stretch)
    )


def small(connection: Connection, every: Sequence[Source]) -> list[list[Source]]:
    """Those of these sources whose rows and scores are few, in groups for `settled`."""
    # Of no table the size, which takes a lock that somebody may be keeping. What has no statistics yet may be larger.
    n_rows = dict(
        run(
            connection,
            "SELECT s.id, greatest(t.reltuples, pg_stat_get_live_tuples(t.oid), c.reltuples,"
            " pg_stat_get_live_tuples(c.oid), 0)::bigint FROM outlier.sources s"
            " JOIN pg_class t ON t.oid = s.relation::oid AND t.relkind = 'r'"
            " JOIN pg_class c ON c.oid = to_regclass(format('outlier.%%I', 'scores_' || s.name)) AND c.relkind = 'r'"
            " WHERE s.id = ANY (%s)",
            ([source.id for source in every if source.table_problem is None],),
        ).fetchall()
    )
    groups: list[list[Source]] = []
    n_grouped = 0
    for source in every:
        n_here = n_rows.get(source.id)
        if n_here is None or n_here >= turns.KEYS_PER_STRETCH:
            continue
        if not groups or n_grouped + n_here > turns.KEYS_PER_STRETCH or len(groups[-1]) >= queue.AT_ONCE:
            groups.append([])
            n_grouped = 0
        groups[-1].append(source)
        n_grouped += n_here
    return groups


def settled(connection: Connection, group: Sequence[Source]) -> set[int]:
    """Ids of those of a group of which every row has a score; all of it was looked at, and this is noted.

    Raises psycopg's LockNotAvailable if somebody has locked a table, and QueryCanceled if one is too large.
    """
    run(
        connection,
        "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true)",
        (_GROUP_PATIENCE, _GROUP_TIMEOUT),
    )
    now_xid = _now_xid(connection)
    looks = [
        compose(
            "SELECT {id}::bigint WHERE NOT EXISTS ({missing})",
            id=sql.Literal(source.id),
            missing=_probed(source.definition, _candidates(connection, source, now_xid)),
        )
        for source in group
    ]
    found = sorted(source_id for (source_id,) in run(connection, sql.SQL(" UNION ALL ").join(looks)))
    turns.note_whole(connection, found, turns.SWEEP)
    run(
        connection,
        "UPDATE outlier.sources SET swept_at = now() WHERE id IN"
        " (SELECT id FROM outlier.sources WHERE id = ANY (%s) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)",
        (found,),
    )
    return set(found)


def _candidates(connection: Connection, source: Source, now_xid: int) -> sql.Composed:
    """SELECT of the keys of rows that are to have a score; a condition may follow."""
    keys = keys_of(source.definition)
    return compose(
        "SELECT {key} FROM {rows} AND {newer} AND {kept}",
        key=keys.key.as_ours(),
        rows=keys.rows,
        newer=_newer(source, now_xid),
        # Not in `rows`, which the ends of stretches are sought in: those may lie behind many that are too old.
        kept=expiry.kept(connection, source.definition, "t"),
    )


def _without(
    connection: Connection, source: SourceDefinition, rows: sql.Composed, stretch: Stretch
) -> sql.Composed:
    """SELECT of the keys of `rows` that have no score."""
    if not same_order(connection, source):
        return _probed(source, rows)
    # Both sides are read in the order of their indexes; NOT EXISTS may be planned as a probe for each row.
    return compose(
        "{rows} EXCEPT SELECT {key} FROM {scores} s WHERE {stretch}",
        rows=rows,
        key=source.key.ours("s"),
        scores=ours("scores", source.name),
        stretch=stretch.has(source.key.in_ours("s")),
    )


def _probed(source: SourceDefinition, rows: sql.Composed) -> sql.Composed:
    """The same, by looking for each."""
    return compose(
        "SELECT {key} FROM ({rows}) c WHERE NOT EXISTS (SELECT FROM {scores} s WHERE {same})",
        key=source.key.ours("c"),
        same=source.key.same("s", "c"),
        rows=rows,
        scores=ours("scores", source.name),
    )


def same_order(connection: Connection, source: SourceDefinition) -> bool:
    """Whether our tables have the keys in the order of the user's: texts there may have a collation of their own."""
    ours_of_it, key = Relation(SCHEMA, f"scores_{source.name}"), source.key
    return all(
        catalog.collation(connection, source.relation, theirs)
        == catalog.collation(connection, ours_of_it, name)
        for theirs, name, kind in zip(key.columns, key.names, key.types, strict=True)
        if kind == "text"
    )


def _now_xid(connection: Connection) -> int:
    """The number of this transaction, for `_newer`."""
    return int(one(connection, "SELECT pg_current_xact_id()::text::bigint"))


def _newer(source: Source, now_xid: int) -> sql.Composable:
    """SQL for whether a row was written since attach."""
    if source.attached_xid is None:
        return sql.SQL("true")
    n_since = now_xid - source.attached_xid
    return compose("age(t.xmin) <= {n}", n=sql.Literal(min(n_since, _OLDEST_AGE)))


def enter_new(connection: Connection, source: Source, since: str) -> tuple[int, str | None]:
    """Queue the rows that were missed of those behind a key, or a time, of `newest`.

    Returns (how many, the key to go on behind, or None).
    """
    definition = source.definition
    by = _by(connection, definition)
    # Of a key of several columns the text is JSON. What was noted the other way says nothing any more.
    if by is None or (not definition.key.is_single and (by == "key") != since.startswith("[")):
        return 0, None
    if by == "key":
        stretch = turns.next_stretch(connection, keys_of(definition), since, n_keys=turns.KEYS_PER_STRETCH)
        return enter(connection, source, stretch), stretch.up_to
    moment = compose("t.{time}", time=identifier(definition.time_column or ""))
    rows = compose(
        "SELECT {key} FROM {rows} AND {moment} >= {since} AND {newer} AND {kept} ORDER BY {order} LIMIT {at_most}",
        key=definition.key.theirs_as_ours("t"),
        rows=keys_of(definition).rows,
        moment=moment,
        since=sql.Literal(since),
        newer=_newer(source, _now_xid(connection)),
        kept=expiry.kept(connection, definition, "t"),
        order=catalog.newest_first(connection, definition.relation, definition.time_column or "", "t"),
        at_most=sql.Literal(turns.KEYS_PER_STRETCH),
    )
    return queue.enter_missing(connection, source, _probed(definition, rows)), None


def end_look(connection: Connection, source: Source, newest: str | None) -> None:
    """Note that the source was swept, and behind which key or time rows are new to the next look."""
    turns.end_look(connection, source.id, turns.SWEEP, seen_to=newest)
    run(connection, "UPDATE outlier.sources SET swept_at = now() WHERE id = %s", (source.id,))


def newest(connection: Connection, source: SourceDefinition) -> str | None:
    """The key, or the time, behind which all but the last rows of now will be; None where there are few, or nothing
    tells which are the last."""
    order: sql.Composable
    by = _by(connection, source)
    if by == "key":
        key = source.key.in_theirs("t")
        found, known, order = key.text(), key.are_known(), key.listed(descending=True)
    elif by == "time":
        time = identifier("t", source.time_column or "")
        found, known = compose("{t}::text", t=time), compose("{t} IS NOT NULL", t=time)
        order = catalog.newest_first(connection, source.relation, source.time_column or "", "t")
    else:
        return None
    statement = compose(
        "SELECT {found} FROM {rows} AND {known} ORDER BY {order} OFFSET {n} LIMIT 1",
        found=found,
        known=known,
        rows=keys_of(source).rows,
        order=order,
        n=sql.Literal(_OVERLAP),
    )
    last: str | None = one(connection, statement)
    return last


def _by(connection: Connection, source: SourceDefinition) -> Literal["key", "time"] | None:
    """What says which rows are new: the key, where it is one number; else the time, where an index leads with it; else
    the key again, where its first column is a number."""
    if source.key.rises and source.key.is_single:
        return "key"
    if _by_time(connection, source):
        return "time"
    return "key" if source.key.rises else None


def _by_time(connection: Connection, source: SourceDefinition) -> bool:
    """Whether the newest rows are found by the time column: an index leads with it, and it is finer than days."""
    if source.time_column is None:
        return False
    column = catalog.inspect(connection, source.relation).columns.get(source.time_column)
    return (
        column is not None
        and column.type_name != "date"
        and catalog.index_on(connection, source.relation, source.time_column) is not None
    )
