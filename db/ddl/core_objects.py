"""The objects made for each source: queue, scores, triggers, views. `attach --dry-run` prints exactly these.

Those of its shadow are in db.ddl.challenger_objects.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

from psycopg import sql

from pgoutlier.db.ddl import challenger_objects, history_objects, notice_objects, source_views
from pgoutlier.db.scoring import write_back
from pgoutlier.db.scoring.queue import KEYS_PER_QUEUE_ROW
from pgoutlier.db.source.definition import WRITTEN_COLUMNS, SourceDefinition
from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.identifiers import CHANNEL, identifier, ours
from pgoutlier.db.sql.statements import as_text, compose, dollar_quote

TRIGGERS = ("insert", "update")


def create(
    source: SourceDefinition, source_columns: tuple[str, ...], *, by_event_time: bool
) -> list[sql.Composed]:
    """Statements that make a source's objects, in order; the columns of write_columns have to be there.

    Arguments as for `source_views.views`.
    """
    return [
        *_queue(source),
        *_scores(source),
        # Before those on the user's table: workers lock the scores, and then write that.
        *(write_back.create(source) if source.write_columns else []),
        *(_trigger_function(source, source_columns, event) for event in TRIGGERS),
        *(_close_function(source, event) for event in TRIGGERS),
        *(_trigger(source, event) for event in TRIGGERS),
        *source_views.views(source, source_columns, by_event_time=by_event_time).values(),
        *(s for statements in shadow(source, source_columns).values() for s in statements),
    ]


def shadow(source: SourceDefinition, source_columns: tuple[str, ...]) -> dict[str, list[sql.Composed]]:
    """Those of them that make each object of the source's shadow, by db.ddl.challenger_objects.KINDS."""
    return challenger_objects.create(
        source, source_views.shown(source_columns, beside=challenger_objects.COMPARED_COLUMNS)
    )


def drop(source: SourceDefinition) -> list[sql.Composed]:
    """Statements that remove them all and leave the user's table as it was.

    The triggers go with their functions: that needs no ownership of the table, and works where the table was
    renamed or dropped.
    """
    views = [
        compose("DROP VIEW IF EXISTS {view}", view=ours(view, source.name)) for view in source_views.VIEWS
    ]
    functions = [
        compose("DROP FUNCTION IF EXISTS {f}() CASCADE", f=_function(source.name, event))
        for event in TRIGGERS
    ]
    tables = [
        compose("DROP TABLE IF EXISTS {table}", table=ours(table, source.name))
        for table in ("scores", "queue")
    ]
    followers = [*history_objects.drop(source), *notice_objects.drop(source.name), *write_back.drop(source)]
    return [*challenger_objects.drop(source), *views, *functions, *followers, *tables]


def trigger_name(source_name: str, event: str) -> sql.Composable:
    return identifier(f"outlier_{source_name}_{event}")


def _function(source_name: str, event: str) -> sql.Composable:
    return ours(f"enqueue_{event}", source_name)


def _queue(source: SourceDefinition) -> list[sql.Composed]:
    queue = ours("queue", source.name)
    return [
        compose(
            """
CREATE TABLE {queue} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    change_id bigint,
    keys {keys} NOT NULL,
    n_keys integer NOT NULL,
    queued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    not_before timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    rescore boolean NOT NULL DEFAULT false,
    last_error text
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0.5, autovacuum_analyze_scale_factor = 0.5)""",
            queue=queue,
            keys=key_types.array_type(source.key_type),
        ),
        # Compressing key arrays took more of the writer's time than all the rest of the trigger.
        compose("ALTER TABLE {queue} ALTER COLUMN keys SET STORAGE EXTERNAL", queue=queue),
    ]


def _scores(source: SourceDefinition) -> list[sql.Composed]:
    scores = ours("scores", source.name)
    return [
        compose(
            """
CREATE TABLE {scores} (
    key {key} PRIMARY KEY,
    change_id bigint NOT NULL,
    reconstruction_error double precision NOT NULL,
    scored_at timestamptz NOT NULL DEFAULT now(),
    model_version integer NOT NULL,
    flagged boolean NOT NULL,
    top_features jsonb
)""",
            scores=scores,
            key=key_types.scalar_type(source.key_type),
        ),
        compose(
            "CREATE INDEX {name} ON {scores} (scored_at, reconstruction_error) WHERE flagged",
            name=identifier(f"scores_{source.name}_flagged_idx"),
            scores=scores,
        ),
    ]


def _trigger_function(source: SourceDefinition, columns: tuple[str, ...], event: str) -> sql.Composed:
    """Collects the statement's keys. SECURITY DEFINER: the writer needs no right on our schema.

    An UPDATE counts where a feature changed, compared as stored bytes: that needs no operator of the column's
    type, so none can be planted in the writer's search path.
    """
    body = compose(
        """
DECLARE
    changed {keys};
    n integer;
BEGIN
    {collect}
    n := cardinality(changed);
    IF n IS NULL THEN
        RETURN NULL;
    END IF;
    IF n <= {chunk} THEN
        INSERT INTO {queue} (keys, n_keys, rescore) VALUES (changed, n, {rescore});
    ELSE
        INSERT INTO {queue} (keys, n_keys, rescore) {chunked};
    END IF;
    PERFORM pg_notify({channel}, {source});
    RETURN NULL;
END
""",
        keys=key_types.array_type(source.key_type),
        collect=_collect(source, columns, event),
        chunk=sql.Literal(KEYS_PER_QUEUE_ROW),
        queue=ours("queue", source.name),
        rescore=sql.Literal(event == "update"),
        chunked=_chunks(source, event),
        channel=sql.Literal(CHANNEL),
        source=sql.Literal(source.name),
    )
    return compose(
        """
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS {quote}{body}{quote}""",
        function=_function(source.name, event),
        quote=dollar_quote(as_text(body)),
        body=body,
    )


def _collect(source: SourceDefinition, columns: tuple[str, ...], event: str) -> sql.Composed:
    """Sets `changed`. Where a feature column was dropped or renamed, the writer's UPDATE still works."""
    template: LiteralString = "SELECT array_agg(r.{key}) INTO changed FROM {rows};"
    key = identifier(source.key_column)
    exact = compose(template, key=key, rows=_changed_rows(source, columns, event))
    if event == "insert":
        return exact
    return compose(
        """BEGIN
        {exact}
    EXCEPTION WHEN undefined_column THEN
        {every}
    END;""",
        exact=exact,
        every=compose(template, key=key, rows=sql.SQL("new_rows r")),
    )


def _changed_rows(source: SourceDefinition, columns: tuple[str, ...], event: str) -> sql.Composable:
    key = identifier(source.key_column)
    if event == "insert":
        return sql.SQL("new_rows r")
    if source.feature_view is not None:  # any column may feed the view
        changed: sql.Composable = sql.SQL("r OPERATOR(pg_catalog.*<>) o")
        if source.write_columns:
            # Where we have written, the columns that were there at attach are looked at, all but ours.
            changed = compose(
                "{changed} AND ({same} OR {others})",
                changed=changed,
                same=_compared(WRITTEN_COLUMNS, sql.SQL("*=")),
                others=_compared(columns, sql.SQL("*<>")),
            )
    else:
        looked_at = dict.fromkeys(feature.column for feature in source.features)
        # A row that moves to another place in time, or to another entity, has other rows before it.
        if source.time_column is not None:
            looked_at |= dict.fromkeys(filter(None, (source.time_column, source.entity_column)))
        changed = _compared(looked_at, sql.SQL("*<>"))
    return compose(
        "new_rows r LEFT JOIN old_rows o ON o.{key} = r.{key} WHERE o.{key} IS NULL OR ({changed})",
        key=key,
        changed=changed,
    )


def _compared(columns: Iterable[str], operator: sql.SQL) -> sql.Composed:
    """These columns of r and o, as stored bytes."""
    both = [
        # Without the cast, two ROW() are compared column by column, each by an operator of its type.
        sql.SQL("ROW({})::record").format(
            sql.SQL(", ").join(
                compose("{t}.{c}", t=sql.SQL(side), c=identifier(column)) for column in columns
            )
        )
        for side in ("r", "o")
    ]
    return compose("{new} OPERATOR(pg_catalog.{operator}) {old}", new=both[0], operator=operator, old=both[1])


def _chunks(source: SourceDefinition, event: str) -> sql.Composable:
    """Slices of a long key array. Slicing an array of text walks it from the start, so that is numbered."""
    parts = {"n": sql.Literal(KEYS_PER_QUEUE_ROW), "rescore": sql.Literal(event == "update")}
    if source.key_type == "text":
        return compose(
            "SELECT array_agg(s.k), count(*), {rescore} FROM (SELECT u.k, (row_number() OVER () - 1) / {n}"
            " AS chunk FROM unnest(changed) AS u (k)) AS s GROUP BY s.chunk ORDER BY s.chunk",
            **parts,
        )
    return compose(
        "SELECT changed[g.first : g.first + {n} - 1], least({n}, n - g.first + 1), {rescore}"
        " FROM generate_series(1, n, {n}) AS g (first)",
        **parts,
    )


def _close_function(source: SourceDefinition, event: str) -> sql.Composed:
    return compose("REVOKE ALL ON FUNCTION {f}() FROM PUBLIC", f=_function(source.name, event))


def _trigger(source: SourceDefinition, event: str) -> sql.Composed:
    """PostgreSQL allows a transition table on a single event without a column list, so each event has its own."""
    return compose(
        "CREATE OR REPLACE TRIGGER {trigger} AFTER {event} ON {relation}"
        " REFERENCING NEW TABLE AS new_rows{old} FOR EACH STATEMENT EXECUTE FUNCTION {f}()",
        trigger=trigger_name(source.name, event),
        event=sql.SQL("UPDATE" if event == "update" else "INSERT"),
        relation=source.relation.sql(),
        old=sql.SQL(" OLD TABLE AS old_rows" if event == "update" else ""),
        f=_function(source.name, event),
    )


def script(statements: list[sql.Composed]) -> str:
    """The statements as one SQL script."""
    return "".join(f"{as_text(statement).strip()};\n" for statement in statements)
