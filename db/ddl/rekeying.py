"""Giving the keys in the objects of a source the type that its key column has by now."""

from __future__ import annotations

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.ddl import core_objects
from pgoutlier.db.scoring import write_back
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql import key_types
from pgoutlier.db.sql.identifiers import SCHEMA, Relation, identifier, ours
from pgoutlier.db.sql.statements import compose

_INTEGERS = ("smallint", "integer", "bigint")
_WITH_KEYS = ("scores", "shadow_scores", "score_history")
# Texts that are keys of the other types, however they are written; PostgreSQL 15 cannot be asked.
_NUMBER = r"^\s*[+-]?[0-9]{1,18}\s*$"
_UUID = r"^\s*\{?([0-9a-fA-F]{4}-?){8}\}?\s*$"


def can_be_cast(old: str, new: str) -> bool:
    """Whether keys of one type can be those of the other, where their values allow it."""
    return "text" in (old, new) or {old, new} <= set(_INTEGERS) or old == new


def keeps_order(old: str, new: str) -> bool:
    """Whether a range of keys of the one type holds the same keys as one of the other."""
    return {old, new} <= set(_INTEGERS) or old == new


def away(source: SourceDefinition) -> list[sql.Composed]:
    """Statements that remove what depends on the type, of a source as it is: made again by `installation.repair`."""
    return [*core_objects.drop_views(source), *(write_back.drop(source) if source.write_columns else [])]


def tables(connection: Connection, source: SourceDefinition, new: str, *, empty: bool) -> list[sql.Composed]:
    """Statements that change the tables of scores, which are written anew. empty: they were just emptied."""
    if new == source.key_type:
        return []
    using: sql.Composable = sql.SQL("NULL" if empty else "key")
    return [
        compose(
            "ALTER TABLE {table} ALTER COLUMN key TYPE {type} USING {using}::{type}",
            table=ours(kind, source.name),
            type=key_types.scalar_type(new),
            using=using,
        )
        for kind in _WITH_KEYS
        if catalog.exists(connection, Relation(SCHEMA, f"{kind}_{source.name}"))
    ]


def queue(source: SourceDefinition, new: str, *, empty: bool) -> list[sql.Composed]:
    """Those that change the queue, for which the user's writers wait."""
    if new == source.key_type:
        return []
    table = ours("queue", source.name)
    return [
        compose(
            "ALTER TABLE {queue} ALTER COLUMN keys TYPE {type} USING {using}::{type}",
            queue=table,
            type=key_types.array_type(new),
            using=sql.SQL("NULL" if empty else "keys"),
        ),
        compose("ALTER TABLE {queue} ALTER COLUMN keys SET STORAGE EXTERNAL", queue=table),
    ]


def texts(source: SourceDefinition, source_id: int, new: str) -> list[sql.Composed]:
    """Those that write keys which are kept as text as PostgreSQL prints the new type; what is no key of it stays."""
    if new == source.key_type or source.key_type != "text":
        return []
    owners = {
        "quarantine": compose("source_id = {id}", id=sql.Literal(source_id)),
        "verdicts": compose("source = {name}", name=sql.Literal(source.name)),
    }
    printed = compose(
        "(CASE WHEN k.key ~ {form} THEN k.key::{type}::text ELSE k.key END)",
        form=sql.Literal(_UUID if new == "uuid" else _NUMBER),
        type=key_types.scalar_type(new),
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
