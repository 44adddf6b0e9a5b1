"""The views made for each source: what analysts read."""

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
VIEWS = ("scored", "flagged", "quality")


def views(
    source: SourceDefinition, source_columns: tuple[str, ...], *, by_event_time: bool
) -> dict[str, sql.Composed]:
    """CREATE OR REPLACE VIEW of each view, by its kind.

    scored, flagged: the user's columns, and the score and the verdict beside them; a column of theirs named as one
    of ours gets source_ before it. New columns of ours come last, since a view that exists can only be given more at
    its end. source_columns: of the user's table. by_event_time: its time column tells a day.
    """
    select = compose(
        "SELECT {theirs}, {ours}, {verdict} AS {verdict_name} FROM {relation} t JOIN {scores} s ON s.key = t.{key}",
        theirs=shown(source_columns, beside=OURS),
        ours=sql.SQL(", ").join(compose("s.{c}", c=identifier(column)) for column in SCORE_COLUMNS),
        verdict=labels.verdict_of_row(source, "t"),
        verdict_name=identifier(VERDICT_COLUMN),
        relation=source.relation.sql(),
        scores=ours("scores", source.name),
        key=identifier(source.key_column),
    )
    selects = {
        "scored": select,
        "flagged": compose("{select} WHERE s.flagged", select=select),
        "quality": _quality(source, by_event_time=by_event_time),
    }
    return {
        kind: compose(
            "CREATE OR REPLACE VIEW {view} AS {select}", view=ours(kind, source.name), select=select
        )
        for kind, select in selects.items()
    }


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
        " FROM {relation} t JOIN {scores} s ON s.key = t.{key}{verdicts}) k"
        " WHERE k.fraud IS NOT NULL GROUP BY k.day, k.model_version",
        day=day,
        known=labels.known(source, labels.by_column(source, "t")),
        relation=source.relation.sql(),
        scores=ours("scores", source.name),
        key=identifier(source.key_column),
        verdicts=labels.with_verdicts(source, compose("t.{key}", key=identifier(source.key_column))),
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


def alias(column: str, source_columns: tuple[str, ...], *, beside: tuple[str, ...] = OURS) -> str:
    """The name that a column of the user's table has in the views."""
    taken = set(beside)
    name = column
    while name in taken or (name != column and name in source_columns):
        name = f"source_{name}"
    return name
