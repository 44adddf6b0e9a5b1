"""What a schedule means, whether it can be kept, and the ticks of beat: each is sent once, whoever sends it."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, get_type_hints

import psycopg
import structlog
from kombu.exceptions import OperationalError as BrokerUnavailable
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from pgoutlier.db.errors import PgoutlierError, ScheduleError
from pgoutlier.db.schedules import schedules
from pgoutlier.db.schedules.schedules import Schedule
from pgoutlier.db.sources import sources
from pgoutlier.db.tables import SHORTEST_INTERVAL_SECONDS, JsonObject
from pgoutlier.worker.app import app
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.schedules.timing import Timing, crontab, interval

log = structlog.get_logger()

BROKER_AWAY = (BrokerUnavailable, ConnectionError, TimeoutError)
# A tick that nobody took is worth nothing once the next one is there.
_SHORTEST_EXPIRY_SECONDS = 5.0
# After so many in one pass beat looks up: it may have been asked to end.
_MOST_TICKS = 1_000


@dataclass(frozen=True)
class Call:
    """A task and its arguments."""

    task: str
    args: list[Any]
    kwargs: JsonObject


Send = Callable[[Call, str, float | None], object]


def send(call: Call, task_id: str, expires_seconds: float | None) -> None:
    """Give the call to the broker. Raises one of BROKER_AWAY if that is away."""
    app.tasks[call.task].apply_async(call.args, call.kwargs, task_id=task_id, expires=expires_seconds)


def built_in() -> list[tuple[str, str, float, list[Any]]]:
    """(name, task, seconds by the settings, arguments) of each entry of worker.celery_config."""
    return [
        (name, entry["task"], max(SHORTEST_INTERVAL_SECONDS, entry["schedule"]), list(entry.get("args", ())))
        for name, entry in app.conf.beat_schedule.items()
    ]


def seed(connection: Connection, *, follow: bool) -> None:
    """Make the built-in schedules that are missing; follow: bring those that nobody edited to the settings."""
    for name, task, seconds, args in built_in():
        schedules.seed(connection, name, task, seconds, args=args, follow=follow)


def check_call(connection: Connection, call: Call) -> None:
    """Raises ScheduleError or SourceError unless the task exists and takes these arguments."""
    app.loader.import_task_module("pgoutlier.worker.tasks")
    known = {name: task for name, task in app.tasks.items() if not name.startswith("celery.")}
    if call.task not in known:
        near = difflib.get_close_matches(call.task, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else "docs/tasks.md names those there are."
        raise ScheduleError(f"There is no task {call.task!r}. {hint}")
    function = known[call.task].run
    parameters = inspect.signature(function)
    try:
        bound = parameters.bind(*call.args, **call.kwargs)
    except TypeError as error:
        takes = ", ".join(str(p).split(":")[0] for p in parameters.parameters.values()) or "nothing"
        raise ScheduleError(
            f"{call.task} cannot be called like this: {error}. It takes {takes}; see docs/tasks.md."
        ) from None
    hints = get_type_hints(function)
    for name, value in bound.arguments.items():
        try:
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Input ")
            raise ScheduleError(
                f"The argument {name} of {call.task} {said}, not {json.dumps(value)}."
            ) from None
    if "source" in bound.arguments:
        sources.find(connection, bound.arguments["source"])


def call_of(schedule: Schedule) -> Call:
    """What it sends, as far as it can be read."""
    return Call(schedule.task, json.loads(schedule.args), json.loads(schedule.kwargs))


def timing_of(schedule: Schedule) -> Timing:
    """When it runs. Raises ScheduleError if that cannot be kept."""
    if schedule.crontab is not None:
        return crontab(schedule.crontab, schedule.time_zone)
    return interval(schedule.every_seconds or 0.0)


def problem_of(connection: Connection, schedule: Schedule) -> str | None:
    """Why it cannot be kept, in one sentence. Whatever is wrong with one must not stop the others."""
    try:
        timing_of(schedule)
        check_call(connection, call_of(schedule))
    except PgoutlierError as error:
        return error.sentence
    except (DBAPIError, psycopg.Error):
        raise
    except Exception as error:
        return f"It cannot be read ({type(error).__name__}: {error}); write it anew."
    return None


def first_run(schedule: Schedule) -> datetime:
    """When one that was made, changed or resumed runs next: an interval goes on from its last run."""
    if schedule.crontab is None and schedule.last_run_at is not None:
        return max(schedule.read_at, schedule.last_run_at + timedelta(seconds=schedule.every_seconds or 0.0))
    return timing_of(schedule).after(schedule.read_at)


def plan(connection: Connection, schedule: Schedule) -> None:
    """Note when it runs next, or why it does not."""
    problem = problem_of(connection, schedule)
    next_run_at = None if problem else first_run(schedule)
    schedules.plan(connection, schedule.name, next_run_at=next_run_at, problem=problem)


def tick(runtime: Runtime, beat: str, send: Send = send) -> float | None:
    """Send what is due; returns the seconds to the next run, negative if another beat is about to send that.

    A tick is claimed, sent and noted in one transaction. Where that fails before the end nothing is noted and the
    tick stays due; only a beat killed in the moment between the sending and the commit lets it be sent twice.
    Raises one of BROKER_AWAY if the broker is away.
    """
    with runtime.engine.begin() as connection:
        for schedule in schedules.unplanned(connection):
            plan(connection, schedule)
    for _ in range(_MOST_TICKS):
        with runtime.engine.begin() as connection:
            due = schedules.claim_due(connection)
            if due is None:
                break
            _run(connection, due, beat, send)
    with runtime.engine.begin() as connection:
        return schedules.seconds_to_next(connection)


def _run(connection: Connection, schedule: Schedule, beat: str, send: Send) -> None:
    due_at = schedule.next_run_at or schedule.read_at
    problem = problem_of(connection, schedule)
    if problem:
        schedules.plan(connection, schedule.name, next_run_at=None, problem=problem)
        log.error("schedule_stands_still", schedule=schedule.name, problem=problem)
        return
    # However many were missed, the next one is after now: this tick stands for all of them.
    next_run_at = timing_of(schedule).after(max(schedule.read_at, due_at), due=due_at)
    expires_seconds = max(_SHORTEST_EXPIRY_SECONDS, (next_run_at - schedule.read_at).total_seconds())
    send(call_of(schedule), f"{schedule.name}@{due_at.astimezone(UTC).isoformat()}", expires_seconds)
    schedules.note_run(connection, schedule.name, due_at=due_at, next_run_at=next_run_at, by=beat)
    log.debug("schedule_sent", schedule=schedule.name, task=schedule.task, due_at=due_at.isoformat())
