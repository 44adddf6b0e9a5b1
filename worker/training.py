"""Training a version: one at a time a source, progress in training_runs, registered and perhaps promoted."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import Connection

import detector
from db import models as model_sql
from db import sources, training_rows
from db.errors import ModelError, TrainingBusy
from db.sources import Source
from db.training_rows import TrainingRows
from detector import DetectorError, FitResult, Progress, Recipe
from models_store import registry
from models_store.registry import TrainingWindow
from worker.runtime import Runtime
from worker.sequences import require_order

log = structlog.get_logger()


@dataclass(frozen=True)
class TrainedVersion:
    """What a training made."""

    source: str
    version: int
    promoted: bool
    n_rows: int
    left_out: dict[str, int]
    threshold: float
    metrics: dict[str, Any]


def train(
    runtime: Runtime,
    source_name: str,
    *,
    promote: bool | None = None,
    seed: int | None = None,
    recipe_name: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainedVersion:
    """Fit the source's recipe (or another by name) on its newest normal rows and register the version.

    promote: None promotes only if the source has no champion yet. Raises TrainingBusy if a training of the
    source is under way, SourceError if there is no such source, ModelError if the rows cannot be trained on.
    """
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
    recipe = _recipe(source, recipe_name)
    require_order(recipe, source.definition)
    seed = recipe.seed if seed is None else seed
    with _training_lock(runtime, source) as holder:
        with runtime.engine.begin() as connection:
            run_id = model_sql.start_run(
                connection, source.id, recipe=recipe.model_dump(mode="json"), seed=seed
            )
        try:
            return _train(runtime, source, recipe, seed, promote, run_id, on_progress)
        except BaseException as error:
            holder.rollback()
            with runtime.engine.begin() as connection:
                model_sql.finish_run(
                    connection, run_id, status="failed", error=f"{type(error).__name__}: {error}"
                )
            if isinstance(error, DetectorError):
                raise ModelError(f"{source.name} cannot be trained: {error}") from error
            raise


def _train(
    runtime: Runtime,
    source: Source,
    recipe: Recipe,
    seed: int,
    promote: bool | None,
    run_id: int,
    on_progress: Callable[[Progress], None] | None,
) -> TrainedVersion:
    with runtime.engine.begin() as connection:
        rows = training_rows.read(
            connection,
            source.definition,
            source.id,
            newest=runtime.settings.training_rows,
            imputes=recipe.missing == "median",
            in_runs=recipe.window > 1,
        )
        model_sql.update_run(connection, run_id, n_rows=len(rows.matrix), left_out=rows.left_out)

    def report(progress: Progress) -> None:
        with runtime.engine.begin() as connection:
            model_sql.update_run(
                connection,
                run_id,
                epoch=progress.epoch,
                n_epochs=progress.n_epochs,
                loss=progress.loss,
                eta_seconds=progress.eta_seconds,
            )
        if on_progress is not None:
            on_progress(progress)

    fitted = detector.fit(
        recipe,
        rows.matrix,
        source.definition.feature_names,
        groups=rows.runs,
        seed=seed,
        on_progress=report,
    )
    with runtime.engine.begin() as connection:
        number, promoted = _register(connection, runtime, source, fitted, rows, promote)
        model_sql.finish_run(
            connection,
            run_id,
            status="succeeded",
            metrics=fitted.metrics,
            versions=_versions(),
            version=number,
            promoted=promoted,
        )
    log.info(
        "version_trained", source=source.name, version=number, promoted=promoted, n_rows=len(rows.matrix)
    )
    return TrainedVersion(
        source=source.name,
        version=number,
        promoted=promoted,
        n_rows=len(rows.matrix),
        left_out=rows.left_out,
        threshold=fitted.detector.threshold,
        metrics=fitted.metrics,
    )


def _register(
    connection: Connection,
    runtime: Runtime,
    source: Source,
    fitted: FitResult,
    rows: TrainingRows,
    promote: bool | None,
) -> tuple[int, bool]:
    number = registry.register(
        connection,
        source,
        fitted.detector,
        window=TrainingWindow(n_rows=len(rows.matrix), first=rows.first, last=rows.last),
        metrics={**fitted.metrics, "history": fitted.history},
        signing_key=runtime.signing_key,
    )
    first = model_sql.alias(connection, source.id) is None
    if not (first if promote is None else promote):
        return number, False
    registry.promote(
        connection,
        source,
        number,
        reason="first version" if first else "promoted by its training",
        max_bytes=runtime.settings.artifact_max_bytes,
        signing_key=runtime.signing_key,
    )
    return number, True


@contextmanager
def _training_lock(runtime: Runtime, source: Source) -> Iterator[Connection]:
    """Held by a session of its own, so that a killed process frees it."""
    with runtime.engine.connect() as connection:
        # In a transaction that ends here: the session keeps the lock, and nothing stays open for hours.
        with connection.begin():
            if not model_sql.try_training_lock(connection, source.id):
                raise TrainingBusy(f"{source.name} is being trained already; watch it with: pgoutlier status")
        try:
            yield connection
        finally:
            # The session must not go back to the pool with the lock.
            connection.invalidate()


def chosen_recipe(name: str, *, flag_rate: float | None = None) -> Recipe:
    """A built-in recipe, flagging this share of normal rows instead of by its own threshold policy.

    Raises ModelError if there is no such recipe or the share is out of bounds.
    """
    try:
        recipe = detector.recipe_named(name)
        if flag_rate is None:
            return recipe
        threshold = {"policy": "quantile", "contamination": flag_rate}
        return Recipe.model_validate({**recipe.model_dump(), "threshold": threshold})
    except DetectorError as error:
        raise ModelError(str(error)) from None
    except ValidationError as error:
        raise ModelError(f"--flag-rate {flag_rate} cannot be used: {error.errors()[0]['msg']}.") from None


def _recipe(source: Source, name: str | None) -> Recipe:
    try:
        return Recipe.from_json(json.dumps(source.recipe)) if name is None else detector.recipe_named(name)
    except DetectorError as error:
        raise ModelError(str(error)) from None


def _versions() -> dict[str, str]:
    names = ("tensorflow", "tensorflow-cpu")
    found = {"python": platform.python_version(), "pgoutlier": package_version("pgoutlier")}
    for name in names:
        try:
            found["tensorflow"] = package_version(name)
        except ModuleNotFoundError:
            continue
    return found


def sources_due(runtime: Runtime) -> list[str]:
    """Sources with a version whose latest training started longer ago than the retrain interval.

    The first version of a source is always an administrator's decision.
    """
    with runtime.engine.begin() as connection:
        return model_sql.sources_to_retrain(
            connection, older_than_seconds=runtime.settings.retrain_every_seconds
        )
