"""What can be attached, what is refused and in which words, and that detach leaves no trace."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from pgoutlier.db.ddl import installation, lock_waits
from pgoutlier.db.engine import make_engine
from pgoutlier.db.errors import MissingPrivilege, SourceError
from pgoutlier.db.settings import Settings
from pgoutlier.db.sources import attach
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.db.sql import locks
from pgoutlier.db.sql.identifiers import Relation
from pgoutlier.detector import recipe_named
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.sources import attaching
from pgoutlier.worker.upkeep import maintenance
from tests.conftest import Connect
from tests.servers import Postgres
from tests.support import (
    Table,
    attach_table,
    detach_table,
    make_table,
    objects,
    quote,
    refusal,
    until,
    waits,
)

User = psycopg.Connection[Any]

ODD_NAMES = {
    "mixed case": "Amount",
    "spaces": "the amount ",
    "dots": "a.b..c",
    "double quotes": 'a "quoted" name',
    "single quotes": "it's",
    "one percent": "100% sure",
    "percent placeholders": "%s %(name)s %%",
    "braces": "{} {0} {name}",
    "dollar quote": "x$outlier$y",
    "unicode": "größe_金額_😀",
    "reserved": "select",
    "63 bytes": "é" * 31 + "x",
    "parentheses": "hour(amount)",
    "brackets": "amount[3]",
    "comma": "a,b",
    "backslash": "a\\b",
    "newline": "a\nb",
    "our own column": "flagged",
    "our own key": "key",
    "our variable": "changed",
    "our alias": "new_rows",
}


@pytest.fixture(scope="module")
def shop(postgres: Postgres) -> Iterator[Runtime]:
    """A database with a table that nobody attaches, for all the refusals."""
    with postgres.database() as url:
        runtime = make_runtime(
            Settings(_env_file=None, database_url=url, broker_url="redis://no.broker.invalid:1/0")
        )
        with runtime.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TABLE public.transactions (id bigint PRIMARY KEY, amount double precision, hour integer,"
                " distance real, note text)"
            )
        yield runtime
        runtime.engine.dispose()


# -- refusals: each says in one sentence what is wrong and how to mend it


@pytest.mark.postgres18
@pytest.mark.parametrize(
    ("request_changes", "sentence"),
    [
        ({"relation": "payments"}, "There is no table public.payments."),
        ({"relation": "Transactions"}, "Did you mean public.transactions?"),
        ({"relation": "shop.transactions"}, "Did you mean public.transactions?"),
        ({"relation": "a.b.c"}, "has 3 parts; write schema.table"),
        ({"relation": 'public."transactions'}, "not closed"),
        ({"relation": ""}, "An identifier is empty"),
        ({"key": "number"}, "has no column number. It has: id, amount, hour, distance, note."),
        ({"key": "ID"}, 'has no column "ID". Did you mean id?'),
        (
            {"key": "amount"},
            "amount is not unique in public.transactions; declare a key, and name it with --key",
        ),
        (
            {"key": "id,amount"},
            "The key amount has type double precision; a key is smallint, integer, bigint, uuid,",
        ),
        ({"key": "id,note"}, "The key note may be NULL"),
        ({"key": "id,id"}, "A column is named twice in the key id, id"),
        ({"key": "amount,note"}, "amount, note are not unique in public.transactions; declare a key"),
        ({"key": "id,amount,hour,distance,note"}, "A key has at most 4 columns"),
        ({"features": "amount,size"}, "has no column size."),
        ({"features": "amount,Hour"}, "Did you mean hour?"),
        ({"features": "amount,note"}, "The feature note of public.transactions has type text"),
        ({"features": "amount,note"}, "--feature-view"),
        ({"features": "amount,amount"}, "The feature amount is named twice"),
        ({"features": "amount,,hour"}, "An identifier is empty"),
        ({"features": ""}, "An identifier is empty"),
        ({"features": None}, "Name the features"),
        ({"all_numeric_except": "note"}, "Give either --features or --all-numeric-except"),
        ({"features": None, "all_numeric_except": "amount,hour,distance"}, "No numeric column"),
        ({"features": None, "all_numeric_except": "amont"}, "has no column amont."),
        ({"features": "hour(amount)"}, "hour(amount) needs a timestamp or date"),
        ({"features": "sqrt(amount)"}, "There is no transform sqrt; known are hour"),
        ({"features": "amount[3]"}, "asks for an array, but amount is double precision"),
        ({"time": "when"}, 'has no column "when".'),
        ({"entity": "customer"}, "has no column customer."),
        ({"label": "is_fraud"}, "has no column is_fraud."),
        ({"feature_view": "v_features"}, "There is no table public.v_features"),
        ({"name": "My Source"}, "'My Source' cannot name a source; use lower-case letters"),
        ({"name": "a" * 41}, "40 at most"),
    ],
)
def test_what_is_wrong_is_said(shop: Runtime, request_changes: dict[str, Any], sentence: str) -> None:
    asked = {"relation": "transactions", "key": "id", "features": "amount,hour", **request_changes}
    assert sentence in refusal(shop, **asked)


@pytest.mark.parametrize(
    ("definition", "sentence"),
    [
        (
            "TABLE t (a int, b int, x float8, PRIMARY KEY (a, b))",
            "part of the key of public.t; take all of it: --key a,b",
        ),
        ("TABLE t (a int UNIQUE, x float8)", "ALTER TABLE public.t ALTER COLUMN a SET NOT NULL;"),
        ("TABLE t (a int NOT NULL, x float8)", "ALTER TABLE public.t ADD UNIQUE (a);"),
        ("TABLE t (a int NOT NULL UNIQUE DEFERRABLE, x float8)", "a is not unique"),
        (
            "TABLE t (a numeric PRIMARY KEY, x float8)",
            "The key a has type numeric; a key is smallint, integer",
        ),
        ("TABLE t (a timestamptz PRIMARY KEY, x float8)", "has type timestamp with time zone"),
        ("VIEW t AS SELECT 1 AS a, 2.0::float8 AS x", "public.t is a view;"),
        ("MATERIALIZED VIEW t AS SELECT 1 AS a, 2.0::float8 AS x", "public.t is a materialised view;"),
        ("SEQUENCE t", "public.t is a sequence;"),
        ("TYPE t AS (a int)", "public.t is a composite type;"),
        (
            "TABLE t (a int, x float8, PRIMARY KEY (a, x)) PARTITION BY RANGE (x)",
            "take all of it: --key a,x",
        ),
        (
            'TABLE t (a int, "B" int, x float8, PRIMARY KEY (a, "B"))',
            """take all of it: --key 'a,"B"'""",
        ),
        (
            """TABLE t (a int, "it's" int, x float8) PARTITION BY LIST ("it's")""",
            """with --key 'a,"it'"'"'s"': ALTER TABLE public.t ADD UNIQUE (a, "it's");""",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused(shop: Runtime, definition: str, sentence: str) -> None:
    with shop.engine.connect() as connection, connection.begin() as never_committed:
        connection.exec_driver_sql("SET LOCAL search_path TO public")
        connection.exec_driver_sql(f"CREATE {definition}")
        with pytest.raises(SourceError) as raised:
            attach.resolve(connection, AttachRequest(relation="t", key="a", features="x"))
        never_committed.rollback()
    assert sentence in raised.value.sentence


@pytest.mark.parametrize(
    "index",
    ["UNIQUE INDEX ON t (a) WHERE x > 0", "UNIQUE INDEX ON t (abs(a))", "INDEX ON t (a)"],
    ids=["partial", "expression", "not unique"],
)
def test_an_index_that_does_not_make_every_key_unique_is_not_enough(
    user: User, runtime: Runtime, index: str
) -> None:
    user.execute("CREATE TABLE t (a int NOT NULL, x float8)")
    user.execute(f"CREATE {index}")
    assert "a is not unique in public.t" in refusal(runtime, relation="t", key="a", features="x")


@pytest.mark.parametrize("key", ["a", "n,a"], ids=["single", "of several"])
def test_a_key_in_which_different_texts_are_equal_is_refused(user: User, runtime: Runtime, key: str) -> None:
    try:
        user.execute(
            "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        )
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server has no ICU, and so no such collation")
    user.execute("CREATE DOMAIN name AS varchar(9) COLLATE any_case")
    user.execute(f"CREATE TABLE t (n int, a public.name, x float8, PRIMARY KEY ({key}))".encode())
    said = refusal(runtime, relation="t", key=key, features="x")
    assert said.startswith("The key a has the collation any_case, which takes different texts for equal")


def test_a_temporary_table_is_refused(user: User, runtime: Runtime) -> None:
    with runtime.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE t (id int PRIMARY KEY, x float8)")
        schema = connection.exec_driver_sql("SELECT pg_my_temp_schema()::regnamespace").scalar()
        with pytest.raises(SourceError, match="is a temporary table"):
            attach.resolve(connection, AttachRequest(relation=f"{schema}.t", key="id", features="x"))


def test_tables_whose_rows_come_and_go_through_another_are_refused(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE parent (id int PRIMARY KEY, x float8)")
    user.execute("CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)")
    user.execute("CREATE TABLE whole (id int PRIMARY KEY, x float8) PARTITION BY RANGE (id)")
    user.execute("CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (100)")
    assert "public.child inherits from" in refusal(runtime, relation="parent", key="id", features="x")
    assert "public.child is a part of public.parent" in refusal(
        runtime, relation="child", key="id", features="x"
    )
    assert "public.part is a part of public.whole" in refusal(
        runtime, relation="part", key="id", features="x"
    )


def test_times_need_a_declared_transform(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamptz, day date)")
    assert "declare how it becomes a number: hour(at)" in refusal(
        runtime, relation="t", key="id", features="at"
    )
    assert "day is a date and has no hour" in refusal(runtime, relation="t", key="id", features="hour(day)")


def test_the_length_of_an_array_must_be_known(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, v real[])")
    asked = {"relation": "t", "key": "id", "features": "v"}
    assert "Declare the length of the array v[n]: it has no rows to tell" in refusal(runtime, **asked)
    user.execute("INSERT INTO t VALUES (1, '{1,2}'), (2, '{1,2,3}')")
    assert "lengths 2, 3 were seen" in refusal(runtime, **asked)
    assert "longer than the 1500" in refusal(runtime, relation="t", key="id", features="v[1501]")


def test_more_features_than_a_query_returns_are_refused(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, a real[], b real[])")
    assert "1600 features are more than" in refusal(runtime, relation="t", key="id", features="a[800],b[800]")


def test_a_feature_view_must_hold_the_key(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    user.execute("CREATE VIEW no_key AS SELECT x FROM t")
    user.execute("CREATE VIEW wide_key AS SELECT id::bigint, x FROM t")
    asked = {"relation": "t", "key": "id"}
    assert "public.no_key has no column id" in refusal(runtime, **asked, feature_view="no_key")
    assert "cast it to integer in the view" in refusal(runtime, **asked, feature_view="wide_key")


def test_a_column_that_updates_change_unseen_is_refused(
    user: User, runtime: Runtime, postgres: Postgres
) -> None:
    if postgres.version < 18:
        pytest.skip("virtual generated columns came with PostgreSQL 18")
    user.execute(
        "CREATE TABLE t (id int PRIMARY KEY, x float8, y float8 GENERATED ALWAYS AS (x * 2) VIRTUAL)"
    )
    asked = {"relation": "t", "key": "id"}
    assert "y of public.t is a virtual generated column" in refusal(runtime, **asked, features="x,y")
    assert "STORED" in refusal(runtime, **asked, all_numeric_except="x")
    attach_table(user, runtime, **asked, all_numeric_except="y")


def test_another_definition_under_the_same_name_is_refused(transactions: Table) -> None:
    with pytest.raises(SourceError, match=r"another definition \(different: features\).*pgoutlier detach"):
        attach_table(
            transactions.user, transactions.runtime, relation="transactions", key="id", features="amount"
        )


def test_attach_again_keeps_the_recipe_of_another_version_of_this_program(transactions: Table) -> None:
    user, runtime = transactions.user, transactions.runtime
    features = ",".join(transactions.source.definition.feature_names)
    asked: dict[str, Any] = {"relation": "transactions", "key": "id", "features": features}
    [(recipe,)] = transactions.rows("SELECT recipe FROM outlier.sources")
    older = {**recipe, "epochs": recipe["epochs"] + 1}
    older.pop("prototype_cap")
    user.execute("UPDATE outlier.sources SET recipe = %s", (Jsonb(older),))
    attach_table(user, runtime, **asked)
    assert transactions.rows("SELECT recipe FROM outlier.sources") == [(older,)]
    with pytest.raises(SourceError, match=r"different: recipe\)"):
        attach_table(user, runtime, **asked, recipe=recipe_named("ecg-dense-32-16-8"))


def test_a_table_has_one_source(transactions: Table) -> None:
    with pytest.raises(SourceError, match="attached already, as source transactions; detach that first"):
        attach_table(
            transactions.user,
            transactions.runtime,
            relation="transactions",
            key="id",
            features="amount",
            name="again",
        )


# -- privileges


@pytest.fixture
def limited(database_url: str, role: str, runtime: Runtime) -> Iterator[Runtime]:
    """A runtime of a role that has no privilege at all."""
    engine = make_engine(database_url.replace("postgres@", f"{role}@"))
    yield replace(runtime, engine=engine)
    engine.dispose()


def test_missing_privileges_are_named_as_grants_that_work(user: User, limited: Runtime, role: str) -> None:
    user.execute('CREATE SCHEMA "the shop"')
    user.execute('CREATE TABLE "the shop".sales (id int PRIMARY KEY, x float8, v real[])')
    user.execute('CREATE VIEW "the shop".features AS SELECT id, x, v FROM "the shop".sales')
    user.execute("INSERT INTO \"the shop\".sales VALUES (1, 2, '{3,4}')")
    request = AttachRequest(
        relation='"the shop".sales', key="id", features="x,v", feature_view='"the shop".features'
    )
    with pytest.raises(MissingPrivilege) as refused:
        attaching.attach(limited, request, recipe_named("default"))
    grants = refused.value.sentence.split("has to run: ")[1]
    assert 'GRANT USAGE ON SCHEMA "the shop" TO writer;' in grants
    assert 'GRANT SELECT ON "the shop".features TO writer;' in grants
    user.execute(grants)
    assert attaching.attach(limited, request, recipe_named("default")).made
    user.execute('INSERT INTO "the shop".sales VALUES (2, 2)')
    assert user.execute("SELECT keys FROM outlier.queue_sales").fetchall() == [([2],)]
    assert attaching.detach(limited, "sales") is None
    assert user.execute("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'outlier_%'").fetchall() == []


def test_rows_hidden_from_the_role_are_no_missing_rows(user: User, limited: Runtime, role: str) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    user.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    user.execute(f"GRANT SELECT, TRIGGER ON t TO {role}; GRANT ALL ON SCHEMA outlier TO {role}")
    user.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA outlier TO {role}")
    with pytest.raises(MissingPrivilege, match="ALTER ROLE writer BYPASSRLS;"):
        attach_table(user, limited, relation="t", key="id", features="x")


def test_a_writer_needs_no_right_on_our_schema(transactions: Table, role: str, connect: Connect) -> None:
    transactions.user.execute(f"GRANT INSERT, UPDATE, SELECT, DELETE ON transactions TO {role}")
    writer = connect(user=role)
    writer.execute("INSERT INTO transactions (id, amount) VALUES (1, 2), (2, 3)")
    writer.execute("UPDATE transactions SET amount = 5 WHERE id = 2")
    writer.execute("DELETE FROM transactions WHERE id = 1")
    assert transactions.queued() == [1, 2, 2]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        writer.execute("SELECT * FROM outlier.queue_transactions")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        writer.execute("SELECT outlier.enqueue_insert_transactions()")


def test_a_writer_s_search_path_cannot_hijack_the_trigger(
    transactions: Table, role: str, connect: Connect
) -> None:
    user = transactions.user
    user.execute(f"GRANT INSERT, UPDATE, SELECT ON transactions TO {role}")
    user.execute(f"CREATE SCHEMA trap AUTHORIZATION {role}")
    user.execute("CREATE TABLE caught (who text)")
    user.execute(f"GRANT INSERT ON caught TO {role}")
    writer = connect(user=role)
    for function, arguments, result, body in (
        ("pg_notify", "text, text", "void", "SELECT"),
        ("cardinality", "anyarray", "integer", "SELECT 0"),
        ("clock_timestamp", "", "timestamptz", "SELECT now()"),
        ("same", "float8, float8", "boolean", "SELECT true"),
        ("same", "bigint, bigint", "boolean", "SELECT true"),
    ):
        writer.execute(
            f"CREATE FUNCTION trap.{function}({arguments}) RETURNS {result} LANGUAGE sql AS"
            f" $$ INSERT INTO public.caught VALUES (current_user); {body} $$"
        )
    for operator, type_name in (("=", "float8"), ("<>", "float8"), ("=", "bigint"), ("*<>", "record")):
        if type_name == "record":
            continue
        writer.execute(
            f"CREATE OPERATOR trap.{operator} (LEFTARG = {type_name}, RIGHTARG = {type_name}, FUNCTION = trap.same)"
        )
    writer.execute("CREATE TEMPORARY TABLE queue_transactions (keys bigint[], n_keys int, rescore bool)")
    writer.execute("SET search_path = trap, pg_temp, public, pg_catalog")
    writer.execute("INSERT INTO public.transactions (id, amount) VALUES (1, 2)")
    writer.execute("UPDATE public.transactions SET amount = 3")
    assert user.execute("SELECT * FROM caught").fetchall() == []
    assert transactions.queued() == [1, 1]


# -- keys


@pytest.mark.parametrize(
    ("key_type", "values"),
    [
        ("smallint", [-32768, 0, 32767]),
        ("integer", [-(2**31), 0, 2**31 - 1]),
        ("bigint", [-(2**63), 0, 2**63 - 1]),
        ("uuid", [uuid.UUID(int=0), uuid.UUID(int=2**127 + 5)]),
        ("text", ["", " ", "a,b", '{"x"}', "NULL", "größe 😀", "long" * 500, "'\\"]),
        ("varchar(20)", ["a", "bb "]),
        ("positive", [1, 2]),
    ],
)
def test_every_key_type_is_queued_as_it_is(
    user: User, runtime: Runtime, key_type: str, values: list[Any]
) -> None:
    user.execute("CREATE DOMAIN positive AS bigint CHECK (VALUE > 0)")
    user.execute(f"CREATE TABLE t (k {key_type} PRIMARY KEY, x float8)")
    table = attach_table(user, runtime, relation="t", key="k", features="x")
    with user.cursor() as cursor:
        cursor.executemany("INSERT INTO t VALUES (%s, 1)", [(value,) for value in values])
        user.execute("UPDATE t SET x = 2")
    queued = user.execute("SELECT unnest(keys) FROM outlier.queue_t").fetchall()
    assert sorted(map(str, (key for (key,) in queued))) == sorted(map(str, values * 2))
    assert table.queued()


# -- odd names


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES.keys())
@pytest.mark.parametrize("place", ["schema, table and key", "feature"])
def test_any_name_can_be_attached_scored_and_detached(
    user: User, runtime: Runtime, name: str, place: str
) -> None:
    schema, table, key, feature = (
        (name, name, name, "x") if place != "feature" else ("public", "t", "id", name)
    )
    if schema != "public":
        user.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    relation = sql.Identifier(schema, table)
    user.execute(
        sql.SQL("CREATE TABLE {} ({} bigint PRIMARY KEY, {} float8, source_flagged text)").format(
            relation, sql.Identifier(key), sql.Identifier(feature)
        )
    )
    before = objects(user)
    attached = attach_table(
        user,
        runtime,
        relation=f"{quote(schema)}.{quote(table)}",
        key=quote(key),
        features=quote(feature),
        name="odd",
    )
    attached.promote()
    user.execute(sql.SQL("INSERT INTO {} VALUES (1, 2)").format(relation))
    attached.drain()
    user.execute(sql.SQL("UPDATE {} SET {} = 3").format(relation, sql.Identifier(feature)))
    assert attached.queued() == [1]
    attached.drain()
    assert attached.scored() == [1]
    assert attached.source.definition.relation == Relation(schema, table)
    names = [column.name for column in user.execute("SELECT * FROM outlier.scored_odd").description or ()]
    assert len(names) == len(set(names)) == 9
    user.execute(sql.SQL("INSERT INTO {} VALUES (2, NULL)").format(relation))
    attached.drain()
    assert attached.quarantined() == {"2": ("null", feature)}
    with runtime.engine.begin() as connection:
        assert installation.triggers_enabled(connection, attached.source.definition) == {
            "insert": True,
            "update": True,
        }
    detach_table(attached)
    assert objects(user) == before


def test_a_source_takes_its_name_from_its_table(user: User, runtime: Runtime) -> None:
    user.execute('CREATE TABLE "Größe der 2. Käufe" (id int PRIMARY KEY, x float8)')
    table = attach_table(user, runtime, relation='"Größe der 2. Käufe"', key="id", features="x")
    assert table.source_name == "gr_e_der_2_k_ufe"


# -- partitions, views, arrays, times


def test_a_partitioned_table_is_watched_as_a_whole(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8) PARTITION BY RANGE (id)")
    user.execute("CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100)")
    user.execute("CREATE TABLE high PARTITION OF t FOR VALUES FROM (100) TO (200)")
    table = attach_table(user, runtime, relation="t", key="id", features="x")
    table.promote()
    user.execute("INSERT INTO t VALUES (1, 1), (101, 1)")
    user.execute("UPDATE t SET x = 2")
    user.execute("UPDATE t SET id = 150 WHERE id = 1")  # moves to the other partition
    assert table.queued() == [1, 1, 101, 101, 150]
    table.drain()
    assert table.scored() == [101, 150]
    user.execute("INSERT INTO low VALUES (2, 1)")  # past the parent's trigger
    assert table.queued() == []
    assert maintenance.sweep(runtime, table.source_name) == 1


def test_every_numeric_column_is_taken_but_those_named(user: User, runtime: Runtime) -> None:
    user.execute(
        "CREATE DOMAIN money_amount AS numeric(12, 2);"
        "CREATE TABLE t (id int PRIMARY KEY, a float8, b real, c numeric, d smallint, e bigint, f boolean,"
        " g money_amount, h text, i timestamptz, j real[], customer int, fraud boolean, skipped float8)"
    )
    table = attach_table(
        user,
        runtime,
        relation="t",
        key="id",
        all_numeric_except="skipped",
        entity="customer",
        label="fraud",
        time="i",
    )
    assert table.source.definition.feature_names == ("a", "b", "c", "d", "e", "f", "g")


def test_arrays_and_times_fill_named_columns(user: User, runtime: Runtime) -> None:
    user.execute('CREATE TABLE t (id int PRIMARY KEY, "My Time" timestamptz, day date, v real[], w float8[])')
    user.execute("INSERT INTO t VALUES (1, now(), now(), '{1,2}', NULL)")
    table = attach_table(
        user, runtime, relation="t", key="id", features='hour("My Time"), weekday(day) ,v,w[3]'
    )
    assert table.source.definition.feature_names == (
        "hour(My Time)", "weekday(day)", "v[1]", "v[2]", "w[1]", "w[2]", "w[3]",
    )  # fmt: skip


def test_a_feature_view_brings_its_numeric_columns(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, country text)")
    user.execute("CREATE VIEW f AS SELECT id, length(country) AS n, country = 'CH' AS home, country FROM t")
    table = attach_table(user, runtime, relation="t", key="id", feature_view="f")
    assert table.source.definition.feature_names == ("n", "home")
    user.execute("INSERT INTO t VALUES (1, 'CH')")
    user.execute("UPDATE t SET country = 'Chile'")
    user.execute("UPDATE t SET country = country")
    assert table.queued() == [1, 1]


# -- again, dry, at once, and away


def test_attaching_again_changes_nothing_and_mends_what_was_dropped(transactions: Table) -> None:
    user, runtime = transactions.user, transactions.runtime
    before = objects(user)
    transactions.insert(1, 10)
    asked = {"relation": "public.transactions", "key": '"id"', "features": "amount, hour,distance"}
    attach_table(user, runtime, **asked)
    assert objects(user) == before
    assert len(transactions.queued()) == 10
    user.execute("DROP TRIGGER outlier_transactions_insert ON transactions")
    user.execute("DROP FUNCTION outlier.enqueue_update_transactions() CASCADE")
    attach_table(user, runtime, **asked)
    assert objects(user) == before
    user.execute("DROP VIEW outlier.comparison_transactions")
    attach_table(user, runtime, **asked)
    assert objects(user) == before
    user.execute("DROP VIEW outlier.compared_transactions, outlier.comparison_transactions")
    user.execute("DROP TABLE outlier.shadow_scores_transactions")
    attach_table(user, runtime, **asked)
    assert objects(user) == before
    user.execute("ALTER TABLE outlier.scores_transactions DISABLE TRIGGER USER")
    attach_table(user, runtime, **asked)
    assert objects(user) == before


@pytest.mark.parametrize("setting", ["DISABLE", "ENABLE ALWAYS", "ENABLE REPLICA"])
def test_attaching_again_leaves_what_an_administrator_set(transactions: Table, setting: str) -> None:
    user, runtime = transactions.user, transactions.runtime
    user.execute(f"ALTER TABLE transactions {setting} TRIGGER outlier_transactions_insert")
    before = objects(user)
    attach_table(user, runtime, relation="transactions", key="id", features="amount,hour,distance")
    assert objects(user) == before


@pytest.mark.parametrize("key_type", ["integer", "text", "uuid"])
def test_the_dry_run_prints_what_attach_does(
    user: User, runtime: Runtime, postgres: Postgres, database_url: str, key_type: str
) -> None:
    user.execute(
        f'CREATE TABLE "50% Sales" ("Key %s" {key_type} PRIMARY KEY, "a $outlier$ {{b}}" float8, v real[],'
        " at timestamptz, flagged boolean)"
    )
    features = '"a $outlier$ {b}",v[3],hour_sin(at)'
    request = AttachRequest(relation='"50% Sales"', key='"Key %s"', features=features, name="sales")
    script = attaching.script(runtime, request, recipe_named("default"))
    before = objects(user)
    postgres.run("psql", database_url, "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--quiet", stdin=script)
    by_hand = objects(user)
    user.execute("DROP FUNCTION outlier.enqueue_insert_sales, outlier.enqueue_update_sales CASCADE")
    user.execute("DROP FUNCTION outlier.views_sales, outlier.enqueue_insert_row_sales")
    user.execute("DROP FUNCTION outlier.enqueue_update_row_sales")
    user.execute("DROP VIEW outlier.scored_sales, outlier.flagged_sales, outlier.quality_sales")
    user.execute("DROP VIEW outlier.comparison_sales, outlier.compared_sales, outlier.rows_sales")
    user.execute("DROP TABLE outlier.scores_sales, outlier.queue_sales, outlier.shadow_scores_sales")
    assert objects(user) == before
    attach_table(user, runtime, relation='"50% Sales"', key='"Key %s"', features=features, name="sales")
    assert objects(user) == by_hand


def test_detach_leaves_the_table_as_it_was(
    user: User, runtime: Runtime, postgres: Postgres, database_url: str
) -> None:
    user.execute(
        "CREATE TABLE t (id int PRIMARY KEY, x float8 DEFAULT 1 CHECK (x > 0), y int GENERATED ALWAYS AS"
        " (id * 2) STORED); CREATE INDEX ON t (x); COMMENT ON TABLE t IS 'mine';"
        "CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER outlier_of_mine BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION mine();"
        "INSERT INTO t VALUES (1), (2)"
    )
    dump = ("pg_dump", database_url, "--table=t", *(["--restrict-key=x"]))
    before, existing = postgres.run(*dump), objects(user)
    table = attach_table(user, runtime, relation="t", key="id", features="x", backfill=True)
    table.promote()
    user.execute("UPDATE t SET x = x")
    table.drain()
    assert postgres.run(*dump) != before
    detach_table(table)
    assert postgres.run(*dump) == before
    assert objects(user) == existing
    for name in ("sources", "model_versions", "model_aliases", "alias_events", "quarantine", "verdicts"):
        assert user.execute(f"SELECT * FROM outlier.{name}").fetchall() == []


def test_a_table_that_was_dropped_can_be_detached(transactions: Table) -> None:
    transactions.user.execute("DROP TABLE transactions CASCADE")
    detach_table(transactions)
    again = make_table(transactions.user, transactions.runtime)
    again.insert(1)
    assert again.queued() == [1]


def test_a_view_of_the_user_s_on_ours_stands_in_the_way_of_detach(transactions: Table) -> None:
    transactions.user.execute("CREATE VIEW report AS SELECT * FROM outlier.flagged_transactions")
    with pytest.raises(SourceError, match=r"public\.report|view report"):
        detach_table(transactions)
    transactions.insert(1)
    assert transactions.queued() == [1]


def test_attaching_at_once_makes_one_source(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    request = AttachRequest(relation="t", key="id", features="x")
    recipe = recipe_named("default")
    n_at_once = 2  # beside the first as many as a process has connections
    with ThreadPoolExecutor(n_at_once) as pool, runtime.engine.begin() as first:
        locks.hold(first, "attach")
        asked = [pool.submit(attaching.attach, runtime, request, recipe) for _ in range(n_at_once)]
        until(lambda: waits(user, n_sessions=n_at_once), "each has resolved what was asked for")
        first.commit()
        made = [done.result().made for done in asked]
    assert sorted(made) == [False, True]


def test_a_table_in_use_is_waited_for_until_attach_gives_up_with_a_sentence(
    user: User, runtime: Runtime, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_waits, "PAUSES_SECONDS", (0.01, 0.01))
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    writer = connect(autocommit=False)
    writer.execute("INSERT INTO t VALUES (1, 1)")
    before = objects(user)
    with pytest.raises(SourceError, match=r"public\.t is in use.*try again"):
        attach_table(user, runtime, relation="t", key="id", features="x")
    assert objects(user) == before
    writer.commit()
    attach_table(user, runtime, relation="t", key="id", features="x")
