"""Giving the keys in the objects of a source the columns and types that the key of its table has by now."""

from __future__ import annotations

from collections.abc import Callable

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.ddl import core_objects, history_objects
from pgoutlier.db.scoring import write_back
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, identifier, ours
from pgoutlier.db.sql.keys import Key
from pgoutlier.db.sql.statements import compose

_INTEGERS = ("smallint", "integer", "bigint")
# The tables with keys, and whether these are their primary key.
_WITH_KEYS = {"scores": True, "shadow_scores": True, "score_history": False}
# Texts that are keys of the other types, however they are written; PostgreSQL 15 cannot be asked.
_NUMBER = r"^\s*[+-]?[0-9]{1,18}\s*$"
_UUID = r"^\s*\{?([0-9a-fA-F]{4}-?){8}\}?\s*$"


def can_be_cast(old: Key, new: Key) -> bool:
    """Whether keys of one kind can be those of the other, where their values allow it.

    Of several columns only what keeps their order: of texts the JSON that keys are kept as would be another.
    """
    if old.is_single and new.is_single and "text" in (*old.types, *new.types):
        return True
    return keeps_order(old, new)


def keeps_order(old: Key, new: Key) -> bool:
    """Whether a range of keys of the one kind holds the same keys as one of the other."""
    if len(old.types) != len(new.types):
        return False
    return all({a, b} <= set(_INTEGERS) or a == b for a, b in zip(old.types, new.types, strict=True))


def away(source: SourceDefinition) -> list[sql.Composed]:
    """Statements that remove what depends on the type, of a source as it is: made again by `installation.repair`."""
    return [*core_objects.drop_views(source), *(write_back.drop(source) if source.write_columns else [])]


def tables(
    connection: Connection, source: SourceDefinition, definition: SourceDefinition, *, empty: bool
) -> list[sql.Composed]:
    """Statements that change the tables of scores, which are written anew. empty: they were just emptied."""
    old, new = source.key, definition.key
    if new.types == old.types:
        return []
    statements = []
    for kind, is_primary in _WITH_KEYS.items():
        if not catalog.exists(connection, Relation(SCHEMA, f"{kind}_{source.name}")):
            continue
        table = ours(kind, source.name)
        if len(new.types) == len(old.types):
            statements += _retyped(table, new.names, old, new, key_types.scalar_type, empty=empty)
            continue
        statements.append(_exchanged(table, old.names, new.definitions()))
        if is_primary:
            statements.append(compose("ALTER TABLE {t} ADD PRIMARY KEY ({key})", t=table, key=new.ours()))
        else:
            statements.append(history_objects.index(definition))
    return statements


def queue(source: SourceDefinition, definition: SourceDefinition, *, empty: bool) -> list[sql.Composed]:
    """Those that change the queue, for which the user's writers wait."""
    old, new = source.key, definition.key
    if new.types == old.types:
        return []
    table = ours("queue", source.name)
    if len(new.types) == len(old.types):
        changed = _retyped(table, new.array_names, old, new, key_types.array_type, empty=empty)
    else:
        changed = [_exchanged(table, old.array_names, new.array_definitions())]
    return [*changed, *core_objects.uncompressed(definition)]


def _retyped(
    table: sql.Composable,
    names: tuple[str, ...],
    old: Key,
    new: Key,
    type_of: Callable[[str], sql.SQL],
    *,
    empty: bool,
) -> list[sql.Composed]:
    # Those that stay as they are may be what the table is partitioned by.
    changes = [
        compose(
            "ALTER COLUMN {c} TYPE {type} USING {using}::{type}",
            c=identifier(name),
            type=type_of(kind),
            using=sql.SQL("NULL") if empty else identifier(name),
        )
        for name, before, kind in zip(names, old.types, new.types, strict=True)
        if kind != before
    ]
    return [compose("ALTER TABLE {table} {changes}", table=table, changes=sql.SQL(", ").join(changes))]


def _exchanged(table: sql.Composable, old: tuple[str, ...], new: list[sql.Composable]) -> sql.Composed:
    """Of an empty table. What is made of the old columns alone, such as an index, goes with them."""
    dropped = sql.SQL(", ").join(compose("DROP COLUMN {c}", c=identifier(name)) for name in old)
    added = sql.SQL(", ").join(compose("ADD COLUMN {c}", c=column) for column in new)
    return compose("ALTER TABLE {t} {dropped}, {added}", t=table, dropped=dropped, added=added)


def texts(source: SourceDefinition, source_id: int, definition: SourceDefinition) -> list[sql.Composed]:
    """Those that write keys which are kept as text as PostgreSQL prints the new type; what is no key of it stays."""
    old, new = source.key, definition.key
    if new.types == old.types or not old.is_single or not old.has_text:
        return []
    owners = {
        "quarantine": compose("source_id = {id}", id=sql.Literal(source_id)),
        "verdicts": compose("source = {name}", name=sql.Literal(source.name)),
    }
    printed = compose(
        "(CASE WHEN k.key ~ {form} THEN k.key::{type}::text ELSE k.key END)",
        form=sql.Literal(_UUID if new.types[0] == "uuid" else _NUMBER),
        type=key_types.scalar_type(new.types[0]),
    )
    return [
        compose(
            "UPDATE {table} k SET key = {printed} WHERE {owner} AND key <> {printed}",
            table=identifier(SCHEMA, table),
            printed=printed,
            owner=owner,
        )
        for table, owner in owners.items()
    ]
