"""Celery tasks: each takes names, calls one use case, and is safe to run twice, late or never.

Call them from anywhere: celery -A worker call models.promote --args '["transactions", 3]'
"""

from __future__ import annotations

from typing import Any

import structlog

from worker import drift, gate, maintenance, schedules, scoring, training, verdicts, versions
from worker.app import app, ring
from worker.runtime import runtime

log = structlog.get_logger()

# A call for help nobody answers in this time is not needed: whoever drains goes on by itself.
HELP_EXPIRES_SECONDS = 5


@app.task(name="score.drain")
def drain(source: str) -> dict[str, int]:
    """Score what is queued for a source, for at most PGOUTLIER_DRAIN_BUDGET_SECONDS."""
    result = scoring.drain(runtime(), source, call_for_help=lambda: ask_for_drain(source))
    if result.more:
        ring(drain, source)
    if result.n_batches:
        log.info("drained", source=source, **result.counts())
    return result.counts()


def ask_for_drain(source: str) -> None:
    """Send score.drain, for whoever is free."""
    ring(drain, source, expires_seconds=HELP_EXPIRES_SECONDS)


@app.task(name="score.drain_all")
def drain_all() -> list[str]:
    """Ring the bell for every source with work that is due."""
    names = scoring.sources_with_work(runtime())
    for name in names:
        ask_for_drain(name)
    return names


@app.task(name="score.sweep")
def sweep(source: str, backfill: bool = False) -> int:
    """Queue rows that got past the triggers; with backfill also rows from before attach."""
    return maintenance.sweep(runtime(), source, backfill=backfill)


@app.task(name="score.sweep_all")
def sweep_all() -> dict[str, int]:
    """Sweep every source."""
    return maintenance.sweep_all(runtime())


@app.task(name="score.retry_quarantine")
def retry_quarantine(source: str, keys: list[str] | None = None) -> int:
    """Queue quarantined rows again."""
    return maintenance.retry_quarantine(runtime(), source, keys)


@app.task(name="models.train")
def train(
    source: str,
    promote: bool | None = None,
    seed: int | None = None,
    recipe: str | None = None,
    threshold: str | None = None,
    after_run: int | None = None,
) -> int:
    """Train a version. promote: None leaves that to the source's policy. after_run: only if this training run is the
    last one there was. Returns its number.
    """
    return training.train(
        runtime(),
        source,
        promote=promote,
        seed=seed,
        recipe_name=recipe,
        threshold=threshold,
        after_run=after_run,
    ).version


@app.task(name="models.train_due")
def train_due(older_than_seconds: float | None = None) -> list[str]:
    """Send models.train for every source whose last training is older than that, or the retrain interval."""
    due = training.sources_due(runtime(), older_than_seconds=older_than_seconds)
    for name, last_run in due.items():
        train.apply_async((name,), {"after_run": last_run})
    return list(due)


@app.task(name="drift.measure")
def measure_drift(source: str) -> bool:
    """Measure a source's drift and store the report. Returns whether it has drifted."""
    return bool(drift.measure(runtime(), source)["drifted"])


@app.task(name="drift.measure_all")
def measure_drift_all() -> dict[str, bool]:
    """Measure every source; with PGOUTLIER_RETRAIN_ON_DRIFT also send models.train for those that drifted."""
    return drift.measure_all(runtime(), train=lambda name, last_run: ring(train, name, after_run=last_run))


@app.task(name="models.set_promotion")
def set_promotion(source: str, promotion: str) -> bool:
    """Say what becomes of versions when they have been trained; False if that is so already."""
    return gate.set_promotion(runtime(), source, promotion)


@app.task(name="models.promote")
def promote(source: str, version: int, reason: str = "task") -> bool:
    """Make a version the champion; False if it was already."""
    return versions.promote(runtime(), source, version, reason=reason)


@app.task(name="models.rollback")
def rollback(source: str, reason: str = "task") -> list[int]:
    """Back to the champion before this one; returns [from, to]."""
    return list(versions.rollback(runtime(), source, reason=reason))


@app.task(name="models.challenge")
def challenge(source: str, version: int, reason: str = "task") -> bool:
    """Make a version the challenger; False if it was already."""
    return versions.challenge(runtime(), source, version, reason=reason)


@app.task(name="models.clear_challenger")
def clear_challenger(source: str, reason: str = "task") -> int | None:
    """Have no challenger any more; returns the version that was it."""
    return versions.clear_challenger(runtime(), source, reason=reason)


@app.task(name="models.tag")
def tag(source: str, version: int, name: str) -> bool:
    """Tag a version; False if it has the tag already."""
    return versions.tag(runtime(), source, version, name)


@app.task(name="models.untag")
def untag(source: str, version: int, name: str) -> bool:
    """Take a tag away; False if the version does not have it."""
    return versions.untag(runtime(), source, version, name)


@app.task(name="models.prune")
def prune_versions(source: str, keep: int | None = None) -> list[int]:
    """Remove versions that nobody needs; returns their numbers."""
    return versions.prune(runtime(), source, keep=keep)


@app.task(name="verdicts.label")
def label(
    source: str, keys: list[str] | str, verdict: str, note: str | None = None, by: str | None = None
) -> dict[str, int]:
    """Say of rows that they are fraud or normal, or withdraw that. by: who says so, in place of the worker's role."""
    # A text would be taken apart, and its letters or digits for keys.
    given = [keys] if isinstance(keys, str) else [str(key) for key in keys]
    done = verdicts.label(runtime(), source, given, verdict, note=note, by=by)
    return {"n_given": done.n_given, "n_unchanged": done.n_unchanged}


@app.task(name="schedules.set")
def set_schedule(
    name: str,
    task: str | None = None,
    args: list[Any] | None = None,
    kwargs: dict[str, Any] | None = None,
    every_seconds: float | None = None,
    crontab: str | None = None,
    time_zone: str | None = None,
    from_settings: bool = False,
) -> bool:
    """Make a schedule or change one; what is not said stays as it is. False if it is so already."""
    wanted = schedules.Change(task, args, kwargs, every_seconds, crontab, time_zone, from_settings)
    return schedules.change(runtime(), name, wanted)[1]


@app.task(name="schedules.pause")
def pause_schedule(name: str) -> bool:
    """Send it no more until it is resumed; False if it is paused already."""
    return schedules.set_enabled(runtime(), name, False)[1]


@app.task(name="schedules.resume")
def resume_schedule(name: str) -> bool:
    """Send it again, without what was missed; False if it is not paused."""
    return schedules.set_enabled(runtime(), name, True)[1]


@app.task(name="schedules.run_now")
def run_schedule_now(name: str) -> None:
    """Send its task at once, paused or not; its next run stays when it was."""
    schedules.run_now(runtime(), name)


@app.task(name="schedules.delete")
def delete_schedule(name: str) -> None:
    """Forget a schedule; its history stays. A built-in one can only be paused."""
    schedules.delete(runtime(), name)


@app.task(name="maintenance.prune_all")
def prune_all() -> dict[str, int]:
    """Remove scores and quarantine entries of rows that are gone, and old training runs and versions."""
    return maintenance.prune_all(runtime())
