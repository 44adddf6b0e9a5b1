"""The objects made for a source: made, looked for, and mended; db.ddl.core_objects says what they are."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import errors, sql
from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from pgoutlier.db.ddl import (
    challenger_objects,
    core_objects,
    history_objects,
    migration_functions,
    notice_objects,
    partition_objects,
    path_triggers,
    queue_triggers,
    source_views,
    written_columns,
)
from pgoutlier.db.ddl.lock_waits import run_ddl
from pgoutlier.db.errors import MissingPrivilege
from pgoutlier.db.scoring import score_partitions
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql import locks
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, identifier, ours
from pgoutlier.db.sql.statements import compose, one, run


def plan(
    connection: Connection,
    definition: SourceDefinition,
    columns: tuple[str, ...],
    *,
    row_triggers: bool | None = None,
) -> list[sql.Composed]:
    """The statements that `attach` runs; those that lock the user's table against writers are the last."""
    by_event_time = _by_event_time(connection, definition)
    made = core_objects.create(definition, columns, by_event_time=by_event_time)
    made += _barriers(connection, definition)
    made += migration_functions.create(connection, definition, by_event_time=by_event_time)
    made += _access_of_owner(connection, definition)
    triggers = queue_triggers.triggers(definition).values()
    for_rows = row_trigger_changes(connection, definition, row_triggers)
    return [*made, *columns_to_add(connection, definition), *triggers, *for_rows]


def row_trigger_changes(
    connection: Connection, definition: SourceDefinition, wanted: bool | None
) -> list[sql.Composed]:
    """Statements that make what is lacking of the triggers for replicated rows, or remove them.

    wanted: None for where a subscription writes the table and this role owns it, else they stay as they are. Raises
    MissingPrivilege if they are wanted and only the owner can make them.
    """
    present = catalog.trigger_states(connection, definition.relation)
    every = queue_triggers.row_triggers(definition)
    if wanted is False:
        return queue_triggers.drop_row_triggers(definition, [name for name in every if name in present])
    missing = [statement for name, made in every.items() if name not in present for statement in made]
    if not missing or (wanted is None and not catalog.is_subscribed(connection, definition.relation)):
        return []
    if not written_columns.may_alter(connection, definition.relation):
        if wanted is None:
            return []
        raise MissingPrivilege(
            f"Only an owner of {definition.relation} may make triggers for replicated rows; attach it as one."
        )
    return missing


def row_triggers_enabled(connection: Connection, definition: SourceDefinition) -> bool:
    """Whether those fire for what replication applies."""
    states = catalog.trigger_states(connection, definition.relation)
    return all(states.get(name) in {"R", "A"} for name in queue_triggers.row_triggers(definition))


def columns_to_add(connection: Connection, definition: SourceDefinition) -> list[sql.Composed]:
    """Those of them that add the columns of `--write-columns` to the user's table."""
    if not definition.write_columns:
        return []
    return written_columns.add(catalog.inspect(connection, definition.relation))


def _by_event_time(connection: Connection, definition: SourceDefinition) -> bool:
    return catalog.is_time(connection, definition.relation, definition.time_column)


def run_our_ddl(
    connection: Connection, definition: SourceDefinition, statements: Sequence[sql.Composed]
) -> None:
    """Statements on a source's objects, as `run_ddl` runs them, and not beside an attach."""
    locks.hold(connection, "attach")
    run_ddl(connection, definition, statements)


def repair(
    connection: Connection,
    definition: SourceDefinition,
    columns: tuple[str, ...],
    *,
    on_table: Sequence[sql.Composed] = (),
    last: Sequence[sql.Composed] = (),
) -> None:
    """Make triggers, functions and views again that somebody dropped, and those on our tables that somebody disabled.

    Tables stay as they are, but for an index, or a default partition, that they lack. Views of an earlier version of
    this program get the columns that they lack. Triggers on the user's table that are there stay as they are, also
    disabled ones. on_table: statements on the user's table; last: others. Tables are locked in the order in which
    workers do: the user's, the scores, the queue.
    """
    add_challenger_objects(connection, definition, columns)
    by_event_time = _by_event_time(connection, definition)
    present = catalog.trigger_states(connection, definition.relation)
    missing = [made for name, made in queue_triggers.triggers(definition).items() if name not in present]
    followers = path_triggers.create(ours("shadow_scores", definition.name))
    if one(connection, "SELECT EXISTS (SELECT FROM outlier.webhooks WHERE source = %s)", (definition.name,)):
        followers += notice_objects.create(definition)
    if history_objects.TRIGGER in catalog.live_triggers(
        connection, Relation(SCHEMA, f"scores_{definition.name}")
    ):
        followers += history_objects.trigger(definition)
    run_ddl(
        connection,
        definition,
        [
            *core_objects.functions(definition, columns),
            *migration_functions.create(connection, definition, by_event_time=by_event_time),
            *_access_of_owner(connection, definition),
            *on_table,
            *missing,
            *core_objects.score_triggers(definition),
            *([] if _has_time_index(connection, definition) else [core_objects.time_index(definition)]),
            *(
                s
                for kind in _without_rest(connection, definition)
                for s in partition_objects.rest(definition, kind)
            ),
            *followers,
            *_views_to_mend(connection, definition, columns),
            *_barriers(connection, definition),
            *last,
        ],
    )


def _barriers(connection: Connection, definition: SourceDefinition) -> list[sql.Composed]:
    """What keeps scores of rows that the policies of the user's table hide from whoever asks, where it has policies."""
    return source_views.barriers(definition) if catalog.has_policies(connection, definition.relation) else []


def _access_of_owner(connection: Connection, definition: SourceDefinition) -> list[sql.Composed]:
    """What lets the owner of the table call outlier.before_migration, where this role may give it."""
    owner = catalog.owner_without_access(connection, definition.relation)
    if owner is None or not one(
        connection, "SELECT has_schema_privilege('outlier', 'USAGE WITH GRANT OPTION')"
    ):
        return []
    return [compose("GRANT USAGE ON SCHEMA outlier TO {owner}", owner=identifier(owner))]


def end_migration(connection: Connection, source: Source, definition: SourceDefinition) -> list[sql.Composed]:
    """Bring the views back that outlier.before_migration took away. Returns what gives the rights on them again."""
    if source.migration is None:
        return []
    run(connection, "UPDATE outlier.sources SET migration = NULL WHERE id = %s", (source.id,))
    found = run(
        connection,
        "SELECT outlier.grant_statements(%s, %s)",
        (
            Jsonb(source.migration["grants"]),
            [f"{view}_{definition.name}" for view in core_objects.VIEWS],
        ),
    )
    return _as_statements(found.fetchall())


def view_grants(connection: Connection, definition: SourceDefinition) -> list[sql.Composed]:
    """The statements that give the rights on the views again, as they are now."""
    found = run(
        connection,
        "SELECT outlier.grant_statements(outlier.grants_on(c.oid::regclass), %(views)s) FROM pg_class c"
        " WHERE c.relnamespace = 'outlier'::regnamespace AND c.relname = ANY (%(views)s)",
        {"views": [f"{view}_{definition.name}" for view in core_objects.VIEWS]},
    )
    return _as_statements(found.fetchall())


def _as_statements(rows: list[tuple[str]]) -> list[sql.Composed]:
    return [sql.Composed([sql.SQL(text.replace("%", "%%"))]) for (text,) in rows]


def _views_to_mend(
    connection: Connection, definition: SourceDefinition, columns: tuple[str, ...]
) -> list[sql.Composed]:
    by_event_time = _by_event_time(connection, definition)

    def made(kind: str, of: tuple[str, ...]) -> list[sql.Composed]:
        if kind == "compared":
            return core_objects.challenger(definition, of)[kind]
        view = source_views.views(definition, of, by_event_time=by_event_time)[kind]
        return [view, source_views.share_rows(definition)] if kind == source_views.ROWS else [view]

    kinds = (source_views.ROWS, *source_views.READ, "compared")
    views = {kind: catalog.view_columns(connection, _view(definition, kind)) for kind in kinds}
    mended = []
    for kind, shown in views.items():
        if shown is None:
            mended += made(kind, columns) if kind != "compared" else []
        elif kind == source_views.ROWS and None in views.values():
            # Those that are made have every column; what it has already can only be followed by others.
            mended += made(kind, tuple(dict.fromkeys((*shown, *columns))))
        elif (
            _lacks_verdict(kind, shown)
            or not _reads_as_who_asks(connection, definition, kind)
            or (kind == "quality" and not _reads_counts(connection, definition))
        ):
            # A column that the table got since then would come before ours, where none can be put in.
            taken = source_views.ours_beside(definition)
            kept = tuple(c for c in columns if source_views.alias(c, columns, beside=taken) in shown)
            mended += made(kind, kept if kind in {"scored", "flagged", "compared"} else columns)
    if not _counts_for_all_alone(connection, definition):
        mended += core_objects.challenger(definition, columns)["comparison"]
    return mended


def _view(definition: SourceDefinition, kind: str) -> Relation:
    return Relation(SCHEMA, f"{kind}_{definition.name}")


def _reads_counts(connection: Connection, definition: SourceDefinition) -> bool:
    """Whether the view of the quality takes what the sweep has counted of labels."""
    counts = Relation(SCHEMA, "error_counts")
    return definition.label_column is None or catalog.view_reads(
        connection, _view(definition, "quality"), counts, "labelled"
    )


def _lacks_verdict(kind: str, shown: list[str]) -> bool:
    return kind in {"scored", "flagged"} and source_views.VERDICT_COLUMN not in shown


def _reads_as_who_asks(connection: Connection, definition: SourceDefinition, kind: str) -> bool:
    """Whether a view that is there reads the user's table with the rights of whoever asks."""
    if kind == source_views.ROWS:
        return "security_invoker=true" in catalog.options(connection, _view(definition, kind))
    rows = _view(definition, source_views.ROWS)
    return catalog.view_reads(connection, _view(definition, kind), rows, definition.key_column)


def _counts_for_all_alone(connection: Connection, definition: SourceDefinition) -> bool:
    """Whether `comparison` is shown to those alone from whom no policy may hide rows."""
    view = _view(definition, "comparison")
    return not catalog.exists(connection, view) or catalog.view_reads(
        connection, view, Relation(SCHEMA, "sources"), "relation"
    )


def _without_barrier(connection: Connection, definition: SourceDefinition) -> list[str]:
    """Kinds of views without the barrier that the policies of the user's table ask for."""
    if not catalog.has_policies(connection, definition.relation):
        return []
    return [
        kind
        for kind in source_views.BARRED_BY_POLICIES
        if catalog.exists(connection, _view(definition, kind))
        and "security_barrier=true" not in catalog.options(connection, _view(definition, kind))
    ]


def shows_too_much(connection: Connection, definition: SourceDefinition) -> list[str]:
    """Names of views by which one sees rows, or scores of rows, that the policies of the user's table hide."""
    kinds = [
        kind
        for kind in challenger_objects.VIEWS_OF_ROWS
        if catalog.exists(connection, _view(definition, kind))
        and not _reads_as_who_asks(connection, definition, kind)
    ]
    kinds += _without_barrier(connection, definition)
    if not _counts_for_all_alone(connection, definition):
        kinds.append("comparison")
    return [_view(definition, kind).name for kind in dict.fromkeys(kinds)]


def lacks(connection: Connection, definition: SourceDefinition) -> list[str]:
    """Names of what an earlier version of this program did not make: views, their columns, what a challenger needs."""
    lacking = []
    for kind in source_views.VIEWS:
        view = _view(definition, kind)
        shown = catalog.view_columns(connection, view)
        if shown is None:
            lacking.append(view.name)
        elif _lacks_verdict(kind, shown):
            lacking.append(f"{view.name}.{source_views.VERDICT_COLUMN}")
    if not _has_time_index(connection, definition):
        lacking.append(core_objects.time_index_name(definition.name))
    lacking += [
        score_partitions.name(kind, definition.name) for kind in _without_rest(connection, definition)
    ]
    return lacking + [_view(definition, kind).name for kind in lacks_for_challenger(connection, definition)]


def _has_time_index(connection: Connection, definition: SourceDefinition) -> bool:
    return catalog.exists(connection, Relation(SCHEMA, core_objects.time_index_name(definition.name)))


def _without_rest(connection: Connection, definition: SourceDefinition) -> list[str]:
    """Kinds of tables in partitions whose default one is gone, so that there are times without a place."""
    if definition.score_partitions is None:
        return []
    return [
        kind
        for kind in score_partitions.KINDS
        if catalog.exists(connection, _view(definition, kind))
        and not catalog.exists(connection, Relation(SCHEMA, score_partitions.name(kind, definition.name)))
    ]


def add_challenger_objects(
    connection: Connection, definition: SourceDefinition, columns: tuple[str, ...]
) -> bool:
    """Make what the source lacks for a challenger, as one attached by an earlier version does. Returns whether it did.

    Raises MissingPrivilege if the role may not.
    """
    missing = lacks_for_challenger(connection, definition)
    made = core_objects.challenger(definition, columns)
    rows = source_views.views(definition, columns, by_event_time=False)[source_views.ROWS]
    if missing and not catalog.exists(connection, _view(definition, source_views.ROWS)):
        made[missing[0]] = [rows, source_views.share_rows(definition), *made[missing[0]]]
    try:
        run_ddl(connection, definition, [s for kind in missing for s in made[kind]])
    except errors.InsufficientPrivilege:
        raise MissingPrivilege(
            f"{definition.name} was attached before there were challengers, and this role may not make the table of"
            " their scores; the role that attached it has to run the same pgoutlier attach again, and then"
            " pgoutlier db grant for each role that had it."
        ) from None
    return bool(missing)


def lacks_for_challenger(connection: Connection, definition: SourceDefinition) -> list[str]:
    """Those of db.ddl.challenger_objects.KINDS that are not there."""
    return [
        kind
        for kind in challenger_objects.KINDS
        if not catalog.exists(connection, Relation(SCHEMA, f"{kind}_{definition.name}"))
    ]


def triggers_enabled(connection: Connection, definition: SourceDefinition) -> dict[str, bool]:
    """For each of our triggers: whether it exists and fires for ordinary sessions."""
    live = catalog.live_triggers(connection, definition.relation)
    return {
        event: queue_triggers.trigger_name(definition.name, event) in live for event in queue_triggers.EVENTS
    }
