"""backfill, rescore, reflag, jobs: work on rows that are there already."""

from __future__ import annotations

import math
import time
from typing import Annotated

import typer

from pgoutlier.db.errors import ModelError
from pgoutlier.db.jobs.jobs import JobFigures
from pgoutlier.db.versions import aliases
from pgoutlier.worker import tasks
from pgoutlier.worker.cli.arguments import AsJson, SourceName
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.console import console, errors, new_bar, print_json, print_table, seconds_text
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.jobs.job_control import Started
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.versions import versions

_LOOK_SECONDS = 0.25
_HINT_AFTER_SECONDS = 8.0

jobs = typer.Typer(
    no_args_is_help=True,
    help="Work on rows that are there already: backfill, rescore, reflag. Score workers share a job by ranges of keys,"
    " new rows go first, and what a killed worker was at is done again.",
)
JobId = Annotated[int, typer.Argument(help="Number of the job, as `pgoutlier jobs list` shows it.")]
Here = Annotated[
    bool, typer.Option("--here", help="Work in this process too, for instance where no worker is running.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Start it and return; watch it with: jobs watch.")]


def backfill(
    source: SourceName, here: Here = False, no_wait: NoWait = False, as_json: AsJson = False
) -> None:
    """Score the rows that have no score, also those that were there before attach.

    Ctrl-C only stops the watching; the workers go on. Safe to run again: what has a score keeps it.

    Example: pgoutlier backfill payments
    """
    runtime = open_runtime()
    _follow(runtime, job_control.backfill(runtime, source), here=here, no_wait=no_wait, as_json=as_json)


def rescore(
    source: SourceName,
    version: Annotated[
        str, typer.Option(help="The version that scores: its number, champion or challenger.")
    ] = "champion",
    here: Here = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Score again, with one version, every row that another version has scored.

    Rows that change meanwhile are scored by the champion, as always. To keep the earlier scores, first:
    pgoutlier history keep SOURCE

    Example: pgoutlier rescore payments --version 3
    """
    runtime = open_runtime()
    # Only as the champion does the job end when another version becomes that.
    number = None if version == aliases.CHAMPION else versions.number(runtime, source, version)
    started = job_control.rescore(runtime, source, number)
    _follow(runtime, started, here=here, no_wait=no_wait, as_json=as_json)


def reflag(
    source: SourceName,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Make this the threshold first, from now on: rows with a larger error are flagged."
        ),
    ] = None,
    here: Here = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Flag stored scores by the champion's threshold, in SQL, with no row scored again.

    With --threshold the champion becomes a version that differs from it in nothing but that, so rollback takes it
    back; the next training sets a threshold of its own by the source's policy. Rows that are flagged only now have no
    top features.

    Example: pgoutlier threshold payments --what-if, then: pgoutlier reflag payments --threshold 12.5
    """
    if threshold is not None and not math.isfinite(threshold):
        raise ModelError("--threshold takes a finite number, such as 12.5.")
    runtime = open_runtime()
    _follow(
        runtime, job_control.reflag(runtime, source, threshold), here=here, no_wait=no_wait, as_json=as_json
    )


@jobs.command("list")
def jobs_list(
    source: Annotated[str | None, typer.Argument(help="Only jobs of this source.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Jobs and how far they are."""
    found = job_control.listed(open_runtime(), source, limit=limit)
    if as_json:
        print_json(found)
    elif not found:
        console.print("There is no job yet. Start one with: pgoutlier backfill, rescore or reflag")
    else:
        at_work = any(job.status == "running" for job in found)
        columns = ["job", "source", "what", "status", "done", "rows", "flagged"]
        columns += [*(["rows/s", "ETA"] if at_work else []), "note"]
        print_table("", columns, [_row(job, rate=at_work) for job in found])


def _row(job: JobFigures, *, rate: bool) -> list[object]:
    running = job.status == "running"
    rates = [f"{job.rows_per_second:,.0f}", seconds_text(job.eta_seconds)] if running else [None, None]
    return [
        job.id,
        job.source,
        job.kind + (f" by {job.version}" if job.version else ""),
        job.status,
        f"{job.share:.0%}",
        job.n_done,
        job.n_flagged,
        *(rates if rate else []),
        job.problem or (job.last_error if running else None) or "",
    ]


@jobs.command("watch")
def watch(job: JobId, here: Here = False, as_json: AsJson = False) -> None:
    """Watch a job until it ends. Ctrl-C only stops the watching."""
    runtime = open_runtime()
    job_control.described(runtime, job)
    _follow(runtime, Started(job, made=False), here=here, no_wait=False, as_json=as_json)


@jobs.command("cancel")
def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Stop a job after the ranges that are being worked. What is done stays; resume goes on from there."""
    runtime = open_runtime()
    stopped = job_control.cancel(runtime, job)
    status = job_control.described(runtime, job).status
    if as_json:
        print_json({"job": job, "changed": stopped, "status": status})
    elif stopped:
        console.print(
            f"Job {job} is cancelled. To go on with it: pgoutlier jobs resume {job}", highlight=False
        )
    else:
        console.print(f"Job {job} is not running; it has {_ENDED[status]}.", highlight=False)


_ENDED = {"succeeded": "succeeded", "failed": "failed", "cancelled": "been cancelled"}


@jobs.command("resume")
def resume(job: JobId, here: Here = False, no_wait: NoWait = False, as_json: AsJson = False) -> None:
    """Let a cancelled or failed job go on where it stopped."""
    runtime = open_runtime()
    resumed = job_control.resume(runtime, job)
    _follow(runtime, Started(job, made=resumed), here=here, no_wait=no_wait, as_json=as_json)


def _follow(runtime: Runtime, started: Started, *, here: bool, no_wait: bool, as_json: bool) -> None:
    """Ring for the workers, show the job until it ends, and exit with 1 if it failed."""
    tasks.ask_for_work(started.id)
    if not no_wait:
        try:
            _watch(runtime, started.id, here=here)
        except KeyboardInterrupt:
            errors.print(
                f"Job {started.id} goes on; watch it: pgoutlier jobs watch {started.id}, stop it: pgoutlier jobs cancel"
                f" {started.id}",
                highlight=False,
            )
    job = job_control.described(runtime, started.id)
    if as_json:
        print_json({**vars(job), "made": started.made, "n_left_out": started.n_left_out})
    else:
        _print(job, started)
    if job.status == "failed":
        raise typer.Exit(1)


def _watch(runtime: Runtime, job_id: int, *, here: bool) -> None:
    began, moved = time.monotonic(), False
    with new_bar("{task.fields[note]}") as bar:
        task = bar.add_task("", total=None, note="")
        while (job := job_control.described(runtime, job_id)).status == "running":
            bar.update(
                task,
                description=f"{job.kind} {job.source}",
                total=job.n_rows or None,
                completed=job.n_behind,
                note=_note(job),
            )
            moved = moved or job.n_ranges_finished > 0 or here
            if not moved and time.monotonic() - began > _HINT_AFTER_SECONDS:
                moved = True
                errors.print(
                    job.problem
                    or "No worker has begun yet. Start some with `pgoutlier up`, or work here: pgoutlier jobs watch"
                    f" {job_id} --here",
                    highlight=False,
                    markup=False,
                )
            if not (here and job_control.work(runtime, job_id, budget_seconds=_LOOK_SECONDS)):
                time.sleep(_LOOK_SECONDS)


def _nothing(job: JobFigures) -> str:
    said = f"Job {job.id}: there was nothing to do."
    if job.kind == "reflag":
        said += f" Scores that another model made can only be made anew: pgoutlier rescore {job.source}"
    return said


def _note(job: JobFigures) -> str:
    if job.problem:
        return job.problem
    rate = f"{job.rows_per_second:,.0f} rows/s  ETA {seconds_text(job.eta_seconds)}"
    return f"{job.n_behind:,}/{job.n_rows:,} rows  {rate}"


def _print(job: JobFigures, started: Started) -> None:
    done = f"{job.n_done:,} rows {'flagged anew' if job.kind == 'reflag' else 'scored'}"
    by = f" by version {job.version}" if job.version else ""
    result = f"{done}{by}, {job.n_flagged:,} of them are flagged"
    if job.n_quarantined:
        result += f", {job.n_quarantined:,} went into quarantine"
    said = {
        "running": f"Job {job.id} is running: {job.share:.0%} done. Watch it: pgoutlier jobs watch {job.id}",
        "succeeded": f"Job {job.id}: {result}." if job.n_rows else _nothing(job),
        "cancelled": f"Job {job.id} was cancelled; so far {result}. Go on: pgoutlier jobs resume {job.id}",
        "failed": f"Job {job.id} has failed: {job.problem}. So far {result}. Go on: pgoutlier jobs resume"
        f" {job.id}",
    }
    console.print(said[job.status], highlight=False, markup=False, soft_wrap=True)
    if started.n_left_out:
        console.print(left_out_text(started), highlight=False, soft_wrap=True)


def left_out_text(started: Started) -> str:
    """What a backfill leaves out."""
    return f"{started.n_left_out:,} rows are older than scores are kept, and left out."
