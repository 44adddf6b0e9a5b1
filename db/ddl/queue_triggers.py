"""The triggers on the user's table, which put the keys of new and changed rows in the queue.

They run in the writer's own transaction, so they are guests there: what they cannot take is left to the sweep, a
statement of any size is taken, and NOTIFY, for which PostgreSQL lets one transaction of the whole server commit at a
time, is sent only where a listener sleeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

from psycopg import sql

from pgoutlier.db.scoring.queue import KEYS_PER_QUEUE_ROW
from pgoutlier.db.source.definition import WRITTEN_COLUMNS, SourceDefinition
from pgoutlier.db.sql import key_types, locks
from pgoutlier.db.sql.identifiers import CHANNEL, identifier, ours
from pgoutlier.db.sql.keys import Key
from pgoutlier.db.sql.statements import as_text, compose, dollar_quote

EVENTS = ("insert", "update")
# What logical replication applies fires triggers for each row alone.
ROW_EVENTS = ("insert_row", "update_row")
# Keys of text are as long as the user likes: so many fit in one array whatever their length, and in a queue row as many
# as make 10 MB, or one.
_FEW_TEXTS = 100
_BYTES_PER_TEXT = 1024
# PostgreSQL's FirstNormalObjectId: types with a smaller one are its own.
_FIRST_MADE_OID = 16384
_BY_A_KEY = sql.SQL(
    "undefined_column OR undefined_function OR datatype_mismatch OR cannot_coerce OR data_exception"
    " OR program_limit_exceeded"
)


def functions(source: SourceDefinition, columns: tuple[str, ...]) -> list[sql.Composed]:
    """Statements that make the functions, and mend them when they are run again.

    columns: those of the table that are the user's.
    """
    return [
        *(_function(source, columns, event) for event in EVENTS),
        *(_row_function(source, columns, event) for event in ROW_EVENTS),
        *(
            compose("REVOKE ALL ON FUNCTION {f}() FROM PUBLIC", f=_function_name(source.name, event))
            for event in (*EVENTS, *ROW_EVENTS)
        ),
    ]


def triggers(source: SourceDefinition) -> dict[str, sql.Composed]:
    """Statements that make the triggers, by their names; each locks the user's table."""
    return {trigger_name(source.name, event): _trigger(source, event) for event in EVENTS}


def row_triggers(source: SourceDefinition) -> dict[str, list[sql.Composed]]:
    """Statements that make those for each row, by their names: they fire only for what replication applies.

    Only the table's owner may say so of a trigger, see `ALTER TABLE`.
    """
    made = {}
    for event in ROW_EVENTS:
        name = trigger_name(source.name, event)
        made[name] = [
            compose(
                "CREATE TRIGGER {trigger} AFTER {event} ON {relation} FOR EACH ROW EXECUTE FUNCTION {f}()",
                trigger=identifier(name),
                event=sql.SQL("UPDATE" if event == "update_row" else "INSERT"),
                relation=source.relation.sql(),
                f=_function_name(source.name, event),
            ),
            compose(
                "ALTER TABLE {relation} ENABLE REPLICA TRIGGER {trigger}",
                relation=source.relation.sql(),
                trigger=identifier(name),
            ),
        ]
    return made


def drop_row_triggers(source: SourceDefinition, names: Iterable[str]) -> list[sql.Composed]:
    """Statements that remove them."""
    return [
        compose("DROP TRIGGER {trigger} ON {relation}", trigger=identifier(n), relation=source.relation.sql())
        for n in names
    ]


def drop(source_name: str) -> list[sql.Composed]:
    """Statements that remove them.

    The triggers go with their functions: that needs no ownership of the table, and works where the table was renamed
    or dropped.
    """
    return [
        compose("DROP FUNCTION IF EXISTS {f}() CASCADE", f=_function_name(source_name, event))
        for event in (*EVENTS, *ROW_EVENTS)
    ]


def trigger_name(source_name: str, event: str) -> str:
    return f"outlier_{source_name}_{event}"


def _function_name(source_name: str, event: str) -> sql.Composable:
    return ours(f"enqueue_{event}", source_name)


def _trigger(source: SourceDefinition, event: str) -> sql.Composed:
    """PostgreSQL allows a transition table on a single event without a column list, so each event has its own."""
    return compose(
        "CREATE TRIGGER {trigger} AFTER {event} ON {relation}"
        " REFERENCING NEW TABLE AS new_rows{old} FOR EACH STATEMENT EXECUTE FUNCTION {f}()",
        trigger=identifier(trigger_name(source.name, event)),
        event=sql.SQL("UPDATE" if event == "update" else "INSERT"),
        relation=source.relation.sql(),
        old=sql.SQL(" OLD TABLE AS old_rows" if event == "update" else ""),
        f=_function_name(source.name, event),
    )


def _function(source: SourceDefinition, columns: tuple[str, ...], event: str) -> sql.Composed:
    """SECURITY DEFINER: the writer needs no right on our schema.

    A plan is kept for the session, and was made for as many rows as the first statement had: without nested loops it
    does for the next one, too.
    """
    body = compose(
        """
DECLARE
    {variables};
    n bigint;
    every boolean := false;
BEGIN
    {collect}
    IF n = 0 THEN
        RETURN NULL;
    ELSIF n <= {few} THEN
        INSERT INTO {queue} ({keys}, n_keys, rescore) VALUES ({changed}, n, {rescore});
    ELSE
        {chunks}
    END IF;
    {ring}
    RETURN NULL;
END
""",
        variables=_variables(source.key),
        keys=source.key.arrays(),
        changed=_gathered_in(source.key),
        few=sql.Literal(_few(source)),
        collect=_collect(source, columns, event),
        queue=ours("queue", source.name),
        rescore=sql.Literal(event == "update"),
        chunks=_chunks(source, columns, event),
        ring=_ring(source),
    )
    return compose(
        """
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp{plan} AS {quote}{body}{quote}""",
        function=_function_name(source.name, event),
        plan=sql.SQL(" SET enable_nestloop = off" if event == "update" else ""),
        quote=dollar_quote(as_text(body)),
        body=body,
    )


def _row_function(source: SourceDefinition, columns: tuple[str, ...], event: str) -> sql.Composed:
    """The same for one row. What it cannot read is left to the sweep here, too: an error would stop the replication."""
    key = source.key
    changed: sql.Composable = sql.SQL("true")
    if event == "update_row":
        changed = compose(
            "ROW({old}) IS DISTINCT FROM ROW({new}) OR ({changed})",
            old=_columns("OLD", key.columns),
            new=_columns("NEW", key.columns),
            changed=_changed(source, columns, new="NEW", old="OLD"),
        )
    body = compose(
        """
DECLARE
    {variables};
    counts boolean;
BEGIN
    BEGIN
        {guards}
        BEGIN
            counts := {changed};
        EXCEPTION WHEN OTHERS THEN
            counts := true;
        END;
        IF counts IS NOT TRUE THEN
            RETURN NULL;
        END IF;
        {gather}
    EXCEPTION WHEN OTHERS THEN
        RETURN NULL;
    END;
    INSERT INTO {queue} ({keys}, n_keys, rescore) VALUES ({gathered}, 1, {rescore});
    {ring}
    RETURN NULL;
END
""",
        variables=_variables(key),
        guards=_guards(compose("pg_typeof(NEW.{c})::oid", c=identifier(column)) for column in key.columns),
        changed=changed,
        gather=sql.SQL("\n        ").join(
            compose("{v} := ARRAY[NEW.{c}];", v=identifier(variable), c=identifier(column))
            for variable, column in zip(_changed_keys(key), key.columns, strict=True)
        ),
        keys=key.arrays(),
        gathered=_gathered_in(key),
        queue=ours("queue", source.name),
        rescore=sql.Literal(event == "update_row"),
        ring=_ring(source),
    )
    return compose(
        """
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS {quote}{body}{quote}""",
        function=_function_name(source.name, event),
        quote=dollar_quote(as_text(body)),
        body=body,
    )


def _few(source: SourceDefinition) -> int:
    """How many keys are gathered in a variable first; a statement of more is read by the queue's INSERT itself."""
    return _FEW_TEXTS if source.key.has_text else KEYS_PER_QUEUE_ROW


def _changed_keys(key: Key) -> tuple[str, ...]:
    """The variables that keys are gathered in, an array a column."""
    return tuple(f"changed_{name}" for name in key.array_names)


def _variables(key: Key) -> sql.Composable:
    return sql.SQL(";\n    ").join(
        compose("{v} {type}", v=identifier(variable), type=key_types.array_type(kind))
        for variable, kind in zip(_changed_keys(key), key.types, strict=True)
    )


def _gathered_in(key: Key) -> sql.Composable:
    return sql.SQL(", ").join(map(identifier, _changed_keys(key)))


def _columns(row: LiteralString, columns: Iterable[str]) -> sql.Composable:
    return sql.SQL(", ").join(compose("{r}.{c}", r=sql.SQL(row), c=identifier(column)) for column in columns)


def _collect(source: SourceDefinition, columns: tuple[str, ...], event: str) -> sql.Composed:
    """Sets the variables of `_changed_keys`, and `n`, which is more than `_few` where the statement has more keys.

    Where the key was renamed, dropped or given another type, the writer is let through, and doctor says so. Where a
    feature was, every row of an UPDATE counts. The block holds no write: it costs the writer no transaction number.
    Keys of PostgreSQL's own types are gathered at once, for the check of others takes as long as gathering does.
    """
    key = source.key
    # Of one column without an aggregate, which costs a statement of one row a microsecond.
    template: LiteralString = """changed_keys := ARRAY(
            SELECT c.key FROM (SELECT {keys} FROM {rows}) c WHERE {own_types} LIMIT {most});
        n := cardinality(changed_keys);
        IF n = 0 THEN
            IF {made_types} THEN
                {guards}
                changed_keys := ARRAY(SELECT c.key FROM (SELECT {keys} FROM {rows}) c LIMIT {most});
                n := cardinality(changed_keys);
            END IF;
        END IF;"""
    if not key.is_single:
        template = """SELECT {gathered}, count(*) INTO {variables}, n
        FROM (SELECT * FROM (SELECT {keys} FROM {rows}) c WHERE {own_types} LIMIT {most}) c;
        IF n = 0 THEN
            IF {made_types} THEN
                {guards}
                SELECT {gathered}, count(*) INTO {variables}, n FROM (SELECT {keys} FROM {rows} LIMIT {most}) c;
            END IF;
        END IF;"""
    made = sql.Literal(_FIRST_MADE_OID)
    types = [
        compose("(SELECT pg_typeof(r.{c})::oid FROM new_rows r LIMIT 1)", c=identifier(column))
        for column in key.columns
    ]
    parts = {
        "keys": key.theirs_as_ours("r"),
        "own_types": sql.SQL(" AND ").join(
            compose("pg_typeof(c.{c})::oid < {made}", c=identifier(name), made=made) for name in key.names
        ),
        "made_types": sql.SQL(" OR ").join(
            compose("{type} >= {made}", type=kind, made=made) for kind in types
        ),
        "guards": _guards(types),
        "gathered": key.gathered("c"),
        "variables": _gathered_in(key),
        "most": sql.Literal(_few(source) + 1),
    }
    handler: sql.Composable = sql.SQL("RETURN NULL;")
    if event == "update":
        handler = compose(
            """every := true;
        BEGIN
            {collect}
        EXCEPTION WHEN OTHERS THEN
            RETURN NULL;
        END;""",
            collect=compose(template, rows=sql.SQL("new_rows r"), **parts),
        )
    return compose(
        """BEGIN
        {collect}
    EXCEPTION WHEN OTHERS THEN
        {handler}
    END;""",
        collect=compose(template, rows=_changed_rows(source, columns, event), **parts),
        handler=handler,
    )


def _guards(types: Iterable[sql.Composed]) -> sql.Composable:
    """`_guard` of those of these types that are not PostgreSQL's own."""
    return sql.SQL("\n        ").join(
        compose(
            "IF {type} >= {made} THEN {guard} END IF;",
            type=kind,
            made=sql.Literal(_FIRST_MADE_OID),
            guard=_guard(kind),
        )
        for kind in types
    )


def _guard(type_of_key: sql.Composed) -> sql.Composed:
    """Ends the function where the key has a type that somebody made and that is no domain of one of PostgreSQL's.

    A cast of such a type, to that of our keys, is its maker's function, and would run with our rights.
    """
    return compose(
        """IF EXISTS (
            WITH RECURSIVE base (oid) AS (
                SELECT {type_of_key}
                UNION ALL
                SELECT t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype = 'd'
            )
            SELECT FROM base b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype <> 'd' AND t.oid >= {made}
        ) THEN
            RETURN NULL;
        END IF;""",
        type_of_key=type_of_key,
        made=sql.Literal(_FIRST_MADE_OID),
    )


def _chunks(source: SourceDefinition, columns: tuple[str, ...], event: str) -> sql.Composed:
    """Queue rows straight from the transition table, whatever its size; again the writer is let through by a key that
    does not fit. What else may go wrong is the writer's to know of: nobody would find an UPDATE that was not queued."""
    position: sql.Composable = sql.SQL("row_number() OVER ()")
    key = source.key
    if key.has_text:
        texts = [c for c, kind in zip(key.columns, key.types, strict=True) if kind == "text"]
        position = compose(
            "sum(greatest(1, ({bytes}) / {size})) OVER (ROWS UNBOUNDED PRECEDING)",
            bytes=sql.SQL(" + ").join(compose("octet_length(r.{c}::text)", c=identifier(c)) for c in texts),
            size=sql.Literal(_BYTES_PER_TEXT),
        )
    template: LiteralString = (
        "INSERT INTO {queue} ({arrays}, n_keys, rescore) SELECT {gathered}, count(*), {rescore}"
        " FROM (SELECT {keys}, ({position} - 1) / {n} AS chunk FROM {rows}) s GROUP BY s.chunk ORDER BY s.chunk;"
    )
    parts = {
        "queue": ours("queue", source.name),
        "arrays": key.arrays(),
        "gathered": key.gathered("s"),
        "keys": key.theirs_as_ours("r"),
        "rescore": sql.Literal(event == "update"),
        "position": position,
        "n": sql.Literal(KEYS_PER_QUEUE_ROW),
    }
    inserted = compose(template, rows=_changed_rows(source, columns, event), **parts)
    if event == "update":
        inserted = compose(
            """IF every THEN
                {every}
            ELSE
                {inserted}
            END IF;""",
            every=compose(template, rows=sql.SQL("new_rows r"), **parts),
            inserted=inserted,
        )
    return compose(
        """BEGIN
            {inserted}
        EXCEPTION WHEN {by_a_key} THEN
            RETURN NULL;
        END;""",
        inserted=inserted,
        by_a_key=_BY_A_KEY,
    )


def _ring(source: SourceDefinition) -> sql.Composed:
    """NOTIFY where a listener sleeps: one holds this lock then, which is tried and given back at once.

    Not where transactions may be prepared, because one that has notified cannot be: there the listener finds the row
    when it looks next. One expression, because a second statement takes as long as all of this.
    """
    return compose(
        """IF (CASE WHEN pg_try_advisory_lock_shared({lock}) THEN pg_advisory_unlock_shared({lock}) ELSE false END) THEN
        NULL;
    ELSIF current_setting('max_prepared_transactions') = '0' THEN
        PERFORM pg_notify({channel}, {source});
    END IF;""",
        lock=locks.listener_sleeps(sql.Literal(source.name)),
        channel=sql.Literal(CHANNEL),
        source=sql.Literal(source.name),
    )


def _changed_rows(source: SourceDefinition, columns: tuple[str, ...], event: str) -> sql.Composable:
    """FROM and WHERE of the rows r that count."""
    if event == "insert":
        return sql.SQL("new_rows r")
    return compose(
        "new_rows r LEFT JOIN old_rows o ON {same} WHERE o.{key} IS NULL OR ({changed})",
        same=source.key.same_row("o", "r"),
        key=identifier(source.key_column),
        changed=_changed(source, columns, new="r", old="o"),
    )


def _changed(
    source: SourceDefinition, columns: tuple[str, ...], *, new: LiteralString, old: LiteralString
) -> sql.Composable:
    """Whether an UPDATE of a row counts: where a feature changed.

    Compared as stored bytes: that needs no operator of the column's type, so none can be planted in the writer's search
    path.
    """

    def compared(of: Iterable[str], operator: sql.SQL) -> sql.Composed:
        return _compared(of, operator, new=new, old=old)

    if source.feature_view is None:
        looked_at = dict.fromkeys(column for feature in source.features for column in feature.columns)
        # A row that moves to another place in time, or to another entity, has other rows before it.
        if source.time_column is not None:
            looked_at |= dict.fromkeys(filter(None, (source.time_column, source.entity_column)))
        return compared(looked_at, sql.SQL("*<>"))
    # Any column may feed the view.
    changed = compose("{new} OPERATOR(pg_catalog.*<>) {old}", new=sql.SQL(new), old=sql.SQL(old))
    if not source.write_columns:
        return changed
    # Where we have written, the columns that were there at attach are looked at, all but ours.
    return compose(
        "{changed} AND ({same} OR {others})",
        changed=changed,
        same=compared(WRITTEN_COLUMNS, sql.SQL("*=")),
        others=compared(columns, sql.SQL("*<>")),
    )


def _compared(
    columns: Iterable[str], operator: sql.SQL, *, new: LiteralString, old: LiteralString
) -> sql.Composed:
    """These columns of both rows, as stored bytes."""
    both = [
        # Without the cast, two ROW() are compared column by column, each by an operator of its type.
        sql.SQL("ROW({})::record").format(
            sql.SQL(", ").join(
                compose("{t}.{c}", t=sql.SQL(side), c=identifier(column)) for column in columns
            )
        )
        for side in (new, old)
    ]
    return compose("{new} OPERATOR(pg_catalog.{operator}) {old}", new=both[0], operator=operator, old=both[1])
