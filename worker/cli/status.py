"""status and flagged."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pgoutlier.db.errors import SourceError
from pgoutlier.db.scoring.score_partitions import MOST_MOVED
from pgoutlier.worker.cli.arguments import AsJson, SourceName
from pgoutlier.worker.cli.context import open_runtime, settings_with_servers
from pgoutlier.worker.console import (
    console,
    identity,
    new_table,
    print_json,
    print_table,
    seconds_text,
    top_features_text,
)
from pgoutlier.worker.status import flagged_rows

if TYPE_CHECKING:
    from pgoutlier.db.jobs.jobs import JobFigures
    from pgoutlier.db.notices.notices import NoticeFigures
    from pgoutlier.db.status.overview import DriftFigures, SourceFigures
    from pgoutlier.db.training.training_runs import TrainingRun
    from pgoutlier.worker.status.status import SourceAtWork, Status

_WATCH_SECONDS = 1.5
_AGO = re.compile(r"^(\d+(?:\.\d+)?)\s*(s|m|h|d)$")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


# Of more sources those alone are shown that say something, and the busiest, up to so many.
_MOST_SHOWN = 20


def status(
    as_json: AsJson = False,
    show_all: Annotated[
        bool, typer.Option("--all", help=f"Every source, also where there are more than {_MOST_SHOWN}.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it again every 2 seconds until Ctrl-C.")
    ] = False,
) -> None:
    """Sources, queues, rates, champions, trainings, quarantine and workers at a glance."""
    from pgoutlier.worker.status import (
        status as status_figures,  # with it comes Celery, which `flagged` does without
    )

    settings_with_servers()
    if as_json:
        print_json(asdict(status_figures.status(open_runtime)))
        return
    if not watch:
        console.print(_status_table(status_figures.status(open_runtime), show_all=show_all))
        return
    runtime = open_runtime()
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            figures = status_figures.status(lambda: runtime)
            live.update(_status_table(figures, show_all=show_all), refresh=True)
            time.sleep(_WATCH_SECONDS)


def _status_table(figures: Status, *, show_all: bool) -> Table:
    shown = figures.sources if show_all else first_shown(figures.sources)
    with_challenger = any(source.challenger for source in shown)
    columns = [
        *("source", "queued", "oldest", "rows/s", "champion", *(["challenger"] if with_challenger else [])),
        *("scored", "quarantine", "training", "note"),
    ]
    table = new_table(f"pgoutlier at {datetime.now(UTC):%H:%M:%S} UTC", columns)
    for source in shown:
        table.add_row(
            source.name,
            "?" if source.n_queued is None else f"{source.n_queued:,}",
            seconds_text(source.oldest_queued_seconds),
            f"{source.rows_per_second:,.0f}",
            str(source.champion or "none"),
            *([str(source.challenger or "none")] if with_challenger else []),
            f"~{source.n_scored_estimate:,}",
            f"{source.n_quarantined:,}",
            _training_text(source.training),
            note(source),
        )
    n_left = len(figures.sources) - len(shown)
    left = f"{n_left:,} more sources: pgoutlier status --all" if n_left else ""
    lines = (
        totals_text(figures.sources),
        left,
        _workers_text(figures),
        _schedules_text(figures),
        *map(_job_text, figures.jobs),
    )
    table.caption = "\n".join(filter(None, lines))
    return table


def first_shown(every: Sequence[SourceAtWork]) -> Sequence[SourceAtWork]:
    """All where they are few; else those in trouble, and then those where most waits or is scored."""
    if len(every) <= _MOST_SHOWN:
        return every
    return sorted(
        every,
        key=lambda s: (not s.problem, not note(s), -(s.n_queued or 0), -s.rows_per_second, s.name),
    )[:_MOST_SHOWN]


def totals_text(every: Sequence[SourceAtWork]) -> str:
    """All sources in a line, where there are several."""
    if len(every) < 2:
        return ""
    troubled = sum(1 for source in every if note(source))
    untrained = sum(1 for source in every if source.champion is None)
    waiting = [source for source in every if source.n_queued]
    words = [f"{len(every):,} sources, {troubled:,} with a note"]
    words += [f"{untrained:,} without a champion"] if untrained else []
    words += [f"{sum(s.n_queued or 0 for s in waiting):,} queued in {len(waiting):,}"]
    words += [f"{sum(s.rows_per_second for s in every):,.0f} rows/s"]
    words += [f"~{sum(s.n_scored_estimate for s in every):,} scored"]
    words += [f"{sum(s.n_quarantined for s in every):,} in quarantine"]
    return ", ".join(words)


def _drift_text(found: DriftFigures | None) -> str:
    if found is None or not found.drifted:
        return ""
    more = len(found.reasons) - 1
    return f"drift: {found.reasons[0]}" + (f" and {more} more; see pgoutlier drift" if more else "")


def _notices_text(found: NoticeFigures | None) -> str:
    """Of a webhook: what waits and what was given up, and why nothing is delivered."""
    if found is None or not found.sends:
        return ""
    words = [f"{found.n_pending:,} notices wait"] if found.n_pending else []
    words += [f"{found.n_dead:,} in dead letters"] if found.n_dead else []
    words += [] if found.enabled else ["paused"]
    words += [found.problem] if found.problem else []
    return f"webhook: {', '.join(words)}" if words else ""


def note(source: SourceFigures) -> str:
    """Why scoring stands still, why the challenger does not score, what has drifted, what is not delivered, and that
    scores gather outside of their partitions."""
    challenger = f"challenger: {source.challenger_problem}" if source.challenger_problem else None
    drift, notices = _drift_text(source.drift), _notices_text(source.notices)
    outside = source.n_outside_partitions or 0
    scores = f"~{outside:,} scores in no partition: see pgoutlier doctor" if outside > MOST_MOVED else None
    return "; ".join(filter(None, (source.problem, challenger, drift, notices, scores)))


def _training_text(training: TrainingRun | None) -> str:
    if training is None:
        return "none yet"
    if training.status == "running":
        eta = seconds_text(training.eta_seconds)
        return f"epoch {training.epoch or 0}/{training.n_epochs or '?'}, ETA {eta}"
    return f"{training.status} {training.started_at:%H:%M}"


def _job_text(job: JobFigures) -> str:
    rate = job.problem or f"{job.rows_per_second:,.0f} rows/s, ETA {seconds_text(job.eta_seconds)}"
    return f"job {job.id}: {job.kind} of {job.source}, {job.share:.0%} of {job.n_rows:,} rows; {rate}"


def _workers_text(figures: Status) -> str:
    workers = figures.workers
    if workers is None:
        return "The broker does not answer; rows stay queued in Postgres. Check it: pgoutlier doctor"
    listener = f"{figures.listeners} listener{'s' if figures.listeners != 1 else ''}"
    if not workers:
        return f"No worker answers ({listener}). Start all processes: pgoutlier up"
    names = ", ".join(f"{w.name} ({', '.join(w.queues)})" for w in workers)
    return f"{len(workers)} workers: {names}; {listener}"


def _schedules_text(figures: Status) -> str:
    """What comes next; what is sent every few seconds is left out."""
    if not figures.beats:
        return "No beat runs: no sweep, no retraining. Start one: pgoutlier up, or celery -A pgoutlier.worker beat"
    coming = sorted(
        (s.next_run_in_seconds, s.name)
        for s in figures.schedules
        if s.next_run_in_seconds is not None and s.name not in {"drain", "deliver", "jobs"}
    )
    words = [f"{name} in {seconds_text(max(0.0, seconds))}" for seconds, name in coming[:4]]
    wrong = [s.name for s in figures.schedules if s.problem]
    words += [f"{name} cannot run: see pgoutlier schedule list" for name in wrong]
    n_beats = len(figures.beats)
    return f"{n_beats} beat{'s' if n_beats > 1 else ''}; next: {', '.join(words) or 'nothing'}"


def flagged(
    source: SourceName,
    since: Annotated[
        str | None, typer.Option(help="Flagged since then: 10m, 2h, 3d, or a time such as 2026-03-01T08:00.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The last flagged rows, with what made them stand out."""
    moment = parse_since(since)
    found = flagged_rows.newest(open_runtime(), source, since=moment, limit=limit)
    rows, definition = found.rows, found.definition
    if as_json:
        print_json(rows)
        return
    if not rows:
        console.print("No row was flagged." if since is None else f"No row was flagged since {since}.")
        return
    named = (*definition.key.columns, definition.time_column, definition.entity_column)
    shown = [column for column in dict.fromkeys(named) if column]
    print_table(
        f"last {len(rows)} flagged of {source}; all columns: --json, or the view outlier.flagged_{source}",
        [*shown, "error", "version", "scored at", "top features"],
        [
            (
                *(identity(row[column]) for column in shown),
                row["reconstruction_error"],
                row["model_version"],
                row["scored_at"],
                top_features_text(row["top_features"]),
            )
            for row in rows
        ],
    )


def parse_since(text: str | None) -> datetime | None:
    """A time, or how long ago. Raises SourceError with the forms that are understood."""
    if text is None:
        return None
    ago = parse_duration(text)
    try:
        if ago is not None:
            return datetime.now(UTC) - ago
    except OverflowError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SourceError(f"--since {text!r} is not a time; write 10m, 2h, 3d or 2026-03-01T08:00.") from None
    return moment if moment.tzinfo else moment.astimezone()


def parse_duration(text: str) -> timedelta | None:
    """How long 30s, 10m, 2h or 3d is; None for any other text, and for times that are too long."""
    match = _AGO.match(text.strip())
    try:
        return timedelta(**{_UNITS[match[2]]: float(match[1])}) if match else None
    except OverflowError:
        return None
