"""The sources table: attach, detach, find."""

from __future__ import annotations

import difflib
from dataclasses import fields, replace
from typing import Any

from psycopg import errors, sql
from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from pgoutlier.db.ddl import challenger_objects, core_objects, installation, source_views, written_columns
from pgoutlier.db.ddl.lock_waits import run_ddl
from pgoutlier.db.errors import SourceError, TableReplaced, first_line
from pgoutlier.db.past.entries import Past
from pgoutlier.db.scoring import write_back
from pgoutlier.db.source import catalog, identity
from pgoutlier.db.source.definition import Feature, Source, SourceDefinition
from pgoutlier.db.source.identity import Found
from pgoutlier.db.sources import changing
from pgoutlier.db.sql import locks, owners
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, display, identifier
from pgoutlier.db.sql.statements import compose, one, run, run_dicts
from pgoutlier.db.tables import JsonObject

# More names than this in a sentence nobody reads.
_MOST_NAMED = 20
_SELECT = compose(
    "SELECT s.id, s.definition, jsonb_hash_extended(s.definition, 0) AS digest, s.recipe,"
    " s.attached_xid, s.last_problem, s.promotion, s.columns_filled_at,"
    " s.migration, {columns}"
    " FROM outlier.sources s{joins}",
    columns=identity.COLUMNS,
    joins=identity.JOINS,
)


def find(connection: Connection, name: str) -> Source:
    """Raises SourceError, naming the sources there are."""
    rows = run_dicts(connection, _SELECT + sql.SQL(" WHERE s.name = %s"), (name,))
    if not rows:
        known = names(connection)
        if len(known) > _MOST_NAMED:
            near = difflib.get_close_matches(name, known, n=3)
            meant = f"Did you mean {' or '.join(near)}? " if near else ""
            hint = f"{meant}There are {len(known):,}; all of them: pgoutlier status --all"
        else:
            hint = (
                f"Sources: {', '.join(known)}." if known else "Attach a table first: pgoutlier attach --help."
            )
        raise SourceError(f"There is no source {display(name)}. {hint}")
    return _source(rows[0])


def every(connection: Connection) -> list[Source]:
    """All sources by name."""
    rows = run_dicts(connection, _SELECT + sql.SQL(" ORDER BY s.name"))
    return [_source(row) for row in rows]


def names(connection: Connection) -> list[str]:
    """Names of all sources, in order: which of them is another table's is not looked at."""
    return [name for (name,) in run(connection, "SELECT name FROM outlier.sources ORDER BY name")]


def at_work(connection: Connection, name: str) -> Source:
    """A source whose table is to be read, or its rows to be scored. Raises SourceError, as TableReplaced if that is
    not the table that was attached."""
    source = find(connection, name)
    if source.table_problem is not None:
        raise TableReplaced(f"{source.table_problem}.")
    return source


def _source(row: dict[str, Any]) -> Source:
    stored = SourceDefinition.model_validate(row["definition"])
    found = Found(**{field.name: row[field.name] for field in fields(Found)})
    definition, problem = identity.settle(stored, found)
    return Source(
        id=row["id"],
        definition=definition,
        recipe=row["recipe"],
        attached_xid=row["attached_xid"],
        last_problem=row["last_problem"],
        promotion=row["promotion"],
        columns_filled_at=row["columns_filled_at"],
        table_oid=found.table_oid,
        table_problem=problem,
        migration=row["migration"],
        digest=row["digest"],
        columns_digest=found.columns_digest or 0,
    )


def definition_of(connection: Connection, name: str) -> SourceDefinition | None:
    """The definition of a source, or None if there is none of this name."""
    return next((source.definition for source in every(connection) if source.name == name), None)


def writes_columns(connection: Connection, name: str) -> bool:
    """Whether there is a source of this name and its scores are kept in columns of its table as well."""
    return any(source.name == name and source.definition.write_columns for source in every(connection))


def set_promotion(connection: Connection, source_id: int, promotion: str) -> bool:
    """Say what happens to versions that are trained. Returns False if that is so already."""
    return bool(
        run(
            connection,
            "UPDATE outlier.sources SET promotion = %(promotion)s, promotion_set_at = now(),"
            " promotion_set_by = session_user WHERE id = %(id)s AND promotion <> %(promotion)s",
            {"id": source_id, "promotion": promotion},
        ).rowcount
    )


def attach(
    connection: Connection,
    definition: SourceDefinition,
    columns: tuple[str, ...],
    recipe: JsonObject,
    *,
    sweep_old_rows: bool,
    row_triggers: bool | None = None,
) -> bool:
    """Make the source's objects and its row. Returns False if it was attached like this already.

    sweep_old_rows: the sweep finds rows that are there already, too. row_triggers: as `row_trigger_changes` of
    db.ddl.installation. A source that is attached keeps its recipe, also where this version of the program has another
    one of that name; its columns in the table come and go with the definition's write_columns. Raises SourceError if
    another definition has the name, or the table has another source.
    """
    locks.hold(connection, "attach")
    table_oid = catalog.inspect(connection, definition.relation).oid
    for source in every(connection):
        if source.name == definition.name:
            _refuse_foreign(connection, definition)
            for_rows = installation.row_trigger_changes(connection, definition, row_triggers)
            _attach_again(connection, source, definition, columns, recipe, table_oid, for_rows)
            if sweep_old_rows:
                include_old_rows(connection, source.id)
            _refuse_foreign(connection, definition)
            return False
        if table_oid == source.table_oid:
            raise SourceError(
                f"{definition.relation} is attached already, as source {source.name};"
                f" detach that first: pgoutlier detach {source.name}"
            )
    _refuse_foreign(connection, definition)
    _check_name_is_free(connection, definition.name)
    statements = installation.plan(connection, definition, columns, row_triggers=row_triggers)
    run(
        connection,
        "INSERT INTO outlier.sources (name, relation, definition, recipe, attached_xid) VALUES (%s, %s::oid, %s, %s,"
        " CASE WHEN %s THEN NULL ELSE pg_current_xact_id()::text::bigint END)",
        (
            definition.name,
            table_oid,
            Jsonb(definition.model_dump(mode="json")),
            Jsonb(recipe),
            sweep_old_rows,
        ),
    )
    record(connection, definition.name, "attach", definition.describe())
    try:
        run_ddl(connection, definition, statements)
    except (errors.DuplicateTable, errors.DuplicateFunction) as error:
        raise _taken(definition.name, first_line(error)) from None
    identity.remember_columns(connection, definition.name)
    # Again, for CREATE OR REPLACE leaves the owner of what was put there meanwhile.
    _refuse_foreign(connection, definition)
    return True


def _check_name_is_free(connection: Connection, name: str) -> None:
    """Views are made in place of those that are there."""
    for kind in (*source_views.VIEWS, *challenger_objects.KINDS):
        relation = Relation(SCHEMA, f"{kind}_{name}")
        if catalog.exists(connection, relation):
            raise _taken(name, f'relation "{relation.name}" already exists')


def _taken(name: str, why: str) -> SourceError:
    return SourceError(
        f"A source cannot be called {name}, because {why} in schema {SCHEMA}; give it another --name."
    )


def _refuse_foreign(connection: Connection, definition: SourceDefinition) -> None:
    """Raise SourceError if an object that the source is to have is there already and another's, who could change it."""
    found = owners.of_source(connection, definition.name)
    if found:
        raise SourceError(
            f"The {found[0]}, who could change what runs when {definition.relation} is written to. Nothing was changed;"
            f" drop it (DROP {found[0].kind.upper()} {found[0].object}), and attach again."
        )


def record(connection: Connection, source_name: str, action: str, detail: str | None = None) -> None:
    """Note who did what with a source, and when; it stays known when the source is gone."""
    run(
        connection,
        "INSERT INTO outlier.source_events (source, action, detail) VALUES (%s, %s, %s)",
        (source_name, action, detail),
    )


def _attach_again(
    connection: Connection,
    source: Source,
    definition: SourceDefinition,
    columns: tuple[str, ...],
    recipe: JsonObject,
    table_oid: int,
    for_rows: list[sql.Composed],
) -> None:
    """Mend what is missing, and change what can be changed in place."""
    if source.table_problem is not None and table_oid != source.table_oid:
        raise TableReplaced(f"{source.table_problem}.")
    source = _renamed(connection, source, table_oid)
    definition = _with_known_names(definition, source.definition)
    _check_same(source, definition, recipe, same_table=table_oid == source.table_oid)
    old, of_queue = source.definition, list[sql.Composed]()
    grants = installation.end_migration(connection, source, definition)
    if old.key != definition.key:
        grants += installation.view_grants(connection, definition)
        of_queue = changing.rekey(connection, source, definition)
        record(connection, source.name, "rekey", f"{definition.key.shown} ({definition.key.type_shown})")
    changes = _column_changes(connection, source, definition)
    if old.keep_scores_days != definition.keep_scores_days:
        days = definition.keep_scores_days
        record(connection, source.name, "keep_scores", "forever" if days is None else f"{days} days")
    run(
        connection,
        "UPDATE outlier.sources SET definition = %(definition)s WHERE id = %(id)s AND definition <> %(definition)s",
        {"definition": Jsonb(definition.model_dump(mode="json")), "id": source.id},
    )
    installation.repair(
        connection, definition, columns, on_table=[*changes, *for_rows], last=[*grants, *of_queue]
    )
    identity.remember_columns(connection, source.name)
    # Last, for a sweep that is under way waits for it and holds the table.
    changing.begin_upkeep_anew(connection, source.id, other_keys=False)


def _renamed(connection: Connection, source: Source, table_oid: int) -> Source:
    """The source with the names that its columns have by now, where a migration is not ended."""
    if source.migration is None:
        return source
    renamed = one(
        connection,
        "SELECT outlier.renamed(%s, %s::oid::regclass, %s)",
        (Jsonb(source.definition.model_dump(mode="json")), table_oid, Jsonb(source.migration["numbers"])),
    )
    return replace(source, definition=SourceDefinition.model_validate(renamed))


def _with_known_names(definition: SourceDefinition, old: SourceDefinition) -> SourceDefinition:
    """The definition with the names by which models know the features of columns that were renamed."""
    known = {_unnamed(feature): feature.known_as for feature in old.features if feature.known_as}
    features = tuple(
        f.model_copy(update={"known_as": known.get(_unnamed(f), f.known_as)}) for f in definition.features
    )
    return definition.model_copy(update={"features": features})


def _unnamed(feature: Feature) -> tuple[str, Past | None]:
    return feature.column, feature.past


def adopt(
    connection: Connection, source: Source, definition: SourceDefinition, columns: tuple[str, ...]
) -> None:
    """Take the table that has the name now for the source's own; see db.sources.changing.

    Raises SourceError if it is another source's.
    """
    locks.hold(connection, "attach")
    table_oid = catalog.inspect(connection, definition.relation).oid
    other = next((s for s in every(connection) if s.id != source.id and s.table_oid == table_oid), None)
    if other is not None:
        raise SourceError(
            f"{definition.relation} is the table of source {other.name}; detach one of the two first."
        )
    definition = _with_known_names(definition, source.definition)
    changing.adopt(connection, source, definition, columns)
    record(connection, source.name, "adopt", definition.describe())


def _column_changes(
    connection: Connection, source: Source, definition: SourceDefinition
) -> list[sql.Composed]:
    """Statements that add what the table lacks of the written columns, or take them away."""
    lacking = definition.write_columns and write_back.lacks(connection, definition)
    if lacking or definition.write_columns != source.definition.write_columns:
        run(connection, "UPDATE outlier.sources SET columns_filled_at = NULL WHERE id = %s", (source.id,))
    if definition.write_columns != source.definition.write_columns:
        record(connection, source.name, "write_columns" if definition.write_columns else "no_write_columns")
    if definition.write_columns:
        return installation.columns_to_add(connection, definition)
    if source.definition.write_columns:
        return [*written_columns.removal(connection, definition.relation), *write_back.drop(definition)]
    return []


def _check_same(
    source: Source, definition: SourceDefinition, recipe: JsonObject, *, same_table: bool
) -> None:
    old, new = source.definition, definition
    if old.relation != new.relation and not same_table:
        raise SourceError(
            f"{source.name} is the name of the source of {old.relation}; give {new.relation} another --name."
        )
    if old.score_partitions != new.score_partitions:
        raise SourceError(_other_partitions(source, new))
    in_place = {
        "write_columns",
        "rescores_late",
        "keep_scores_days",
        "key_column",
        "key_type",
        "further_key_columns",
    }
    if same_table:  # which has been renamed
        in_place |= {"relation_schema", "relation_name"}
    if [f.names for f in old.features] == [f.names for f in new.features]:  # whose types have changed
        in_place |= {"features"}
    different = [
        field
        for field, value in old.model_dump().items()
        if value != new.model_dump()[field] and field not in in_place
    ]
    # What was asked for of the recipe; the rest of it may be otherwise in another version of this program.
    if any(source.recipe.get(asked) != recipe.get(asked) for asked in ("name", "threshold")):
        different.append("recipe")
    if not different:
        return
    raise SourceError(
        f"{source.name} is attached already with another definition (different: {', '.join(different)});"
        f" detach it first: pgoutlier detach {source.name}"
    )


def _other_partitions(source: Source, new: SourceDefinition) -> str:
    old = source.definition.score_partitions
    now = "are in one table" if old is None else f"are partitioned by {old}"
    return (
        f"The scores of {source.name} {now}, which cannot be changed in place: to have them by {new.score_partitions},"
        " export the versions that are to stay (pgoutlier models export), detach the source and attach it anew with"
        f" --partition-scores {new.score_partitions} --backfill; or leave --partition-scores out."
    )


def detach(connection: Connection, source: Source) -> str | None:
    """Drop all our objects of a source and its rows in our tables; the user's table is left as it was.

    Returns the statement that drops the columns in it, where only its owner may do that.
    """
    locks.hold(connection, "attach")
    statements, left = written_columns.undo(connection, source.definition)
    # First, so that no worker holds a range of a job and waits for a table that is being dropped.
    run(connection, "DELETE FROM outlier.jobs WHERE source_id = %s", (source.id,))
    # What there may be much of goes before the user's table is locked.
    for table in ("verdicts", "notices"):
        run(
            connection,
            compose("DELETE FROM {table} WHERE source = %s", table=identifier(SCHEMA, table)),
            (source.name,),
        )
    row = compose("DELETE FROM outlier.sources WHERE id = {id}", id=sql.Literal(source.id))
    run_ddl(connection, source.definition, [*core_objects.drop(source.definition), *statements, row])
    record(connection, source.name, "detach", source.definition.describe())
    return left


def set_filled(connection: Connection, source_id: int) -> None:
    """From now on the columns of its table have every score."""
    run(connection, "UPDATE outlier.sources SET columns_filled_at = now() WHERE id = %s", (source_id,))


def include_old_rows(connection: Connection, source_id: int) -> None:
    """From now on the sweep also finds rows that were there before attach."""
    run(connection, "UPDATE outlier.sources SET attached_xid = NULL WHERE id = %s", (source_id,))


def set_problem(connection: Connection, source_id: int, problem: str | None) -> None:
    """Record why scoring stands still, or that it no longer does. Writes only on a change."""
    run(
        connection,
        "UPDATE outlier.sources SET last_problem = %s, last_problem_at = now()"
        " WHERE id = %s AND last_problem IS DISTINCT FROM %s",
        (problem, source_id, problem),
    )
