"""Drift of a source: the newest rows that its champion scored, beside what the version kept of its training rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from pgoutlier.db.drift import drift_reports
from pgoutlier.db.drift.drift_reports import DriftReport, FeaturePsi, ScoredBlock
from pgoutlier.db.errors import ModelError, PgoutlierError, first_line
from pgoutlier.db.settings import Settings
from pgoutlier.db.source.definition import TRANSFORMS, Source
from pgoutlier.db.sources import sources
from pgoutlier.db.training import training_runs
from pgoutlier.db.versions import aliases, version_rows
from pgoutlier.detector.drift import Binned, Reference, counts, psi_limit, psi_of_counts, rates_differ
from pgoutlier.models_store import registry
from pgoutlier.worker.runtime import Runtime

log = structlog.get_logger()

# Fewer rows tell nothing.
MIN_ROWS = 500
# Of a week of reports on rows that have not drifted, so many may hold a warning.
FALSE_ALARMS_A_WEEK = 0.01
# A flag rate is beyond its limit when it is so many times what it was, or the same part of it.
RATE_RATIO = 2.0
_WEEK_SECONDS = 7 * 86_400


@dataclass
class _Counted:
    """Rows counted into the bins of a reference, block after block."""

    reference: Reference
    left_out: frozenset[str]
    n_rows: int = 0
    n_flagged: int = 0
    features: dict[str, np.ndarray] = field(default_factory=dict)
    error: Any = 0.0

    def add(self, block: ScoredBlock, names: Iterable[str], matrix: npt.NDArray[np.float64]) -> None:
        """matrix (n, d): the features of the block's rows, in numbers."""
        self.n_rows += len(block.errors)
        self.n_flagged += int(block.flagged.sum())
        self.error = self.error + counts(self.reference.error, block.errors)
        for column, name in enumerate(names):
            if name not in self.left_out and (binned := self.reference.features.get(name)):
                found = counts(binned, matrix[:, column])
                self.features[name] = self.features.get(name, 0.0) + found


def measure(runtime: Runtime, source_name: str) -> DriftReport:
    """Measure a source's drift, store the report and return it; a warning is logged for what is beyond its limit.

    Raises SourceError if there is no such source, ModelError if it has no champion, the champion kept no
    reference, or too few of the newest rows were scored by it.
    """
    settings = runtime.settings
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        version, reference = _reference(connection, source)
        # The newest rows are all of one hour or day, so what is taken from the clock has always moved.
        clock = (feature.names for feature in source.definition.features if feature.transform in TRANSFORMS)
        counted = _Counted(reference, frozenset(chain.from_iterable(clock)))
        names = source.definition.feature_names
        # Only what makes numbers of codes has to be known of the champion.
        scores = registry.champion(connection, source, runtime.cache) if source.definition.codes else None
        for block in drift_reports.scored_blocks(
            connection, source.definition, version=version, newest=settings.drift_rows
        ):
            matrix = block.matrix if scores is None else scores.detector.encoded(block.matrix)
            counted.add(block, names, matrix)
        if counted.n_rows < MIN_ROWS:
            raise ModelError(
                f"Version {version} has scored {counted.n_rows:,} of the newest {settings.drift_rows:,} rows of"
                f" {source_name}; drift is measured on {MIN_ROWS} or more of them."
            )
        n_quarantined, n_newest = drift_reports.quarantined_among(
            connection, source, newest=settings.drift_rows
        )
        first = drift_reports.first_flag_rate(connection, source.id, version)
        measured_at = drift_reports.moment(connection)
        found = _report(settings, version, measured_at, counted, first, n_quarantined / n_newest)
        drift_reports.keep(connection, source.id, found)
    if found.drifted:
        log.warning("drift_found", source=source_name, version=version, reasons=found.reasons)
    return found


def reports(runtime: Runtime, source_name: str, *, limit: int) -> list[DriftReport]:
    """The newest reports of a source first. Raises SourceError if there is no such source."""
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        return drift_reports.reports(connection, source.id, limit=limit)


def measure_all(runtime: Runtime, *, train: Callable[[str, int], None]) -> dict[str, bool]:
    """Measure every source that can be; whether it has drifted, by source.

    One that cannot be measured does not keep the others from it. One that has drifted is trained anew, by calling
    train with the id of the last training run, if the settings say so and no training was started within the retrain
    interval.
    """
    settings = runtime.settings
    with runtime.engine.begin() as connection:
        every = list(sources.every(connection))
    drifted = {}
    for source in every:
        try:
            drifted[source.name] = measure(runtime, source.name).drifted
        except ModelError as error:
            log.info("drift_not_measured", source=source.name, reason=str(error))
            continue
        except (PgoutlierError, DBAPIError, psycopg.Error) as error:
            log.error("maintenance_failed", task="drift", source=source.name, error=first_line(error))
            continue
        if drifted[source.name] and settings.retrain_on_drift:
            with runtime.engine.begin() as connection:
                last_run = training_runs.last_run(connection, source.id)
                lately = training_runs.trained_lately(
                    connection, source.id, seconds=settings.retrain_every_seconds
                )
            if not lately:
                train(source.name, last_run)
    return drifted


def _reference(connection: Connection, source: Source) -> tuple[int, Reference]:
    version = aliases.champion_of(connection, source)
    found = version_rows.find(connection, source.id, version)
    if found is None or found.drift_reference is None:
        raise ModelError(
            f"Version {version} of {source.name} kept nothing to measure drift against; train a new one:"
            f" pgoutlier train {source.name}"
        )
    return version, Reference.model_validate(found.drift_reference)


def _report(
    settings: Settings,
    version: int,
    measured_at: datetime,
    counted: _Counted,
    first: tuple[int, int] | None,
    quarantine_rate: float,
) -> DriftReport:
    reports_a_week = max(1.0, _WEEK_SECONDS / settings.drift_every_seconds)
    # One number for each feature, the error and the flag rate may be beyond its limit by chance.
    probability = FALSE_ALARMS_A_WEEK / reports_a_week / (len(counted.features) + 2)
    features = sorted(
        (
            _psi(name, counted.reference.features[name], in_bins, counted.n_rows, settings, probability)
            for name, in_bins in counted.features.items()
        ),
        key=lambda moved: -moved.psi,
    )
    error = _psi(
        "the reconstruction error",
        counted.reference.error,
        counted.error,
        counted.n_rows,
        settings,
        probability,
    )
    reasons = [
        f"{moved.feature} has PSI {moved.psi:.2f}, above {moved.limit:.2f}"
        for moved in (*features, error)
        if moved.psi > moved.limit
    ]
    flag_rate = counted.n_flagged / counted.n_rows
    expected = None if first is None else first[0] / first[1]
    if first is not None and _rate_moved(counted.n_flagged, counted.n_rows, *first, probability):
        reasons.append(f"{flag_rate:.3%} of the rows are flagged, {expected:.3%} were at first")
    if quarantine_rate > settings.drift_quarantine_rate:
        reasons.append(
            f"{quarantine_rate:.1%} of the rows are in quarantine, above {settings.drift_quarantine_rate:.1%}"
        )
    return DriftReport(
        version=version,
        measured_at=measured_at,
        n_rows=counted.n_rows,
        features=features,
        error_psi=error.psi,
        error_limit=error.limit,
        flag_rate=flag_rate,
        expected_flag_rate=expected,
        quarantine_rate=quarantine_rate,
        drifted=bool(reasons),
        reasons=reasons,
    )


def _psi(
    name: str, binned: Binned, in_bins: np.ndarray, n_rows: int, settings: Settings, probability: float
) -> FeaturePsi:
    """The index of a feature, or of the error. It may be what the settings say, or more where rows are few."""
    by_chance = psi_limit(binned, n_rows, probability)
    return FeaturePsi(
        psi=psi_of_counts(binned, in_bins), limit=max(settings.drift_psi, by_chance), feature=name
    )


def _rate_moved(hits: int, n_rows: int, first_hits: int, first_rows: int, probability: float) -> bool:
    """Whether the rate is RATE_RATIO times what it was, or less than that part of it, and not by chance."""
    # Half a hit, so that a rate of none has a ratio.
    ratio = ((hits + 0.5) / n_rows) / ((first_hits + 0.5) / first_rows)
    if 1 / RATE_RATIO < ratio < RATE_RATIO:
        return False
    return rates_differ(hits, n_rows, first_hits, first_rows) < probability / 2
