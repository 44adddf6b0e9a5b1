"""The objects made for each source: queue, scores, triggers, views. `attach --dry-run` prints exactly these.

Those for its challenger are in db.ddl.challenger_objects.
"""

from __future__ import annotations

from psycopg import sql

from pgoutlier.db.ddl import (
    challenger_objects,
    history_objects,
    migration_functions,
    notice_objects,
    partition_objects,
    path_triggers,
    queue_triggers,
    source_views,
)
from pgoutlier.db.scoring import score_partitions, write_back
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql.identifiers import identifier, ours
from pgoutlier.db.sql.statements import as_text, compose

# All views of a source, each before those that it needs.
VIEWS = (*challenger_objects.VIEWS, *source_views.VIEWS)


def create(
    source: SourceDefinition, source_columns: tuple[str, ...], *, by_event_time: bool
) -> list[sql.Composed]:
    """Statements that make a source's objects, in order, but for what is made of the user's table itself.

    Arguments as for `source_views.views`.
    """
    return [
        *_queue(source),
        *_scores(source),
        *functions(source, source_columns),
        *score_triggers(source),
        *source_views.views(source, source_columns, by_event_time=by_event_time).values(),
        source_views.share_rows(source),
        *(s for statements in challenger(source, source_columns).values() for s in statements),
        *([] if source.score_partitions is None else [score_partitions.ahead(source)]),
    ]


def functions(source: SourceDefinition, source_columns: tuple[str, ...]) -> list[sql.Composed]:
    """Those of them that make the functions, and mend them when they are run again."""
    return [
        *(write_back.functions(source) if source.write_columns else []),
        *queue_triggers.functions(source, source_columns),
        *partition_objects.functions(source),
    ]


def score_triggers(source: SourceDefinition) -> list[sql.Composed]:
    """Those of them that make the triggers on scores, and mend them when they are run again."""
    return [
        *(write_back.triggers(source) if source.write_columns else []),
        *path_triggers.create(ours("scores", source.name)),
    ]


def challenger(source: SourceDefinition, source_columns: tuple[str, ...]) -> dict[str, list[sql.Composed]]:
    """Those of them that make each object for the source's challenger, by db.ddl.challenger_objects.KINDS."""
    return challenger_objects.create(
        source, source_views.shown(source_columns, beside=challenger_objects.COMPARED_COLUMNS)
    )


def drop(source: SourceDefinition) -> list[sql.Composed]:
    """Statements that remove them all and leave the user's table as it was.

    Tables are locked in the order in which workers do: the user's, the scores, and the queue, for which writers wait.
    """
    return [
        *drop_views(source),
        *migration_functions.drop(source.name),
        *queue_triggers.drop(source.name),
        *notice_objects.drop(source.name),
        *write_back.drop(source),
        *partition_objects.drop(source.name),
        *history_objects.drop(source),
        compose("DROP TABLE IF EXISTS {table}", table=ours("scores", source.name)),
        *challenger_objects.drop(source),
        compose("DROP TABLE IF EXISTS {table}", table=ours("queue", source.name)),
    ]


def drop_views(source: SourceDefinition) -> list[sql.Composed]:
    """Those of them that remove the views."""
    return [compose("DROP VIEW IF EXISTS {view}", view=ours(view, source.name)) for view in VIEWS]


def _queue(source: SourceDefinition) -> list[sql.Composed]:
    queue = ours("queue", source.name)
    return [
        compose(
            """
CREATE TABLE {queue} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    change_id bigint,
    {keys},
    n_keys integer NOT NULL,
    queued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    not_before timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    rescore boolean NOT NULL DEFAULT false,
    last_error text
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0.5, autovacuum_analyze_scale_factor = 0.5)""",
            queue=queue,
            keys=sql.SQL(", ").join(source.key.array_definitions()),
        ),
        *uncompressed(source),
    ]


def uncompressed(source: SourceDefinition) -> list[sql.Composed]:
    """Statements that keep PostgreSQL from compressing arrays of keys, which took more of the writer's time than the
    rest of the trigger did."""
    return [
        compose(
            "ALTER TABLE {queue} ALTER COLUMN {keys} SET STORAGE EXTERNAL",
            queue=ours("queue", source.name),
            keys=identifier(name),
        )
        for name in source.key.array_names
    ]


def _scores(source: SourceDefinition) -> list[sql.Composed]:
    scores = ours("scores", source.name)
    return [
        compose(
            """
CREATE TABLE {scores} (
    {columns},
    change_id bigint NOT NULL,
    reconstruction_error double precision NOT NULL,
    scored_at timestamptz NOT NULL DEFAULT now(),
    model_version integer NOT NULL,
    flagged boolean NOT NULL,
    top_features jsonb,
    PRIMARY KEY ({key})
){partitioned}""",
            scores=scores,
            columns=sql.SQL(", ").join(source.key.definitions()),
            key=source.key.ours(),
            partitioned=partition_objects.clause(source),
        ),
        *partition_objects.rest(source, "scores"),
        compose(
            "CREATE INDEX {name} ON {scores} (scored_at, reconstruction_error) WHERE flagged",
            name=identifier(f"scores_{source.name}_flagged_idx"),
            scores=scores,
        ),
        time_index(source),
    ]


def time_index_name(source_name: str) -> str:
    """The name of the index that finds scores by when they were made."""
    return f"scores_{source_name}_time_idx"


def time_index(source: SourceDefinition) -> sql.Composed:
    """The statement that makes it. Scores lie about in the order in which they were made, so that an entry for a block
    of pages is enough, and writing it is hardly seen in a drain (decision 0031)."""
    return compose(
        "CREATE INDEX {name} ON {scores} USING brin (scored_at)",
        name=identifier(time_index_name(source.name)),
        scores=ours("scores", source.name),
    )


def script(statements: list[sql.Composed]) -> str:
    """The statements as one SQL script."""
    return "".join(f"{as_text(statement).strip()};\n" for statement in statements)
