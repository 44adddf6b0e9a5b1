"""What operators do with schedules: look, set, pause, resume, run now, delete. Beat sees it within seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from pgoutlier.db.errors import ScheduleError
from pgoutlier.db.schedules import schedules
from pgoutlier.db.schedules.schedules import Schedule, ScheduleEvent, ScheduleTimes
from pgoutlier.db.tables import SCHEDULE_NAME_PATTERN, JsonObject
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.schedules import scheduling, timing
from pgoutlier.worker.schedules.scheduling import Call, Send
from pgoutlier.worker.schedules.timing import Timing

# Beat looks every second, or waits some seconds for a broker that hangs.
BEAT_IS_LATE_SECONDS = 60.0


@dataclass(frozen=True)
class Change:
    """What is to be different; None leaves it as it is. At most one of every_seconds, crontab and from_settings."""

    task: str | None = None
    args: list[Any] | None = None
    kwargs: JsonObject | None = None
    every_seconds: float | None = None
    crontab: str | None = None
    time_zone: str | None = None
    from_settings: bool = False


@dataclass(frozen=True)
class DescribedSchedule:
    """A schedule, what it sends, and the problem that it has by now. call: None where it has one."""

    schedule: Schedule
    call: Call | None
    problem: str | None


@dataclass(frozen=True)
class Coming:
    """A schedule at a glance. next_run_at, next_run_in_seconds: None if it is paused. problem: as it was noted."""

    name: str
    task: str
    enabled: bool
    next_run_at: datetime | None
    next_run_in_seconds: float | None
    last_run_at: datetime | None
    problem: str | None


def listing(runtime: Runtime) -> list[DescribedSchedule]:
    """Every schedule by name, with the problem that it has by now."""
    with runtime.engine.begin() as connection:
        scheduling.seed(connection, follow=False)
        return [_described(connection, schedule) for schedule in schedules.every(connection)]


def _described(connection: Connection, schedule: Schedule) -> DescribedSchedule:
    problem = scheduling.problem_of(connection, schedule)
    return DescribedSchedule(schedule, None if problem else scheduling.call_of(schedule), problem)


def change(runtime: Runtime, name: str, wanted: Change) -> tuple[DescribedSchedule, bool]:
    """Make or change a schedule; (the schedule, whether anything changed).

    Raises ScheduleError or SourceError, with nothing written, if it could not be kept.
    """
    if not re.fullmatch(SCHEDULE_NAME_PATTERN, name):
        raise ScheduleError(
            f"{name!r} cannot name a schedule; use lower-case letters, digits, underscores, dots and hyphens, 100 at"
            " most."
        )
    with runtime.engine.begin() as connection:
        scheduling.seed(connection, follow=False)
        old = schedules.find(connection, name) if schedules.exists(connection, name) else None
        call = _call(name, wanted, old)
        scheduling.check_call(connection, call)
        when = _timing(name, wanted, old)
        changed = schedules.put(
            connection,
            name,
            {**vars(when), "task": call.task, "enabled": old is None or old.enabled},
            args=call.args,
            kwargs=call.kwargs,
        )
        return _planned(connection, name), changed


def _call(name: str, wanted: Change, old: Schedule | None) -> Call:
    task = wanted.task or (old.task if old else None)
    if task is None:
        raise ScheduleError(f"There is no schedule {name!r} yet; to make it, name its task with --task.")
    if old is None or (wanted.args is not None and wanted.kwargs is not None):
        return Call(task, wanted.args or [], wanted.kwargs or {})
    before = scheduling.call_of(old)
    return Call(
        task,
        before.args if wanted.args is None else wanted.args,
        before.kwargs if wanted.kwargs is None else wanted.kwargs,
    )


def _timing(name: str, wanted: Change, old: Schedule | None) -> Timing:
    given = [wanted.every_seconds is not None, wanted.crontab is not None, wanted.from_settings]
    if sum(given) > 1:
        raise ScheduleError("Say only one of --every, --crontab and --from-settings.")
    if wanted.from_settings:
        if old is None or old.settings_seconds is None:
            raise ScheduleError(
                f"{name} is not built in, so the settings say nothing of it; use --every or --crontab."
            )
        found = timing.interval(old.settings_seconds)
    elif wanted.every_seconds is not None:
        found = timing.interval(wanted.every_seconds)
    elif wanted.crontab is not None:
        zone = wanted.time_zone or (old.time_zone if old and old.crontab else "UTC")
        found = timing.crontab(wanted.crontab, zone)
    elif old is None:
        raise ScheduleError(f"Say when {name} is to run: --every 15m, or --crontab '0 3 * * *'.")
    elif old.crontab is not None:
        found = timing.crontab(old.crontab, wanted.time_zone or old.time_zone)
    else:
        found = timing.interval(old.every_seconds or 0.0)
    if wanted.time_zone is not None and found.crontab is None:
        raise ScheduleError("An interval is the same in every time zone; --time-zone goes with --crontab.")
    return found


def set_enabled(runtime: Runtime, name: str, enabled: bool) -> tuple[DescribedSchedule, bool]:
    """Pause or resume; (the schedule, whether it was otherwise before). What was missed meanwhile is not made up."""
    with runtime.engine.begin() as connection:
        scheduling.seed(connection, follow=False)
        changed = schedules.find(connection, name).enabled is not enabled
        schedules.set_enabled(connection, name, enabled)
        return _planned(connection, name), changed


def _planned(connection: Connection, name: str) -> DescribedSchedule:
    """The schedule as it is now, with its next run."""
    schedule = schedules.find(connection, name)
    if schedule.enabled and schedule.next_run_at is None:
        scheduling.plan(connection, schedule)
        schedule = schedules.find(connection, name)
    return _described(connection, schedule)


def run_now(runtime: Runtime, name: str, send: Send = scheduling.send) -> DescribedSchedule:
    """Send its task at once, also if it is paused; when it is due next stays as it is.

    Raises ScheduleError or SourceError if it cannot be sent, and one of BROKER_AWAY, with no run noted.
    """
    with runtime.engine.begin() as connection:
        scheduling.seed(connection, follow=False)
        schedule = schedules.find(connection, name)
        problem = scheduling.problem_of(connection, schedule)
        if problem:
            raise ScheduleError(f"{name} cannot run: {problem}")
        schedules.note_run_now(connection, name)
        send(scheduling.call_of(schedule), f"{name}@{schedule.read_at.isoformat()}/now", None)
        return _described(connection, schedules.find(connection, name))


def delete(runtime: Runtime, name: str) -> None:
    """Raises ScheduleError if there is no such schedule, or it is built in."""
    with runtime.engine.begin() as connection:
        schedule = schedules.find(connection, name)
        if schedule.settings_seconds is not None:
            raise ScheduleError(
                f"{name} is built in and would come back; to stop it: pgoutlier schedule pause {name}; to undo your"
                f" changes: pgoutlier schedule set {name} --from-settings"
            )
        schedules.delete(connection, name)


def history(runtime: Runtime, name: str | None, *, limit: int) -> list[ScheduleEvent]:
    """Who changed which schedule when, the newest first."""
    with runtime.engine.begin() as connection:
        return schedules.history(connection, name, limit=limit)


def beats_alive(connection: Connection) -> list[str]:
    """Names of the beats that ticked of late."""
    return [beat.name for beat in schedules.beats(connection) if beat.seconds_ago < BEAT_IS_LATE_SECONDS]


def coming(connection: Connection) -> list[Coming]:
    """Every schedule at a glance, by name."""
    return [
        Coming(
            name=schedule.name,
            task=schedule.task,
            enabled=schedule.enabled,
            next_run_at=schedule.next_run_at if schedule.enabled else None,
            next_run_in_seconds=_seconds(schedule),
            last_run_at=schedule.last_run_at,
            problem=schedule.problem,
        )
        for schedule in schedules.times(connection)
    ]


def _seconds(schedule: Schedule | ScheduleTimes) -> float | None:
    next_run_at: datetime | None = schedule.next_run_at if schedule.enabled else None
    return None if next_run_at is None else round((next_run_at - schedule.read_at).total_seconds(), 1)
