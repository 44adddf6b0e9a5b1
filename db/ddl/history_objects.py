"""What the history of a source's scores is made of: a table of earlier scores, and the trigger that fills it.

Both are there only where somebody wanted them. Whichever way a score is replaced, the one before it is kept if another
version made it.
"""

from __future__ import annotations

from psycopg import sql

from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql.identifiers import identifier, ours
from pgoutlier.db.sql.statements import compose

_COLUMNS = (
    "change_id",
    "reconstruction_error",
    "scored_at",
    "model_version",
    "flagged",
    "top_features",
)
TRIGGER = "outlier_keep_history"


def table(source: SourceDefinition) -> list[sql.Composed]:
    """The statements that make the table of earlier scores."""
    history = ours("score_history", source.name)
    return [
        compose(
            """
CREATE TABLE {history} (
    {columns},
    change_id bigint NOT NULL,
    reconstruction_error double precision NOT NULL,
    scored_at timestamptz NOT NULL,
    model_version integer NOT NULL,
    flagged boolean NOT NULL,
    top_features jsonb,
    replaced_at timestamptz NOT NULL DEFAULT now()
)""",
            history=history,
            columns=sql.SQL(", ").join(source.key.definitions()),
        ),
        index(source),
        # Rows come in order of time, and pruning is all that asks for it.
        compose("CREATE INDEX ON {history} USING brin (replaced_at)", history=history),
    ]


def index(source: SourceDefinition) -> sql.Composed:
    """The statement that makes the index by key."""
    history = ours("score_history", source.name)
    return compose("CREATE INDEX ON {history} ({key}, replaced_at)", history=history, key=source.key.ours())


def trigger(source: SourceDefinition) -> list[sql.Composed]:
    """The statements that make the trigger anew. SECURITY DEFINER: who writes scores needs no right on the table."""
    function, columns = ours("keep_history", source.name), (*source.key.names, *_COLUMNS)
    return [
        compose(
            """
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_nestloop = off AS $outlier$
BEGIN
    INSERT INTO {history} ({columns})
    SELECT {kept} FROM old_rows o JOIN new_rows n ON {same} WHERE n.model_version <> o.model_version;
    RETURN NULL;
END
$outlier$""",
            function=function,
            history=ours("score_history", source.name),
            columns=sql.SQL(", ").join(map(identifier, columns)),
            kept=sql.SQL(", ").join(compose("o.{c}", c=identifier(column)) for column in columns),
            same=source.key.same("n", "o"),
        ),
        compose("REVOKE ALL ON FUNCTION {function}() FROM PUBLIC", function=function),
        compose(
            "CREATE OR REPLACE TRIGGER {trigger} AFTER UPDATE ON {scores}"
            " REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {function}()",
            trigger=identifier(TRIGGER),
            scores=ours("scores", source.name),
            function=function,
        ),
    ]


def drop_trigger(source: SourceDefinition) -> list[sql.Composed]:
    """The statements that remove the trigger; the table stays."""
    return [compose("DROP FUNCTION IF EXISTS {f}() CASCADE", f=ours("keep_history", source.name))]


def drop(source: SourceDefinition) -> list[sql.Composed]:
    """The statements that remove both."""
    table = compose("DROP TABLE IF EXISTS {table}", table=ours("score_history", source.name))
    return [*drop_trigger(source), table]
