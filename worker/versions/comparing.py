"""Champion against challenger by the scores of both, and two versions by what is recorded of them."""

from __future__ import annotations

from typing import Any

from pgoutlier.db.ddl import challenger_objects
from pgoutlier.db.errors import ModelError
from pgoutlier.db.sources import sources
from pgoutlier.db.versions import aliases, challenger_scores, version_rows
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


def compare(runtime: Runtime, source_name: str, *, limit: int = 0) -> dict[str, Any]:
    """How far the challenger agrees with the champion, on the rows that both as they are now have scored.

    rows, flagged_by_both, only_champion, only_challenger: counts of rows; agreement: the share that both flag or both
    do not, None without rows; n_missing: rows the champion has scored since both were set, and the challenger has not;
    quantiles: of both errors, one entry a level; disagreements: the last `limit` rows that only one of them flags.
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
            raise ModelError(
                f"{source.name} has no champion to compare with; make one: pgoutlier models promote {source.name}"
                " VERSION"
            )
        found = challenger_scores.comparison(connection, source.definition) or {}
        champion, challenger = pointed.champion[1], pointed.challenger.version
        thresholds = {
            row["version"]: row["threshold"] for row in version_rows.versions(connection, source.id)
        }
        n_missing = challenger_scores.n_missing(connection, source)
        differing = (
            challenger_scores.disagreements(connection, source.definition, limit=limit) if limit else []
        )
    return {
        "source": source.name,
        "champion": champion,
        "challenger": challenger,
        "champion_threshold": thresholds[champion],
        "challenger_threshold": thresholds[challenger],
        "problem": pointed.challenger.problem,
        **{
            name: found.get(name, 0)
            for name in ("rows", "flagged_by_both", "only_champion", "only_challenger")
        },
        "agreement": found.get("agreement"),
        "n_missing": n_missing,
        "quantiles": [
            {
                "level": level,
                "champion": found[f"champion_{name}"],
                "challenger": found[f"challenger_{name}"],
            }
            for name, level in challenger_objects.QUANTILES.items()
            if found
        ],
        "disagreements": differing,
    }


def diff(runtime: Runtime, source_name: str, a: int, b: int) -> dict[str, Any]:
    """What differs between two versions: a list of {"what", "a", "b"}, by part of their description.

    Parts: recipe (fields by their path), threshold and the like under version, metrics, features (a side has True
    where it has the feature). Raises SourceError or ModelError if there is no such source or version.
    """
    one, other = (versions.described(runtime, source_name, version) for version in (a, b))
    names = [dict.fromkeys(row["feature_names"], True) for row in (one, other)]
    parts = {
        "version": ({f: one[f] for f in _FIELDS}, {f: other[f] for f in _FIELDS}),
        "recipe": (_flat(one["recipe"]), _flat(other["recipe"])),
        "metrics": (_flat(_figures(one)), _flat(_figures(other))),
        "features": (names[0], names[1]),
    }
    return {
        "source": source_name,
        "a": a,
        "b": b,
        **{part: _differences(left, right) for part, (left, right) in parts.items()},
    }


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    """The metrics without the losses of each epoch."""
    return {name: value for name, value in row["metrics"].items() if name != "history"}


def _differences(left: dict[str, Any], right: dict[str, Any]) -> list[dict[str, Any]]:
    names = dict.fromkeys([*left, *right])
    return [
        {"what": name, "a": left.get(name), "b": right.get(name)}
        for name in names
        if left.get(name) != right.get(name)
    ]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested dicts and lists, by their path."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)  # type: ignore[assignment]
    else:
        return {path: value}
    leaves: dict[str, Any] = {}
    for name, child in pairs:
        leaves |= _flat(child, f"{path}.{name}" if path else str(name))
    return leaves
