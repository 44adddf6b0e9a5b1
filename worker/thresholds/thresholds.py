"""What the champion's threshold does to the scores that are stored, and what others would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pgoutlier import detector
from pgoutlier.db.errors import ModelError
from pgoutlier.db.sources import sources
from pgoutlier.db.tables import JsonObject
from pgoutlier.db.thresholds import what_if
from pgoutlier.db.thresholds.scored import Scored
from pgoutlier.db.thresholds.what_if import Cut, Figures
from pgoutlier.db.versions import aliases, version_rows
from pgoutlier.detector import DetectorError, Recipe
from pgoutlier.worker.runtime import Runtime


@dataclass(frozen=True)
class ThresholdFigures:
    """What flagging above a threshold gives. present: it is the champion's. share: of all rows counted.

    flags_per_day, precision, recall and f1 are None where they would be a division by nothing.
    """

    threshold: float
    present: bool
    flags: int
    flags_per_day: float | None
    share: float | None
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class ChampionThreshold:
    """The champion's threshold and policy, and what flags they make of its stored scores.

    time: by what the rows are dated, a column of the source or scored_at. label: the source's label column. verdicts:
    some were given. n_scores, n_labelled, n_fraud, first, last and days: see `db.thresholds.what_if.Figures`.
    counted_at: when the sweep began to count those that were not read for this, None where all were.
    what_if: other thresholds and the champion's, rising; None where none were asked for.
    """

    source: str
    version: int
    policy: str
    time: str | None
    label: str | None
    verdicts: bool
    n_scores: int
    n_labelled: int
    n_fraud: int
    first: datetime | None
    last: datetime | None
    days: float | None
    counted_at: datetime | None
    now: ThresholdFigures
    what_if: list[ThresholdFigures] | None


def describe(
    runtime: Runtime,
    source_name: str,
    *,
    window: timedelta | None,
    others: Sequence[float] | None = None,
) -> ChampionThreshold:
    """The champion's threshold and policy, and what flags they make of its stored scores.

    window: how far back from the newest row; None for all. others: thresholds to compare; empty for a range
    made of quantiles of the stored errors, None for no comparison. Raises SourceError if there is no such source,
    ModelError if nothing scores it yet.
    """
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        version = aliases.champion_of(connection, source)
        champion = version_rows.find(connection, source.id, version)
        if champion is None:
            raise AssertionError("a champion is never pruned")
        present = float(champion.threshold)
        scored = Scored.of(connection, source.definition, version, window)
        chosen = {present}
        if others is not None:
            chosen.update(others or what_if.thresholds(connection, scored))
        found = what_if.figures(connection, scored, sorted(chosen))
    cuts = [_figures(cut, found, present) for cut in found.cuts]
    return ChampionThreshold(
        source=source.name,
        version=version,
        policy=_policy(champion.recipe),
        time=source.definition.time_column if scored.by_event_time else "scored_at",
        label=source.definition.label_column,
        verdicts=scored.by_verdict,
        n_scores=found.n_rows,
        n_labelled=found.n_labelled,
        n_fraud=found.n_fraud,
        first=found.first,
        last=found.last,
        days=found.days,
        counted_at=found.counted_at,
        now=next(cut for cut in cuts if cut.present),
        what_if=None if others is None else cuts,
    )


def _figures(cut: Cut, found: Figures, present: float) -> ThresholdFigures:
    return ThresholdFigures(
        threshold=cut.threshold,
        present=cut.threshold == present,
        flags=cut.n_flagged,
        flags_per_day=_ratio(cut.n_flagged, found.days),
        share=_ratio(cut.n_flagged, found.n_rows),
        precision=_ratio(cut.n_hits, cut.n_flagged_labelled),
        recall=_ratio(cut.n_hits, found.n_fraud),
        f1=_ratio(2 * cut.n_hits, cut.n_flagged_labelled + found.n_fraud) if found.n_fraud else None,
    )


def _ratio(part: int, whole: float | None) -> float | None:
    return part / whole if whole else None


def _policy(recipe: JsonObject) -> str:
    try:
        return detector.threshold_text(Recipe.from_stored(recipe).threshold)
    except DetectorError as error:
        raise ModelError(str(error)) from None
