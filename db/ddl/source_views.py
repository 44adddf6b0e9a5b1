"""The views made for each source: what analysts read.

Nobody sees more of the user's table by them than by the table itself: they read it through `rows`, which PostgreSQL
reads with the rights of whoever asks, and only our own tables with those of whoever attached (decision 0028).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

from psycopg import sql

from pgoutlier.db.source import labels
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql.identifiers import identifier, ours
from pgoutlier.db.sql.statements import compose

SCORE_COLUMNS = ("reconstruction_error", "flagged", "model_version", "scored_at", "top_features")
VERDICT_COLUMN = "verdict"
OURS = (*SCORE_COLUMNS, VERDICT_COLUMN)
# The key as one text, as outlier.verdicts and other tables of all sources have it: of a key of several columns only.
KEY_COLUMN = "row_key"
# As of when the rows before were read: of sources with features over these only.
FEATURES_AT = "features_at"
READ = ("scored", "flagged", "quality")
ROWS = "rows"
# Each before those that it needs.
VIEWS = (*READ, ROWS)
BARRED_BY_POLICIES = ("scored", "quality", "compared")


def views(
    source: SourceDefinition, source_columns: tuple[str, ...], *, by_event_time: bool
) -> dict[str, sql.Composed]:
    """CREATE OR REPLACE VIEW of each view, by its kind, in an order in which they can be made.

    rows: the user's table.
    scored, flagged: the user's columns, and the score and the verdict beside them; a column of theirs named as one
    of ours gets source_ before it. New columns of ours come last, since a view that exists can only be given more at
    its end. source_columns: of the user's table. by_event_time: its time column tells a day.
    """
    select = compose(
        "SELECT {theirs}, {ours}, {verdict} AS {verdict_name}{key}{features_at}"
        " FROM {rows} t JOIN {scores} s ON {same}",
        theirs=shown(source_columns, beside=ours_beside(source)),
        key=sql.SQL("")
        if source.key.is_single
        else compose(", {k} AS {name}", k=source.key.text_of_row("t"), name=identifier(KEY_COLUMN)),
        features_at=compose(", s.scored_at AS {name}", name=identifier(FEATURES_AT))
        if source.past_features
        else sql.SQL(""),
        ours=sql.SQL(", ").join(compose("s.{c}", c=identifier(column)) for column in SCORE_COLUMNS),
        verdict=labels.verdict_of_row(source, "t"),
        verdict_name=identifier(VERDICT_COLUMN),
        rows=ours(ROWS, source.name),
        scores=ours("scores", source.name),
        same=source.key.is_of("t", "s"),
    )
    rows = compose(
        "SELECT {columns} FROM {relation} r",
        columns=sql.SQL(", ").join(compose("r.{c}", c=identifier(column)) for column in source_columns),
        relation=source.relation.sql(),
    )
    # Behind a barrier PostgreSQL orders nothing by an index for the one who asks: so the view says the usual order.
    flagged = compose("{select} WHERE s.flagged ORDER BY s.scored_at DESC", select=select)
    selects = {
        ROWS: (" WITH (security_invoker = true)", rows),
        "scored": ("", select),
        "flagged": (" WITH (security_barrier = true)", flagged),
        "quality": ("", _quality(source, by_event_time=by_event_time)),
    }
    return {
        kind: compose(
            "CREATE OR REPLACE VIEW {view}{options} AS {select}",
            view=ours(kind, source.name),
            options=sql.SQL(options),
            select=select,
        )
        for kind, (options, select) in selects.items()
    }


def ours_beside(source: SourceDefinition) -> tuple[str, ...]:
    """The columns of ours in `scored` and `flagged`."""
    beside = () if source.key.is_single else (KEY_COLUMN,)
    return (*OURS, *beside, *((FEATURES_AT,) if source.past_features else ()))


def share_rows(source: SourceDefinition) -> sql.Composed:
    """The statement that lets the other views read `rows`, whoever made them: it gives nobody a right on the table."""
    return compose("GRANT SELECT ON {rows} TO PUBLIC", rows=ours(ROWS, source.name))


def barriers(source: SourceDefinition) -> list[sql.Composed]:
    """Statements that keep a function in a query of `scored`, `quality` or `compared` from seeing scores of rows that
    a policy of the table's hides. PostgreSQL then joins less cleverly, so they are for tables with policies."""
    return [
        compose("ALTER VIEW {view} SET (security_barrier = true)", view=ours(kind, source.name))
        for kind in BARRED_BY_POLICIES
    ]


def _quality(source: SourceDefinition, *, by_event_time: bool) -> sql.Composed:
    """Counts, precision and recall of rows that are known to be fraud or not, by day and model version.

    It starts from the verdicts, which are few, and finds their rows by index. Of rows that only have a label it takes
    what the sweep has counted, where there are so many rows that it does (`db.thresholds.error_counts`).
    """
    judged = compose(
        "SELECT {row}, v.verdict = 'fraud' AS fraud, 1::bigint AS n FROM {rows}{verdicts}",
        row=_row(source, by_event_time=by_event_time),
        rows=_scored_rows(source),
        verdicts=labels.with_verdicts(source, "t", only=True),
    )
    parts = [judged]
    if source.label_column is not None:
        parts += [
            _labelled(source, by_event_time=by_event_time),
            _counted(source, by_event_time=by_event_time),
        ]
    return compose(
        "SELECT k.day, k.model_version, sum(k.n)::bigint AS labelled, {fraud} AS fraud, {flagged} AS flagged,"
        " {hits} AS hits, {hits}::double precision / nullif({flagged}, 0) AS precision,"
        " {hits}::double precision / nullif({fraud}, 0) AS recall"
        " FROM ({parts}) k WHERE k.n > 0 GROUP BY k.day, k.model_version",
        parts=sql.SQL(" UNION ALL ").join(parts),
        fraud=_sum_where("k.fraud"),
        flagged=_sum_where("k.flagged"),
        hits=_sum_where("k.fraud AND k.flagged"),
    )


def _sum_where(condition: LiteralString) -> sql.Composed:
    return compose("coalesce(sum(k.n) FILTER (WHERE {c}), 0)::bigint", c=sql.SQL(condition))


def _scored_rows(source: SourceDefinition) -> sql.Composed:
    return compose(
        "{rows} t JOIN {scores} s ON {same}",
        rows=ours(ROWS, source.name),
        scores=ours("scores", source.name),
        same=source.key.is_of("t", "s"),
    )


def _row(source: SourceDefinition, *, by_event_time: bool) -> sql.Composed:
    day: sql.Composable = sql.SQL("s.scored_at")
    if by_event_time and source.time_column is not None:
        day = compose("t.{time}", time=identifier(source.time_column))
    return compose("({day})::date AS day, s.model_version, s.flagged", day=day)


def _labelled(source: SourceDefinition, *, by_event_time: bool) -> sql.Composed:
    """Rows with a label and no verdict, where they are not counted."""
    label = labels.by_column(source, "t")
    return compose(
        "SELECT {row}, {label} AS fraud, 1::bigint AS n FROM {rows}{verdicts}"
        " WHERE v.verdict IS NULL AND {label} IS NOT NULL AND ({counted}) IS NULL",
        row=_row(source, by_event_time=by_event_time),
        label=label,
        rows=_scored_rows(source),
        verdicts=labels.with_verdicts(source, "t"),
        counted=_turn(source, by_event_time=by_event_time),
    )


def _counted(source: SourceDefinition, *, by_event_time: bool) -> sql.Composed:
    """What is counted of them: of each day so many that are fraud, and that are not."""
    return compose(
        "SELECT (c.day AT TIME ZONE 'UTC')::date, c.model_version, b.flagged, f.fraud,"
        " CASE WHEN f.fraud THEN b.fraud ELSE b.labelled - b.fraud END::bigint FROM outlier.error_counts c,"
        " LATERAL unnest(c.flagged, c.labelled, c.fraud) b (flagged, labelled, fraud),"
        " (VALUES (true), (false)) f (fraud) WHERE b.labelled > 0 AND c.turn_id = ({counted})",
        counted=_turn(source, by_event_time=by_event_time),
    )


def _turn(source: SourceDefinition, *, by_event_time: bool) -> sql.Composed:
    """SELECT of the turn of the sweep that has counted all rows; none for whom a policy hides some of them."""
    return compose(
        "SELECT e.id FROM outlier.sources o JOIN outlier.error_turns e ON e.source_id = o.id"
        " AND e.ended_at IS NOT NULL WHERE o.name = {source} AND e.by_event_time = {by_event_time}"
        " AND NOT row_security_active(o.relation::oid)",
        source=sql.Literal(source.name),
        by_event_time=sql.Literal(by_event_time),
    )


def shown(source_columns: tuple[str, ...], *, beside: Iterable[str]) -> sql.Composable:
    """The user's columns, of the table t, for a view that has these columns of ours."""
    taken = tuple(beside)
    return sql.SQL(", ").join(
        compose(
            "t.{column} AS {name}",
            column=identifier(column),
            name=identifier(alias(column, source_columns, beside=taken)),
        )
        for column in source_columns
    )


def alias(column: str, source_columns: tuple[str, ...], *, beside: tuple[str, ...]) -> str:
    """The name that a column of the user's table has in the views."""
    taken = set(beside)
    name = column
    while name in taken or (name != column and name in source_columns):
        name = f"source_{name}"
    return name
