"""The current score of each row, kept in two columns of the user's own table: what attach --write-columns makes.

Statement triggers on scores_<source> copy what was written there, so every way of writing a score is covered.
Whoever writes the columns of a row holds its score in the same transaction, so of two writers the later one has the
later score. A row that another transaction has locked is never waited for: its key is queued once more, with the
change of the score that could not be copied, and that score is made and copied again later.

The functions run with the rights and the search path of whoever scores, because the UPDATE fires the user's own
triggers: so every name in them is written in full.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.scoring.queue import KEYS_PER_QUEUE_ROW, NEIGHBOUR
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import WRITTEN_COLUMNS, Source, SourceDefinition
from pgoutlier.db.sql import key_types, locks
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, identifier, ours
from pgoutlier.db.sql.key_columns import values_in
from pgoutlier.db.sql.keys import Key
from pgoutlier.db.sql.statements import as_text, compose, dollar_quote, run

TRIGGERS = ("insert", "update", "delete")
# How long a row that somebody has locked is left alone, and one whose UPDATE an error of the user's refused.
_LOCKED_SECONDS = 3
_REFUSED_SECONDS = 300


def triggers(source: SourceDefinition) -> list[sql.Composed]:
    """Statements that make the triggers on the scores, by these functions."""
    return [_trigger(source, event) for event in TRIGGERS]


def functions(source: SourceDefinition) -> list[sql.Composed]:
    """Statements that make the functions."""
    return [
        _function(
            compose("{f}{signature}", f=_writer(source.name), signature=_arguments(source)), _write(source)
        ),
        _function(
            compose("{f}()", f=_trigger_function(source.name)), _copy(source), returns=sql.SQL("trigger")
        ),
    ]


def drop(source: SourceDefinition) -> list[sql.Composed]:
    """Statements that remove them again, wherever they are."""
    return [
        compose("DROP FUNCTION IF EXISTS {f}() CASCADE", f=_trigger_function(source.name)),
        compose(
            "DROP FUNCTION IF EXISTS {f}{signature}", f=_writer(source.name), signature=_arguments(source)
        ),
    ]


def _writer(source_name: str) -> sql.Composable:
    return ours("write_columns", source_name)


def _trigger_function(source_name: str) -> sql.Composable:
    return ours("write_back", source_name)


def trigger_name(event: str) -> str:
    return f"write_back_{event}"


def _arguments(source: SourceDefinition) -> sql.Composed:
    return compose(
        "({keys}, change_ids bigint[], errors double precision[], flags boolean[])",
        keys=_declared(source.key, source.key.array_names),
    )


def _declared(key: Key, names: Iterable[str], separator: LiteralString = ", ") -> sql.Composable:
    """Arrays of the key's types under these names: arguments, or variables."""
    return sql.SQL(separator).join(
        compose("{name} {type}", name=identifier(name), type=key_types.array_type(kind))
        for name, kind in zip(names, key.types, strict=True)
    )


def _function(
    head: sql.Composable, body: sql.Composed, *, returns: sql.Composable = sql.SQL("void")
) -> sql.Composed:
    return compose(
        "CREATE OR REPLACE FUNCTION {head} RETURNS {returns}\nLANGUAGE plpgsql AS {quote}{body}{quote}",
        head=head,
        returns=returns,
        quote=dollar_quote(as_text(body)),
        body=body,
    )


def _trigger(source: SourceDefinition, event: str) -> sql.Composed:
    return compose(
        "CREATE OR REPLACE TRIGGER {name} AFTER {event} ON {scores} REFERENCING {rows}"
        " FOR EACH STATEMENT EXECUTE FUNCTION {f}()",
        name=identifier(trigger_name(event)),
        event=sql.SQL({"insert": "INSERT", "update": "UPDATE", "delete": "DELETE"}[event]),
        scores=ours("scores", source.name),
        rows=sql.SQL("OLD TABLE AS old_rows" if event == "delete" else "NEW TABLE AS new_rows"),
        f=_trigger_function(source.name),
    )


def _copy(source: SourceDefinition) -> sql.Composed:
    """Version 0 has only held the place of a score, see db.scoring.quarantine.take_places."""
    collect = compose("{keys}, pg_catalog.array_agg(s.change_id)", keys=source.key.gathered("s"))
    return compose(
        """
BEGIN
    IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
        PERFORM {writer}({collect}, pg_catalog.array_agg(NULL::double precision), pg_catalog.array_agg(NULL::boolean))
        FROM old_rows s;
    ELSE
        PERFORM {writer}({collect}, pg_catalog.array_agg(s.reconstruction_error), pg_catalog.array_agg(s.flagged))
        FROM new_rows s WHERE s.model_version OPERATOR(pg_catalog.>) 0;
    END IF;
    RETURN NULL;
END
""",
        writer=_writer(source.name),
        collect=collect,
    )


def _write(source: SourceDefinition) -> sql.Composed:
    """Locks the rows that differ and nobody else has locked, updates them, and queues the others of those again.

    Triggers of the user's, deferred ones too, run in here, with the search_path that a session of this role has by
    default; around them it is the worker's own, see db.engine.secure.

    An array out of a subquery has no known length, so rows are looked up by key; else the planner read a table of
    100,000 rows as a whole for every batch.
    """
    error, flag = (identifier(name) for name in WRITTEN_COLUMNS)
    key = source.key
    mine, refused = (tuple(f"{what}_{name}" for name in key.array_names) for what in ("mine", "refused"))
    return compose(
        """
#variable_conflict use_variable
DECLARE
    {variables};
    mine_errors double precision[];
    mine_flags boolean[];
    complaint text;
    path text := pg_catalog.current_setting('search_path');
BEGIN
    SELECT {gathered}, pg_catalog.array_agg(l.error), pg_catalog.array_agg(l.flag)
    INTO {mine}, mine_errors, mine_flags
    FROM (
        SELECT {key_of_g}, g.error, g.flag
        FROM unnest({keys}, (SELECT errors), (SELECT flags)) AS g ({key}, error, flag)
        JOIN {relation} t ON {same}
        WHERE {differs} FOR NO KEY UPDATE OF t SKIP LOCKED
    ) l;
    IF mine_errors IS NOT NULL THEN
        SET LOCAL search_path TO DEFAULT;
        BEGIN
            UPDATE {relation} t SET {error} = g.error, {flag} = g.flag
            FROM unnest({my_keys}, (SELECT mine_errors), (SELECT mine_flags)) AS g ({key}, error, flag)
            WHERE {same};
            SET CONSTRAINTS ALL IMMEDIATE;
        EXCEPTION WHEN {by_a_row} THEN
            FOR i IN 1 .. pg_catalog.cardinality(mine_errors) LOOP
                BEGIN
                    UPDATE {relation} t SET {error} = mine_errors[i], {flag} = mine_flags[i]
                    WHERE {same_as_ith};
                    SET CONSTRAINTS ALL IMMEDIATE;
                EXCEPTION WHEN {by_a_row} THEN
                    {refuse}
                    complaint := SQLERRM;
                END;
            END LOOP;
        END;
        PERFORM pg_catalog.set_config('search_path', path, true);
    END IF;
    IF complaint IS NOT NULL THEN
        {queue_refused}
    END IF;
    IF mine_errors IS NULL
       OR pg_catalog.cardinality(mine_errors) OPERATOR(pg_catalog.<) pg_catalog.cardinality(errors) THEN
        {queue_locked}
    END IF;
END
""",
        variables=sql.SQL(";\n    ").join(_declared(key, names, ";\n    ") for names in (mine, refused)),
        gathered=key.gathered("l"),
        mine=_list(mine),
        key=key.ours(),
        key_of_g=key.ours("g"),
        keys=_in_subqueries(key.array_names),
        my_keys=_in_subqueries(mine),
        relation=source.relation.sql(),
        same=key.is_of("t", "g"),
        same_as_ith=sql.SQL(" AND ").join(
            compose("{c} OPERATOR(pg_catalog.=) {m}[i]", c=identifier("t", c), m=identifier(m))
            for c, m in zip(key.columns, mine, strict=True)
        ),
        refuse=sql.SQL("\n                    ").join(
            compose("{r} := pg_catalog.array_append({r}, {m}[i]);", r=identifier(r), m=identifier(m))
            for r, m in zip(refused, mine, strict=True)
        ),
        error=error,
        flag=flag,
        differs=_differs(),
        # Data, integrity, RAISE: what a constraint or trigger of the user's says to one row, as in
        # worker.scoring.failures.
        by_a_row=sql.SQL(
            "data_exception OR integrity_constraint_violation OR cardinality_violation OR plpgsql_error"
            " OR external_routine_exception OR external_routine_invocation_exception"
        ),
        queue_refused=_queue_again(
            source,
            _among(key, refused),
            seconds=_REFUSED_SECONDS,
            problem=sql.SQL("pg_catalog.concat('columns not written: ', complaint)"),
        ),
        queue_locked=_queue_again(
            source,
            compose(
                "{differs} AND NOT {among_mine}",
                differs=_differs(),
                among_mine=_among(key, mine),
            ),
            seconds=_LOCKED_SECONDS,
            problem=sql.SQL("NULL"),
        ),
    )


def _list(names: Iterable[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(identifier, names))


def _in_subqueries(names: Iterable[str]) -> sql.Composable:
    return sql.SQL(", ").join(compose("(SELECT {name})", name=identifier(name)) for name in names)


def _among(key: Key, arrays: tuple[str, ...]) -> sql.Composable:
    """Whether the key of g is among those of these variables."""
    return compose(
        "EXISTS (SELECT FROM {unnest}({arrays}) AS m ({key}) WHERE {same})",
        unnest=sql.SQL("pg_catalog.unnest" if key.is_single else "unnest"),
        arrays=_list(arrays),
        key=key.ours(),
        same=key.same("m", "g"),
    )


def _differs() -> sql.Composed:
    """Compared as stored bytes, as the trigger on the user's table compares features."""
    return compose(
        "ROW({ours})::record OPERATOR(pg_catalog.*<>) ROW(g.error, g.flag)::record", ours=_both("t")
    )


def _both(table: str) -> sql.Composable:
    return sql.SQL(", ").join(
        compose("{t}.{c}", t=identifier(table), c=identifier(name)) for name in WRITTEN_COLUMNS
    )


def _queue_again(
    source: SourceDefinition, condition: sql.Composable, *, seconds: int, problem: sql.Composable
) -> sql.Composed:
    """Under the change of the score, so that it outranks no later one; where claims draw ids, as a neighbour."""
    change = sql.Literal(NEIGHBOUR) if source.time_column else sql.SQL("g.change_id")
    return compose(
        """INSERT INTO {queue} (change_id, {arrays}, n_keys, rescore, not_before, last_error)
        SELECT r.change_id, {gathered}, pg_catalog.count(*), true,
               pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => {seconds}),
               {problem}
        FROM (
            SELECT {change} AS change_id, {key_of_g}, pg_catalog.row_number() OVER (PARTITION BY {change})
                   OPERATOR(pg_catalog./) {chunk} AS chunk
            FROM unnest({keys}, (SELECT change_ids), (SELECT errors), (SELECT flags))
                 AS g ({key}, change_id, error, flag)
            JOIN {relation} t ON {same} WHERE {condition}
        ) r GROUP BY r.change_id, r.chunk;""",
        queue=ours("queue", source.name),
        seconds=sql.Literal(seconds),
        problem=problem,
        change=change,
        chunk=sql.Literal(KEYS_PER_QUEUE_ROW),
        arrays=source.key.arrays(),
        gathered=source.key.gathered("r"),
        key=source.key.ours(),
        key_of_g=source.key.ours("g"),
        keys=_in_subqueries(source.key.array_names),
        relation=source.relation.sql(),
        same=source.key.is_of("t", "g"),
        condition=condition,
    )


def lacks(connection: Connection, source: SourceDefinition) -> list[str]:
    """What is not there of the columns, and of the triggers on the scores that fire for ordinary sessions."""
    columns = catalog.inspect(connection, source.relation).columns
    triggers = catalog.live_triggers(connection, Relation(SCHEMA, f"scores_{source.name}"))
    return [
        *(f"column {name}" for name in WRITTEN_COLUMNS if name not in columns),
        *(
            f"trigger {trigger_name(event)} on outlier.scores_{source.name}"
            for event in TRIGGERS
            if trigger_name(event) not in triggers
        ),
    ]


def fill(
    connection: Connection, source: Source, *, after: str | None, at_most: int
) -> tuple[int, str | None]:
    """Copy stored scores into the rows, those of the next keys behind `after` (a key as text; None: from the first).

    Returns how many scores were looked at, and the last key of them; None when there are no more.
    """
    key = source.definition.key
    # One at a time: rows that another one has locked would be queued to be scored again.
    locks.hold(connection, "fill", source.id)
    row = run(
        connection,
        compose(
            # Held so that none of them changes before its copy is committed; in the order in which workers write them.
            """
            WITH held AS MATERIALIZED (
                SELECT {key_of_s}, s.change_id, s.reconstruction_error, s.flagged FROM {scores} s
                WHERE ({key_of_s}) IN (SELECT {key_of_p} FROM {scores} p {behind} ORDER BY {key_of_p} LIMIT %(at_most)s)
                ORDER BY {order} FOR SHARE OF s
            )
            SELECT count(*), (SELECT {text} FROM held l ORDER BY {last_first} LIMIT 1),
                   {writer}({gathered}, array_agg(h.change_id), array_agg(h.reconstruction_error), array_agg(h.flagged))
            FROM held h
            """,
            scores=ours("scores", source.name),
            key_of_s=key.ours("s"),
            key_of_p=key.ours("p"),
            behind=sql.SQL("")
            if after is None
            else compose(
                "WHERE {behind}",
                behind=key.in_ours("p").beside(">", values_in(key.types, sql.SQL("%(after)s"))),
            ),
            order=key.in_writing_order("s"),
            text=key.text("l"),
            last_first=key.in_ours("l").listed(descending=True),
            gathered=key.gathered("h"),
            writer=_writer(source.name),
        ),
        {"at_most": at_most, **({} if after is None else {"after": after})},
    ).fetchone()
    if row is None:
        raise AssertionError("an aggregate always returns one row")
    return int(row[0]), row[1]
