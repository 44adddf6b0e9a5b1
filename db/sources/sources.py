"""The sources table: attach, detach, find."""

from __future__ import annotations

from typing import Any, LiteralString

from psycopg import errors, sql
from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from pgoutlier.db.ddl import core_objects, installation, written_columns
from pgoutlier.db.errors import SourceError
from pgoutlier.db.scoring import write_back
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql import locks, owners
from pgoutlier.db.sql.identifiers import display
from pgoutlier.db.sql.statements import compose, run, run_dicts
from pgoutlier.db.tables import JsonObject

_SELECT: LiteralString = (
    "SELECT id, definition, recipe, attached_xid, last_problem, promotion, columns_filled_at"
    " FROM outlier.sources"
)


def find(connection: Connection, name: str) -> Source:
    """Raises SourceError, naming the sources there are."""
    rows = run_dicts(
        connection,
        _SELECT + " WHERE name = %s",
        (name,),
    )
    if not rows:
        known = [source.name for source in every(connection)]
        hint = f"Sources: {', '.join(known)}." if known else "Attach a table first: pgoutlier attach --help."
        raise SourceError(f"There is no source {display(name)}. {hint}")
    return _source(rows[0])


def every(connection: Connection) -> list[Source]:
    """All sources by name."""
    rows = run_dicts(connection, _SELECT + " ORDER BY name")
    return [_source(row) for row in rows]


def _source(row: dict[str, Any]) -> Source:
    return Source(
        id=row["id"],
        definition=SourceDefinition.model_validate(row["definition"]),
        recipe=row["recipe"],
        attached_xid=row["attached_xid"],
        last_problem=row["last_problem"],
        promotion=row["promotion"],
        columns_filled_at=row["columns_filled_at"],
    )


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
) -> bool:
    """Make the source's objects and its row. Returns False if it was attached like this already.

    sweep_old_rows: the sweep finds rows that are there already, too. A source that is attached keeps its recipe, also
    where this version of the program has another one of that name; its columns in the table come and go with the
    definition's write_columns. Raises SourceError if another definition has the name, or the table has another source.
    """
    locks.hold(connection, "attach")
    installation.limit_lock_waits(connection)
    for source in every(connection):
        if source.name == definition.name:
            _check_same(source, definition, recipe)
            if sweep_old_rows:
                include_old_rows(connection, source.id)
            _refuse_foreign(connection, definition)
            _switch_columns(connection, source, definition)
            installation.repair(connection, definition, columns)
            _refuse_foreign(connection, definition)
            return False
        if source.definition.relation == definition.relation:
            raise SourceError(
                f"{definition.relation} is attached already, as source {source.name};"
                f" detach that first: pgoutlier detach {source.name}"
            )
    _refuse_foreign(connection, definition)
    installation.run_ddl(connection, definition, installation.plan(connection, definition, columns))
    # Again, for CREATE OR REPLACE leaves the owner of what was put there meanwhile.
    _refuse_foreign(connection, definition)
    run(
        connection,
        "INSERT INTO outlier.sources (name, definition, recipe, attached_xid) VALUES (%s, %s, %s,"
        " CASE WHEN %s THEN NULL ELSE pg_current_xact_id()::text::bigint END)",
        (definition.name, Jsonb(definition.model_dump(mode="json")), Jsonb(recipe), sweep_old_rows),
    )
    record(connection, definition.name, "attach", definition.describe())
    return True


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


def _switch_columns(connection: Connection, source: Source, definition: SourceDefinition) -> None:
    """Add what the table lacks of the columns, or take them away; what this needs of it is locked first.

    A worker reads the table before it writes scores, so none that has written some waits for this.
    """
    lacking = definition.write_columns and write_back.lacks(connection, definition)
    if definition.write_columns:
        changes = installation.columns_to_add(connection, definition)
    elif source.definition.write_columns:
        changes = [*written_columns.removal(connection, definition.relation), *write_back.drop(definition)]
    else:
        changes = []
    if lacking or definition.write_columns != source.definition.write_columns:
        installation.run_ddl(connection, definition, changes)
        run(
            connection,
            "UPDATE outlier.sources SET definition = %s, columns_filled_at = NULL WHERE id = %s",
            (Jsonb(definition.model_dump(mode="json")), source.id),
        )
    if definition.write_columns != source.definition.write_columns:
        record(connection, source.name, "write_columns" if definition.write_columns else "no_write_columns")


def _check_same(source: Source, definition: SourceDefinition, recipe: JsonObject) -> None:
    old, new = source.definition.model_dump(), definition.model_dump()
    different = [field for field in old if old[field] != new[field] and field != "write_columns"]
    # What was asked for of the recipe; the rest of it may be otherwise in another version of this program.
    if any(source.recipe.get(asked) != recipe.get(asked) for asked in ("name", "threshold")):
        different.append("recipe")
    if not different:
        return
    raise SourceError(
        f"{source.name} is attached already with another definition (different: {', '.join(different)});"
        f" detach it first: pgoutlier detach {source.name}"
    )


def detach(connection: Connection, source: Source) -> str | None:
    """Drop all our objects of a source and its rows in our tables; the user's table is left as it was.

    Returns the statement that drops the columns in it, where only its owner may do that.
    """
    installation.limit_lock_waits(connection)
    statements, left = written_columns.undo(connection, source.definition)
    # First, so that no worker holds a range of a job and waits for a table that is being dropped.
    jobs = compose("DELETE FROM outlier.jobs WHERE source_id = {id}", id=sql.Literal(source.id))
    try:
        installation.run_ddl(
            connection, source.definition, [jobs, *core_objects.drop(source.definition), *statements]
        )
    except errors.DependentObjectsStillExist as error:
        detail = (error.diag.message_detail or "").splitlines() or ["one of them"]
        raise SourceError(
            f"{source.name} cannot be detached while other objects need it: {detail[0]}; drop those first."
        ) from None
    run(connection, "DELETE FROM outlier.sources WHERE id = %s", (source.id,))
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
