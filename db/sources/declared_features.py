"""One feature out of what was typed for it: a column, a transform of one, an array, or something of the rows before.

Each function raises SourceError, naming what is wrong with the entry, in one sentence.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection

from pgoutlier.db.errors import SourceError
from pgoutlier.db.past import entries
from pgoutlier.db.past.entries import Entry
from pgoutlier.db.source import catalog
from pgoutlier.db.source.catalog import ColumnInfo, RelationInfo
from pgoutlier.db.source.definition import MAX_FEATURES, RARITY, TRANSFORMS, Feature
from pgoutlier.db.sql.identifiers import display, parse_identifier

_PRINTED_IN_SEVERAL_WAYS = {
    "numeric",
    "real",
    "double precision",
    "interval",
    "time without time zone",
    "time with time zone",
    "money",
}
_WITH_ARGUMENT = re.compile(r"^(?P<transform>[a-z_]+)\((?P<column>.+)\)$", re.DOTALL)
_WITH_LENGTH = re.compile(r"^(?P<column>.+)\[(?P<length>[0-9]{1,5})\]$", re.DOTALL)


def of_entry(connection: Connection, table: RelationInfo, text: str, time: ColumnInfo | None) -> Feature:
    """One entry of --features: column, transform(column), array_column[length] or one of `db.past.entries`."""
    if text in table.columns:
        return plain(connection, table, table.columns[text])
    if (entry := entries.parse(text)) is not None:
        return _over_rows_before(table, text, entry, time)
    if match := _WITH_ARGUMENT.match(text):
        return _transformed(
            table, match["transform"], table.column(parse_identifier(match["column"].strip()))
        )
    if match := _WITH_LENGTH.match(text):
        column = table.column(parse_identifier(match["column"].strip()))
        if column.feature_kind != "array" or int(match["length"]) == 0:
            raise SourceError(f"{text} asks for an array, but {display(column.name)} is {column.type_name}.")
        if int(match["length"]) > MAX_FEATURES:
            raise SourceError(f"{text} is longer than the {MAX_FEATURES} features that one query can read.")
        return Feature(column=column.name, kind="array", length=int(match["length"]))
    return plain(connection, table, table.column(parse_identifier(text)))


def _over_rows_before(table: RelationInfo, text: str, entry: Entry, time: ColumnInfo | None) -> Feature:
    past = entry.past
    if time is None:
        raise SourceError(
            f"{text} looks at the rows before, so it has to be known which these are; name the column that says when"
            " a row happened with --time."
        )
    if past.by is not None:
        by = table.column(past.by)
        if not by.can_tell_entities:
            raise SourceError(
                f"{text} is by {display(by.name)}, whose type {by.type_name} tells no entities apart; name a column of"
                " text, whole numbers, UUIDs or an enum."
            )
    kind = "any"
    column = table.column(entry.column) if entry.column is not None else None
    if column is not None and past.takes_number:
        if column.feature_kind not in {"double", "number", "boolean"}:
            raise SourceError(f"{text} needs numbers, but {display(column.name)} is {column.type_name}.")
        kind = column.feature_kind
    if column is not None and past.takes_any_value:
        # What their text does not tell.
        kind = {"numeric": "number", "double precision": "double", "real": "double"}.get(
            column.type_name, "any"
        )
    if column is not None and past.takes_any_value and not column.can_tell_entities:
        raise SourceError(
            f"{text} needs values that can be compared, but {display(column.name)} is {column.type_name}."
        )
    in_numbers = time.feature_kind in {"double", "number"}
    if past.function == "risk" and in_numbers:
        raise SourceError(
            f"{text} counts verdicts from when they were given on, but {display(time.name)} holds numbers; name a"
            " column of times with --time."
        )
    feature = Feature(
        column=column.name if column is not None else past.by or time.name,
        kind=kind,
        past=past.model_copy(update={"in_numbers": in_numbers}),
    )
    return feature.model_copy(update={"known_as": feature.declaration})


def check_rows_before(table: RelationInfo, view: RelationInfo, features: tuple[Feature, ...]) -> None:
    """The rows before are read from the table, and compared with what the view shows of a row."""
    if view is table:
        return
    for feature in features:
        if feature.past is None:
            continue
        for name in feature.columns:
            if table.column(name).type_name != view.column(name).type_name:
                raise SourceError(
                    f"{feature.declaration} is of the rows of {table.relation}, where {display(name)} is"
                    f" {table.columns[name].type_name}, but in {view.relation} {view.columns[name].type_name}; show it"
                    " there as it is."
                )


def plain(connection: Connection, table: RelationInfo, column: ColumnInfo) -> Feature:
    """A column as it is. Raises SourceError if it can be no feature so."""
    kind = column.feature_kind
    if column.is_virtual:
        raise SourceError(
            f"{display(column.name)} of {table.relation} is a virtual generated column, whose changes a trigger"
            " does not see; declare it STORED, leave it out, or take it through a --feature-view."
        )
    if kind in {"timestamp", "timestamptz"}:
        known = ", ".join(f"{t}({display(column.name)})" for t in TRANSFORMS)
        raise SourceError(f"{display(column.name)} is a time; declare how it becomes a number: {known}.")
    if kind is None:
        raise SourceError(
            f"The feature {display(column.name)} of {table.relation} has type {column.type_name}, which is not"
            " numeric. Make a view that turns it into a number and name it with --feature-view."
        )
    if kind != "array":
        return Feature(column=column.name, kind=kind)
    lengths = catalog.array_lengths(connection, table.relation, column.name)
    if len(lengths) != 1 or 0 in lengths:
        seen = (
            f"lengths {', '.join(map(str, sorted(lengths)))} were seen"
            if lengths
            else "it has no rows to tell"
        )
        raise SourceError(f"Declare the length of the array {display(column.name)}[n]: {seen}.")
    return Feature(column=column.name, kind="array", length=lengths.pop())


def _transformed(table: RelationInfo, transform: str, column: ColumnInfo) -> Feature:
    if transform == RARITY:
        # What PostgreSQL prints of others is said by settings of the session, or in several ways of one value.
        written_in_one_way = column.type_name not in _PRINTED_IN_SEVERAL_WAYS and column.feature_kind not in {
            "timestamp",
            "timestamptz",
        }
        if not (column.can_tell_entities and written_in_one_way):
            raise SourceError(
                f"rarity is of text, whole numbers, booleans, enums or UUIDs, but {display(column.name)} is"
                f" {column.type_name}."
            )
        return Feature(column=column.name, kind="any", transform=RARITY)
    if transform not in TRANSFORMS:
        known = ", ".join((*TRANSFORMS, RARITY, *entries.FORMS))
        raise SourceError(f"There is no transform {transform}; known are {known}.")
    if column.feature_kind not in {"timestamp", "timestamptz"}:
        raise SourceError(
            f"{transform}({display(column.name)}) needs a timestamp or date, but {display(column.name)} of"
            f" {table.relation} is {column.type_name}."
        )
    if column.type_name == "date" and transform.startswith("hour"):
        raise SourceError(
            f"{display(column.name)} is a date and has no hour; use weekday, monthday or epoch."
        )
    return Feature(column=column.name, kind=column.feature_kind, transform=transform)
