"""How many stored scores other thresholds would flag, and how those flags meet the labels; nothing is scored anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.source import labels, moments
from pgoutlier.db.source.moments import Moments
from pgoutlier.db.sql import key_ranges
from pgoutlier.db.sql.identifiers import ours
from pgoutlier.db.sql.key_ranges import Stretch
from pgoutlier.db.sql.statements import compose, one, run
from pgoutlier.db.thresholds import error_counts
from pgoutlier.db.thresholds.error_counts import Bin, Kept
from pgoutlier.db.thresholds.scored import Part, Scored, found_by_index, window_of

# The shares of the stored scores that the thresholds of a table flag, about evenly spaced by ratio.
SHARES = (0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.002, 0.001, 5e-4, 3e-4, 2e-4, 1e-4)
# Scores of a shorter time, a backfill's for instance, say nothing about a day.
LEAST_DAYS = 1 / 24
# A window of less is read as a whole.
_FEWEST_DAYS = timedelta(days=7)
_ALL = Part()


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
    between the two, None where that is too short to tell. cuts: one a threshold, in the order asked for. counted_at:
    when the sweep began to count what was not read for this, None where all was.
    """

    n_rows: int
    n_labelled: int
    n_fraud: int
    first: datetime | None
    last: datetime | None
    days: float | None
    cuts: tuple[Cut, ...]
    counted_at: datetime | None = None


def thresholds(connection: Connection, scored: Scored) -> list[float]:
    """Thresholds that flag about the SHARES of all the version's stored scores, each once, rising."""
    kept = error_counts.kept(connection, scored)
    if kept is not None:
        return error_counts.thresholds(error_counts.bins(connection, kept, scored.version, Part()), SHARES)
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
    """Counts for each of the thresholds `at`, by going through the scores of the window once; of those, the ones that
    the sweep has counted are not read again, and their rows between two edges of its bins are estimated.

    A row is flagged when its error is above the threshold, as `detector.exceeds` says. Rows without a label
    count as rows, and not as labelled.
    """
    falling = sorted(set(at), reverse=True)
    window = window_of(connection, scored)
    kept = error_counts.kept(connection, scored)
    counted = None if kept is None else _counted(window, kept)
    if kept is None or counted is None:
        return _figures(at, falling, _read(connection, scored, falling, window), None, [])
    read = [row for part in _around(window, counted) for row in _read(connection, scored, falling, part)]
    if scored.by_verdict:
        judged = _read(connection, scored, falling, counted, judged=True)
        # As rows they are among those that were counted.
        read += [(bucket, 0, labelled, fraud, None, None, None) for bucket, _, labelled, fraud, *_ in judged]
    read += _as_read(error_counts.bins(connection, kept, scored.version, counted), falling, kept)
    days = error_counts.days(connection, kept, scored.version, counted)
    return _figures(at, falling, read, kept.began_at, days)


def _counted(window: Part, kept: Kept) -> Part | None:
    """The whole days of the window that were counted, without those that may have more rows since.

    None if these are few.
    """
    if window.is_all:
        return Part(before=kept.until)
    since = moments.next_day(window.after) if window.after is not None else None
    if since is None or kept.until - since < _FEWEST_DAYS:
        return None
    return Part(since=since, before=kept.until)


def _around(window: Part, counted: Part) -> list[Part]:
    """The parts of the window before and behind what was counted."""
    behind = Part(since=counted.before, before=None if window.after is not None else moments.LAST)
    before = [] if window.after is None else [Part(after=window.after, before=counted.since)]
    return [*before, behind]


def _as_read(bins: Sequence[Bin], falling: Sequence[float], kept: Kept) -> list[tuple[Any, ...]]:
    """What was counted as if `counting` had found it: by bucket between the thresholds."""
    found = []
    for b in bins:
        left = 1.0
        for bucket, threshold in enumerate(falling):
            above = float(b.flagged) if threshold == kept.threshold else b.share_above(threshold)
            # Of the thresholds above this one it has been told already.
            share = max(0.0, above - (1.0 - left))
            found.append((bucket, *(share * n for n in (b.n, b.labelled, b.fraud)), None, None, None))
            left -= share
        found.append((len(falling), *(left * n for n in (b.n, b.labelled, b.fraud)), None, None, None))
    return found


def _figures(
    at: Sequence[float],
    falling: Sequence[float],
    rows: Sequence[tuple[Any, ...]],
    counted_at: datetime | None,
    days_counted: Iterable[Moments],
) -> Figures:
    total = [round(sum(row[column] for row in rows)) for column in (1, 2, 3)]
    covered = moments.without_strays(_by_day(rows, days_counted))
    first, last = (covered[0].first, covered[-1].last) if covered else (None, None)
    days = (last - first).total_seconds() / 86_400 if first and last else 0.0
    cuts = {}
    for position, threshold in enumerate(falling):
        flagged = [row for row in rows if row[0] <= position]
        n_flagged, n_labelled, n_hits = (round(sum(row[column] for row in flagged)) for column in (1, 2, 3))
        cuts[threshold] = Cut(threshold, n_flagged, n_labelled, n_hits)
    return Figures(
        n_rows=total[0],
        n_labelled=total[1],
        n_fraud=total[2],
        first=first,
        last=last,
        days=days if days >= LEAST_DAYS else None,
        cuts=tuple(cuts[threshold] for threshold in at),
        counted_at=counted_at,
    )


def _by_day(rows: Iterable[tuple[Any, ...]], counted: Iterable[Moments]) -> list[Moments]:
    """The days of all buckets together."""
    found = list(counted)
    for *_, counts, firsts, lasts in rows:
        found += [
            Moments(first, last, n_rows)
            for n_rows, first, last in zip(counts or (), firsts or (), lasts or (), strict=True)
        ]
    days: dict[date, Moments] = {}
    for one_of in found:
        name = one_of.first.astimezone(UTC).date()
        known = days.get(name, Moments(one_of.first, one_of.last, 0))
        days[name] = Moments(
            min(one_of.first, known.first), max(one_of.last, known.last), one_of.n_rows + known.n_rows
        )
    return list(days.values())


def _read(
    connection: Connection,
    scored: Scored,
    falling: Sequence[float],
    part: Part,
    *,
    judged: bool = False,
) -> list[tuple[Any, ...]]:
    """What `counting` returns. judged: only of rows with a verdict."""
    by_index = not (part.is_all or judged) and found_by_index(connection, scored)
    span = _span(connection, scored, part) if by_index else None
    with key_ranges.read_in_order(connection, span):
        return run(
            connection,
            counting(scored, part, span, judged=judged),
            {
                # width_bucket counts the bounds that are not above its operand. Of the negated thresholds these are
                # the ones that an error does not exceed.
                "bounds": [-threshold for threshold in falling],
                "version": scored.version,
            },
        ).fetchall()


def _span(connection: Connection, scored: Scored, part: Part) -> Stretch | None:
    """Where the keys of the rows in a part of time lie, if that is together."""
    source = scored.source
    rows = compose(
        "(SELECT {theirs} FROM {relation} t WHERE {there}) k"
        if scored.by_event_time
        else "(SELECT {ours} FROM {scores} s WHERE {there}) k",
        theirs=source.key.theirs_as_ours("t"),
        ours=source.key.ours("s"),
        relation=source.relation.sql(),
        scores=ours("scores", source.name),
        there=part.has(scored.moment),
    )
    return key_ranges.span(connection, rows, source.key)


def counting(
    scored: Scored, part: Part = _ALL, span: Stretch | None = None, *, judged: bool = False
) -> sql.Composed:
    """The statement of `figures`: for each bucket between thresholds rows, labelled, fraud, and arrays over its days
    of rows, first and last moment.

    span: where the keys of all rows of this part of time lie. judged: only rows with a verdict, and those without a
    time where the part has no begin. Parameters: bounds, version. It returns as many rows as there are thresholds, and
    one.
    """
    source = scored.source
    label = labels.by_column(source, "t")
    key = source.key
    # The other side is found by its time.
    there = key.in_theirs("t") if scored.joined and not scored.by_event_time else key.in_ours("s")
    return compose(
        "SELECT d.bucket, sum(d.n)::bigint, sum(d.labelled)::bigint, sum(d.fraud)::bigint, {known_n}, {known_first},"
        " {known_last} FROM (SELECT r.bucket, count(*) AS n, count(r.label) AS labelled,"
        " count(*) FILTER (WHERE r.label) AS fraud, min(r.dated) AS first, max(r.dated) AS last FROM ("
        "SELECT width_bucket(-s.reconstruction_error, %(bounds)s::float8[]) AS bucket, {label} AS label,"
        " {dated} AS dated FROM {scores} s{join}{verdicts} WHERE s.model_version = %(version)s AND {within}{span}"
        ") r GROUP BY r.bucket, {day}) d GROUP BY d.bucket",
        known_n=sql.SQL("array_agg(d.n) FILTER (WHERE d.first IS NOT NULL)"),
        known_first=sql.SQL("array_agg(d.first) FILTER (WHERE d.first IS NOT NULL)"),
        known_last=sql.SQL("array_agg(d.last) FILTER (WHERE d.first IS NOT NULL)"),
        label=labels.known(source, label) if scored.by_verdict else label,
        dated=moments.dated(scored.moment),
        day=moments.day(sql.SQL("r.dated")),
        scores=ours("scores", source.name),
        join=compose(" JOIN {relation} t ON {same}", relation=source.relation.sql(), same=key.is_of("t", "s"))
        if scored.joined
        else sql.SQL(""),
        verdicts=_verdicts(scored, judged=judged),
        within=_not_behind(scored, part) if judged and part.since is None else part.has(scored.moment),
        span=sql.SQL("") if span is None else compose(" AND {there}", there=span.has(there)),
    )


def _not_behind(scored: Scored, part: Part) -> sql.Composed:
    """The condition that a row is before the end of a part of time, or has no time in reach."""
    behind = Part(since=part.before, before=moments.LAST)
    return compose("({behind}) IS NOT TRUE", behind=behind.has(scored.moment))


def _verdicts(scored: Scored, *, judged: bool) -> sql.Composable:
    if not scored.by_verdict:
        return sql.SQL("")
    return labels.with_verdicts(scored.source, "s", ours=True, only=judged)
