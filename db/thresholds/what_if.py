"""How many stored scores other thresholds would flag, and how those flags meet the labels; nothing is scored anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.source import catalog, labels, moments
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.source.moments import Moments
from pgoutlier.db.sql.identifiers import identifier, ours
from pgoutlier.db.sql.statements import compose, one, run
from pgoutlier.db.verdicts import verdicts

# The shares of the stored scores that the thresholds of a table flag, about evenly spaced by ratio.
SHARES = (0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.002, 0.001, 5e-4, 3e-4, 2e-4, 1e-4)
# Scores of a shorter time, a backfill's for instance, say nothing about a day.
LEAST_DAYS = 1 / 24


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


@dataclass(frozen=True)
class Cut:
    """What one threshold flags: rows, those of them with a verdict or label, and those known to be fraud."""

    threshold: float
    n_flagged: int
    n_flagged_labelled: int
    n_hits: int


@dataclass(frozen=True)
class Figures:
    """n_rows: scores counted. n_labelled, n_fraud: of them with a verdict or label, and known to be fraud.

    first, last: the oldest and the newest moment of them but for strays (`db.source.moments`), None without any. days:
    between the two, None where that is too short to tell. cuts: one a threshold, in the order asked for.
    """

    n_rows: int
    n_labelled: int
    n_fraud: int
    first: datetime | None
    last: datetime | None
    days: float | None
    cuts: tuple[Cut, ...]


def thresholds(connection: Connection, scored: Scored) -> list[float]:
    """Thresholds that flag the SHARES of all the version's stored scores, each once, rising."""
    found = one(
        connection,
        compose(
            "SELECT percentile_disc(%(levels)s::float8[]) WITHIN GROUP (ORDER BY reconstruction_error)"
            " FROM {scores} WHERE model_version = %(version)s",
            scores=ours("scores", scored.source.name),
        ),
        {"levels": [1 - share for share in SHARES], "version": scored.version},
    )
    return sorted(set(found or []))


def figures(connection: Connection, scored: Scored, at: Sequence[float]) -> Figures:
    """Counts for each of the thresholds `at`, by going through the scores once.

    A row is flagged when its error is above the threshold, as `detector.exceeds` says. Rows without a label
    count as rows, and not as labelled.
    """
    falling = sorted(set(at), reverse=True)
    rows = run(
        connection,
        counting(scored),
        {
            # width_bucket counts the bounds that are not above its operand. Of the negated thresholds these are
            # the ones that an error does not exceed.
            "bounds": [-threshold for threshold in falling],
            "version": scored.version,
            "window": scored.window,
            "until": _until(connection, scored),
        },
    ).fetchall()
    total = [sum(row[column] for row in rows) for column in (1, 2, 3)]
    covered = moments.without_strays(_by_day(rows))
    first, last = (covered[0].first, covered[-1].last) if covered else (None, None)
    days = (last - first).total_seconds() / 86_400 if first and last else 0.0
    cuts = {}
    for position, threshold in enumerate(falling):
        flagged = [row for row in rows if row[0] <= position]
        n_flagged, n_labelled, n_hits = (sum(row[column] for row in flagged) for column in (1, 2, 3))
        cuts[threshold] = Cut(threshold, n_flagged, n_labelled, n_hits)
    return Figures(
        n_rows=total[0],
        n_labelled=total[1],
        n_fraud=total[2],
        first=first,
        last=last,
        days=days if days >= LEAST_DAYS else None,
        cuts=tuple(cuts[threshold] for threshold in at),
    )


def _by_day(rows: Iterable[tuple[Any, ...]]) -> list[Moments]:
    """The days of all buckets together."""
    days: dict[date, Moments] = {}
    for *_, counts, firsts, lasts in rows:
        for n_rows, first, last in zip(counts or (), firsts or (), lasts or (), strict=True):
            name = first.astimezone(UTC).date()
            known = days.get(name, Moments(first, last, 0))
            days[name] = Moments(min(first, known.first), max(last, known.last), n_rows + known.n_rows)
    return list(days.values())


def counting(scored: Scored) -> sql.Composed:
    """The statement of `figures`: for each bucket between thresholds rows, labelled, fraud, and arrays over its days
    of rows, first and last moment.

    Parameters: bounds, version, window, until. It returns as many rows as there are thresholds, and one.
    """
    source = scored.source
    label = labels.by_column(source, "t")
    joined = scored.by_event_time or source.label_column is not None
    return compose(
        "SELECT d.bucket, sum(d.n)::bigint, sum(d.labelled)::bigint, sum(d.fraud)::bigint, {known_n}, {known_first},"
        " {known_last} FROM (SELECT r.bucket, count(*) AS n, count(r.label) AS labelled,"
        " count(*) FILTER (WHERE r.label) AS fraud, min(r.dated) AS first, max(r.dated) AS last FROM ("
        "SELECT width_bucket(-s.reconstruction_error, %(bounds)s::float8[]) AS bucket, {label} AS label,"
        " {dated} AS dated FROM {scores} s{join}{verdicts} WHERE s.model_version = %(version)s{within}"
        ") r GROUP BY r.bucket, {day}) d GROUP BY d.bucket",
        known_n=sql.SQL("array_agg(d.n) FILTER (WHERE d.first IS NOT NULL)"),
        known_first=sql.SQL("array_agg(d.first) FILTER (WHERE d.first IS NOT NULL)"),
        known_last=sql.SQL("array_agg(d.last) FILTER (WHERE d.first IS NOT NULL)"),
        label=labels.known(source, label) if scored.by_verdict else label,
        dated=moments.dated(_moment(scored)),
        day=moments.day(sql.SQL("r.dated")),
        scores=ours("scores", source.name),
        join=compose(
            " JOIN {relation} t ON {same}",
            relation=source.relation.sql(),
            same=source.key.is_of("t", "s"),
        )
        if joined
        else sql.SQL(""),
        verdicts=labels.with_verdicts(source, "s", ours=True) if scored.by_verdict else sql.SQL(""),
        within=sql.SQL("")
        if scored.window is None
        else compose(
            " AND {moment} > {newest} - %(window)s::interval", moment=_moment(scored), newest=_newest(scored)
        ),
    )


def _until(connection: Connection, scored: Scored) -> datetime | None:
    """What the newest row is sought before; None where the window needs none, or time is our own."""
    if scored.window is None or not scored.by_event_time:
        return None
    return moments.newest_of_note(connection, scored.source)


def _moment(scored: Scored) -> sql.Composable:
    if scored.by_event_time and scored.source.time_column:
        return compose("t.{time}", time=identifier(scored.source.time_column))
    return sql.SQL("s.scored_at")


def _newest(scored: Scored) -> sql.Composable:
    """SQL for the newest moment but for strays, which an index on the time column gives at once."""
    if scored.by_event_time and scored.source.time_column:
        return compose(
            "(SELECT max(n.{time}) FROM {relation} n WHERE isfinite(n.{time}) AND n.{time} <= %(until)s::timestamptz)",
            time=identifier(scored.source.time_column),
            relation=scored.source.relation.sql(),
        )
    return compose(
        "(SELECT max(n.scored_at) FROM {scores} n WHERE n.model_version = %(version)s)",
        scores=ours("scores", scored.source.name),
    )
