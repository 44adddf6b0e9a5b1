"""The two columns of the user's table that db.scoring.write_back keeps: adding them, and taking them away again.

A comment on each says that it is ours, so that no column of the user's is ever written or dropped.
"""

from __future__ import annotations

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.errors import MissingPrivilege, SourceError
from pgoutlier.db.source import catalog
from pgoutlier.db.source.catalog import RelationInfo
from pgoutlier.db.source.definition import WRITTEN_COLUMNS, WRITTEN_MARK, SourceDefinition
from pgoutlier.db.sql.identifiers import Relation, display, identifier, ours
from pgoutlier.db.sql.statements import as_text, compose, one, run

_MEANINGS = {
    "reconstruction_error": "score of the row, NULL while it has none",
    "flagged": "whether that is above the threshold",
}


def check(connection: Connection, table: RelationInfo) -> None:
    """Raises SourceError if a column of the user's stands in the way, MissingPrivilege if the role may not do it."""
    for name, type_name in WRITTEN_COLUMNS.items():
        column = table.columns.get(name)
        if column is not None and not column.is_written:
            raise SourceError(
                f"{table.relation} has a column {name} of its own, where --write-columns would write the score; rename"
                " it, or attach without --write-columns (the views of pgoutlier have the score in any case). If"
                f" pgoutlier made it, say so: {_comment(table.relation, name)}"
            )
        if column is not None and column.type_name != type_name:
            raise SourceError(
                f"{name} of {table.relation} has type {column.type_name}, and is written as {type_name}; change it"
                f" back: ALTER TABLE {table.relation} ALTER COLUMN {name} TYPE {type_name};"
            )
    missing = [as_text(statement) + ";" for statement in add(table)]
    if missing and not may_alter(connection, table.relation):
        raise MissingPrivilege(
            f"Only an owner of {table.relation} may add columns to it, and has to run: {' '.join(missing)}"
            f" {_update_grant(connection, table.relation)}"
        )
    if not missing and not may_write(connection, table.relation):
        raise MissingPrivilege(
            "The connected role may not write the two columns; an owner has to run:"
            f" {_update_grant(connection, table.relation)}"
        )


def _update_grant(connection: Connection, relation: Relation) -> str:
    role = display(str(one(connection, "SELECT current_user::text")))
    return f"GRANT UPDATE ({', '.join(WRITTEN_COLUMNS)}) ON {relation} TO {role};"


def add(table: RelationInfo) -> list[sql.Composed]:
    """Statements that add those of the columns that the table lacks, with the mark that they are ours."""
    lacking = [name for name in WRITTEN_COLUMNS if name not in table.columns]
    if not lacking:
        return []
    added = sql.SQL(", ").join(
        compose("ADD COLUMN {c} {type}", c=identifier(name), type=sql.SQL(WRITTEN_COLUMNS[name]))
        for name in lacking
    )
    return [
        compose("ALTER TABLE {relation} {added}", relation=table.relation.sql(), added=added),
        *(_mark(table.relation, name) for name in lacking),
    ]


def drop(table: RelationInfo) -> list[sql.Composed]:
    """The statement that takes away those that are ours, if there are any."""
    present = [name for name in WRITTEN_COLUMNS if name in table.columns and table.columns[name].is_written]
    if not present:
        return []
    return [
        compose(
            "ALTER TABLE {relation} {dropped}",
            relation=table.relation.sql(),
            dropped=sql.SQL(", ").join(compose("DROP COLUMN {c}", c=identifier(name)) for name in present),
        )
    ]


def removal(connection: Connection, relation: Relation) -> list[sql.Composed]:
    """The same statement for a table that stays attached. Raises MissingPrivilege if the role may not run it."""
    statements = drop(catalog.inspect(connection, relation))
    if statements and not may_alter(connection, relation):
        raise MissingPrivilege(
            f"Only an owner of {relation} may drop columns of it, and has to run: {as_text(statements[0])};"
            " then attach again."
        )
    return statements


def undo(connection: Connection, source: SourceDefinition) -> tuple[list[sql.Composed], str | None]:
    """(statements that take the columns away, or the one that an owner of the table has to run), as to the rights.

    Of the table that has our triggers, whatever its name is by now; nothing where that is gone.
    """
    found = run(
        connection,
        "SELECT n.nspname, c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.tgfoid = to_regprocedure(%s) AND t.tgparentid = 0",
        (as_text(compose("{f}()", f=ours("enqueue_insert", source.name))),),
    ).fetchone()
    if not source.write_columns or found is None:
        return [], None
    relation = Relation(*found)
    statements = drop(catalog.inspect(connection, relation))
    if may_alter(connection, relation):
        return statements, None
    return [], "".join(f"{as_text(statement)};" for statement in statements) or None


def _mark(relation: Relation, name: str) -> sql.Composed:
    return compose(
        "COMMENT ON COLUMN {relation}.{c} IS {mark}",
        relation=relation.sql(),
        c=identifier(name),
        mark=sql.Literal(f"{WRITTEN_MARK}: {_MEANINGS[name]}"),
    )


def _comment(relation: Relation, name: str) -> str:
    return as_text(_mark(relation, name)) + ";"


def may_alter(connection: Connection, relation: Relation) -> bool:
    """Whether the connected role owns the table, itself or through a role it is in."""
    return bool(
        one(
            connection,
            "SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relname = %s",
            (relation.schema, relation.name),
        )
    )


def may_write(connection: Connection, relation: Relation) -> bool:
    """Whether the connected role may write both columns, which are there."""
    return bool(
        one(
            connection,
            "SELECT bool_and(has_column_privilege(c.oid, a.attnum, 'UPDATE')) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE n.nspname = %s AND c.relname = %s AND a.attname = ANY (%s) AND NOT a.attisdropped",
            (relation.schema, relation.name, list(WRITTEN_COLUMNS)),
        )
    )


def grant(relation: Relation, role: sql.Composable) -> sql.Composed:
    """The statement that lets a role write the two columns."""
    return compose(
        "GRANT UPDATE ({columns}) ON {relation} TO {role}",
        columns=sql.SQL(", ").join(map(identifier, WRITTEN_COLUMNS)),
        relation=relation.sql(),
        role=role,
    )
