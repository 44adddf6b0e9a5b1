"""Whether the table that has a source's name is the one that was attached.

A table that is renamed, or moved to another schema, is the same one, and is read under its new name for as long as
nothing else takes the old one. Where something else has, or the table is gone, nothing may be read, scored, removed or
found by the name: keys that the one has queued are not rows of the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.errors import TableReplaced
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql.identifiers import Relation
from pgoutlier.db.sql.statements import compose, one

# What is found of a source's table (t) and of what has its name (h), beside a row s of outlier.sources.
COLUMNS = sql.SQL(
    "s.relation::oid::bigint AS table_oid, t.relkind::text AS kind, tn.nspname::text AS schema,"
    " t.relname::text AS name, h.oid::bigint AS holder, h.relkind::text AS holder_kind,"
    # A number that a dump wrote for a table that was gone may by chance be that of another one. Only looked at where
    # the name is not its own, since a source is read for every drain.
    " h.oid IS DISTINCT FROM s.relation::oid AND EXISTS (SELECT FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid"
    " JOIN pg_namespace o ON o.oid = p.pronamespace"
    " WHERE g.tgrelid = s.relation::oid AND o.nspname = 'outlier' AND p.proname = 'enqueue_insert_' || s.name)"
    " AS has_our_trigger"
)
JOINS = sql.SQL(
    " LEFT JOIN pg_class t ON t.oid = s.relation::oid LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace"
    " LEFT JOIN (pg_class h JOIN pg_namespace hn ON hn.oid = h.relnamespace)"
    " ON hn.nspname = s.definition ->> 'relation_schema' AND h.relname = s.definition ->> 'relation_name'"
)
_TABLES = ("r", "p")


@dataclass(frozen=True)
class Found:
    """What COLUMNS read: the fields are named as they are, kind is pg_class.relkind."""

    table_oid: int | None
    kind: str | None
    schema: str | None
    name: str | None
    holder: int | None
    holder_kind: str | None
    has_our_trigger: bool


def settle(definition: SourceDefinition, found: Found) -> tuple[SourceDefinition, str | None]:
    """The definition with the table's name of now, and why nothing may be done by it, or None."""
    if found.table_oid is not None and found.table_oid == found.holder:
        if found.kind in _TABLES:
            return definition, None
        return definition, _gone(definition, found)
    if found.kind not in _TABLES or not found.has_our_trigger or not (found.schema and found.name):
        return definition, _gone(definition, found)
    elsewhere = Relation(found.schema, found.name)
    if found.holder is not None:
        return definition, _swapped(definition, elsewhere, found)
    if definition.write_columns:  # which is done by functions that hold the name
        return definition, (
            f"{definition.relation} is called {elsewhere} now: nothing of it is scored until the columns are written"
            f" there; attach it again as {elsewhere}, with --name {definition.name}"
        )
    return definition.model_copy(update={"relation_schema": found.schema, "relation_name": found.name}), None


def _gone(definition: SourceDefinition, found: Found) -> str:
    name, relation = definition.name, definition.relation
    if found.holder is None:
        return (
            f"There is no table {relation} any more: its keys stay queued and its scores stay; restore it and run:"
            f" pgoutlier adopt {name}, or: pgoutlier detach {name}"
        )
    if found.holder_kind not in _TABLES:
        return (
            f"{relation} is no table any more, so nothing of it is scored or removed; give a table this name again,"
            f" and run: pgoutlier adopt {name}, or: pgoutlier detach {name}"
        )
    return (
        f"{relation} is another table than the one that was attached, which is gone: nothing of it is scored or"
        f" removed; to go on with this one, all of its rows scored anew: pgoutlier adopt {name}"
    )


def _swapped(definition: SourceDefinition, elsewhere: Relation, found: Found) -> str:
    name, relation = definition.name, definition.relation
    back = f"to go on with the old one, attach {elsewhere} with --name {name}"
    if found.holder_kind not in _TABLES:
        return (
            f"{relation} is no table any more, and the one that was attached is called {elsewhere}, so nothing is"
            f" scored or removed; {back}"
        )
    return (
        f"{relation} is another table than the one that was attached, which is called {elsewhere} now: nothing of"
        f" either is scored or removed; to go on with {relation}, all of its rows scored anew: pgoutlier adopt {name};"
        f" {back}"
    )


def same_table(source: Source) -> sql.Composed:
    """SQL for whether the table's name is still its own, and its columns are still called as they were when the source
    was read; of no use before the table is locked, by a read for instance.

    No one renames a table that a transaction has read before that ends, so what holds after the read held throughout.
    """
    return compose(
        "(SELECT coalesce(to_regclass({name})::oid = {oid}, false) AND EXISTS (SELECT FROM outlier.sources s"
        " WHERE s.id = {id} AND md5(s.definition::text) = {digest}))",
        name=sql.Literal(source.definition.relation.sql().as_string(None)),
        oid=sql.Literal(source.table_oid or 0),
        id=sql.Literal(source.id),
        digest=sql.Literal(source.digest),
    )


def check(connection: Connection, source: Source) -> None:
    """After the table was read by its name: raises TableReplaced if that was another table's, or nobody's."""
    if not one(connection, compose("SELECT {same}", same=same_table(source))):
        raise TableReplaced(
            f"{source.definition.relation} was replaced or changed while {source.name} was at work on it."
        )
