"""schedule: what beat sends, and when."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, NoReturn
from zoneinfo import ZoneInfo

import typer

from pgoutlier.db.errors import ScheduleError
from pgoutlier.db.schedules.schedules import Schedule, ScheduleEvent
from pgoutlier.worker.cli.arguments import AsJson
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.cli.status import parse_duration
from pgoutlier.worker.console import console, print_json, print_table
from pgoutlier.worker.schedules import schedule_control
from pgoutlier.worker.schedules.schedule_control import Change, DescribedSchedule

schedule = typer.Typer(
    no_args_is_help=True,
    help="What runs by itself, and when: sweeps, trainings, and whatever you add. A change is in effect within 5"
    " seconds, with no restart. Every change is kept in outlier.schedule_events.",
)
Name = Annotated[str, typer.Argument(help="Name of the schedule, as `pgoutlier schedule list` shows it.")]


@schedule.command("list")
def schedule_list(as_json: AsJson = False) -> None:
    """All schedules: what they send, when they ran last and run next, and what is wrong with them."""
    found = schedule_control.listing(open_runtime())
    if as_json:
        print_json([_as_json(entry) for entry in found])
        return
    columns = ["schedule", "task", "when", "last run", "next run", "note"]
    print_table(
        "Times are those of each schedule's own time zone.", columns, [_row(entry) for entry in found]
    )
    for entry in found:
        if entry.problem:
            console.print(f"{entry.schedule.name} cannot run: {entry.problem}", highlight=False, markup=False)


def _as_json(entry: DescribedSchedule) -> dict[str, Any]:
    """The columns of the schedule, with args and kwargs as they are sent, and its problem as it is by now."""
    columns = {**vars(entry.schedule), "problem": entry.problem}
    del columns["read_at"]
    return (
        columns if entry.call is None else {**columns, "args": entry.call.args, "kwargs": entry.call.kwargs}
    )


def _row(entry: DescribedSchedule) -> list[object]:
    found = entry.schedule
    runs = found.enabled and not entry.problem
    return [
        found.name,
        _call_text(entry),
        _when_text(found),
        _time_text(found.last_run_at, entry, "%m-%d %H:%M:%S"),
        _time_text(found.next_run_at, entry, "%m-%d %H:%M:%S") if runs else None,
        "cannot run" if entry.problem else "" if found.enabled else "paused",
    ]


def _call_text(entry: DescribedSchedule) -> str:
    """As in Python, such as models.train("payments", promote=true)."""
    if entry.call is None:
        return entry.schedule.task
    words = [json.dumps(value) for value in entry.call.args]
    words += [f"{name}={json.dumps(value)}" for name, value in entry.call.kwargs.items()]
    return f"{entry.call.task}({', '.join(words)})" if words else entry.call.task


def _when_text(found: Schedule) -> str:
    if found.crontab is not None:
        return f"{found.crontab} {found.time_zone}"
    seconds = found.every_seconds or 0.0
    return f"every {_interval_text(seconds)}" + (" (settings)" if seconds == found.settings_seconds else "")


def _interval_text(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _time_text(
    moment: datetime | None, entry: DescribedSchedule, form: str = "%m-%d %H:%M:%S %Z"
) -> str | None:
    """In the schedule's own time zone, and in UTC where that cannot be read."""
    if moment is None:
        return None
    zone = "UTC" if entry.problem else entry.schedule.time_zone
    return moment.astimezone(ZoneInfo(zone)).strftime(form)


@schedule.command("set")
def schedule_set(
    name: Name,
    task: Annotated[
        str | None, typer.Option(help="The task to send, see docs/tasks.md; only a new schedule has to say.")
    ] = None,
    args: Annotated[str | None, typer.Option(help="Its arguments as a JSON list: '[\"payments\"]'.")] = None,
    kwargs: Annotated[
        str | None, typer.Option(help="Its named arguments as a JSON object: '{\"promote\": true}'.")
    ] = None,
    every: Annotated[str | None, typer.Option(help="An interval: 30s, 15m, 2h, 1d.")] = None,
    crontab: Annotated[
        str | None,
        typer.Option(help="Minute, hour, day of month, month, day of week, as in cron: '0 3 * * mon-fri'."),
    ] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="Whose clock the crontab is read by, such as Europe/Berlin; else UTC.")
    ] = None,
    from_settings: Annotated[
        bool,
        typer.Option("--from-settings", help="Back to the interval that PGOUTLIER_*_EVERY_SECONDS says."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a schedule or change one; what you do not say stays as it is. Safe to run again.

    Train one source every night:
    pgoutlier schedule set nightly --task models.train --args '["payments"]' --crontab '0 3 * * *'
    --time-zone Europe/Berlin

    Sweep less often:
    pgoutlier schedule set sweep --every 1h
    """
    wanted = Change(
        task=task,
        args=_json(args, list, "--args", "a JSON list, such as '[\"payments\"]'"),
        kwargs=_json(kwargs, dict, "--kwargs", "a JSON object, such as '{\"promote\": true}'"),
        every_seconds=_seconds(every),
        crontab=crontab,
        time_zone=time_zone,
        from_settings=from_settings,
    )
    _say(*schedule_control.change(open_runtime(), name, wanted), done="set", as_json=as_json)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    length = parse_duration(text)
    if length is None:
        raise ScheduleError(f"--every {text!r} is not a length of time; write 30s, 15m, 2h or 1d.")
    return length.total_seconds()


def _json(text: str | None, kind: type, option: str, form: str) -> Any:
    def refuse(_: str) -> NoReturn:
        raise ValueError("not a number of JSON")

    if text is None:
        return None
    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise ScheduleError(f"{option} {text!r} is not {form}.")
    return value


@schedule.command("pause")
def schedule_pause(name: Name, as_json: AsJson = False) -> None:
    """Send it no more until it is resumed."""
    _say(*schedule_control.set_enabled(open_runtime(), name, False), done="paused", as_json=as_json)


@schedule.command("resume")
def schedule_resume(name: Name, as_json: AsJson = False) -> None:
    """Send it again. Runs that were missed while it was paused are not made up."""
    _say(*schedule_control.set_enabled(open_runtime(), name, True), done="resumed", as_json=as_json)


@schedule.command("run-now")
def schedule_run_now(name: Name, as_json: AsJson = False) -> None:
    """Send its task at once, paused or not; its next run stays when it was."""
    _say(schedule_control.run_now(open_runtime(), name), True, done="sent", as_json=as_json)


@schedule.command("delete")
def schedule_delete(name: Name, as_json: AsJson = False) -> None:
    """Forget a schedule that you made; its history stays. A built-in one can only be paused."""
    schedule_control.delete(open_runtime(), name)
    if as_json:
        print_json({"schedule": name, "deleted": True})
    else:
        console.print(f"Deleted {name}.", highlight=False, markup=False)


@schedule.command("history")
def schedule_history(
    name: Annotated[str | None, typer.Argument(help="Only this schedule.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Who changed what and when, by command or by SQL."""
    events = schedule_control.history(open_runtime(), name, limit=limit)
    if as_json:
        print_json(events)
        return
    if not events:
        console.print("No schedule was changed yet.")
        return
    columns = ["at", "by", "schedule", "action", "what"]
    print_table(
        "",
        columns,
        [(e.created_at, e.created_by, e.schedule, e.action, _difference(e)) for e in events],
    )


def _difference(event: ScheduleEvent) -> str:
    """The columns that differ, with both values."""
    before, after = event.before, event.after
    if isinstance(before, str) or isinstance(after, str):
        return "cannot be shown"
    if before is None or after is None:
        return str((after or before or {}).get("task"))
    changed = [name for name in after if before.get(name) != after[name]]
    return "; ".join(f"{n}: {json.dumps(before.get(n))} -> {json.dumps(after[n])}" for n in changed)


def _say(entry: DescribedSchedule, changed: bool, *, done: str, as_json: bool) -> None:
    if as_json:
        print_json({**_as_json(entry), "changed": changed})
        return
    found = entry.schedule
    text = f"{found.name}: {_call_text(entry)}, {_when_text(found)}; "
    if done == "sent":
        text += f"sent at {_time_text(found.last_run_at, entry)}."
    else:
        text += done if changed else "it was so already"
        next_run = _time_text(found.next_run_at, entry) if found.enabled else None
        text += f"; next run {next_run}." if next_run else (f"; {entry.problem}" if entry.problem else ".")
    console.print(text, highlight=False, markup=False, soft_wrap=True)
