"""The schedules of beat: found, changed, claimed when a tick is due.

What a schedule means is in worker.schedules.scheduling.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from pgoutlier.db.errors import ScheduleError
from pgoutlier.db.sql.statements import one, records, run, run_dicts
from pgoutlier.db.tables import JsonObject

# A beat that hangs between claim and commit holds up one schedule, and no longer than this.
_CLAIM_SECONDS = 60
# Arguments come as text: one that cannot be read stands in the way of its own schedule only.
_SELECT: LiteralString = (
    "SELECT name, task, args::text AS args, kwargs::text AS kwargs, every_seconds, crontab, time_zone, enabled,"
    " settings_seconds, next_run_at, last_run_at, last_due_at, last_run_by, n_runs, problem, created_at, created_by,"
    " changed_at, changed_by, clock_timestamp() AS read_at FROM outlier.schedules"
)


@dataclass(frozen=True)
class Schedule:
    """A row of outlier.schedules. args and kwargs are JSON as text; read_at is PostgreSQL's clock."""

    name: str
    task: str
    args: str
    kwargs: str
    every_seconds: float | None
    crontab: str | None
    time_zone: str
    enabled: bool
    settings_seconds: float | None
    next_run_at: datetime | None
    last_run_at: datetime | None
    last_due_at: datetime | None
    last_run_by: str | None
    n_runs: int
    problem: str | None
    created_at: datetime
    created_by: str
    changed_at: datetime
    changed_by: str
    read_at: datetime


@dataclass(frozen=True)
class ScheduleEvent:
    """Who changed which schedule when. before and after are its columns, or text if that is not to be read as JSON."""

    created_at: datetime
    created_by: str
    schedule: str
    action: str
    before: JsonObject | str | None
    after: JsonObject | str | None


@dataclass(frozen=True)
class Beat:
    """A beat: host and process, since when it runs, and the seconds since it last ticked."""

    name: str
    started_at: datetime
    ticked_at: datetime
    seconds_ago: float


def every(connection: Connection) -> list[Schedule]:
    """All schedules by name."""
    return _read(connection, _SELECT + " ORDER BY name")


def find(connection: Connection, name: str) -> Schedule:
    """The schedule, locked until the transaction ends. Raises ScheduleError, naming those there are."""
    found = _read(connection, _SELECT + " WHERE name = %s FOR UPDATE", (name,))
    if not found:
        known = ", ".join(schedule.name for schedule in every(connection)) or "none"
        raise ScheduleError(f"There is no schedule {name!r}. Schedules: {known}.")
    return found[0]


def exists(connection: Connection, name: str) -> bool:
    return bool(one(connection, "SELECT EXISTS (SELECT FROM outlier.schedules WHERE name = %s)", (name,)))


def _read(
    connection: Connection, statement: LiteralString, params: tuple[object, ...] = ()
) -> list[Schedule]:
    return [Schedule(**row) for row in run_dicts(connection, statement, params)]


def seed(
    connection: Connection, name: str, task: str, seconds: float, *, args: list[Any], follow: bool
) -> None:
    """Make a built-in schedule where it is missing.

    follow: one that runs at the settings' interval takes over this one.
    """
    values = {"name": name, "task": task, "seconds": seconds, "args": Jsonb(args)}
    run(
        connection,
        "INSERT INTO outlier.schedules (name, task, args, every_seconds, settings_seconds)"
        " VALUES (%(name)s, %(task)s, %(args)s, %(seconds)s, %(seconds)s) ON CONFLICT (name) DO NOTHING",
        values,
    )
    if follow:
        run(
            connection,
            "UPDATE outlier.schedules SET settings_seconds = %(seconds)s,"
            " every_seconds = CASE WHEN every_seconds = settings_seconds THEN %(seconds)s ELSE every_seconds END"
            " WHERE name = %(name)s AND settings_seconds <> %(seconds)s",
            values,
        )


def put(
    connection: Connection, name: str, values: Mapping[str, Any], *, args: list[Any], kwargs: JsonObject
) -> bool:
    """Write the definition of a schedule, new or not. Returns False if it was just so already.

    values: task, every_seconds, crontab, time_zone, enabled.
    """
    return (
        one(
            connection,
            "INSERT INTO outlier.schedules AS s (name, task, args, kwargs, every_seconds, crontab, time_zone, enabled)"
            " VALUES (%(name)s, %(task)s, %(args)s, %(kwargs)s, %(every_seconds)s, %(crontab)s, %(time_zone)s,"
            " %(enabled)s)"
            " ON CONFLICT (name) DO UPDATE SET (task, args, kwargs, every_seconds, crontab, time_zone, enabled) ="
            " (excluded.task, excluded.args, excluded.kwargs, excluded.every_seconds, excluded.crontab,"
            " excluded.time_zone, excluded.enabled)"
            " WHERE (s.task, s.args, s.kwargs, s.every_seconds, s.crontab, s.time_zone, s.enabled) IS DISTINCT FROM"
            " (excluded.task, excluded.args, excluded.kwargs, excluded.every_seconds, excluded.crontab,"
            " excluded.time_zone, excluded.enabled)"
            " RETURNING true",
            {**values, "name": name, "args": Jsonb(args), "kwargs": Jsonb(kwargs)},
        )
        is not None
    )


def set_enabled(connection: Connection, name: str, enabled: bool) -> None:
    run(connection, "UPDATE outlier.schedules SET enabled = %s WHERE name = %s", (enabled, name))


def delete(connection: Connection, name: str) -> None:
    run(connection, "DELETE FROM outlier.schedules WHERE name = %s", (name,))


def unplanned(connection: Connection) -> list[Schedule]:
    """Enabled schedules without a next run, locked; those that another session works on are left out."""
    return _read(
        connection,
        _SELECT + " WHERE enabled AND next_run_at IS NULL ORDER BY name FOR UPDATE SKIP LOCKED",
    )


def claim_due(connection: Connection) -> Schedule | None:
    """The schedule that has been due longest, locked for the one transaction that sends it and notes that it did.

    One that another beat has claimed is skipped. The lock is freed by the end of the transaction or of the session,
    so a tick is nobody's until somebody has noted it.
    """
    run(connection, f"SET LOCAL idle_in_transaction_session_timeout = '{_CLAIM_SECONDS}s'")
    found = _read(
        connection,
        _SELECT + " WHERE enabled AND next_run_at <= clock_timestamp()"
        " ORDER BY next_run_at, name LIMIT 1 FOR UPDATE SKIP LOCKED",
    )
    return found[0] if found else None


def plan(connection: Connection, name: str, *, next_run_at: datetime | None, problem: str | None) -> None:
    """Note when it runs next, or why it does not. Writes only on a change."""
    run(
        connection,
        "UPDATE outlier.schedules SET next_run_at = %(next)s, problem = %(problem)s WHERE name = %(name)s"
        " AND (next_run_at, problem) IS DISTINCT FROM (%(next)s::timestamptz, %(problem)s::text)",
        {"name": name, "next": next_run_at, "problem": problem},
    )


def note_run(connection: Connection, name: str, *, due_at: datetime, next_run_at: datetime, by: str) -> None:
    """Note that the tick of due_at was sent."""
    run(
        connection,
        "UPDATE outlier.schedules SET last_run_at = clock_timestamp(), last_due_at = %s, last_run_by = %s,"
        " n_runs = n_runs + 1, next_run_at = %s, problem = NULL WHERE name = %s",
        (due_at, by, next_run_at, name),
    )


def note_run_now(connection: Connection, name: str) -> None:
    """Note that somebody had it run; when it is due next is left as it was."""
    run(
        connection,
        "UPDATE outlier.schedules SET last_run_at = clock_timestamp(), last_due_at = NULL,"
        " last_run_by = session_user, n_runs = n_runs + 1 WHERE name = %s",
        (name,),
    )


def seconds_to_next(connection: Connection) -> float | None:
    """Until the next run of any schedule, negative if it is due; None if none will be."""
    seconds = one(
        connection,
        "SELECT extract(epoch FROM min(next_run_at) - clock_timestamp()) FROM outlier.schedules WHERE enabled",
    )
    return None if seconds is None else float(seconds)


def sources_with_own_training(connection: Connection, task: str) -> set[str]:
    """Names of the sources that a schedule of their own trains."""
    rows = run(
        connection,
        "SELECT coalesce(args ->> 0, kwargs ->> 'source') FROM outlier.schedules"
        " WHERE task = %s AND enabled AND problem IS NULL",
        (task,),
    ).fetchall()
    return {name for (name,) in rows if name is not None}


def history(connection: Connection, name: str | None, *, limit: int) -> list[ScheduleEvent]:
    """Changes of schedules, or of one, the newest first."""
    rows = run_dicts(
        connection,
        "SELECT created_at, created_by, schedule, action, before::text AS before, after::text AS after"
        " FROM outlier.schedule_events WHERE schedule = coalesce(%s::text, schedule) ORDER BY id DESC LIMIT %s",
        (name, limit),
    )
    return [
        ScheduleEvent(**{**row, "before": _readable(row["before"]), "after": _readable(row["after"])})
        for row in rows
    ]


def _readable(text: str | None) -> JsonObject | str | None:
    try:
        found: JsonObject | None = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found


def tick(connection: Connection, beat: str) -> None:
    """Note that a beat has looked at the schedules and could send what was due."""
    run(
        connection,
        "INSERT INTO outlier.beats (name) VALUES (%s) ON CONFLICT (name) DO UPDATE SET ticked_at = now()",
        (beat,),
    )


def forget_old_beats(connection: Connection) -> None:
    """Drop those that ended more than a day ago, but the last."""
    run(
        connection,
        "DELETE FROM outlier.beats WHERE ticked_at < now() - interval '1 day'"
        " AND ticked_at < (SELECT max(ticked_at) FROM outlier.beats)",
    )


def beats(connection: Connection) -> list[Beat]:
    """Each beat, the one that ticked last first."""
    return records(
        connection,
        Beat,
        "SELECT name, started_at, ticked_at, extract(epoch FROM now() - ticked_at)::float8 AS seconds_ago"
        " FROM outlier.beats ORDER BY ticked_at DESC",
    )
