"""Which columns of a table are the key of its source: they tell every row from every other, and are never NULL."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from pgoutlier.db.errors import SourceError
from pgoutlier.db.source import catalog
from pgoutlier.db.source.catalog import ColumnInfo, RelationInfo
from pgoutlier.db.sql.identifiers import as_argument, display, parse_identifiers
from pgoutlier.db.sql.key_types import KEY_TYPES
from pgoutlier.db.sql.keys import MOST_COLUMNS


def columns(connection: Connection, table: RelationInfo, asked: str | None) -> list[ColumnInfo]:
    """Those that were asked for, or of the primary key. Raises SourceError, with what to do, if they are no key."""
    if asked is None:
        names = list(table.primary_key)
        if not names:
            raise SourceError(
                f"{table.relation} has no primary key; name what tells its rows apart, one column or several, with"
                " --key."
            )
    else:
        names = [asked] if asked in table.columns else parse_identifiers(asked)
    if len(names) > MOST_COLUMNS:
        raise SourceError(
            f"A key has at most {MOST_COLUMNS} columns, and {_list(names)} are {len(names)}; add one column that is"
            " unique by itself."
        )
    found = [table.column(name) for name in names]
    if len(set(names)) < len(names):
        raise SourceError(f"A column is named twice in the key {_list(names)}; name it once.")
    _check_unique(connection, table, names)
    for column in found:
        _check(table, column, alone=len(found) == 1)
    return found


def _check_unique(connection: Connection, table: RelationInfo, names: list[str]) -> None:
    if any(set(unique) <= set(names) for unique in table.unique_columns):
        return
    what = f"{_list(names)} {'is' if len(names) == 1 else 'are'}"
    by = [name for name in catalog.partition_columns(connection, table.relation) if name not in names]
    why = ""
    if by:
        why = f", which is partitioned by {_list(by)}, so that no key of it is unique without {_list(by)}"
    longer = next((u for u in table.unique_columns if set(names) < set(u)), None)
    if longer is not None:
        raise SourceError(
            f"{what} only part of the key of {table.relation}{why}; take all of it: --key"
            f" {as_argument(longer)}"
        )
    whole = [*names, *by]
    raise SourceError(
        f"{what} not unique in {table.relation}{why}; declare a key, and name it with --key"
        f" {as_argument(whole)}: ALTER TABLE {table.relation} ADD UNIQUE ({_list(whole)});"
    )


def _check(table: RelationInfo, column: ColumnInfo, *, alone: bool) -> None:
    name = display(column.name)
    if column.key_type is None or (alone and column.key_type not in KEY_TYPES):
        times = "" if alone else ", timestamptz, timestamp, date"
        raise SourceError(
            f"The key {name} has type {column.type_name}; a key is smallint, integer, bigint, uuid{times} or text."
        )
    if column.loose_collation is not None:
        raise SourceError(
            f"The key {name} has the collation {display(column.loose_collation)}, which takes different texts for"
            " equal, as no key of ours does; name another key, or give it a deterministic collation."
        )
    if not column.not_null:
        raise SourceError(
            f"The key {name} may be NULL; declare it: ALTER TABLE {table.relation} ALTER COLUMN {name} SET NOT NULL;"
        )


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(display, names))
