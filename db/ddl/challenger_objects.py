"""What a challenger needs of a source: a table of its scores, and views that hold them against the champion's.

A score of a challenger says nothing by itself. It counts where the challenger of now made it, from the same change of
the row as the champion of now made the score.
"""

from __future__ import annotations

from psycopg import sql

from pgoutlier.db.ddl import partition_objects, path_triggers, source_views
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql.identifiers import identifier, ours
from pgoutlier.db.sql.statements import compose

# The kinds of objects, each after those that it needs.
KINDS = ("shadow_scores", "compared", "comparison")
# The views among them, each before those that it needs.
VIEWS = ("comparison", "compared")
# All views of a source that show rows of the user's table, each before those that it needs.
VIEWS_OF_ROWS = ("compared", *source_views.VIEWS)
COMPARED_COLUMNS = {
    "reconstruction_error": "s.reconstruction_error",
    "flagged": "s.flagged",
    "model_version": "s.model_version",
    "scored_at": "s.scored_at",
    "top_features": "s.top_features",
    "challenger_error": "h.reconstruction_error",
    "would_flag": "h.would_flag",
    "challenger_version": "h.model_version",
}
# Shares of the rows below the quantiles that `comparison` shows, by the names they have there.
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}


def create(source: SourceDefinition, shown: sql.Composable) -> dict[str, list[sql.Composed]]:
    """The statements that make each of KINDS. shown: the user's columns as they stand in a view, of the table t."""
    return {
        "shadow_scores": _table(source),
        "compared": [_compared(source, shown)],
        "comparison": [_comparison(source)],
    }


def drop(source: SourceDefinition) -> list[sql.Composed]:
    """The statements that remove them."""
    return [
        *(compose("DROP VIEW IF EXISTS {view}", view=ours(view, source.name)) for view in VIEWS),
        compose("DROP TABLE IF EXISTS {table}", table=ours("shadow_scores", source.name)),
    ]


def _table(source: SourceDefinition) -> list[sql.Composed]:
    table = ours("shadow_scores", source.name)
    return [
        compose(
            """
CREATE TABLE {table} (
    {columns},
    change_id bigint NOT NULL,
    reconstruction_error double precision NOT NULL,
    model_version integer NOT NULL,
    would_flag boolean NOT NULL,
    PRIMARY KEY ({key})
){partitioned}""",
            table=table,
            columns=sql.SQL(", ").join(source.key.definitions()),
            key=source.key.ours(),
            partitioned=partition_objects.clause(source),
        ),
        *partition_objects.rest(source, "shadow_scores"),
        *path_triggers.create(table),
    ]


def _pairs(source: SourceDefinition) -> sql.Composed:
    """FROM and WHERE of both scores of each row: s the champion's, h the challenger's."""
    return compose(
        "FROM {scores} s JOIN {challenger_scores} h ON {same} AND h.change_id = s.change_id"
        " JOIN outlier.sources o ON o.name = {name}"
        " JOIN outlier.model_aliases champion ON champion.source_id = o.id AND champion.alias = 'champion'"
        " AND champion.version = s.model_version"
        " JOIN outlier.model_aliases challenger ON challenger.source_id = o.id AND challenger.alias = 'challenger'"
        " AND challenger.version = h.model_version",
        scores=ours("scores", source.name),
        same=source.key.same("h", "s"),
        challenger_scores=ours("shadow_scores", source.name),
        name=sql.Literal(source.name),
    )


def _compared(source: SourceDefinition, shown: sql.Composable) -> sql.Composed:
    scores = [
        compose("{value} AS {name}", value=sql.SQL(value), name=identifier(name))
        for name, value in COMPARED_COLUMNS.items()
    ]
    return compose(
        "CREATE OR REPLACE VIEW {view} AS SELECT {shown}, {scores} {pairs} JOIN {rows} t ON {same}",
        view=ours("compared", source.name),
        shown=shown,
        scores=sql.SQL(", ").join(scores),
        pairs=_pairs(source),
        rows=ours(source_views.ROWS, source.name),
        same=source.key.is_of("t", "s"),
    )


def _comparison(source: SourceDefinition) -> sql.Composed:
    """One row; none while there is nothing to compare, or for a role from which a policy of the user's table may hide
    rows: it counts all of them."""
    levels = sql.Literal(list(QUANTILES.values()))
    quantiles = [
        compose(
            "r.{array}[{n}] AS {name}",
            array=identifier(side),
            n=sql.Literal(n),
            name=identifier(f"{side}_{name}"),
        )
        for side in ("champion", "challenger")
        for n, name in enumerate(QUANTILES, start=1)
    ]
    return compose(
        "CREATE OR REPLACE VIEW {view} AS SELECT r.champion_version, r.challenger_version, r.rows, r.flagged_by_both,"
        " r.only_champion, r.only_challenger, (r.rows - r.only_champion - r.only_challenger)::double precision"
        " / r.rows AS agreement, {quantiles}"
        " FROM (SELECT s.model_version AS champion_version, h.model_version AS challenger_version, count(*) AS rows,"
        " count(*) FILTER (WHERE s.flagged AND h.would_flag) AS flagged_by_both,"
        " count(*) FILTER (WHERE s.flagged AND NOT h.would_flag) AS only_champion,"
        " count(*) FILTER (WHERE h.would_flag AND NOT s.flagged) AS only_challenger,"
        " percentile_disc({levels}::double precision[]) WITHIN GROUP (ORDER BY s.reconstruction_error) AS champion,"
        " percentile_disc({levels}::double precision[]) WITHIN GROUP (ORDER BY h.reconstruction_error) AS challenger"
        " {pairs} WHERE NOT row_security_active(o.relation::oid) GROUP BY 1, 2) r",
        view=ours("comparison", source.name),
        quantiles=sql.SQL(", ").join(quantiles),
        levels=levels,
        pairs=_pairs(source),
    )
