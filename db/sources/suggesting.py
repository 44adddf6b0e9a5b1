"""What to attach a table with, by what its columns are called and hold: types, and a sample of the first rows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.source import catalog
from pgoutlier.db.source.catalog import ColumnInfo, RelationInfo
from pgoutlier.db.source.labels import is_fraud
from pgoutlier.db.sql.identifiers import display, identifier, parse_identifier, parse_relation
from pgoutlier.db.sql.statements import compose, run

_SAMPLE = 100_000
# An entity has so many rows on average, and there are so many of them at the least.
_ROWS_OF_AN_ENTITY, _LEAST_ENTITIES = 3.0, 20
_MOST_CATEGORIES = 1_000
_MOST_AMOUNTS, _MOST_OTHERS, _MOST_SERIES = 2, 2, 20
_MOST_LABELLED = 0.2
_LABELS = re.compile(r"(is_?)?(fraud|anomal(y|ous)|outlier|chargeback|class|label)", re.IGNORECASE)
_TIMES = re.compile(r".*(_at|_time|time|date|moment|timestamp|at)", re.IGNORECASE)
_AMOUNTS = re.compile(r".*(amount|total|value|price|sum|cost|paid)", re.IGNORECASE)
_WHOSE = re.compile(
    r".*(customer|client|account|card|user|member|payer|sender|patient|machine|device|sensor|host)",
    re.IGNORECASE,
)
_NAMED_AS_ENTITY = re.compile(r".*(_id|_no|_nr|_number|_key|_code|id)", re.IGNORECASE)
_WHOLE = {"smallint", "integer", "bigint"}
_TEXTS = {"text", "character varying", "character", "uuid"}


@dataclass(frozen=True)
class Suggestion:
    """features: entries of --features, each with why. recipe: by name. time, label: columns, None where there is none.

    left_out: columns that nothing was found for.
    """

    relation: str
    features: tuple[tuple[str, str], ...]
    recipe: str
    time: str | None
    label: str | None
    left_out: tuple[str, ...]

    @property
    def entries(self) -> str:
        return ", ".join(entry for entry, _ in self.features)

    @property
    def command(self) -> list[str]:
        """The words that attach it so."""
        words = ["pgoutlier", "attach", self.relation, "--features", self.entries]
        for option, name in (("--time", self.time), ("--label", self.label)):
            words += [] if name is None else [option, display(name)]
        words += [] if self.recipe == "default" else ["--recipe", self.recipe]
        return [*words, *(["--make-indexes"] if " by " in self.entries else [])]


@dataclass(frozen=True)
class _Seen:
    """Of a column in the sample: how many different values and rows with one, and how many say fraud."""

    column: ColumnInfo
    n_different: int
    n_known: int
    n_fraud: int

    @property
    def tells_entities(self) -> bool:
        name, kind = self.column.name, self.column.type_name
        named = _NAMED_AS_ENTITY.fullmatch(name) or _WHOSE.fullmatch(name)
        may_be = kind in _TEXTS or (kind in _WHOLE and named is not None)
        many_rows = self.n_known >= _ROWS_OF_AN_ENTITY * self.n_different
        return may_be and self.n_different >= _LEAST_ENTITIES and many_rows

    @property
    def is_category(self) -> bool:
        is_number = self.column.feature_kind in {"double", "number", "boolean"}
        few = 2 <= self.n_different <= min(_MOST_CATEGORIES, self.n_known / _ROWS_OF_AN_ENTITY)
        return not is_number and self.column.can_tell_entities and few

    @property
    def is_label(self) -> bool:
        said = _LABELS.fullmatch(self.column.name) is not None
        two = self.column.type_name == "boolean" or self.n_different <= 2
        return said and two and self.n_fraud <= _MOST_LABELLED * max(self.n_known, 1)


def suggest(
    connection: Connection, relation: str, *, time: str | None, entity: str | None, label: str | None
) -> Suggestion:
    """time, entity, label: columns that were named. Raises SourceError if there is no such table or column."""
    table = catalog.inspect(connection, parse_relation(relation))
    named = {
        role: table.column(parse_identifier(text)).name
        for role, text in (("time", time), ("entity", entity), ("label", label))
        if text is not None
    }
    seen = _sample(connection, table)
    moment = named.get("time") or _best(_TIMES, (c.name for c in table.columns.values() if _is_time(c)))
    key = set(table.primary_key)
    fraud = named.get("label") or next(
        (s.column.name for s in seen if s.is_label and s.column.name not in key), None
    )
    rest = [s for s in seen if s.column.name not in key | {moment, fraud}]
    whose = named.get("entity")
    entities = [s.column.name for s in sorted(rest, key=lambda s: -s.n_different) if s.tells_entities]
    if whose is None and entities:
        whose = _best(_WHOSE, entities)
    others = [name for name in entities if name != whose][:_MOST_OTHERS]
    rest = [s for s in rest if s.column.name not in {whose, *others}]
    numbers = [s.column.name for s in rest if s.column.feature_kind in {"double", "number", "boolean"}]
    if moment is not None and whose is not None and numbers:
        amounts = _amounts(rest)
        features = list(_against_own_past(amounts, whose, others, known=fraud is not None))
        recipe = "tails"
    else:
        features = [(display(name), "as it is") for name in numbers]
        features += [
            (f"rarity({display(s.column.name)})", f"{s.n_different:,} different values")
            for s in rest
            if s.is_category
        ]
        if moment is not None and len(numbers) <= _MOST_SERIES and whose is None:
            features += list(_of_a_series(numbers))
        recipe = "default"
    used = {
        moment,
        fraud,
        whose,
        *others,
        *key,
        *(name for name in numbers if recipe != "tails" or name in amounts),
    }
    used |= {s.column.name for s in rest if s.is_category and recipe != "tails"}
    return Suggestion(
        relation=str(table.relation),
        features=tuple(features),
        recipe=recipe,
        time=moment,
        label=fraud,
        left_out=tuple(name for name in table.own_columns if name not in used),
    )


def _amounts(seen: Iterable[_Seen]) -> list[str]:
    """The columns of amounts: by name, else those that are not whole."""
    numbers = [s for s in seen if s.column.feature_kind in {"double", "number"}]
    named = [s.column.name for s in numbers if _AMOUNTS.fullmatch(s.column.name)]
    unnamed = [s.column.name for s in numbers if s.column.type_name not in _WHOLE]
    return (named or unnamed or [s.column.name for s in numbers])[:_MOST_AMOUNTS]


def _against_own_past(
    amounts: list[str], whose: str, others: list[str], *, known: bool
) -> Iterable[tuple[str, str]]:
    """Only what is suspicious when it is large, for the recipe that is made for that."""
    by = display(whose)
    for amount in map(display, amounts):
        yield amount, "large amounts"
        yield f"ratio({amount}, 90d) by {by}", f"large for this {whose}"
    for other in map(display, others):
        yield f"distinct({other}, 24h) by {by}", f"many different {other} in a day"
        yield f"is_new({other}, 90d) by {by}", f"a {other} that this {whose} never had"
    if not others:
        yield f"count(24h) by {by}", "many in a day"
    if known:
        for entity in others or [whose]:
            yield f"risk({display(entity)}, 7d, delay 7d)", f"{entity} with known frauds lately"


def _of_a_series(numbers: list[str]) -> Iterable[tuple[str, str]]:
    for name in map(display, numbers):
        yield f"diff({name}, 1)", "against the row before"
        yield f"z({name}, 1d)", "against the day before"
        yield f"std({name}, 1h)", "how uneasy the hour before was"


def _is_time(column: ColumnInfo) -> bool:
    return column.feature_kind in {"timestamp", "timestamptz"}


def _best(pattern: re.Pattern[str], names: Iterable[str]) -> str | None:
    """The first whose name says so, else the first."""
    every = list(names)
    return next((name for name in every if pattern.fullmatch(name)), every[0] if every else None)


def _sample(connection: Connection, table: RelationInfo) -> list[_Seen]:
    columns = [
        column for column in table.columns.values() if column.can_tell_entities and not column.is_written
    ]
    if not columns:
        return []
    counted = sql.SQL(", ").join(
        compose(
            "count(DISTINCT r.{c}), count(r.{c}), count(*) FILTER (WHERE {fraud})",
            c=identifier(column.name),
            fraud=is_fraud(compose("r.{c}", c=identifier(column.name)))
            if _LABELS.fullmatch(column.name)
            else sql.SQL("false"),
        )
        for column in columns
    )
    row = run(
        connection,
        compose(
            "SELECT {counted} FROM (SELECT * FROM {relation} LIMIT {n}) r",
            counted=counted,
            relation=table.relation.sql(),
            n=sql.Literal(_SAMPLE),
        ),
    ).fetchone()
    found = iter(row or ())
    return [_Seen(column, *(int(next(found)) for _ in range(3))) for column in columns]
