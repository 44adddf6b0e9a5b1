"""The views made for each source: what analysts read.

Nobody sees more of the user's table by them than by the table itself: they read it through `rows`, which PostgreSQL
reads with the rights of whoever asks, and only our own tables with those of whoever attached (decision 0028).
"""

from __future__ import annotations

from collections.abc import Iterable

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
        "SELECT {theirs}, {ours}, {verdict} AS {verdict_name}{key} FROM {rows} t JOIN {scores} s ON {same}",
        theirs=shown(source_columns, beside=ours_beside(source)),
        key=sql.SQL("")
        if source.key.is_single
        else compose(", {k} AS {name}", k=source.key.text_of_row("t"), name=identifier(KEY_COLUMN)),
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
    return OURS if source.key.is_single else (*OURS, KEY_COLUMN)


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

    Without a label column it starts from the verdicts, which are few, and finds their rows by index.
    """
    day: sql.Composable = sql.SQL("s.scored_at")
    if by_event_time and source.time_column is not None:
        day = compose("t.{time}", time=identifier(source.time_column))
    return compose(
        "SELECT k.day, k.model_version, count(*) AS labelled, count(*) FILTER (WHERE k.fraud) AS fraud,"
        " count(*) FILTER (WHERE k.flagged) AS flagged, count(*) FILTER (WHERE k.fraud AND k.flagged) AS hits,"
        " (avg(k.fraud::integer) FILTER (WHERE k.flagged))::double precision AS precision,"
        " (avg(k.flagged::integer) FILTER (WHERE k.fraud))::double precision AS recall"
        " FROM (SELECT ({day})::date AS day, s.model_version, s.flagged, {known} AS fraud"
        " FROM {rows} t JOIN {scores} s ON {same}{verdicts}) k"
        " WHERE k.fraud IS NOT NULL GROUP BY k.day, k.model_version",
        day=day,
        known=labels.known(source, labels.by_column(source, "t")),
        rows=ours(ROWS, source.name),
        scores=ours("scores", source.name),
        same=source.key.is_of("t", "s"),
        verdicts=labels.with_verdicts(source, "t"),
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
