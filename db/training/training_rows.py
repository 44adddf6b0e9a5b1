"""Which rows of a source are trained on, and reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql
from sqlalchemy import Connection

from pgoutlier.db.scoring import unreadable, windows
from pgoutlier.db.scoring.rows import UNREADABLE
from pgoutlier.db.source import catalog, moments
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.source.moments import Moments
from pgoutlier.db.sql import key_ranges
from pgoutlier.db.sql.identifiers import ours
from pgoutlier.db.sql.statements import compose, one, run, run_dicts
from pgoutlier.db.training.newest import Window, newest_rows

# Far below the 1 GB of one array, however many features there are.
_ROWS_PER_BLOCK = 10_000
# What the order of the rows is multiplied by, to make room for what each row is.
_KINDS = 3
_NORMAL, _LABELLED_FRAUD, _FLAGGED = range(_KINDS)


@dataclass(frozen=True)
class TrainingRows:
    """matrix (n, d) float64, the oldest row first; left_out: rows not to be fitted on, by reason.

    normal, fraud (n,): the rows to fit on, and those known to be fraud by a verdict or a label; a row that is
    neither is flagged. Only normal rows are there unless all were asked for.
    refusals: of rows that could not be read (left out as unreadable) PostgreSQL's sentence, by key as text.
    first, last: event time (or key) of the oldest and the newest normal row, as text. runs (n,): where rows are
    scored with those before them, rows of one run are of one entity, with none left out between them.
    """

    matrix: npt.NDArray[np.float64]
    normal: npt.NDArray[np.bool_]
    fraud: npt.NDArray[np.bool_]
    left_out: dict[str, int]
    first: str | None
    last: str | None
    runs: npt.NDArray[np.int64] | None = None
    refusals: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_normal(self) -> int:
        return int(self.normal.sum())

    def without_last(self, n_rows: int) -> TrainingRows:
        """Without the newest n_rows; what was left out, first and last stay those of all."""
        if n_rows == 0:
            return self
        earlier = slice(None, -n_rows)
        return replace(
            self,
            matrix=self.matrix[earlier],
            normal=self.normal[earlier],
            fraud=self.fraud[earlier],
            runs=None if self.runs is None else self.runs[earlier],
        )

    def leaving_out(self, places: npt.NDArray[np.int64], reason: str) -> TrainingRows:
        """The same rows, these of the normal ones (k,) not among those to fit on, counted under this reason."""
        if not len(places):
            return self
        normal = self.normal.copy()
        normal[places] = False
        return replace(self, normal=normal, left_out={**self.left_out, reason: len(places)})

    def fingerprint(self) -> str:
        """SHA-256 of the rows and of which of them are normal: the same rows in the same order give the same."""
        digest = hashlib.sha256(np.ascontiguousarray(self.matrix).data)
        digest.update(np.ascontiguousarray(self.normal).data)
        return digest.hexdigest()


def read(
    connection: Connection,
    source: Source,
    *,
    newest: int,
    most: int | None = None,
    imputes: bool = False,
    with_frauds_and_flagged: bool = False,
    in_runs: bool = False,
) -> TrainingRows:
    """The newest rows that are neither flagged nor known to be fraud, in quarantine, incomplete or unreadable.

    A flagged row that a verdict or label says is normal is among them: it was a false alarm.
    most: of more rows a sample of about so many is read, the same one each time, drawn by the hash of the key; left_out
    then says how many normal rows were not sampled. Rows in runs are not sampled but cut: the newest `most` of them.
    imputes: the recipe fills gaps, so a row with some is not incomplete. with_frauds_and_flagged: these rows
    come along, not as normal ones, for a threshold that is drawn from all rows. in_runs: tell whose history each
    row is in; the source has a time column.
    """
    definition = source.definition
    window = newest_rows(connection, definition, min(newest, most) if in_runs and most else newest)
    counts = _counts(connection, source, window)
    kept = counts.get(None)
    wanted = [
        row
        for reason, row in counts.items()
        if reason is None or (with_frauds_and_flagged and reason != "quarantined")
    ]
    one_in = 1 if most is None else max(1, -(-sum(int(row["n"]) for row in wanted) // most))
    origin, chosen = _origin(definition, window, one_in, along=with_frauds_and_flagged, in_runs=in_runs)
    with key_ranges.read_in_order(connection, window.span if definition.feature_view is None else None):
        numbers, rows = unreadable.read(
            connection,
            definition,
            origin=origin,
            chosen=chosen,
            params={"source_id": source.id},
            number=_number(definition, in_runs=in_runs),
            longest_key_bytes=_longest_key(connection, definition, window),
            rows_per_block=_KINDS * _ROWS_PER_BLOCK * (windows.PLACE if in_runs else 1),
        )
    order = np.argsort(numbers)
    numbers, rows = numbers[order], rows.take(order)
    kind = numbers % _KINDS
    complete = rows.sound(imputes=imputes)
    left_out = {reason: int(row["n"]) for reason, row in counts.items() if reason is not None}
    refused = rows.problems == UNREADABLE
    for reason, those in (("incomplete", ~complete & ~refused), ("unreadable", refused)):
        if n := int((those & (kind == _NORMAL)).sum()):
            left_out[reason] = n
    if one_in > 1 and kept:
        left_out["not_sampled"] = int(kept["n"]) - int((kind == _NORMAL).sum())
    return TrainingRows(
        matrix=rows.matrix[complete],
        normal=kind[complete] == _NORMAL,
        fraud=kind[complete] == _LABELLED_FRAUD,
        left_out=left_out,
        first=kept["first"] if kept else None,
        last=kept["last"] if kept else None,
        runs=windows.unbroken(windows.run_numbers(numbers // _KINDS), complete) if in_runs else None,
        refusals=rows.refusals,
    )


def _counts(connection: Connection, source: Source, window: Window) -> dict[str | None, dict[str, Any]]:
    """How many rows of the window (n), from when to when (first, last), by why they are left out."""
    rows = run_dicts(
        connection,
        compose(
            "SELECT {reason} AS reason, count(*) AS n, min({moment})::text AS first, max({moment})::text AS last"
            " FROM ({window}) w GROUP BY 1",
            reason=_reason(source.definition, window),
            window=window.rows,
            moment=_comparable_moment(source.definition),
        ),
        {"source_id": source.id},
    )
    return {row["reason"]: row for row in rows}


def _origin(
    source: SourceDefinition, window: Window, one_in: int, *, along: bool, in_runs: bool
) -> tuple[sql.Composed, sql.Composed]:
    """FROM and WHERE of the rows w of the window that are read, one in so many: with their features t, and without.

    along: with those that are known to be fraud or flagged.
    """
    reason = _reason(source, window)
    with_reason = compose(
        "(SELECT w.*, {reason} AS reason FROM ({window}) w)", reason=reason, window=window.rows
    )
    sampled = compose(
        " AND hashtextextended({key}, 0) %% {one_in} = 0",
        key=source.key.text("w"),
        one_in=sql.Literal(one_in),
    )
    rows = _in_runs(source, window.rows, reason) if in_runs else with_reason
    those = compose(
        "WHERE (w.reason IS NULL{or_along}){sampled}",
        or_along=sql.SQL(" OR w.reason <> 'quarantined'" if along else ""),
        sampled=sampled if one_in > 1 else sql.SQL(""),
    )
    return _with_features(source, rows, window, those), compose(
        "FROM {rows} w {those}", rows=rows, those=those
    )


def _with_features(
    source: SourceDefinition, rows: sql.Composable, window: Window, those: sql.Composable
) -> sql.Composed:
    return compose(
        "FROM {rows} w JOIN {relation} t ON {same}{there} {those}",
        rows=rows,
        relation=source.feature_relation.sql(),
        same=source.key.is_of("t", "w"),
        # A view may be made of whatever, and knows best.
        there=window.beside(source.key.in_theirs("t")) if source.feature_view is None else sql.SQL(""),
        those=those,
    )


def _place(source: SourceDefinition) -> sql.Composed:
    return compose("row_number() OVER (ORDER BY w.moment, {key})", key=source.key.ours("w"))


def _number(source: SourceDefinition, *, in_runs: bool) -> sql.Composed:
    """SQL for what is read with each row: its place, in runs also its run, and which of the kinds it is."""
    place = _place(source)
    return compose(
        "{kinds} * {number} + CASE w.reason"
        " WHEN 'fraud_verdict' THEN {fraud} WHEN 'labelled_fraud' THEN {fraud} WHEN 'flagged' THEN {flagged}"
        " ELSE {normal} END",
        number=windows.numbered(place, sql.SQL("w.run")) if in_runs else place,
        kinds=sql.Literal(_KINDS),
        fraud=sql.Literal(_LABELLED_FRAUD),
        flagged=sql.Literal(_FLAGGED),
        normal=sql.Literal(_NORMAL),
    )


def _in_runs(source: SourceDefinition, window: sql.Composable, reason: sql.Composable) -> sql.Composable:
    """The window's rows with the reason to leave each out, and its run: a row that is left out ends one."""
    entity, alone = windows.run_of(
        sql.SQL("w.entity"), sql.SQL("w.moment"), source.key.in_ours("w").as_value()
    )
    return compose(
        "(SELECT w.*, dense_rank() OVER (ORDER BY {entity}, {alone}, w.n_left_out) AS run FROM (SELECT w.*,"
        " count(w.reason) OVER (PARTITION BY w.entity ORDER BY w.moment, {key}) AS n_left_out"
        " FROM (SELECT w.*, {reason} AS reason FROM ({window}) w) w) w)",
        entity=entity,
        alone=alone,
        key=source.key.ours("w"),
        reason=reason,
        window=window,
    )


def rows_per_day(connection: Connection, source: SourceDefinition, *, newest: int) -> float | None:
    """How many of the newest rows there are to a day of the time they cover, but for strays (`db.source.moments`).

    None where they cover none: fewer than two moments, or no column of times.
    """
    if not catalog.is_time(connection, source.relation, source.time_column):
        return None
    found = run(
        connection,
        compose(
            "SELECT min(r.moment), max(r.moment), count(*) FROM (SELECT {dated} AS moment FROM ({window}) w) r"
            " WHERE r.moment IS NOT NULL GROUP BY {day}",
            dated=moments.dated(sql.SQL("w.moment")),
            day=moments.day(sql.SQL("r.moment")),
            window=newest_rows(connection, source, newest).rows,
        ),
    ).fetchall()
    covered = moments.without_strays(Moments(*row) for row in found)
    seconds = (covered[-1].last - covered[0].first).total_seconds() if covered else 0.0
    return sum(day.n_rows for day in covered) / (seconds / 86_400) if seconds else None


def labelled_fraud(
    connection: Connection, source: SourceDefinition, *, newest: int, most: int
) -> npt.NDArray[np.float64]:
    """The complete rows among the newest that are known to be fraud, (n, d), the oldest first, at most so many."""
    window = newest_rows(connection, source, newest)
    rows = compose("({window})", window=window.rows)
    those = compose("WHERE w.fraud LIMIT {most}", most=sql.Literal(most))
    places, found = unreadable.read(
        connection,
        source,
        origin=_with_features(source, rows, window, those),
        chosen=compose("FROM {rows} w {those}", rows=rows, those=those),
        params={},
        number=_place(source),
        longest_key_bytes=_longest_key(connection, source, window),
        rows_per_block=_ROWS_PER_BLOCK,
    )
    found = found.take(np.argsort(places))
    return found.matrix[found.sound(imputes=False)]


def _comparable_moment(source: SourceDefinition) -> sql.Composable:
    """There is no min(uuid); as text a uuid has the same order."""
    types = dict(zip(source.key.columns, source.key.types, strict=True))
    by_uuid = types.get(source.moment_column) == "uuid"
    return sql.SQL("w.moment::text" if by_uuid else "w.moment")


def _reason(source: SourceDefinition, window: Window) -> sql.Composable:
    """SQL for why a row of the window is left out, NULL if it is trained on."""
    flagged = (
        "EXISTS (SELECT FROM {scores} s WHERE {same} AND s.flagged)"
        if window.span is None
        # Read once, and not looked for with each row.
        else "({key_of_w}) IN (SELECT {key_of_s} FROM {scores} s WHERE s.flagged{there})"
    )
    return compose(
        "CASE WHEN w.fraud THEN CASE WHEN w.verdict IS NULL THEN 'labelled_fraud' ELSE 'fraud_verdict' END"
        " WHEN w.fraud IS NULL AND {flagged} THEN 'flagged'"
        " WHEN EXISTS (SELECT FROM outlier.quarantine h WHERE h.source_id = %(source_id)s"
        " AND h.key = {text}) THEN 'quarantined' END",
        text=source.key.text("w"),
        flagged=compose(
            flagged,
            scores=ours("scores", source.name),
            same=source.key.same("s", "w"),
            key_of_w=source.key.ours("w"),
            key_of_s=source.key.ours("s"),
            there=window.beside(source.key.in_ours("s")),
        ),
    )


def _longest_key(connection: Connection, source: SourceDefinition, window: Window) -> int:
    """Bytes of the longest text in a key of the window; 0 where there is none."""
    if not source.key.has_text:
        return 0
    statement = compose(
        "SELECT coalesce(max({longest}), 0) FROM ({window}) w",
        longest=source.key.longest_text("w"),
        window=window.rows,
    )
    return int(one(connection, statement))
