"""What scores in partitions are made of: the default partition, and the functions that make and drop the others.

These run with the rights of whoever attached, who owns the tables. A partition is made beside the table and then
attached, which no writer of scores and no reader of another partition waits for; what reads all of them waits for as
long as the lock on the default one is waited for, and PostgreSQL looks through that. Dropping one waits until nobody is
at work on the scores, and everybody behind it.
"""

from __future__ import annotations

from psycopg import sql

from pgoutlier.db.ddl.lock_waits import LOCK_WAIT
from pgoutlier.db.scoring import score_partitions
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql.identifiers import SCHEMA, identifier, ours
from pgoutlier.db.sql.statements import compose

FUNCTIONS = ("make_scores", "drop_scores")
_COLUMNS = {
    "scores": (
        *("change_id", "reconstruction_error", "scored_at", "model_version", "flagged", "top_features"),
    ),
    "shadow_scores": ("change_id", "reconstruction_error", "model_version", "would_flag"),
}


def clause(source: SourceDefinition) -> sql.Composable:
    """The end of CREATE TABLE; nothing where the scores are one table."""
    if source.score_partitions is None:
        return sql.SQL("")
    return compose(" PARTITION BY RANGE ({c})", c=identifier(score_partitions.column(source)))


def rest(source: SourceDefinition, kind: str) -> list[sql.Composed]:
    """The statement that makes the default partition."""
    if source.score_partitions is None:
        return []
    return [
        compose(
            "CREATE TABLE {rest} PARTITION OF {table} DEFAULT",
            rest=identifier(SCHEMA, score_partitions.name(kind, source.name)),
            table=ours(kind, source.name),
        )
    ]


def functions(source: SourceDefinition) -> list[sql.Composed]:
    """Statements that make the functions, and mend them when they are run again."""
    if source.score_partitions is None:
        return []
    made = []
    for kind, body, returns, wait in (
        ("make_scores", _make(source), sql.SQL("boolean"), "1s"),
        ("drop_scores", _drop(source), sql.SQL("void"), LOCK_WAIT),
    ):
        function = ours(kind, source.name)
        made += [
            compose(
                """
CREATE OR REPLACE FUNCTION {function}(first date) RETURNS {returns}
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = {wait}
SET row_security = off AS $outlier${body}$outlier$""",
                function=function,
                returns=returns,
                wait=sql.Literal(wait),
                body=body,
            ),
            compose("REVOKE ALL ON FUNCTION {function}(date) FROM PUBLIC", function=function),
        ]
    return made


def drop(source_name: str) -> list[sql.Composed]:
    """Statements that remove the functions; the partitions go with their table."""
    return [compose("DROP FUNCTION IF EXISTS {f}(date)", f=ours(kind, source_name)) for kind in FUNCTIONS]


def _make(source: SourceDefinition) -> sql.Composed:
    is_moment = source.key.types[source.key_time or 0] == "timestamptz"
    return compose(
        """
DECLARE
    day text := to_char(first, 'YYYYMMDD');
    lower text := to_char(first, 'YYYY-MM-DD'){zone};
    upper text := to_char(first + interval '1 {period}', 'YYYY-MM-DD'){zone};
    n_moved bigint;
BEGIN
    IF date_trunc('{period}', first::timestamp)::date <> first OR first < '0001-01-01' OR first > '9998-12-31' THEN
        RAISE EXCEPTION 'no {period} begins on %%', first;
    END IF;
    {kinds}
    RETURN true;
END
""",
        period=sql.SQL(source.score_partitions or "month"),
        zone=sql.SQL(" || ' 00:00:00+00'" if is_moment else ""),
        kinds=sql.SQL("    ").join(_make_of(source, kind) for kind in score_partitions.KINDS),
    )


def _make_of(source: SourceDefinition, kind: str) -> sql.Composed:
    """Makes the partition of one of the tables, where it has none."""
    columns = sql.SQL(", ").join(identifier(name) for name in (*source.key.names, *_COLUMNS[kind]))
    return compose(
        """
    IF to_regclass(format('outlier.%%I', {prefix} || day)) IS NULL THEN
        -- In the order of whoever writes or drops. Of two that make it one waits, and then finds it. What writes to the
        -- default one waits; what reads does not yet.
        LOCK TABLE ONLY {table} IN SHARE UPDATE EXCLUSIVE MODE;
        LOCK TABLE {rest} IN SHARE ROW EXCLUSIVE MODE;
    END IF;
    IF to_regclass(format('outlier.%%I', {prefix} || day)) IS NULL THEN
        EXECUTE format('SELECT count(*) FROM (SELECT FROM {rest} WHERE {time} >= %%L AND {time} < %%L LIMIT {more}) s',
                       lower, upper) INTO n_moved;
        IF n_moved > {most} THEN
            RETURN false;
        END IF;
        EXECUTE format('CREATE TABLE outlier.%%I (LIKE {table} INCLUDING DEFAULTS INCLUDING STORAGE)', {prefix} || day);
        IF n_moved > 0 THEN
            EXECUTE format('WITH moved AS (DELETE FROM {rest} WHERE {time} >= %%L AND {time} < %%L RETURNING *)'
                           ' INSERT INTO outlier.%%I ({columns}) SELECT {columns} FROM moved',
                           lower, upper, {prefix} || day);
        END IF;
        EXECUTE format('ALTER TABLE {table} ATTACH PARTITION outlier.%%I FOR VALUES FROM (%%L) TO (%%L)',
                       {prefix} || day, lower, upper);
    END IF;
""",
        prefix=sql.Literal(f"{kind}_{source.name}$"),
        rest=identifier(SCHEMA, score_partitions.name(kind, source.name)),
        table=ours(kind, source.name),
        time=identifier(score_partitions.column(source)),
        columns=columns,
        most=sql.Literal(score_partitions.MOST_MOVED),
        more=sql.Literal(score_partitions.MOST_MOVED + 1),
    )


def _drop(source: SourceDefinition) -> sql.Composed:
    return compose(
        """
BEGIN
    {drops}
END
""",
        drops=sql.SQL("\n    ").join(
            compose(
                "EXECUTE format('DROP TABLE IF EXISTS outlier.%%I', {prefix} || to_char(first, 'YYYYMMDD'));",
                prefix=sql.Literal(f"{kind}_{source.name}$"),
            )
            for kind in score_partitions.KINDS
        ),
    )
