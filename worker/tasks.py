"""Celery tasks: each takes names, calls one use case, and is safe to run twice, late or never.

Call them from anywhere: celery -A pgoutlier.worker call models.promote --args '["transactions", 3]'
"""

from __future__ import annotations

from typing import Any

import structlog

from pgoutlier.db.source.typed_keys import Word
from pgoutlier.worker.app import OurTask, app, ring
from pgoutlier.worker.drift import measuring
from pgoutlier.worker.history import keeping
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.notices import delivering, webhook_control
from pgoutlier.worker.runtime import runtime
from pgoutlier.worker.schedules import schedule_control
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.training import gate, training
from pgoutlier.worker.upkeep import maintenance
from pgoutlier.worker.verdicts import judging
from pgoutlier.worker.versions import versions

log = structlog.get_logger()

# A call for help nobody answers in this time is not needed: whoever drains goes on by itself.
HELP_EXPIRES_SECONDS = 5
HOUSEKEEPING_AGAIN_SECONDS = 1


class Housekeeping(OurTask):
    """A task that may take long, and can wait: it leaves a thread of the worker for new rows."""

    max_retries = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        places = runtime().places_beside_scoring
        if not places.acquire(blocking=False):
            raise self.retry(countdown=HOUSEKEEPING_AGAIN_SECONDS)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            places.release()


@app.task(name="score.drain")
def drain(source: str) -> dict[str, int]:
    """Score what is queued for a source, for at most PGOUTLIER_DRAIN_BUDGET_SECONDS."""
    result = draining.drain(runtime(), source, call_for_help=lambda: ask_for_drain(source))
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
    names = draining.sources_with_work(runtime())
    for name in names:
        ask_for_drain(name)
    return names


@app.task(name="score.sweep", base=Housekeeping)
def sweep(source: str, whole: bool = False) -> int:
    """Queue rows that got past the triggers: new ones and those whose turn it is, or of the whole table at once."""
    return maintenance.sweep(runtime(), source, whole=whole)


@app.task(name="score.sweep_all", base=Housekeeping)
def sweep_all() -> dict[str, int]:
    """Sweep every source."""
    return maintenance.sweep_all(runtime())


@app.task(name="score.retry_quarantine", base=Housekeeping)
def retry_quarantine(source: str, keys: list[Word] | None = None) -> int:
    """Queue quarantined rows again, all or those with these keys."""
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


@app.task(name="drift.measure", base=Housekeeping)
def measure_drift(source: str) -> bool:
    """Measure a source's drift and store the report. Returns whether it has drifted."""
    return measuring.measure(runtime(), source).drifted


@app.task(name="drift.measure_all", base=Housekeeping)
def measure_drift_all() -> dict[str, bool]:
    """Measure every source; with PGOUTLIER_RETRAIN_ON_DRIFT also send models.train for those that drifted."""
    return measuring.measure_all(
        runtime(), train=lambda name, last_run: ring(train, name, after_run=last_run)
    )


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


@app.task(name="models.prune", base=Housekeeping)
def prune_versions(source: str, keep: int | None = None) -> list[int]:
    """Remove versions that nobody needs; returns their numbers."""
    return versions.prune(runtime(), source, keep=keep)


@app.task(name="verdicts.label")
def label(
    source: str, keys: list[Word] | Word, verdict: str, note: str | None = None, by: str | None = None
) -> dict[str, int]:
    """Say of rows that they are fraud or normal, or withdraw that. by: who says so, in place of the worker's role.

    A key of several columns is a list of their values, or an object of them by name.
    """
    # A text would be taken apart, and its letters or digits for keys.
    given = list(keys) if isinstance(keys, list) else [keys]
    done = judging.label(runtime(), source, given, verdict, note=note, by=by)
    return {"n_given": done.n_given, "n_unchanged": done.n_unchanged}


@app.task(name="jobs.backfill")
def backfill(source: str) -> int:
    """Score the rows that have no score, also those from before attach. Returns the job's id."""
    return _begun(job_control.backfill(runtime(), source))


@app.task(name="jobs.rescore")
def rescore(source: str, version: int | None = None) -> int:
    """Score again what another version has scored, with this one or the champion. Returns the job's id."""
    return _begun(job_control.rescore(runtime(), source, version))


@app.task(name="jobs.reflag")
def reflag(source: str, threshold: float | None = None) -> int:
    """Flag stored scores by the champion's threshold, or by this one from now on. Returns the job's id."""
    return _begun(job_control.reflag(runtime(), source, threshold))


def _begun(job: job_control.Started) -> int:
    ask_for_work(job.id)
    return job.id


@app.task(name="jobs.work")
def work(job: int) -> bool:
    """Work ranges of a job, for at most PGOUTLIER_DRAIN_BUDGET_SECONDS; returns whether there is more to do."""
    more = job_control.work(runtime(), job, call_for_help=lambda: ask_for_work(job))
    if more:
        ask_for_work(job)
    return more


def ask_for_work(job: int) -> None:
    """Send jobs.work, for whoever is free."""
    ring(work, job, expires_seconds=HELP_EXPIRES_SECONDS)


@app.task(name="jobs.work_all")
def work_all() -> list[int]:
    """Ring the bell for every running job."""
    return job_control.work_all(runtime(), ask_for_work)


@app.task(name="jobs.cancel")
def cancel_job(job: int) -> bool:
    """Stop a job after the ranges at hand; False if it is not running."""
    return job_control.cancel(runtime(), job)


@app.task(name="jobs.resume")
def resume_job(job: int) -> bool:
    """Let a cancelled or failed job go on where it stopped; False if it is running."""
    resumed = job_control.resume(runtime(), job)
    ask_for_work(job)
    return resumed


@app.task(name="history.keep")
def keep_history(source: str) -> bool:
    """Keep earlier scores from now on; False if that is so already."""
    return keeping.keep(runtime(), source)


@app.task(name="history.stop")
def stop_history(source: str, drop: bool = False) -> bool:
    """Keep earlier scores no more, and with drop remove those that were kept; False if nothing was to do."""
    return keeping.stop(runtime(), source, drop=drop)


@app.task(name="webhook.deliver")
def deliver(source: str) -> bool:
    """Wake a deliverer of this worker, which is no thread that scores; False if one is at it already."""
    return delivering.ring(runtime(), source)


def ask_for_delivery(source: str) -> None:
    """Send webhook.deliver, for whoever is free."""
    ring(deliver, source, expires_seconds=HELP_EXPIRES_SECONDS)


@app.task(name="webhook.deliver_all")
def deliver_all() -> list[str]:
    """Ring the bell for every source whose webhook something can be sent to."""
    names = delivering.sources_due(runtime())
    for name in names:
        ask_for_delivery(name)
    return names


@app.task(name="webhook.set")
def set_webhook(
    source: str, url: str | None = None, per_minute: int | None = None, insecure_http: bool = False
) -> bool:
    """Turn notices on and have them sent to the URL, or only written without one; False if it is so already."""
    return webhook_control.set_webhook(
        runtime(), source, url, per_minute=per_minute, insecure_http=insecure_http
    )


@app.task(name="webhook.pause")
def pause_webhook(source: str) -> bool:
    """Send nothing until it is resumed; False if it is paused already."""
    return webhook_control.set_enabled(runtime(), source, False)


@app.task(name="webhook.resume")
def resume_webhook(source: str) -> bool:
    """Send again, and what waited; False if it is not paused."""
    return webhook_control.set_enabled(runtime(), source, True)


@app.task(name="webhook.test")
def test_webhook(source: str) -> int:
    """Send a signed sample; returns the status of the answer."""
    return webhook_control.test(runtime(), source).status


@app.task(name="webhook.retry")
def retry_webhook(source: str) -> dict[str, int]:
    """Have all dead letters sent again, and what was put off now."""
    return vars(webhook_control.retry(runtime(), source))


@app.task(name="webhook.remove")
def remove_webhook(source: str) -> bool:
    """Turn notices off; False if they are off already."""
    return webhook_control.remove(runtime(), source)


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
    wanted = schedule_control.Change(task, args, kwargs, every_seconds, crontab, time_zone, from_settings)
    return schedule_control.change(runtime(), name, wanted)[1]


@app.task(name="schedules.pause")
def pause_schedule(name: str) -> bool:
    """Send it no more until it is resumed; False if it is paused already."""
    return schedule_control.set_enabled(runtime(), name, False)[1]


@app.task(name="schedules.resume")
def resume_schedule(name: str) -> bool:
    """Send it again, without what was missed; False if it is not paused."""
    return schedule_control.set_enabled(runtime(), name, True)[1]


@app.task(name="schedules.run_now")
def run_schedule_now(name: str) -> None:
    """Send its task at once, paused or not; its next run stays when it was."""
    schedule_control.run_now(runtime(), name)


@app.task(name="schedules.delete")
def delete_schedule(name: str) -> None:
    """Forget a schedule; its history stays. A built-in one can only be paused."""
    schedule_control.delete(runtime(), name)


@app.task(name="maintenance.prune_all", base=Housekeeping)
def prune_all() -> dict[str, int]:
    """Remove scores and quarantine entries of rows that are gone, and old training runs and versions."""
    return maintenance.prune_all(runtime())
