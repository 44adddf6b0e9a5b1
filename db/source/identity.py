"""Whether the table that has a source's name is the one that was attached.

A table that is renamed, or moved to another schema, is the same one, and is read under its new name for as long as
nothing else takes the old one. Where something else has, or the table is gone, nothing may be read, scored, removed or
found by the name: keys that the one has queued are not rows of the other.

The same of its columns: one that is renamed by a migration with outlier.before_migration is followed. Where the name of
one that is read has gone to another column, nothing is scored.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.errors import TableReplaced
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sql.identifiers import Relation, display
from pgoutlier.db.sql.statements import compose, one, run

# As outlier.columns_digest, which takes longer.
_COLUMNS_DIGEST = sql.SQL("sum(hashname(a.attname) * a.attnum::bigint)::bigint")
# What is found of a source's table (t) and of what has its name (h), beside a row s of outlier.sources.
COLUMNS = sql.SQL(
    "s.relation::oid::bigint AS table_oid, t.relkind::text AS kind, tn.nspname::text AS schema,"
    " t.relname::text AS name, h.oid::bigint AS holder, h.relkind::text AS holder_kind,"
    # A number that a dump wrote for a table that was gone may by chance be that of another one. Only looked at where
    # the name is not its own, since a source is read for every drain.
    " h.oid IS DISTINCT FROM s.relation::oid AND EXISTS (SELECT FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid"
    " JOIN pg_namespace o ON o.oid = p.pronamespace"
    " WHERE g.tgrelid = s.relation::oid AND o.nspname = 'outlier' AND p.proname = 'enqueue_insert_' || s.name)"
    " AS has_our_trigger,"
    " d.digest AS columns_digest,"
    # Numbers of a table that was restored, whose own is another, say nothing.
    " CASE WHEN (s.columns ->> 'digest')::bigint IS DISTINCT FROM d.digest AND s.columns ->> 'table' = t.oid::text THEN"
    " (SELECT ARRAY[c.key, coalesce(b.attname, '')] FROM jsonb_each_text(s.columns -> 'numbers') c"
    " JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = c.key AND a.attnum <> c.value::integer"
    " LEFT JOIN pg_attribute b ON b.attrelid = t.oid AND b.attnum = c.value::integer AND NOT b.attisdropped"
    " ORDER BY c.key LIMIT 1) END AS other_column"
)
JOINS = sql.SQL(
    " LEFT JOIN pg_class t ON t.oid = s.relation::oid LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace"
    " LEFT JOIN (pg_class h JOIN pg_namespace hn ON hn.oid = h.relnamespace)"
    " ON hn.nspname = s.definition ->> 'relation_schema' AND h.relname = s.definition ->> 'relation_name'"
    " LEFT JOIN LATERAL (SELECT {digest} AS digest FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attnum > 0) d"
    " ON true"
).format(digest=_COLUMNS_DIGEST)
_TABLES = ("r", "p")


@dataclass(frozen=True)
class Found:
    """What COLUMNS read: the fields are named as they are, kind is pg_class.relkind.

    other_column: the name of a column that is another one than the one that is read, and what that is called now,
    empty if it is gone.
    """

    table_oid: int | None
    kind: str | None
    schema: str | None
    name: str | None
    holder: int | None
    holder_kind: str | None
    has_our_trigger: bool
    columns_digest: int | None = None
    other_column: list[str] | None = None


def settle(definition: SourceDefinition, found: Found) -> tuple[SourceDefinition, str | None]:
    """The definition with the table's name of now, and why nothing may be done by it, or None."""
    if found.table_oid is not None and found.table_oid == found.holder:
        if found.kind in _TABLES:
            return definition, _other_column(definition, found)
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
    moved = definition.model_copy(update={"relation_schema": found.schema, "relation_name": found.name})
    return moved, _other_column(moved, found)


def _other_column(definition: SourceDefinition, found: Found) -> str | None:
    if found.other_column is None:
        return None
    name, now = found.other_column
    where = f"which is called {display(now)} now" if now else "which is gone"
    return (
        f"The column {display(name)} of {definition.relation} is another one than was attached, {where}: nothing is"
        " scored or removed; name them as they were; or, to go on with the other one, run the same pgoutlier attach"
        f" again, and then train {definition.name} and rescore it"
    )


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
    """SQL for whether the table's name is still its own, and its columns and their names are still what they were when
    the source was read; of no use before the table is locked, by a read for instance.

    No one renames a table that a transaction has read before that ends, so what holds after the read held throughout.
    """
    return compose(
        "(SELECT coalesce(to_regclass({name})::oid = {oid}, false) AND EXISTS (SELECT FROM outlier.sources s"
        " WHERE s.id = {id} AND jsonb_hash_extended(s.definition, 0) = {digest})"
        " AND (SELECT {now} = {columns} FROM pg_attribute a WHERE a.attrelid = {oid} AND a.attnum > 0))",
        name=sql.Literal(source.definition.relation.sql().as_string(None)),
        oid=sql.Literal(source.table_oid or 0),
        id=sql.Literal(source.id),
        digest=sql.Literal(source.digest),
        now=_COLUMNS_DIGEST,
        columns=sql.Literal(source.columns_digest),
    )


def remember_columns(connection: Connection, source_name: str) -> None:
    """From now on the columns that have the names of the definition are the ones that are read."""
    run(
        connection,
        "UPDATE outlier.sources SET columns = outlier.column_numbers(definition, relation) WHERE name = %s"
        " AND columns IS DISTINCT FROM outlier.column_numbers(definition, relation)",
        (source_name,),
    )


def check(connection: Connection, source: Source) -> None:
    """After the table was read by its name: raises TableReplaced if that was another table's, or nobody's."""
    if not one(connection, compose("SELECT {same}", same=same_table(source))):
        raise TableReplaced(
            f"{source.definition.relation} was replaced or changed while {source.name} was at work on it."
        )
