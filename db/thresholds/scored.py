"""Which stored scores are counted, and which of them lie in a part of time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import LiteralString

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.source import catalog, moments
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql.identifiers import identifier, ours
from pgoutlier.db.sql.statements import compose, one
from pgoutlier.db.verdicts import verdicts

# Where the newest score of a version is sought: an index finds those of a time and not the last one.
_NEWEST_WITHIN = (timedelta(days=1), timedelta(days=30))


@dataclass(frozen=True)
class Scored:
    """Which scores are counted: those of one version, in the newest part of time.

    window: how far back from the newest row; None for all. by_event_time: time is the source's time column,
    else when the row was scored. by_verdict: verdicts were given on rows of the source.
    """

    source: SourceDefinition
    version: int
    window: timedelta | None
    by_event_time: bool
    by_verdict: bool

    @classmethod
    def of(
        cls, connection: Connection, source: SourceDefinition, version: int, window: timedelta | None
    ) -> Scored:
        by_event_time = catalog.is_time(connection, source.relation, source.time_column)
        by_verdict = verdicts.any_given(connection, source.name)
        return cls(source, version, window, by_event_time, by_verdict)

    @property
    def moment(self) -> sql.Composable:
        """SQL of the time of a row t with a score s."""
        return moment_of(self.source, by_event_time=self.by_event_time)

    @property
    def joined(self) -> bool:
        """Whether the user's rows have to be read."""
        return self.by_event_time or self.source.label_column is not None


def moment_of(source: SourceDefinition, *, by_event_time: bool) -> sql.Composable:
    if by_event_time and source.time_column:
        return compose("t.{time}", time=identifier(source.time_column))
    return sql.SQL("s.scored_at")


@dataclass(frozen=True)
class Part:
    """A part of time: behind `after`, from `since` on, before `before`; None where it has no such end."""

    after: datetime | None = None
    since: datetime | None = None
    before: datetime | None = None

    @property
    def is_all(self) -> bool:
        return self == Part()

    def has(self, moment: sql.Composable) -> sql.Composed:
        """SQL for whether it has a moment."""
        ends: tuple[tuple[LiteralString, datetime | None], ...] = (
            (">", self.after),
            (">=", self.since),
            ("<", self.before),
        )
        conditions = [
            compose("{m} {sign} {end}::timestamptz", m=moment, sign=sql.SQL(sign), end=sql.Literal(end))
            for sign, end in ends
            if end is not None
        ]
        return sql.SQL(" AND ").join(conditions or [compose("true")])


def window_of(connection: Connection, scored: Scored) -> Part:
    """The part of time that the window leaves, back from the newest row but for strays."""
    newest = None if scored.window is None else _newest(connection, scored)
    if newest is None or scored.window is None:
        return Part()
    try:
        return Part(after=newest - scored.window)
    except OverflowError:
        return Part()


def found_by_index(connection: Connection, scored: Scored) -> bool:
    """Whether an index finds the rows of a part of time."""
    if not scored.by_event_time:
        return True
    time = scored.source.time_column or ""
    return catalog.index_on(connection, scored.source.relation, time) is not None


def _newest(connection: Connection, scored: Scored) -> datetime | None:
    source = scored.source
    if scored.by_event_time:
        found = compose(
            "SELECT {newest} FROM (SELECT max(n.{time}) AS time FROM {relation} n WHERE isfinite(n.{time})"
            " AND n.{time} <= %s::timestamptz) m",
            newest=moments.dated(sql.SQL("m.time")),
            time=identifier(source.time_column or ""),
            relation=source.relation.sql(),
        )
        newest: datetime | None = one(connection, found, (moments.newest_of_note(connection, source),))
        return newest
    for within in (*_NEWEST_WITHIN, None):
        lately = compose(
            "SELECT max(n.scored_at) FROM {scores} n WHERE n.model_version = %(version)s"
            " AND n.scored_at > coalesce(now() - %(within)s::interval, '-infinity')",
            scores=ours("scores", source.name),
        )
        newest = one(connection, lately, {"version": scored.version, "within": within})
        if newest is not None:
            return newest
    return None
