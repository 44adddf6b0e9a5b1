"""Nobody gains a right through us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.training import training
from pgoutlier.worker.upkeep import maintenance
from pgoutlier.worker.verdicts import judging
from tests.support import Table, attach_table

User = psycopg.Connection[Any]
# Better matches than PostgreSQL's own, which take any type.
PLANTED = (
    ("FUNCTION unnest(bigint[])", "RETURNS SETOF bigint", "SELECT 666::bigint"),
    ("FUNCTION unnest(text[])", "RETURNS SETOF text", "SELECT '666'::text"),
    ("FUNCTION cardinality(bigint[])", "RETURNS integer", "SELECT 0"),
    ("FUNCTION array_append(bigint[], bigint)", "RETURNS bigint[]", "SELECT $1"),
    ("FUNCTION array_length(bigint[], integer)", "RETURNS integer", "SELECT 0"),
    ("FUNCTION to_jsonb(text)", "RETURNS jsonb", "SELECT 'null'::jsonb"),
    ("FUNCTION pg_temp_hook()", "RETURNS integer", "SELECT 0"),
)


def test_what_somebody_plants_in_public_is_never_run_with_our_rights(
    transactions: Table, role: str, connect: Callable[..., User]
) -> None:
    """Functions, aggregates and operators, made by whoever may create something where names are looked for."""
    user = transactions.user
    user.execute(f"GRANT CREATE, USAGE ON SCHEMA public TO {role}")
    user.execute("CREATE TABLE public.caught (who text)")
    user.execute("CREATE FUNCTION public.note() RETURNS boolean LANGUAGE sql AS"
                 " 'INSERT INTO public.caught VALUES (current_user) RETURNING true'")  # fmt: skip
    user.execute(
        f"GRANT INSERT ON public.caught TO PUBLIC; GRANT EXECUTE ON FUNCTION public.note() TO {role}"
    )
    attacker = connect(user=role)
    for head, returns, body in PLANTED:
        attacker.execute(
            f"CREATE FUNCTION public.{head.removeprefix('FUNCTION ')} {returns} LANGUAGE sql AS"
            f" $$ SELECT public.note(); {body} $$"
        )
    attacker.execute(
        "CREATE FUNCTION public.gather(bigint[], bigint) RETURNS bigint[] LANGUAGE sql AS"
        " $$ SELECT public.note(); SELECT $1 $$;"
        " CREATE AGGREGATE public.array_agg(bigint) (SFUNC = public.gather, STYPE = bigint[]);"
        " CREATE AGGREGATE public.count(bigint) (SFUNC = public.gather, STYPE = bigint[])"
    )
    attacker.execute(
        "CREATE FUNCTION public.same(varchar, varchar) RETURNS boolean LANGUAGE sql AS"
        " $$ SELECT public.note(); SELECT true $$;"
        " CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = public.same)"
    )
    transactions.promote()
    transactions.insert(1, 50)
    user.execute("INSERT INTO transactions VALUES (51, NULL, 1, 1, NULL)")
    transactions.drain()
    user.execute("UPDATE transactions SET amount = amount + 1 WHERE id < 10")
    transactions.drain()
    judging.label(transactions.runtime, "transactions", ["1"], "fraud", note=None, by=None)
    maintenance.sweep_all(transactions.runtime)
    maintenance.prune_all(transactions.runtime)
    maintenance.retry_quarantine(transactions.runtime, "transactions", None)
    transactions.drain()
    assert user.execute("SELECT * FROM public.caught").fetchall() == []
    assert transactions.keys("SELECT count(*) FROM outlier.scores_transactions") == [50]


def test_triggers_of_the_user_s_on_scores_find_names_as_in_any_session(transactions: Table) -> None:
    user = transactions.user
    user.execute(
        "CREATE TABLE audit (key bigint, what text);"
        " CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO audit VALUES (coalesce(new.key, old.key), TG_OP); RETURN NULL; END';"
        " CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON outlier.scores_transactions"
        " FOR EACH ROW EXECUTE FUNCTION note();"
        # An upsert fires the triggers of both events, one within the other.
        " CREATE TABLE seen_by_statement (n bigint);"
        " CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO seen_by_statement SELECT count(*) FROM new_rows; RETURN NULL; END';"
        " CREATE TRIGGER see_insert AFTER INSERT ON outlier.scores_transactions"
        " REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION see();"
        " CREATE TRIGGER see_update AFTER UPDATE ON outlier.scores_transactions"
        " REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION see()"
    )
    transactions.promote()
    transactions.insert(1, 30)
    transactions.drain()
    user.execute("UPDATE transactions SET amount = amount + 1 WHERE id = 1")
    transactions.drain()
    user.execute("DELETE FROM transactions WHERE id = 2")
    maintenance.prune_all(transactions.runtime)
    assert transactions.rows("SELECT what, count(*) FROM audit GROUP BY 1 ORDER BY 1") == [
        ("DELETE", 1),
        ("INSERT", 30),
        ("UPDATE", 1),
    ]
    assert user.execute("SELECT * FROM seen_by_statement").fetchall() != []
    with transactions.runtime.engine.begin() as connection:
        path = connection.exec_driver_sql("SHOW search_path").scalar()
    assert path == "pg_catalog, pg_temp"


def test_functions_of_a_feature_view_find_names_as_in_any_session(user: User, runtime: Runtime) -> None:
    """When its arrays are measured, when rows are scored and trained on, and when some are absent from it."""
    user.execute(
        "CREATE TABLE rates (id int PRIMARY KEY, rate float8); INSERT INTO rates VALUES (1, 2);"
        " CREATE TABLE t (id bigint PRIMARY KEY, x float8);"
        " CREATE FUNCTION rate() RETURNS float8 LANGUAGE plpgsql STABLE AS"
        " 'BEGIN RETURN (SELECT rate FROM rates WHERE id = 1); END';"
        " CREATE FUNCTION kept(float8) RETURNS boolean LANGUAGE plpgsql STABLE AS"
        " 'BEGIN RETURN $1 * (SELECT rate FROM rates WHERE id = 1) < 100; END';"
        " CREATE VIEW f AS SELECT id, x * rate() AS y, ARRAY[x, rate()] AS pair FROM t WHERE kept(x);"
        " INSERT INTO t SELECT i, i / 10.0 FROM generate_series(1, 300) i"
    )
    table = attach_table(user, runtime, relation="t", key="id", feature_view="f", features="y,pair")
    training.train(runtime, "t", promote=True, recipe_name="default")
    user.execute("INSERT INTO t VALUES (1000, 3), (1001, 60)")
    table.drain()
    assert table.scored() == [1000]
    assert table.quarantined() == {"1001": ("missing", None)}
