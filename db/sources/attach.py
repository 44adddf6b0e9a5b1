"""From what a user asked for to a source: every check that can refuse, then the statements."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from pgoutlier.db.ddl import written_columns
from pgoutlier.db.errors import MissingPrivilege, SourceError
from pgoutlier.db.past.entries import MOST_PAST_FEATURES
from pgoutlier.db.source import catalog
from pgoutlier.db.source.catalog import ColumnInfo, RelationInfo
from pgoutlier.db.source.definition import (
    MAX_FEATURES,
    Feature,
    KeyColumn,
    SourceDefinition,
)
from pgoutlier.db.sources import declared_features, keeping, sources, table_key
from pgoutlier.db.sql.identifiers import (
    Relation,
    check_source_name,
    default_source_name,
    display,
    parse_identifier,
    parse_identifiers,
    parse_relation,
    split_identifiers,
)

# What becomes of the rows behind one that comes late.
LATE = ("leave", "rescore")
_KIND_NAMES = {
    "v": "a view",
    "m": "a materialised view",
    "f": "a foreign table",
    "S": "a sequence",
    "i": "an index",
    "c": "a composite type",
}


@dataclass(frozen=True)
class AttachRequest:
    """What was asked for, as typed. key: None is the primary key. features: comma-separated; None with
    all_numeric_except.

    write_columns, row_triggers: None leaves it as it is; the latter are made where a subscription writes the table.
    late: leave or rescore; None leaves it as it is.
    partition_scores: a db.source.definition.Period, keep_scores: days, as in 400d, or forever; None leaves it as it is.
    """

    relation: str
    key: str | None = None
    features: str | None = None
    all_numeric_except: str | None = None
    feature_view: str | None = None
    time: str | None = None
    entity: str | None = None
    label: str | None = None
    name: str | None = None
    write_columns: bool | None = None
    row_triggers: bool | None = None
    late: str | None = None
    partition_scores: str | None = None
    keep_scores: str | None = None


def request_of(source: SourceDefinition) -> AttachRequest:
    """What has to be asked for to get this definition."""

    def optional(name: str | None) -> str | None:
        return None if name is None else display(name)

    return AttachRequest(
        relation=str(source.relation),
        key=source.key.shown,
        features=",".join(feature.declaration for feature in source.features),
        feature_view=None if source.feature_view is None else str(source.feature_view),
        time=optional(source.time_column),
        entity=optional(source.entity_column),
        label=optional(source.label_column),
        name=source.name,
        write_columns=source.write_columns,
        late=LATE[source.rescores_late],
        partition_scores=source.score_partitions,
        keep_scores=keeping.as_asked(source.keep_scores_days),
    )


def resolve(connection: Connection, request: AttachRequest) -> tuple[SourceDefinition, tuple[str, ...]]:
    """The definition asked for, and the columns of the table that are the user's.

    Raises SourceError with one sentence otherwise.
    """
    table = catalog.inspect(connection, parse_relation(request.relation))
    _check_kind(table)
    _check_family(connection, table)
    key = table_key.columns(connection, table, request.key)
    others = {
        role: table.column(parse_identifier(text)).name
        for role, text in (("time", request.time), ("entity", request.entity), ("label", request.label))
        if text is not None
    }
    if "time" in others:
        _check_time(table, others["time"])
    feature_table = table
    if request.feature_view is not None:
        feature_table = catalog.inspect(connection, parse_relation(request.feature_view))
        _check_feature_view(feature_table, table, key)
    _check_privileges(connection, table, feature_table if request.feature_view else None)
    features = _features(
        connection,
        feature_table,
        request,
        kept_out={*(c.name for c in key), *others.values()},
        time=table.columns[others["time"]] if "time" in others else None,
    )
    declared_features.check_rows_before(table, feature_table, features)
    view = feature_table.relation if request.feature_view is not None else None
    _check_not_written(
        connection,
        table,
        view,
        {*others.values(), *(c for f in features for c in f.columns if view is None or f.past)},
    )
    name = check_source_name(request.name) if request.name else default_source_name(table.relation)
    present = sources.definition_of(connection, name)
    write_columns = request.write_columns
    if write_columns is None:
        write_columns = present is not None and present.write_columns
    if write_columns:
        written_columns.check(connection, table)
    definition = SourceDefinition(
        name=name,
        relation_schema=table.relation.schema,
        relation_name=table.relation.name,
        key_column=key[0].name,
        key_type=key[0].key_type,
        further_key_columns=tuple(KeyColumn(column=c.name, type=c.key_type) for c in key[1:]),
        features=features,
        feature_view_schema=view.schema if view else None,
        feature_view_name=view.name if view else None,
        time_column=others.get("time"),
        entity_column=others.get("entity"),
        label_column=others.get("label"),
        write_columns=write_columns,
        rescores_late=_rescores_late(request, present, features),
        score_partitions=keeping.period(request.partition_scores, present),
        keep_scores_days=keeping.days(request.keep_scores, present),
    )
    keeping.check(table, definition)
    return definition, table.own_columns


def _rescores_late(
    request: AttachRequest, present: SourceDefinition | None, features: tuple[Feature, ...]
) -> bool:
    if request.late is None:
        return present is not None and present.rescores_late
    if request.late not in LATE:
        raise SourceError(f"--late {request.late!r} is none of {', '.join(LATE)}.")
    if request.late == LATE[1] and not any(feature.past for feature in features):
        raise SourceError(
            "--late rescore is for features over the rows before, and there are none among --features."
        )
    return request.late == LATE[1]


def check_table(connection: Connection, source: SourceDefinition) -> None:
    """What has to hold of the table for as long as it is attached. Raises SourceError where it does no more."""
    table = catalog.inspect(connection, source.relation)
    _check_kind(table)
    _check_family(connection, table)
    table_key.columns(connection, table, source.key.shown)


def not_features(connection: Connection, source: SourceDefinition) -> dict[str, str]:
    """The columns of the user's that are neither features nor key, time, entity or label, and the type of each."""
    table = catalog.inspect(connection, source.feature_relation)
    used = {column for feature in source.features for column in feature.columns}
    used |= {
        *source.key.columns,
        source.time_column or "",
        source.entity_column or "",
        source.label_column or "",
    }
    return {name: table.columns[name].type_name for name in table.own_columns if name not in used}


def _check_time(table: RelationInfo, name: str) -> None:
    column = table.columns[name]
    if not column.has_order_in_time:
        raise SourceError(
            f"The time column {display(name)} of {table.relation} has type {column.type_name}, which has no order in"
            " time; name a column of type timestamptz, timestamp or date, or of numbers, such as seconds."
        )


def _check_kind(table: RelationInfo) -> None:
    if table.kind in {"r", "p"} and table.persistence != "t":
        return
    what = "a temporary table" if table.persistence == "t" else _KIND_NAMES.get(table.kind, "not a table")
    advice = (
        "Attach the table beneath it, and name the view with --feature-view to take its columns as features."
        if table.kind in {"v", "m"}
        else "Attach an ordinary table."
    )
    raise SourceError(
        f"{table.relation} is {what}; triggers that see whole statements need a table. {advice}"
    )


def _check_family(connection: Connection, table: RelationInfo) -> None:
    parent, child = catalog.family(connection, table)
    if parent is not None:
        raise SourceError(
            f"{table.relation} is a part of {parent}, and statements on {parent} do not fire its triggers; attach"
            f" {parent}."
        )
    if child is not None and table.kind != "p":
        raise SourceError(
            f"{child} inherits from {table.relation}, so a key may be in both; attach a partitioned table, or one"
            " that nothing inherits from."
        )


def _check_feature_view(view: RelationInfo, table: RelationInfo, key: list[ColumnInfo]) -> None:
    if view.kind not in {"v", "m", "r", "p"}:
        raise SourceError(f"{view.relation} cannot be a feature view; name a view over {table.relation}.")
    for column in key:
        name = display(column.name)
        if column.name not in view.columns:
            raise SourceError(
                f"The feature view {view.relation} has no column {name}; it must hold the key of"
                f" {table.relation} under the same name."
            )
        seen = view.columns[column.name]
        if seen.key_type != column.key_type:
            raise SourceError(
                f"{name} is {seen.type_name} in {view.relation} but {column.type_name}"
                f" in {table.relation}; cast it to {column.type_name} in the view."
            )


def _features(
    connection: Connection,
    table: RelationInfo,
    request: AttachRequest,
    *,
    kept_out: set[str],
    time: ColumnInfo | None,
) -> tuple[Feature, ...]:
    if request.features is not None and request.all_numeric_except is not None:
        raise SourceError("Give either --features or --all-numeric-except, not both.")
    if request.features is not None:
        features = [
            declared_features.of_entry(connection, table, text, time)
            for text in split_identifiers(request.features, ",")
        ]
    else:
        if request.all_numeric_except is None and request.feature_view is None:
            raise SourceError("Name the features: --features amount,hour or --all-numeric-except a,b.")
        left_out = {table.column(name).name for name in parse_identifiers(request.all_numeric_except or "")}
        features = [
            declared_features.plain(connection, table, column)
            for column in table.columns.values()
            if column.feature_kind in {"double", "number", "boolean"}
            and not column.is_written
            and column.name not in left_out | kept_out
        ]
    names = [name for feature in features for name in feature.names]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SourceError(f"The feature {display(twice)} is named twice; name it once.")
    if not names:
        raise SourceError(f"No numeric column of {table.relation} is left to be a feature.")
    if len(names) > MAX_FEATURES:
        raise SourceError(f"{len(names)} features are more than the {MAX_FEATURES} that one query can read.")
    if (n_past := sum(feature.past is not None for feature in features)) > MOST_PAST_FEATURES:
        raise SourceError(f"{n_past} features over the rows before are more than {MOST_PAST_FEATURES}.")
    return tuple(features)


def _check_not_written(
    connection: Connection, table: RelationInfo, view: Relation | None, named: set[str]
) -> None:
    """What pgoutlier writes must say nothing about a row to itself."""
    written = [column for column in table.columns.values() if column.is_written]
    for column in written:
        if column.name in named:
            raise SourceError(
                f"{display(column.name)} of {table.relation} is written by pgoutlier, so it can be no feature, time,"
                " entity or label; leave it out."
            )
        if view is not None and catalog.view_reads(connection, view, table.relation, column.name):
            raise SourceError(
                f"The feature view {view} reads {display(column.name)} of {table.relation}, which pgoutlier writes, so"
                " each score would change the next; leave it out of the view."
            )


def _check_privileges(connection: Connection, table: RelationInfo, view: RelationInfo | None) -> None:
    needed = [(table.relation, "SELECT"), (table.relation, "TRIGGER")]
    if view is not None:
        needed.append((view.relation, "SELECT"))
    grants = [*catalog.missing_grants(connection, needed), *catalog.missing_grants_to_attach(connection)]
    if grants:
        raise MissingPrivilege(f"The connected role may not do this; an owner has to run: {' '.join(grants)}")
    blind = catalog.role_with_hidden_rows(connection, table)
    if blind is not None:
        raise MissingPrivilege(
            f"Row-level security hides rows of {table.relation} from {blind}, and those would never be scored; a"
            f" superuser has to run: ALTER ROLE {blind} BYPASSRLS;"
        )
