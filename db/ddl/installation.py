"""The objects made for a source: made, looked for, and mended; db.ddl.core_objects says what they are."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import errors, sql
from sqlalchemy import Connection

from pgoutlier.db.ddl import (
    challenger_objects,
    core_objects,
    notice_objects,
    path_triggers,
    queue_triggers,
    source_views,
    written_columns,
)
from pgoutlier.db.ddl.lock_waits import run_ddl
from pgoutlier.db.errors import MissingPrivilege
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql import locks
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, ours
from pgoutlier.db.sql.statements import one, run


def plan(
    connection: Connection, definition: SourceDefinition, columns: tuple[str, ...]
) -> list[sql.Composed]:
    """The statements that `attach` runs; those that lock the user's table against writers are the last."""
    made = core_objects.create(definition, columns, by_event_time=_by_event_time(connection, definition))
    barred = catalog.has_policies(connection, definition.relation)
    barriers = source_views.barriers(definition) if barred else []
    triggers = queue_triggers.triggers(definition).values()
    return [*made, *barriers, *columns_to_add(connection, definition), *triggers]


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
    last: Sequence[sql.Composed] = (),
) -> None:
    """Make triggers, functions and views again that somebody dropped, and those on our tables that somebody disabled.

    Tables are never touched. Views of an earlier version of this program get the columns that they lack. Triggers on
    the user's table that are there stay as they are, also disabled ones. last: statements on the user's table.
    """
    views = _views_to_mend(connection, definition, columns)
    run_ddl(connection, definition, [*core_objects.functions(definition, columns), *views])
    add_challenger_objects(connection, definition, columns)
    if _without_barrier(connection, definition):
        run_ddl(connection, definition, source_views.barriers(definition))
    followers = path_triggers.create(ours("shadow_scores", definition.name))
    if one(connection, "SELECT EXISTS (SELECT FROM outlier.webhooks WHERE source = %s)", (definition.name,)):
        followers += notice_objects.create(definition.name)
    run_ddl(connection, definition, followers)
    present = catalog.trigger_states(connection, definition.relation)
    missing = [made for name, made in queue_triggers.triggers(definition).items() if name not in present]
    run_ddl(connection, definition, [*last, *missing])


def view_grants(connection: Connection, definition: SourceDefinition) -> list[sql.Composed]:
    """The statements that give the rights on the views again, as they are now."""
    views = (*source_views.VIEWS, *challenger_objects.VIEWS)
    found = run(
        connection,
        "SELECT unnest(outlier.grants_on(c.oid::regclass)) FROM pg_class c"
        " WHERE c.relnamespace = 'outlier'::regnamespace AND c.relname = ANY (%s)",
        ([f"{view}_{definition.name}" for view in views],),
    )
    return [sql.Composed([sql.SQL(grant.replace("%", "%%"))]) for (grant,) in found.fetchall()]


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
        elif _lacks_verdict(kind, shown) or not _reads_as_who_asks(connection, definition, kind):
            # A column that the table got since then would come before ours, where none can be put in.
            kept = tuple(c for c in columns if source_views.alias(c, columns) in shown)
            mended += made(kind, kept if kind in {"scored", "flagged", "compared"} else columns)
    return mended


def _view(definition: SourceDefinition, kind: str) -> Relation:
    return Relation(SCHEMA, f"{kind}_{definition.name}")


def _lacks_verdict(kind: str, shown: list[str]) -> bool:
    return kind in {"scored", "flagged"} and source_views.VERDICT_COLUMN not in shown


def _reads_as_who_asks(connection: Connection, definition: SourceDefinition, kind: str) -> bool:
    """Whether a view that is there reads the user's table with the rights of whoever asks."""
    if kind == source_views.ROWS:
        return "security_invoker=true" in catalog.options(connection, _view(definition, kind))
    rows = _view(definition, source_views.ROWS)
    return catalog.view_reads(connection, _view(definition, kind), rows, definition.key_column)


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
        for kind in (*source_views.VIEWS, "compared")
        if catalog.exists(connection, _view(definition, kind))
        and not _reads_as_who_asks(connection, definition, kind)
    ]
    return [
        _view(definition, kind).name
        for kind in dict.fromkeys([*kinds, *_without_barrier(connection, definition)])
    ]


def lacks(connection: Connection, definition: SourceDefinition) -> list[str]:
    """Names of what an earlier version of this program did not make: views, their columns, what a challenger needs."""
    lacking = []
    for kind in source_views.VIEWS:
        view = f"{kind}_{definition.name}"
        shown = catalog.view_columns(connection, Relation(SCHEMA, view))
        if shown is None:
            lacking.append(view)
        elif _lacks_verdict(kind, shown):
            lacking.append(f"{view}.{source_views.VERDICT_COLUMN}")
    return lacking + [f"{kind}_{definition.name}" for kind in lacks_for_challenger(connection, definition)]


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
