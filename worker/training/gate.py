"""What becomes of a version that was trained: the source's promotion policy, and the gate that decides by figures."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy import Connection

from pgoutlier.db.errors import ModelError
from pgoutlier.db.source.definition import PROMOTIONS, Source
from pgoutlier.db.sources import sources
from pgoutlier.db.tables import JsonObject
from pgoutlier.db.training.training_rows import TrainingRows
from pgoutlier.db.versions import aliases
from pgoutlier.detector import FitResult
from pgoutlier.detector.gate import HELD_OUT_SHARE, MIN_HELD_OUT, Judgement, Rows, judge
from pgoutlier.models_store import registry
from pgoutlier.worker.runtime import Runtime

log = structlog.get_logger()


@dataclass(frozen=True)
class Decision:
    """Whether a version is promoted by its training, the reason for that or against it, and the gate's figures."""

    promotes: bool
    reason: str
    figures: Judgement | None = None

    def as_metric(self, source: Source) -> JsonObject:
        """What is kept with the version and its training run."""
        return {
            "promotion": source.promotion,
            "promoted": self.promotes,
            "reason": self.reason,
            **(vars(self.figures) if self.figures else {}),
        }


def set_promotion(runtime: Runtime, source_name: str, promotion: str) -> bool:
    """Say what happens to versions of a source when they have been trained. Returns False if that is so already.

    Raises SourceError if there is no such source, ModelError if there is no such policy.
    """
    if promotion not in PROMOTIONS:
        raise ModelError(f"{promotion!r} is no promotion policy; there are {', '.join(PROMOTIONS)}.")
    with runtime.engine.begin() as connection:
        changed = sources.set_promotion(connection, sources.find(connection, source_name).id, promotion)
        if changed:
            sources.record(connection, source_name, "set_promotion", promotion)
    if changed:
        log.info("promotion_set", source=source_name, promotion=promotion)
    return changed


def n_held_out(source: Source, rows: TrainingRows, promote: bool | None) -> int:
    """How many of the newest rows are kept from the fit for the gate: none where nothing is decided by them."""
    if promote is not None or source.promotion == "manual":
        return 0
    n_rows = int(len(rows.matrix) * HELD_OUT_SHARE)
    return n_rows if n_rows >= MIN_HELD_OUT else 0


def measure(
    runtime: Runtime, source: Source, fitted: FitResult, rows: TrainingRows, *, n_held_out: int
) -> Judgement | None:
    """The gate's figures on the newest rows of the window, None where none are held out.

    No transaction is open while they are computed.
    """
    if not n_held_out:
        return None
    with runtime.engine.begin() as connection:
        champion = registry.champion(connection, source, runtime.cache)
    return judge(
        fitted.detector,
        champion.detector if champion else None,
        Rows(rows.matrix, rows.normal, rows.fraud, n_held_out, rows.runs),
        calibration_errors=fitted.calibration_errors,
        most_flagged=runtime.settings.gate_most_flagged,
    )


def decide(
    connection: Connection,
    runtime: Runtime,
    source: Source,
    rows: TrainingRows,
    figures: Judgement | None,
    *,
    promote: bool | None,
) -> Decision:
    """rows: the whole window; promote: what an administrator asked for, which is done."""
    first = aliases.alias(connection, source.id) is None
    if promote is not None:
        return Decision(
            promote, "promoted by its training" if promote else "it was trained not to be promoted"
        )
    least = runtime.settings.gate_min_rows
    refused = [] if figures is None else list(figures.refused)
    if rows.n_normal < least:
        refused.insert(0, f"it was trained on {rows.n_normal:,} rows, fewer than {least:,}")
    if refused:
        return Decision(False, "; ".join(refused), figures)
    if first:
        return Decision(True, "first version", figures)
    return _by_policy(source, figures)


def _by_policy(source: Source, figures: Judgement | None) -> Decision:
    if source.promotion == "manual":
        return Decision(False, "an administrator promotes versions of this source", figures)
    if source.promotion == "always":
        return Decision(True, "promoted by its training, as every version of this source is", figures)
    if figures is None:
        least = int(MIN_HELD_OUT / HELD_OUT_SHARE)
        return Decision(
            False, f"there are fewer than {least:,} rows, too few to hold some out and compare it by"
        )
    if figures.worse:
        return Decision(False, "; ".join(figures.worse), figures)
    held_out = f"{figures.n_held_out:,} held-out rows"
    if figures.decided_by == "labels":
        average = figures.new["average_precision"]
        return Decision(True, f"better on {held_out}: average precision {average:.3f}", figures)
    return Decision(True, f"sound on {held_out}, too few of which are known to be fraud", figures)
