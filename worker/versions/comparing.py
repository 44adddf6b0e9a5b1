"""Champion against challenger by the scores of both, and two versions by what is recorded of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgoutlier.db.errors import ModelError, NoChampion
from pgoutlier.db.sources import sources
from pgoutlier.db.tables import JsonObject
from pgoutlier.db.versions import aliases, challenger_scores, version_rows
from pgoutlier.db.versions.challenger_scores import Disagreement, Quantile
from pgoutlier.db.versions.version_rows import DescribedVersion
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.versions import versions

# Fields of a version that `diff` holds against each other besides recipe and metrics.
_FIELDS = (
    "threshold",
    "n_training_rows",
    "training_from",
    "training_to",
    "parent_version",
    "errors_of",
    "n_bytes",
    "created_at",
    "created_by",
    "imported_from",
    "tags",
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far the challenger agrees with the champion, on the rows that both as they are now have scored.

    champion, challenger: their versions. problem: why the challenger did not score the last batch. rows to agreement
    and quantiles: see `db.versions.challenger_scores.Agreement`. n_missing: rows the champion has scored since both
    were set, and the challenger has not. disagreements: the last rows that only one of them flags.
    """

    source: str
    champion: int
    challenger: int
    champion_threshold: float
    challenger_threshold: float
    problem: str | None
    rows: int
    flagged_by_both: int
    only_champion: int
    only_challenger: int
    agreement: float | None
    n_missing: int
    quantiles: Sequence[Quantile]
    disagreements: Sequence[Disagreement]


@dataclass(frozen=True)
class Difference:
    """What a and b have of the same name, as JSON knows it; None where they have none."""

    what: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Differences:
    """What differs between two versions, by part of their description.

    version: threshold and the like. recipe, metrics: fields by their path. features: a side has True where it has the
    feature.
    """

    source: str
    a: int
    b: int
    version: list[Difference]
    recipe: list[Difference]
    metrics: list[Difference]
    features: list[Difference]


def compare(runtime: Runtime, source_name: str, *, limit: int = 0) -> Comparison:
    """Hold the challenger against the champion, with the last `limit` rows that only one of them flags.

    Raises SourceError if there is no such source, ModelError if it lacks one of the two.
    """
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        pointed = aliases.both(connection, source.id)
        if pointed.challenger is None:
            raise ModelError(
                f"{source.name} has no challenger; set one: pgoutlier models challenge {source.name} VERSION"
            )
        if pointed.champion is None:
            raise NoChampion(source.name)
        champion, challenger = pointed.champion.version, pointed.challenger.version
        thresholds = {row.version: row.threshold for row in version_rows.versions(connection, source.id)}
        found = challenger_scores.comparison(connection, source.definition)
        return Comparison(
            source=source.name,
            champion=champion,
            challenger=challenger,
            champion_threshold=thresholds[champion],
            challenger_threshold=thresholds[challenger],
            problem=pointed.challenger.problem,
            **vars(found),
            n_missing=challenger_scores.n_missing(connection, source),
            disagreements=challenger_scores.disagreements(connection, source.definition, limit=limit)
            if limit
            else [],
        )


def diff(runtime: Runtime, source_name: str, a: int, b: int) -> Differences:
    """What differs between two versions. Raises SourceError or ModelError if there is no such source or version."""
    one, other = (versions.described(runtime, source_name, version) for version in (a, b))
    return Differences(
        source=source_name,
        a=a,
        b=b,
        version=_differences(*({name: getattr(row, name) for name in _FIELDS} for row in (one, other))),
        recipe=_differences(_flat(one.recipe), _flat(other.recipe)),
        metrics=_differences(_flat(_figures(one)), _flat(_figures(other))),
        features=_differences(*(dict.fromkeys(row.feature_names, True) for row in (one, other))),
    )


def _figures(row: DescribedVersion) -> JsonObject:
    """The metrics without the losses of each epoch."""
    return {name: value for name, value in row.metrics.items() if name != "history"}


def _differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    names = dict.fromkeys([*left, *right])
    return [
        Difference(name, left.get(name), right.get(name))
        for name in names
        if left.get(name) != right.get(name)
    ]


def _flat(value: Any, path: str = "") -> JsonObject:
    """The leaves of nested dicts and lists, by their path."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)  # type: ignore[assignment]
    else:
        return {path: value}
    leaves: JsonObject = {}
    for name, child in pairs:
        leaves |= _flat(child, f"{path}.{name}" if path else str(name))
    return leaves
