"""The schedules of beat: found, changed, claimed when a tick is due.

What a schedule means is in worker.schedules.scheduling.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Double, Select, Text, case, cast, extract, func, or_, select
from sqlalchemy.dialects import postgresql

from pgoutlier.db import tables
from pgoutlier.db.errors import ScheduleError
from pgoutlier.db.sql.statements import run
from pgoutlier.db.tables import JsonObject

# A beat that hangs between claim and commit holds up one schedule, and no longer than this.
_CLAIM_SECONDS = 60


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
class ScheduleTimes:
    """When a schedule runs, for those who may not read its arguments; as in `Schedule`."""

    name: str
    task: str
    enabled: bool
    next_run_at: datetime | None
    last_run_at: datetime | None
    problem: str | None
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


_COLUMNS = tables.schedules.c
# Arguments come as text: one that cannot be read stands in the way of its own schedule only.
_AS_READ = {
    "args": cast(_COLUMNS.args, Text).label("args"),
    "kwargs": cast(_COLUMNS.kwargs, Text).label("kwargs"),
    "read_at": func.clock_timestamp().label("read_at"),
}
_SCHEDULES, _TIMES = (
    select(*(_AS_READ[f.name] if f.name in _AS_READ else _COLUMNS[f.name] for f in fields(kind)))
    for kind in (Schedule, ScheduleTimes)
)


def every(connection: Connection) -> list[Schedule]:
    """All schedules by name."""
    return _read(connection, _SCHEDULES.order_by(_COLUMNS.name))


def times(connection: Connection) -> list[ScheduleTimes]:
    """When each schedule runs, by name."""
    return [ScheduleTimes(*row) for row in connection.execute(_TIMES.order_by(_COLUMNS.name))]


def find(connection: Connection, name: str) -> Schedule:
    """The schedule, locked until the transaction ends. Raises ScheduleError, naming those there are."""
    found = _read(connection, _SCHEDULES.where(_COLUMNS.name == name).with_for_update())
    if not found:
        known = ", ".join(schedule.name for schedule in every(connection)) or "none"
        raise ScheduleError(f"There is no schedule {name!r}. Schedules: {known}.")
    return found[0]


def exists(connection: Connection, name: str) -> bool:
    return connection.scalar(select(_COLUMNS.name).where(_COLUMNS.name == name)) is not None


def _read(connection: Connection, statement: Select[Any]) -> list[Schedule]:
    return [Schedule(*row) for row in connection.execute(statement)]


def seed(
    connection: Connection, name: str, task: str, seconds: float, *, args: list[Any], follow: bool
) -> None:
    """Make a built-in schedule where it is missing.

    follow: one that runs at the settings' interval takes over this one.
    """
    connection.execute(
        postgresql.insert(tables.schedules)
        .values(name=name, task=task, args=args, every_seconds=seconds, settings_seconds=seconds)
        .on_conflict_do_nothing(index_elements=[_COLUMNS.name])
    )
    if follow:
        follows = _COLUMNS.every_seconds == _COLUMNS.settings_seconds
        connection.execute(
            tables.schedules.update()
            .where(_COLUMNS.name == name, _COLUMNS.settings_seconds != seconds)
            .values(
                settings_seconds=seconds, every_seconds=case((follows, seconds), else_=_COLUMNS.every_seconds)
            )
        )


def put(
    connection: Connection, name: str, values: Mapping[str, Any], *, args: list[Any], kwargs: JsonObject
) -> bool:
    """Write the definition of a schedule, new or not. Returns False if it was just so already.

    values: task, every_seconds, crontab, time_zone, enabled.
    """
    written = {**values, "args": args, "kwargs": kwargs}
    new = postgresql.insert(tables.schedules).values(name=name, **written)
    statement = new.on_conflict_do_update(
        index_elements=[_COLUMNS.name],
        set_={column: new.excluded[column] for column in written},
        where=or_(*(_COLUMNS[column].is_distinct_from(new.excluded[column]) for column in written)),
    )
    return connection.scalar(statement.returning(_COLUMNS.name)) is not None


def set_enabled(connection: Connection, name: str, enabled: bool) -> None:
    connection.execute(tables.schedules.update().where(_COLUMNS.name == name).values(enabled=enabled))


def delete(connection: Connection, name: str) -> None:
    connection.execute(tables.schedules.delete().where(_COLUMNS.name == name))


def unplanned(connection: Connection) -> list[Schedule]:
    """Enabled schedules without a next run, locked; those that another session works on are left out."""
    return _read(
        connection,
        _SCHEDULES.where(_COLUMNS.enabled, _COLUMNS.next_run_at.is_(None))
        .order_by(_COLUMNS.name)
        .with_for_update(skip_locked=True),
    )


def claim_due(connection: Connection) -> Schedule | None:
    """The schedule that has been due longest, locked for the one transaction that sends it and notes that it did.

    One that another beat has claimed is skipped. The lock is freed by the end of the transaction or of the session,
    so a tick is nobody's until somebody has noted it.
    """
    run(connection, f"SET LOCAL idle_in_transaction_session_timeout = '{_CLAIM_SECONDS}s'")
    found = _read(
        connection,
        _SCHEDULES.where(_COLUMNS.enabled, _COLUMNS.next_run_at <= func.clock_timestamp())
        .order_by(_COLUMNS.next_run_at, _COLUMNS.name)
        .limit(1)
        .with_for_update(skip_locked=True),
    )
    return found[0] if found else None


def plan(connection: Connection, name: str, *, next_run_at: datetime | None, problem: str | None) -> None:
    """Note when it runs next, or why it does not. Writes only on a change."""
    connection.execute(
        tables.schedules.update()
        .where(
            _COLUMNS.name == name,
            or_(
                _COLUMNS.next_run_at.is_distinct_from(next_run_at), _COLUMNS.problem.is_distinct_from(problem)
            ),
        )
        .values(next_run_at=next_run_at, problem=problem)
    )


def note_run(connection: Connection, name: str, *, due_at: datetime, next_run_at: datetime, by: str) -> None:
    """Note that the tick of due_at was sent."""
    connection.execute(
        tables.schedules.update()
        .where(_COLUMNS.name == name)
        .values(
            last_run_at=func.clock_timestamp(),
            last_due_at=due_at,
            last_run_by=by,
            n_runs=_COLUMNS.n_runs + 1,
            next_run_at=next_run_at,
            problem=None,
        )
    )


def note_run_now(connection: Connection, name: str) -> None:
    """Note that somebody had it run; when it is due next is left as it was."""
    connection.execute(
        tables.schedules.update()
        .where(_COLUMNS.name == name)
        .values(
            last_run_at=func.clock_timestamp(),
            last_due_at=None,
            last_run_by=func.session_user(),
            n_runs=_COLUMNS.n_runs + 1,
        )
    )


def seconds_to_next(connection: Connection) -> float | None:
    """Until the next run of any schedule, negative if it is due; None if none will be."""
    wait = extract("epoch", func.min(_COLUMNS.next_run_at) - func.clock_timestamp())
    seconds = connection.scalar(select(wait).where(_COLUMNS.enabled))
    return None if seconds is None else float(seconds)


def sources_with_own_training(connection: Connection, task: str) -> set[str]:
    """Names of the sources that a schedule of their own trains."""
    source = func.coalesce(_COLUMNS.args[0].astext, _COLUMNS.kwargs["source"].astext)
    names = connection.scalars(
        select(source).where(_COLUMNS.task == task, _COLUMNS.enabled, _COLUMNS.problem.is_(None))
    )
    return {name for name in names if name is not None}


def history(connection: Connection, name: str | None, *, limit: int) -> list[ScheduleEvent]:
    """Changes of schedules, or of one, the newest first."""
    events = tables.schedule_events.c
    # As text, for the same reason as the arguments.
    as_read = {column.name: cast(column, Text).label(column.name) for column in (events.before, events.after)}
    statement = select(*(as_read.get(f.name, events[f.name]) for f in fields(ScheduleEvent)))
    if name is not None:
        statement = statement.where(events.schedule == name)
    rows = connection.execute(statement.order_by(events.id.desc()).limit(limit)).mappings()
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
    connection.execute(
        postgresql.insert(tables.beats)
        .values(name=beat)
        .on_conflict_do_update(index_elements=[tables.beats.c.name], set_={"ticked_at": func.now()})
    )


def forget_old_beats(connection: Connection) -> None:
    """Drop those that ended more than a day ago, but the last."""
    ticked_at, other = tables.beats.c.ticked_at, tables.beats.alias()
    connection.execute(
        tables.beats.delete().where(
            ticked_at < func.now() - timedelta(days=1),
            ticked_at < select(func.max(other.c.ticked_at)).scalar_subquery(),
        )
    )


def beats(connection: Connection) -> list[Beat]:
    """Each beat, the one that ticked last first."""
    columns = tables.beats.c
    seconds_ago = cast(extract("epoch", func.now() - columns.ticked_at), Double)
    statement = select(columns.name, columns.started_at, columns.ticked_at, seconds_ago)
    return [Beat(*row) for row in connection.execute(statement.order_by(columns.ticked_at.desc()))]
