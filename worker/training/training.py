"""Training a version: one at a time a source, progress in training_runs, registered and perhaps promoted."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata

import structlog
from sqlalchemy import Connection

from pgoutlier import detector
from pgoutlier.db.errors import ModelError, TrainingBusy
from pgoutlier.db.schedules import schedules
from pgoutlier.db.scoring import quarantine
from pgoutlier.db.scoring.quarantine import Entry
from pgoutlier.db.source import identity
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import sources
from pgoutlier.db.sql.long_locks import LongLock
from pgoutlier.db.training import training_rows, training_runs
from pgoutlier.db.training.training_rows import TrainingRows
from pgoutlier.detector import DetectorError, FitResult, Progress, Recipe
from pgoutlier.detector.far import FarValues
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import TrainingWindow
from pgoutlier.worker.report.build import drift_reference
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring.sequences import require_order
from pgoutlier.worker.training import gate
from pgoutlier.worker.training.gate import Decision
from pgoutlier.worker.training.recipes import check_columns, recipe_of, require_tensorflow, with_threshold

log = structlog.get_logger()


@dataclass(frozen=True)
class Unreadable:
    """How many rows PostgreSQL refused to read, the key (as text) of one of them, and what it said of that."""

    n_rows: int
    key: str
    error: str

    @classmethod
    def among(cls, rows: TrainingRows) -> Unreadable | None:
        """None where all could be read."""
        return next((cls(len(rows.refusals), key, error) for key, error in rows.refusals.items()), None)


@dataclass(frozen=True)
class TrainedVersion:
    """What a training made. decided_by_few: features whose spread a few rows decide, see `detector.far`."""

    source: str
    version: int
    promoted: bool
    reason: str
    n_rows: int
    n_held_out: int
    left_out: dict[str, int]
    threshold: float
    metrics: Mapping[str, float]
    unreadable: Unreadable | None = None
    decided_by_few: tuple[FarValues, ...] = ()

    def sentences(self) -> list[str]:
        """What came of it: the version, whether it scores and why, and what else can be done."""
        left_out = ", ".join(f"{n:,} {reason}" for reason, n in self.left_out.items()) or "none"
        held_out = f"; held out: {self.n_held_out:,}" if self.n_held_out else ""
        version = (
            f"Version {self.version} of {self.source}: {self.n_rows:,} rows (left out: {left_out}{held_out}),"
            f" threshold {self.threshold:.4g}, {self.metrics.get('seconds', 0):.1f} s."
        )
        said = [version]
        if self.unreadable:
            said.append(
                f"PostgreSQL cannot read {self.unreadable.n_rows:,} of the rows, such as that of key"
                f" {self.unreadable.key} ({self.unreadable.error}); they are in quarantine:"
                f" pgoutlier quarantine list {self.source}"
            )
        said += [f"Note: {found.sentence()}" for found in self.decided_by_few]
        if self.promoted:
            why = [f"Why: {self.reason}."] if self.n_held_out else []
            return [*said, "It is the champion: the next batch is scored with it.", *why]
        by_hand = f"To let it score: pgoutlier models promote {self.source} {self.version}"
        return [*said, f"It does not score: {self.reason}.", by_hand]


def train(
    runtime: Runtime,
    source_name: str,
    *,
    promote: bool | None = None,
    seed: int | None = None,
    recipe_name: str | None = None,
    threshold: str | None = None,
    after_run: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainedVersion:
    """Fit the source's recipe (or another by name) on its newest normal rows and register the version.

    promote: None leaves that to the source's policy and the gate. threshold: a policy in place of the recipe's,
    for this version. after_run: do it only if this is the last training run there was (0: none), so that triggers
    which ask again until somebody begins bring one training. Raises TrainingBusy if there was a later one or a
    training of the source is under way, LockLost if another one has begun because this one was taken for dead,
    SourceError if there is no such source or it lacks a column that the policy
    needs, ModelError if the rows cannot be trained on or TensorFlow is not installed.
    """
    source, recipe = plan(runtime, source_name, recipe_name=recipe_name, threshold=threshold)
    seed = recipe.seed if seed is None else seed
    require_tensorflow(recipe)  # before anything is written: another worker may well have it
    with training_runs.trainer(runtime.sessions, source.id) as lock:
        if lock is None:
            raise TrainingBusy(f"{source.name} is being trained already; watch it with: pgoutlier status")
        with runtime.engine.begin() as connection:
            if after_run is not None and training_runs.last_run(connection, source.id) != after_run:
                raise TrainingBusy(f"{source.name} has been trained since this training was asked for.")
            run_id = training_runs.start_run(
                connection, source.id, recipe=recipe.model_dump(mode="json"), seed=seed
            )
        try:
            return _train(runtime, source, recipe, seed, promote, run_id, lock, on_progress)
        except BaseException as error:
            with runtime.engine.begin() as connection:
                training_runs.finish_run(
                    connection, run_id, status="failed", error=f"{type(error).__name__}: {error}"
                )
            if isinstance(error, DetectorError):
                raise ModelError(f"{source.name} cannot be trained: {error}") from error
            raise


def plan(
    runtime: Runtime, source_name: str, *, recipe_name: str | None, threshold: str | None
) -> tuple[Source, Recipe]:
    """The source, and the recipe that `train` would fit. Raises SourceError or ModelError as it does."""
    with runtime.engine.begin() as connection:
        source = sources.at_work(connection, source_name)
        recipe = with_threshold(recipe_of(source, recipe_name), threshold)
        require_order(recipe, source.definition)
        check_columns(connection, recipe, source.definition)
    return source, recipe


def _train(
    runtime: Runtime,
    source: Source,
    recipe: Recipe,
    seed: int,
    promote: bool | None,
    run_id: int,
    lock: LongLock,
    on_progress: Callable[[Progress], None] | None,
) -> TrainedVersion:
    window, rate = _rows(
        runtime, source, recipe, run_id, gated=promote is None and source.promotion != "manual"
    )
    n_held_out = gate.n_held_out(source, window, promote)
    rows = window.without_last(n_held_out)
    fitted = detector.fit(
        recipe,
        rows.matrix,
        source.definition.feature_names,
        normal=rows.normal,
        anomalous=rows.fraud,
        rows_per_day=rate,
        groups=rows.runs,
        codes=source.definition.codes,
        seed=seed,
        on_progress=_noted(runtime, run_id, lock, on_progress),
    )
    # They are counted from the oldest row on, of which the hold-out has none.
    window = window.leaving_out(fitted.far_rows, "far_out")
    rows = window.without_last(n_held_out)
    figures = gate.measure(runtime, source, fitted, window, n_held_out=n_held_out)
    with runtime.engine.begin() as connection:
        lock.require(connection)
        decision = gate.decide(connection, runtime, source, window, figures, promote=promote)
        number = _register(connection, runtime, source, fitted, rows, decision, run_id)
    log.info(
        "version_trained",
        source=source.name,
        version=number,
        promoted=decision.promotes,
        reason=decision.reason,
        n_rows=rows.n_normal,
        decided_by_few=[found.feature for found in fitted.decided_by_few],
    )
    if runtime.settings.training_reports:
        _keep_report(runtime, source, number, fitted, rows)
    return TrainedVersion(
        source=source.name,
        version=number,
        promoted=decision.promotes,
        reason=decision.reason,
        n_rows=rows.n_normal,
        n_held_out=n_held_out,
        left_out=rows.left_out,
        threshold=fitted.detector.threshold,
        metrics=fitted.metrics,
        unreadable=Unreadable.among(window),
        decided_by_few=fitted.decided_by_few,
    )


def _noted(
    runtime: Runtime, run_id: int, lock: LongLock, on_progress: Callable[[Progress], None] | None
) -> Callable[[Progress], None]:
    """Notes progress with the training run, and passes it on. Raises LockLost if another trains the source by now."""

    def note(progress: Progress) -> None:
        with runtime.engine.begin() as connection:
            lock.require(connection)
            training_runs.update_run(
                connection,
                run_id,
                epoch=progress.epoch,
                n_epochs=progress.n_epochs,
                loss=progress.loss,
                eta_seconds=progress.eta_seconds,
            )
        if on_progress is not None:
            on_progress(progress)

    return note


def _rows(
    runtime: Runtime, source: Source, recipe: Recipe, run_id: int, *, gated: bool
) -> tuple[TrainingRows, float | None]:
    """The rows to train on, and how many a day brings where the recipe asks for that.

    gated: some of them will be held out, so that flagged rows and frauds belong among them.
    """
    newest = runtime.settings.training_rows
    rate = None
    with runtime.engine.begin() as connection:
        rows = training_rows.read(
            connection,
            source,
            newest=newest,
            most=runtime.settings.training_sample_rows,
            imputes=recipe.missing == "median",
            with_frauds_and_flagged=recipe.needs_all_rows or gated,
            in_runs=recipe.window > 1,
        )
        identity.check(connection, source)
        if recipe.threshold.policy == "alert_budget":
            rate = training_rows.rows_per_day(connection, source.definition, newest=newest)
        training_runs.update_run(
            connection,
            run_id,
            n_rows=rows.n_normal,
            left_out=rows.left_out,
            recipe_hash=recipe.recipe_hash,
            data_fingerprint=rows.fingerprint(),
            window_from=rows.first,
            window_to=rows.last,
        )
    if rows.refusals:
        _quarantine(runtime, source, rows.refusals)
    return rows, rate


def _quarantine(runtime: Runtime, source: Source, refusals: Mapping[str, str]) -> None:
    """Rows that cannot be read, unless a change of theirs has been scored. Nobody asked for a score of these."""
    log.warning(
        "rows_unreadable", source=source.name, n_rows=len(refusals), error=next(iter(refusals.values()))
    )
    entries = [Entry(key, change_id=0, reason="error", detail=error) for key, error in refusals.items()]
    with runtime.engine.begin() as connection:
        quarantine.take_places(connection, source.definition, entries)
        quarantine.put(connection, source, entries)


def _keep_report(
    runtime: Runtime, source: Source, version: int, fitted: FitResult, rows: TrainingRows
) -> None:
    """Draw the training's report and keep it with the version. A failure is logged; the version stands."""
    try:
        # Takes a second to import, for which whoever does not train need not wait.
        from pgoutlier.worker.report.of_source import keep_training_report

        keep_training_report(runtime, source, version, fitted, rows)
    except Exception as error:
        log.warning(
            "report_failed", source=source.name, version=version, error=f"{type(error).__name__}: {error}"
        )


def _register(
    connection: Connection,
    runtime: Runtime,
    source: Source,
    fitted: FitResult,
    rows: TrainingRows,
    decision: Decision,
    run_id: int,
) -> int:
    """Keep what was fitted as a version, its training run done, and promote it if that was decided."""
    metrics = {**fitted.metrics, "gate": decision.as_metric(source)}
    if unreadable := Unreadable.among(rows):
        metrics["unreadable"] = asdict(unreadable)
    if fitted.decided_by_few:
        metrics["decided_by_few"] = [vars(found) for found in fitted.decided_by_few]
    number = registry.register(
        connection,
        source,
        fitted.detector,
        window=TrainingWindow(n_rows=rows.n_normal, first=rows.first, last=rows.last),
        metrics={**metrics, "history": fitted.history},
        seal=runtime.seal,
        drift_reference=drift_reference(fitted, fitted.detector.encoded(rows.matrix[rows.normal])),
    )
    if decision.promotes:
        registry.promote(connection, source, number, reason=decision.reason, seal=runtime.seal)
    training_runs.finish_run(
        connection,
        run_id,
        status="succeeded",
        metrics=metrics,
        n_rows=rows.n_normal,
        left_out=rows.left_out,
        versions=_versions(),
        version=number,
        promoted=decision.promotes,
    )
    return number


def _versions() -> dict[str, str]:
    names = ("tensorflow", "tensorflow-cpu")
    found = {"python": platform.python_version(), "pgoutlier": metadata.version("pgoutlier")}
    for name in names:
        try:
            found["tensorflow"] = metadata.version(name)
        except ModuleNotFoundError:
            continue
    return found


def sources_due(runtime: Runtime, *, older_than_seconds: float | None = None) -> dict[str, int]:
    """Sources with a version whose latest training started longer ago than that, by default the retrain interval, or
    that has scored PGOUTLIER_RETRAIN_AFTER_ROWS rows since; each with the id of that training run, 0 if there is none.

    The first version of a source is always an administrator's decision, and a source with a schedule of its own
    for models.train is left to that.
    """
    seconds = runtime.settings.retrain_every_seconds if older_than_seconds is None else older_than_seconds
    with runtime.engine.begin() as connection:
        own = schedules.sources_with_own_training(connection, "models.train")
        due = training_runs.sources_to_retrain(
            connection, older_than_seconds=seconds, after_rows=runtime.settings.retrain_after_rows
        )
    return {name: run_id for name, run_id in due.items() if name not in own}
