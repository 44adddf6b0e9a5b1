"""Reports of a source: the page kept with each training, and a live one of what the champion scored lately."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC
from typing import Any

import numpy as np
from sqlalchemy import Connection

from pgoutlier.db.drift import drift_reports
from pgoutlier.db.errors import ModelError, NoChampion
from pgoutlier.db.report import report_rows
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import sources
from pgoutlier.db.training import training_rows
from pgoutlier.db.training.training_rows import TrainingRows
from pgoutlier.db.versions import version_rows
from pgoutlier.detector import FitResult
from pgoutlier.detector.drift import Reference
from pgoutlier.detector.far import FarValues
from pgoutlier.models_store import registry
from pgoutlier.models_store.artifact import ArtifactRefused
from pgoutlier.models_store.registry import LoadedVersion
from pgoutlier.worker.report import build
from pgoutlier.worker.report.data import FlaggedFeature, Floats, ReportData
from pgoutlier.worker.report.page import page
from pgoutlier.worker.runtime import Runtime

NEWEST_ROWS = 20_000
_NEWEST_FLAGGED = 1_000
_MOST_FRAUD = 20_000


def live_page(runtime: Runtime, source_name: str, *, newest: int = NEWEST_ROWS) -> tuple[int, str]:
    """(version, page) of the champion and those of the newest rows that it scored.

    Raises SourceError if there is no such source, ModelError if there is no champion, it cannot be used, or it
    scored none of them.
    """
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        try:
            champion = registry.champion(connection, source, runtime.cache)
        except ArtifactRefused as refusal:
            raise ModelError(f"No report can be made: {refusal}.") from None
        if champion is None:
            raise NoChampion(source.name)
        data = _live_data(connection, source, champion, newest)
    return champion.version, page(data)


def kept_page(runtime: Runtime, source_name: str, version: int) -> str:
    """The page of a version's training. Raises SourceError if there is no such source, ModelError if no such page."""
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        found = version_rows.find(connection, source.id, version)
        kept = None if found is None else report_rows.kept(connection, found.id)
    if found is None:
        raise ModelError(
            f"{source_name} has no model version {version}; see: pgoutlier models list {source_name}"
        )
    if kept is None and found.errors_of is not None:
        raise ModelError(
            f"Version {version} of {source_name} is version {found.errors_of} with another threshold, and was not"
            f" trained; the page of the training: pgoutlier report {source_name} --version {found.errors_of}"
        )
    if kept is None:
        raise ModelError(
            f"No report was kept with version {version} of {source_name}: it was trained before reports were or"
            " with PGOUTLIER_TRAINING_REPORTS=false, or drawing failed and the training's log says why; for what"
            f" the champion scored: pgoutlier report {source_name}"
        )
    return kept


def keep_training_report(
    runtime: Runtime, source: Source, version: int, fitted: FitResult, rows: TrainingRows
) -> None:
    """Draw the report of a training that made this version, and keep it with the version."""
    with runtime.engine.begin() as connection:
        fraud = training_rows.labelled_fraud(
            connection, source.definition, newest=runtime.settings.training_rows, most=_MOST_FRAUD
        )
    drawn = page(_training_data(source, version, fitted, rows, fraud))
    with runtime.engine.begin() as connection:
        found = version_rows.version_id(connection, source.id, version)
        if found is not None:
            report_rows.keep(connection, found, drawn)


def _training_data(
    source: Source, version: int, fitted: FitResult, rows: TrainingRows, fraud: Floats
) -> ReportData:
    metrics = fitted.metrics
    calibration = rows.matrix[fitted.calibration_rows]
    # No row labelled fraud was fitted on. As many as would have been drawn for calibration: more of them would
    # make the precision look better than it is.
    share = len(calibration) / rows.n_normal
    # What is scored with the rows before it cannot be scored by itself.
    alone = fitted.detector.recipe.window == 1
    fraud = build.evenly(fraud, math.ceil(len(fraud) * share)) if alone else fraud[:0]
    errors = [fitted.calibration_errors]
    if len(fraud):
        errors.append(fitted.detector.score(fraud).reconstruction_error)
    and_fraud = f", and after them {len(fraud):,} rows labelled fraud, the same share" if len(fraud) else ""
    data = build.report_data_of(
        fitted.detector,
        fitted.history,
        np.concatenate([calibration, fraud]),
        title=f"{source.name}, version {version}",
        rows_are=f"Training report: the calibration rows, which the network was not fitted on{and_fraud}",
        labels=np.arange(len(calibration) + len(fraud)) >= len(calibration),
        errors=np.concatenate(errors),
        kept_epoch=int(metrics["kept_epoch"]),
        facts=[
            ("source", str(source.definition.relation)),
            ("model version", str(version)),
            *_training_facts(metrics, rows.n_normal, rows.first, rows.last),
            *build.notes_of_few(fitted.decided_by_few),
        ],
    )
    left_out = [(reason.replace("_", " "), n) for reason, n in rows.left_out.items()]
    used = [("fitted on", int(metrics["n_fit"])), ("calibrated with", int(metrics["n_calibration"]))]
    return replace(data, counts=(*used, *left_out))


def _live_data(connection: Connection, source: Source, champion: LoadedVersion, newest: int) -> ReportData:
    detector, version = champion.detector, champion.version
    about = version_rows.find(connection, source.id, version)
    if about is None:
        raise AssertionError("what scores is never pruned")
    sample = report_rows.scored_sample(
        connection,
        source.definition,
        version=version,
        newest=newest,
        imputes=detector.recipe.missing == "median",
    )
    if not len(sample.errors):
        raise ModelError(
            f"Version {version} has scored none of the newest {newest:,} rows of {source.name} yet; let it score"
            f" (pgoutlier up), or see its training: pgoutlier report {source.name} --version {version}"
        )
    metrics = about.metrics
    data = build.report_data_of(
        detector,
        metrics.get("history", {}),
        sample.matrix,
        title=f"{source.name}, scored by version {version}",
        rows_are=f"{len(sample.errors):,} rows that version {version} scored, of the newest {newest:,}",
        labels=sample.labels,
        errors=sample.errors,
        times=(_moment(sample.first), _moment(sample.last)) if sample.first and sample.last else None,
        kept_epoch=metrics.get("kept_epoch"),
        facts=[
            ("source", str(source.definition.relation)),
            ("model version", str(version)),
            *_training_facts(metrics, about.n_training_rows, about.training_from, about.training_to),
            *build.notes_of_few(FarValues(**few) for few in metrics.get("decided_by_few", ())),
            (
                "trained at",
                f"{about.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC by {about.created_by}",
            ),
        ],
    )
    n_flagged, top = report_rows.flagged_features(
        connection, source.definition, version=version, newest=_NEWEST_FLAGGED
    )
    flagged_features = tuple(
        FlaggedFeature(name=name, n_rows=n_rows, contribution=mean) for name, n_rows, mean in top
    )
    data = replace(data, top_features=flagged_features, n_flagged_looked_at=n_flagged)
    measured = drift_reports.reports(connection, source.id, limit=1)
    if measured and measured[0].version == version:
        return replace(data, drift=build.drift_as_measured(measured[0]))
    if about.drift_reference is None:
        return data
    reference = Reference.model_validate(about.drift_reference)
    moved = build.drift_of(reference, detector.feature_names, detector.encoded(sample.matrix), sample.errors)
    return replace(data, drift=moved)


def _training_facts(
    metrics: Mapping[str, Any], n_rows: int, first: str | None, last: str | None
) -> list[tuple[str, str]]:
    facts = [("training rows", f"{n_rows:,}")]
    if first and last:
        facts.append(("from", f"{_moment(first)} to {_moment(last)}"))
    if {"seconds", "epochs", "seed"} <= metrics.keys():
        facts.append(
            (
                "trained in",
                f"{metrics['seconds']:.1f} s, {metrics['epochs']:g} epochs, seed {int(metrics['seed'])}",
            )
        )
    return facts


def _moment(text: str) -> str:
    """An event time without parts of a second; a key as it is."""
    return re.sub(r"(?<=:\d\d)\.\d+", "", text)
