"""A source whose table has changed under it: another key, or another table of its name."""

from __future__ import annotations

from psycopg import errors, sql
from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from pgoutlier.db.ddl import installation, queue_triggers, rekeying
from pgoutlier.db.ddl.lock_waits import run_ddl
from pgoutlier.db.errors import SourceError, first_line
from pgoutlier.db.source import catalog, identity
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, as_argument, display, identifier, ours
from pgoutlier.db.sql.statements import compose, run

# Scores whose rows are looked for under another key, to see that the keys are the same.
_SAMPLE = 1_000


def rekey(connection: Connection, source: Source, definition: SourceDefinition) -> list[sql.Composed]:
    """Have our tables hold keys as the definition says, all but the queue, and remove what depends on their type.

    The tables of scores are written anew, and locked until the transaction ends. Returns the statements that do the
    same with the queue, to be run last. Raises SourceError if the keys cannot be the same ones.
    """
    _check_partitions(source, definition)
    old, new = source.definition, definition.key.type_shown
    anew = f"to score all rows anew under it: pgoutlier adopt {source.name} --key {as_argument(definition.key.columns)}"
    if not rekeying.can_be_cast(old.key, definition.key):
        raise SourceError(
            f"The keys of {source.name} are of type {old.key.type_shown}, and scores cannot be kept under a key of type"
            f" {new}; {anew}"
        )
    try:
        _check_keys_are_the_same(connection, source, definition, anew)
        run_ddl(
            connection,
            old,
            [
                *rekeying.away(old),
                *rekeying.tables(connection, old, definition, empty=False),
                *rekeying.texts(old, source.id, definition),
            ],
        )
    except errors.DataError as error:
        raise SourceError(
            f"A key of {source.name} that has a score is none of type {new} ({first_line(error)}); {anew}"
        ) from None
    begin_upkeep_anew(connection, source.id)
    if not rekeying.keeps_order(old.key, definition.key):
        end_jobs(connection, source, "the type of the key has changed")
    return rekeying.queue(old, definition, empty=False)


def _check_partitions(source: Source, definition: SourceDefinition) -> None:
    """Raise SourceError if scores are partitioned by a column of the key that is another one now."""
    old, new, place = source.definition.key, definition.key, source.definition.key_time
    if source.definition.score_partitions is None or place is None:
        return
    if (len(old.types), place, old.types[place]) != (len(new.types), definition.key_time, new.types[place]):
        raise SourceError(
            f"The scores of {source.name} are partitioned by {display(old.columns[place])} ({old.types[place]}), and"
            f" its key is {definition.key.shown} ({', '.join(new.types)}) now, under which they cannot stay; export the"
            f" versions that are to stay (pgoutlier models export), then: pgoutlier detach {source.name}"
        )


def begin_upkeep_anew(connection: Connection, source_id: int, *, other_keys: bool = True) -> None:
    """Forget how far sweep and prune have come, and where the keys are others what the sweep has counted of them."""
    for table in ("upkeep_places", *(["error_turns"] if other_keys else [])):
        run(
            connection,
            compose("DELETE FROM {table} WHERE source_id = %s", table=identifier(SCHEMA, table)),
            (source_id,),
        )


def _check_keys_are_the_same(
    connection: Connection, source: Source, definition: SourceDefinition, anew: str
) -> None:
    n_scores, n_rows = run(
        connection,
        compose(
            "SELECT count(*), count(t.{first}) FROM (SELECT {cast} FROM {scores} s LIMIT {most}) s"
            " LEFT JOIN {relation} t ON {same}",
            first=identifier(definition.key_column),
            cast=sql.SQL(", ").join(
                compose("s.{c}::{type} AS {c}", c=identifier(name), type=key_types.scalar_type(kind))
                for name, kind in zip(definition.key.names, definition.key.types, strict=True)
            ),
            scores=ours("scores", source.name),
            most=sql.Literal(_SAMPLE),
            relation=definition.relation.sql(),
            same=definition.key.is_of("t", "s"),
        ),
    ).fetchone() or (0, 0)
    if n_scores and not n_rows:
        raise SourceError(
            f"No score of {source.name} is of a row that has its key in {definition.key.shown}, so the keys"
            f" are others; {anew}"
        )


def end_jobs(connection: Connection, source: Source, why: str) -> None:
    """End the jobs that are at work on old rows: their ranges are no longer what they were."""
    run(
        connection,
        "UPDATE outlier.jobs SET status = 'failed', problem = %s, finished_at = now()"
        " WHERE source_id = %s AND status = 'running'",
        (why, source.id),
    )


def adopt(
    connection: Connection, source: Source, definition: SourceDefinition, columns: tuple[str, ...]
) -> None:
    """Take the table that has the name now for the source's own, with no score yet; its rows are to be queued.

    Versions and notices stay, and verdicts and the history of scores where the key is of the same kind.

    Raises SourceError if another source has that table.
    """
    _check_partitions(source, definition)
    table = catalog.inspect(connection, definition.relation)
    _check_feature_view(connection, source, definition, table.oid)
    grants = installation.view_grants(connection, source.definition)
    old = source.definition
    # Earlier scores can be of the same rows, but not under keys of another kind, and no more can verdicts.
    same_kind = rekeying.keeps_order(old.key, definition.key)
    if not same_kind:
        run(
            connection,
            "INSERT INTO outlier.verdicts (source, key, verdict, note) SELECT c.source, c.key, 'withdrawn',"
            " 'the table was replaced by one with another key' FROM outlier.current_verdicts c WHERE c.source = %s",
            (old.name,),
        )
    end_jobs(connection, source, "the table was replaced")
    run(connection, "DELETE FROM outlier.quarantine WHERE source_id = %s", (source.id,))
    run(
        connection,
        # Rows that are there already are left to a job.
        "UPDATE outlier.sources SET relation = %s::oid, definition = %s, last_problem = NULL, columns_filled_at = NULL,"
        " attached_xid = pg_current_xact_id()::text::bigint WHERE id = %s",
        (table.oid, Jsonb(definition.model_dump(mode="json")), source.id),
    )
    emptied = [
        ours(kind, source.name)
        for kind in ("scores", "shadow_scores", "queue", *([] if same_kind else ["score_history"]))
        if catalog.exists(connection, Relation(SCHEMA, f"{kind}_{source.name}"))
    ]
    run_ddl(
        connection,
        old,
        [
            *rekeying.away(old),
            # The triggers go with their functions, from the old table.
            *queue_triggers.drop(source.name),
            compose("TRUNCATE {tables}", tables=sql.SQL(", ").join(emptied)),
            *rekeying.tables(connection, old, definition, empty=not same_kind),
            *rekeying.queue(old, definition, empty=True),
        ],
    )
    begin_upkeep_anew(connection, source.id)
    on_table = [
        *installation.columns_to_add(connection, definition),
        *installation.row_trigger_changes(connection, definition, None),
    ]
    installation.repair(connection, definition, columns, on_table=on_table, last=grants)
    identity.remember_columns(connection, source.name)


def _check_feature_view(
    connection: Connection, source: Source, definition: SourceDefinition, table_oid: int
) -> None:
    view, old = definition.feature_view, source.table_oid
    if view is None or old is None or old == table_oid:
        return
    if catalog.view_reads_table(connection, view, old):
        raise SourceError(
            f"The feature view {view} reads the table that was attached before, and not {definition.relation}; make it"
            f" again over {definition.relation}, then: pgoutlier adopt {source.name}"
        )
