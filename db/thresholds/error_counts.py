"""How many scores there are of which error, by day and version, counted a stretch of the keys at a time.

The sweep, which goes through all keys in a day, counts as it goes. What a turn has counted is there to be asked when
the turn has ended, and until the next one has: so whatever happens to scores and labels, figures are as old as two
turns at most. Nothing is counted where rows are so few that they are counted when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate

from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.source import catalog, labels, moments
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.source.moments import Moments
from pgoutlier.db.sql.identifiers import ours
from pgoutlier.db.sql.key_ranges import Stretch
from pgoutlier.db.sql.statements import compose, one, records, run
from pgoutlier.db.thresholds.scored import Part, Scored, found_by_index, moment_of

# Fewer scores are read in a tenth of a second.
FEWEST_ROWS = 200_000
_BINS_AN_OCTAVE = 16
_LOWEST, _HIGHEST = -(2**15), 2**15 - 1
# The number of a bin by the natural logarithm of an error.
_BIN = sql.SQL(
    "(CASE WHEN s.reconstruction_error <= 1e-300 THEN -32768 WHEN s.reconstruction_error > 1e300 THEN 32767"
    " ELSE ceil(ln(s.reconstruction_error) * (16 / ln(2::double precision))) - 1 END)::smallint"
)
# Rows that come late for their day are counted from this on.
_SETTLED = timedelta(days=1)


@dataclass(frozen=True)
class Bin:
    """Rows whose errors are alike. number: of the bin; labelled, fraud: of them by their label, without a verdict."""

    number: int
    flagged: bool
    n: int
    labelled: int
    fraud: int

    @property
    def above(self) -> float:
        """All errors are above this."""
        return edge(self.number)

    def share_above(self, threshold: float) -> float:
        """The share of its rows above a threshold, as if they lay evenly in the bin."""
        first, last = edge(self.number), edge(self.number + 1)
        if threshold <= first:
            return 1.0
        return 0.0 if threshold >= last else (last - threshold) / (last - first)


def edge(number: int) -> float:
    """The error that those of the bin of this number are above."""
    if number <= _LOWEST:
        return float("-inf")
    if number > _HIGHEST:
        return float("inf")
    return 1e300 if number == _HIGHEST else float(2.0 ** (number / _BINS_AN_OCTAVE))


@dataclass(frozen=True)
class Kept:
    """What the last turn that ended has counted. until: what is dated from this on may be new since then.

    threshold: that of the version that is asked of.
    """

    turn_id: int
    began_at: datetime
    until: datetime
    threshold: float


def add(connection: Connection, source: Source, stretch: Stretch, *, n_rows: int) -> None:
    """Count the scores in a stretch of the keys of the user's table, for the turn that is under way.

    A turn begins with the first stretch, and takes those that follow one upon the other. n_rows: about how many there
    are in the table.
    """
    turn_id = (
        _begun(connection, source, n_rows)
        if stretch.after is None
        else _under_way(connection, source, stretch)
    )
    if turn_id is None:
        return
    by_event_time = catalog.is_time(connection, source.definition.relation, source.definition.time_column)
    run(
        connection,
        compose(
            "INSERT INTO outlier.error_counts (turn_id, model_version, day, n_rows, first_at, last_at, bins, flagged,"
            " counts, labelled, fraud) SELECT %(turn)s, c.version, c.day, sum(c.n), min(c.first), max(c.last),"
            " array_agg(c.bin), array_agg(c.flagged), array_agg(c.n::integer), array_agg(c.labelled::integer),"
            " array_agg(c.fraud::integer) FROM (SELECT r.version, {day} AS day, r.bin, r.flagged, count(*) AS n,"
            " count(r.label) AS labelled, count(*) FILTER (WHERE r.label) AS fraud, min(r.dated) AS first,"
            " max(r.dated) AS last FROM ({rows}) r GROUP BY 1, 2, 3, 4) c GROUP BY c.version, c.day",
            day=moments.day(sql.SQL("r.dated")),
            rows=_rows(source.definition, stretch, by_event_time=by_event_time),
        ),
        {"turn": turn_id},
    )
    if stretch.up_to is not None:
        run(connection, "UPDATE outlier.error_turns SET place = %s WHERE id = %s", (stretch.up_to, turn_id))
        return
    run(connection, "UPDATE outlier.error_turns SET ended_at = now() WHERE id = %s", (turn_id,))
    run(connection, "DELETE FROM outlier.error_turns WHERE source_id = %s AND id <> %s", (source.id, turn_id))


def _begun(connection: Connection, source: Source, n_rows: int) -> int | None:
    """The id of a new turn, in place of one that did not end; None where there are few rows."""
    few = n_rows < FEWEST_ROWS
    run(
        connection,
        "DELETE FROM outlier.error_turns WHERE source_id = %s AND (ended_at IS NULL OR %s)",
        (source.id, few),
    )
    if few:
        return None
    by_event_time = catalog.is_time(connection, source.definition.relation, source.definition.time_column)
    return int(
        one(
            connection,
            "INSERT INTO outlier.error_turns (source_id, by_event_time) VALUES (%s, %s) RETURNING id",
            (source.id, by_event_time),
        )
    )


def _under_way(connection: Connection, source: Source, stretch: Stretch) -> int | None:
    found: int | None = one(
        connection,
        "SELECT id FROM outlier.error_turns WHERE source_id = %s AND ended_at IS NULL AND place = %s",
        (source.id, stretch.after),
    )
    return found


def _rows(source: SourceDefinition, stretch: Stretch, *, by_event_time: bool) -> sql.Composed:
    """SELECT of version, bin, flagged, dated and label of each scored row in a stretch."""
    key = source.key
    label = labels.by_column(source, "t")
    joined = compose(
        " JOIN {relation} t ON {same} AND {there}",
        relation=source.relation.sql(),
        same=key.is_of("t", "s"),
        there=stretch.has(key.in_theirs("t")),
    )
    judged = compose(
        'EXISTS (SELECT FROM outlier.verdicts v WHERE v.source = {source} AND v.key = {text} COLLATE "C")',
        source=sql.Literal(source.name),
        text=key.text("s"),
    )
    return compose(
        "SELECT s.model_version AS version, {bin} AS bin, s.flagged, {dated} AS dated, {label} AS label"
        " FROM {scores} s{joined} WHERE {there}",
        bin=_BIN,
        dated=moments.dated(moment_of(source, by_event_time=by_event_time)),
        label=label
        if source.label_column is None
        else compose("CASE WHEN {l} IS NOT NULL AND NOT {judged} THEN {l} END", l=label, judged=judged),
        scores=ours("scores", source.name),
        joined=joined if by_event_time or source.label_column is not None else sql.SQL(""),
        there=stretch.has(key.in_ours("s")),
    )


def kept(connection: Connection, scored: Scored) -> Kept | None:
    """What is counted of a version's scores; None where nothing is, or what has been done since it was began to count
    makes it worthless: the version is newer, or all was scored or flagged anew."""
    if not found_by_index(connection, scored):
        return None
    row = run(
        connection,
        "SELECT t.id, t.began_at, date_bin('1 day', t.began_at, 'epoch'::timestamptz), v.threshold"
        " FROM outlier.sources s JOIN outlier.error_turns t ON t.source_id = s.id AND t.ended_at IS NOT NULL"
        " JOIN outlier.model_versions v ON v.source_id = s.id AND v.version = %(version)s"
        " WHERE s.name = %(source)s AND t.by_event_time = %(by_event_time)s AND v.created_at < t.began_at"
        " AND NOT EXISTS (SELECT FROM outlier.jobs j WHERE j.source_id = s.id AND j.kind <> 'backfill'"
        " AND (j.finished_at IS NULL OR j.finished_at > t.began_at))",
        {"version": scored.version, "source": scored.source.name, "by_event_time": scored.by_event_time},
    ).fetchone()
    return None if row is None else Kept(row[0], row[1], row[2] - _SETTLED, row[3])


def bins(connection: Connection, found: Kept, version: int, part: Part) -> list[Bin]:
    """The rows of whole days, by bin, the largest errors first."""
    return records(
        connection,
        Bin,
        compose(
            "SELECT b.number, b.flagged, sum(b.n)::bigint AS n, sum(b.labelled)::bigint AS labelled,"
            " sum(b.fraud)::bigint AS fraud FROM outlier.error_counts c, LATERAL unnest(c.bins, c.flagged, c.counts,"
            " c.labelled, c.fraud) b (number, flagged, n, labelled, fraud)"
            " WHERE c.turn_id = %(turn)s AND c.model_version = %(version)s AND {days}"
            " GROUP BY 1, 2 ORDER BY 1 DESC, 2 DESC",
            days=_days(part),
        ),
        {"turn": found.turn_id, "version": version},
    )


def days(connection: Connection, found: Kept, version: int, part: Part) -> list[Moments]:
    """How many rows there are in each of the days, and when."""
    return records(
        connection,
        Moments,
        compose(
            "SELECT min(c.first_at) AS first, max(c.last_at) AS last, sum(c.n_rows)::bigint AS n_rows"
            " FROM outlier.error_counts c WHERE c.turn_id = %(turn)s AND c.model_version = %(version)s AND {days}"
            " AND c.day IS NOT NULL GROUP BY c.day",
            days=_days(part),
        ),
        {"turn": found.turn_id, "version": version},
    )


def _days(part: Part) -> sql.Composed:
    """The condition on c that its day is in the part; what has no day is where that has no begin."""
    undated = sql.SQL(" OR c.day IS NULL" if part.since is None else "")
    return compose("({there}{undated})", there=part.has(sql.SQL("c.day")), undated=undated)


def thresholds(found: Sequence[Bin], shares: Sequence[float]) -> list[float]:
    """Edges of bins above which there are these shares of the rows, or a little less; rising, each once."""
    n_in = Counter[int]()
    for b in found:
        n_in[b.number] += b.n
    numbers = sorted(n_in, reverse=True)
    n_above = list(accumulate(n_in[number] for number in numbers))
    places = (bisect_right(n_above, share * n_above[-1]) - 1 for share in shares if n_above)
    return sorted({edge(numbers[place]) for place in places if place >= 0 and numbers[place] > _LOWEST})
