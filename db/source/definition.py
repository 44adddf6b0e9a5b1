"""What a source is: the watched relation, its key, and its features, as validated data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, Literal

from psycopg import sql
from pydantic import BaseModel, ConfigDict, Field

from pgoutlier.db.past.entries import Past
from pgoutlier.db.sql.identifiers import Relation, display, identifier
from pgoutlier.db.sql.keys import Key
from pgoutlier.db.sql.statements import compose

MAX_KEEP_DAYS = 36_525  # a hundred years
MAX_FEATURES = 1_500  # PostgreSQL returns at most 1,664 columns from one query

# What attach --write-columns adds to the user's table, and how the comment on each begins, which says that it is ours.
WRITTEN_COLUMNS = {"reconstruction_error": "double precision", "flagged": "boolean"}
WRITTEN_MARK = "Written by pgoutlier"

# A declared transform turns a timestamp into a number; time zones are taken as UTC so that a session setting
# cannot change a score. Every operator and function says its schema: a feature view is read with the role's own path.
_HOUR = (
    "(extract(hour from {x}) OPERATOR(pg_catalog.+) (extract(minute from {x}) OPERATOR(pg_catalog./) 60.0)"
    " OPERATOR(pg_catalog.+) (extract(second from {x}) OPERATOR(pg_catalog./) 3600.0))"
)
_ANGLE = (
    "((2 OPERATOR(pg_catalog.*) pg_catalog.pi()) OPERATOR(pg_catalog.*) "
    + _HOUR
    + " OPERATOR(pg_catalog./) 24)"
)
TRANSFORMS: dict[str, str] = {
    "hour": _HOUR,
    "hour_sin": f"pg_catalog.sin({_ANGLE})",
    "hour_cos": f"pg_catalog.cos({_ANGLE})",
    "weekday": "(extract(isodow from {x}) OPERATOR(pg_catalog.-) 1)",
    "monthday": "extract(day from {x})",
    "epoch": "extract(epoch from {x})",
}


# A value as a code: a number that is the same in every database, and whole numbers below 2^53 are doubles.
_CODE = (
    "coalesce((('x' OPERATOR(pg_catalog.||) pg_catalog.encode(pg_catalog.substring(pg_catalog.sha256("
    "pg_catalog.convert_to({x}::text, 'UTF8')), 1, 7), 'hex'))::bit(52))::bigint, -1)::double precision"
)
RARITY = "rarity"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Feature(Frozen):
    """One declared feature: a column taken as it is, an array column of fixed length, a transform of a time, or
    something of the rows before.

    kind "number" includes every numeric type, "any" is for features over the rows before alone; `length` > 0 for
    arrays only. column: where a feature over the rows before takes none, that of its entity, or of the time.
    """

    column: str
    kind: Literal["double", "number", "boolean", "array", "timestamp", "timestamptz", "any"]
    transform: str | None = None
    length: int = Field(0, ge=0, le=MAX_FEATURES)
    past: Past | None = None
    # The name that models know it by, where the column has been renamed; of one over the rows before, always.
    known_as: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the matrix columns it fills."""
        if self.past is not None:
            return (self.known_as or self.declaration,)
        name = self.known_as or self.column
        if self.length:
            return tuple(f"{name}[{i}]" for i in range(1, self.length + 1))
        return (f"{self.transform}({name})" if self.transform else name,)

    @property
    def code_kind(self) -> Literal["rarity", "share"] | None:
        """How its values are codes that a version makes numbers of, see detector.encoding; None where they are not."""
        if self.transform == RARITY:
            return "rarity"
        return "share" if self.past is not None and self.past.function == "risk" else None

    @property
    def declaration(self) -> str:
        """As it is declared to attach."""
        if self.past is not None:
            return self.past.shown(display(self.column))
        if self.length:
            return f"{display(self.column)}[{self.length}]"
        return f"{self.transform}({display(self.column)})" if self.transform else display(self.column)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of its own row that it is made of, but for the time."""
        by = None if self.past is None else self.past.by
        return (self.column,) if by is None else (self.column, by)

    def expression(self, table: str) -> sql.Composable:
        """SQL for its value as double precision, or double precision[] for an array.

        Of a feature over the rows before: what it is with nothing before is made of that, see db.past.kernel.
        """
        if self.past is not None and not self.past.needs_own_value:
            return sql.SQL("0::double precision")
        return self.value(table)

    def value(self, table: str) -> sql.Composable:
        """SQL for the same of its column alone."""
        column = compose("{t}.{c}", t=identifier(table), c=identifier(self.column))
        if self.transform == RARITY:
            return sql.SQL(_CODE).format(x=column)
        if self.transform:
            moment = compose("({c} AT TIME ZONE 'UTC')", c=column) if self.kind == "timestamptz" else column
            template = TRANSFORMS[self.transform]
            return compose("({value})::double precision", value=sql.SQL(template).format(x=moment))
        if self.kind == "double":
            return column
        if self.kind == "boolean":
            return compose("{c}::integer::double precision", c=column)
        if self.kind == "array":
            return compose("{c}::double precision[]", c=column)
        return compose("{c}::double precision", c=column)


# How far a partition of the scores reaches in time.
Period = Literal["day", "week", "month", "year"]
_TIMES = ("timestamptz", "timestamp", "date")
KeyType = Literal["smallint", "integer", "bigint", "uuid", "text", "timestamptz", "timestamp", "date"]


class KeyColumn(Frozen):
    """One of the columns of a key, but for the first."""

    column: str
    type: KeyType


@lru_cache(maxsize=1_024)
def _key(columns: tuple[KeyColumn, ...]) -> Key:
    return Key(tuple(column.column for column in columns), tuple(column.type for column in columns))


class SourceDefinition(Frozen):
    """A watched table. Two attaches are the same if their definitions are equal.

    The key is key_column and further_key_columns: read it by `key`.
    """

    name: str
    relation_schema: str
    relation_name: str
    key_column: str
    key_type: KeyType
    further_key_columns: tuple[KeyColumn, ...] = ()
    features: tuple[Feature, ...]
    feature_view_schema: str | None = None
    feature_view_name: str | None = None
    time_column: str | None = None
    entity_column: str | None = None
    label_column: str | None = None
    # Whether the score is kept in columns of the table as well, see db.scoring.write_back.
    write_columns: bool = False
    # Whether a row that comes late has the rows behind it, which count it among those before, scored again.
    rescores_late: bool = False
    # The scores are partitioned by `key_time`, see db.scoring.score_partitions; None: they are one table.
    score_partitions: Period | None = None
    # How long scores are kept by `expires_by`, see db.source.expiry; None: until their row is gone.
    keep_scores_days: int | None = Field(None, ge=1, le=MAX_KEEP_DAYS)

    @property
    def key(self) -> Key:
        return _key((KeyColumn(column=self.key_column, type=self.key_type), *self.further_key_columns))

    @property
    def moment_column(self) -> str:
        """What says which rows are the newest: the time column, else what of the key grows with time."""
        if self.time_column is not None:
            return self.time_column
        place = self.key_time
        return self.key.columns[-1 if place is None else place]

    @property
    def key_time(self) -> int | None:
        """The place in the key of its first column of times; None where it has none."""
        return next((place for place, kind in enumerate(self.key.types) if kind in _TIMES), None)

    @property
    def expires_by(self) -> str | None:
        """The column that says how old a row is: the time in its key, by which scores can be partitioned, else the
        time column."""
        return self.time_column if self.key_time is None else self.key.columns[self.key_time]

    @property
    def relation(self) -> Relation:
        return Relation(self.relation_schema, self.relation_name)

    @property
    def feature_view(self) -> Relation | None:
        if self.feature_view_schema is None or self.feature_view_name is None:
            return None
        return Relation(self.feature_view_schema, self.feature_view_name)

    @property
    def feature_relation(self) -> Relation:
        """Where features are read from: the feature view if there is one, else the table."""
        return self.feature_view or self.relation

    @cached_property
    def past_features(self) -> tuple[tuple[int, Feature], ...]:
        """Those over the rows before, each after the place of its column in the matrix."""
        place, found = 0, []
        for feature in self.features:
            if feature.past is not None:
                found.append((place, feature))
            place += feature.length or 1
        return tuple(found)

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(name for feature in self.features for name in feature.names)

    @cached_property
    def codes(self) -> dict[str, Literal["rarity", "share"]]:
        """The features that come as codes, by name."""
        return {
            feature.names[0]: feature.code_kind for feature in self.features if feature.code_kind is not None
        }

    @cached_property
    def n_features(self) -> int:
        return len(self.feature_names)

    def describe(self) -> str:
        return f"{self.relation} by {self.key.shown}, {self.n_features} features"


PROMOTIONS = ("manual", "if_better", "always")


@dataclass(frozen=True)
class Source:
    """A source that is attached: a row of outlier.sources."""

    id: int
    definition: SourceDefinition
    recipe: dict[str, Any]
    attached_xid: int | None
    last_problem: str | None
    # What happens to a version that was trained: one of PROMOTIONS.
    promotion: str = "manual"
    # When the scores that were there before were all in the columns of its table, see db.scoring.write_back.
    columns_filled_at: datetime | None = None
    # Its table's oid, which stays when that is renamed; None where it was gone.
    table_oid: int | None = None
    # Why nothing may be read or removed by the table's name: see db.source.identity.
    table_problem: str | None = None
    # What outlier.before_migration has taken away, and outlier.after_migration not brought back yet.
    migration: dict[str, Any] | None = None
    # Of its definition as it is stored, and of the columns of its table: others after any change of these.
    digest: int = 0
    columns_digest: int = 0

    @property
    def name(self) -> str:
        return self.definition.name
