"""What users mean when they attach: labels, types, times, names and keys, and what they are told was understood."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from pgoutlier.db.source.labels import LabelValue
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.training import training
from tests.integration.conftest import Run
from tests.support import attach_table, plain_recipe, refusal

User = psycopg.Connection[Any]

# Type of the label, what says fraud, what does not.
LABELS = [
    ("numeric(3,2)", ["1"], ["0", "0.99", "1.01", "2"]),
    ("numeric", ["1.000", "1"], ["10", "0.1"]),
    ("float8", ["1"], ["0", "1.5", "'NaN'"]),
    ("smallint", ["1"], ["0", "-1", "11"]),
    ("boolean", ["true"], ["false"]),
    (
        "text",
        ["' Fraud'", "'YES '", "'1.0'", "'01'", "'T'", "'anomaly'"],
        ["'fraudulent'", "'no'", "''", "'1.0x'"],
    ),
    ("char(8)", ["'fraud'", "'1'"], ["'ok'"]),
]


@pytest.mark.parametrize(("kind", "fraud", "normal"), LABELS, ids=[kind for kind, _, _ in LABELS])
def test_labels_are_compared_by_meaning(
    user: User, runtime: Runtime, kind: str, fraud: list[str], normal: list[str]
) -> None:
    user.execute(
        f"CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, x float8, label {kind})"
    )
    for value in [*fraud, *normal, "NULL"]:
        user.execute(f"INSERT INTO t (x, label) SELECT random(), {value} FROM generate_series(1, 200)")
    recipe = plain_recipe(epochs=1, early_stopping=None)
    attach_table(user, runtime, recipe=recipe, relation="t", features="x", label="label")
    done = training.train(runtime, "t")
    assert done.left_out == {"labelled_fraud": 200 * len(fraud)}
    assert done.n_rows == 200 * (len(normal) + 1)


def test_attach_says_what_the_label_says_of_how_many_rows(user: User, run: Run) -> None:
    user.execute(
        "CREATE TABLE t (id bigint PRIMARY KEY, x float8, label numeric(3,2));"
        " INSERT INTO t SELECT i, i, CASE WHEN i <= 60 THEN 1 WHEN i <= 2990 THEN 0 END FROM generate_series(1, 3000) i"
    )
    words = ("attach", "t", "--features", "x", "--label", "label")
    assert (
        "Label label: '1.00' is fraud (60 rows), '0.00' is normal (2,930 rows), NULL is unknown (10 rows)."
        in (run(*words).output)
    )
    assert json.loads(run(*words, "--json").output)["label_values"] == [
        vars(LabelValue("1.00", True, 60)),
        vars(LabelValue("0.00", False, 2930)),
        vars(LabelValue(None, None, 10)),
    ]


def test_a_type_behind_several_domains_is_what_it_is_at_its_base(user: User, runtime: Runtime) -> None:
    user.execute(
        "CREATE DOMAIN number AS bigint; CREATE DOMAIN payment AS number CHECK (value > 0);"
        " CREATE DOMAIN pos AS numeric; CREATE DOMAIN price AS pos; CREATE DOMAIN moment AS timestamptz;"
        " CREATE DOMAIN at AS moment;"
        " CREATE TABLE t (id payment PRIMARY KEY, amount price, taken at)"
    )
    table = attach_table(user, runtime, relation="t", all_numeric_except="", time="taken")
    assert table.source.definition.key_type == "bigint"
    assert table.source.definition.feature_names == ("amount",)
    table.promote()
    user.execute("INSERT INTO t VALUES (1, 5, now())")
    table.drain()
    assert table.scored() == [1]


def test_columns_that_are_left_out_are_named(user: User, run: Run) -> None:
    user.execute(
        "CREATE TABLE t (id bigint PRIMARY KEY, amount numeric, note text, day date, shop int, at timestamptz)"
    )
    words = ("attach", "t", "--all-numeric-except", "shop", "--time", "at")
    assert "Left out of the features: note (text), day (date), shop (integer)." in run(*words).output
    assert json.loads(run(*words, "--json").output)["left_out"] == {
        "note": "text",
        "day": "date",
        "shop": "integer",
    }


@pytest.mark.parametrize(
    "kind", ["text", "time", "timetz", "jsonb", "interval", "uuid", "boolean", "bytea", "int[]"]
)
def test_a_time_column_without_an_order_in_time_is_refused(user: User, runtime: Runtime, kind: str) -> None:
    user.execute(f"CREATE DOMAIN odd AS {kind}; CREATE TABLE t (id bigint PRIMARY KEY, x float8, at odd)")
    said = refusal(runtime, relation="t", features="x", time="at")
    assert "The time column at of public.t has type" in said
    assert "name a column of type timestamptz, timestamp or date, or of numbers" in said


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp", "date", "bigint", "numeric", "float8"])
def test_times_dates_and_numbers_order_rows(user: User, runtime: Runtime, kind: str) -> None:
    user.execute(f"CREATE TABLE t (id bigint PRIMARY KEY, x float8, at {kind})")
    assert (
        attach_table(user, runtime, relation="t", features="x", time="at").source.definition.time_column
        == "at"
    )


def test_without_a_key_the_primary_key_is_taken(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (other int UNIQUE NOT NULL, number uuid PRIMARY KEY, x float8)")
    assert attach_table(user, runtime, relation="t", features="x").source.definition.key_column == "number"


def test_without_a_key_that_can_be_taken_it_is_said_what_to_name(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE none (id int UNIQUE NOT NULL, x float8)")
    assert (
        "public.none has no primary key; name what tells its rows apart, one column or several, with --key"
        in refusal(runtime, relation="none", features="x")
    )


PARTITIONED = (
    "CREATE TABLE p (id bigint NOT NULL, at timestamptz NOT NULL, x float8{key}) PARTITION BY RANGE (at)"
)


def test_without_a_key_the_primary_key_is_taken_with_all_its_columns(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE two (a int, b int, x float8, PRIMARY KEY (b, a))")
    assert attach_table(user, runtime, relation="two", features="x").source.definition.key.columns == (
        "b",
        "a",
    )


def test_of_a_partitioned_table_the_key_that_works_is_named(user: User, runtime: Runtime) -> None:
    user.execute(PARTITIONED.format(key=", PRIMARY KEY (id, at)"))  # type: ignore[arg-type]
    assert (
        "id is only part of the key of public.p, which is partitioned by at, so that no key of it is unique without"
        " at; take all of it: --key id,at"
    ) in refusal(runtime, relation="p", key="id", features="x")
    found = attach_table(user, runtime, relation="p", key="id,at", features="x").source.definition
    assert found.key.types == ("bigint", "timestamptz")


def test_of_a_partitioned_table_without_a_key_the_statement_that_makes_one_is_said(
    user: User, runtime: Runtime
) -> None:
    user.execute(PARTITIONED.format(key=""))  # type: ignore[arg-type]
    said = refusal(runtime, relation="p", key="id", features="x")
    assert "declare a key, and name it with --key id,at: ALTER TABLE public.p ADD UNIQUE (id, at);" in said
    user.execute("ALTER TABLE public.p ADD UNIQUE (id, at);")
    attach_table(user, runtime, relation="p", key="id,at", features="x")


# First table, second one: both would make objects of the same name.
COLLISIONS = {
    "schemas": ("public.pay", "other.pay"),
    "40 characters": (f"public.{'a' * 40}_2025", f"public.{'a' * 40}_2026"),
    "odd characters": ('public."pay-1"', 'public."pay 1"'),
}


@pytest.mark.parametrize("tables", COLLISIONS.values(), ids=COLLISIONS)
def test_a_name_that_is_taken_is_no_reason_to_detach(user: User, run: Run, tables: tuple[str, str]) -> None:
    user.execute("CREATE SCHEMA other")
    for table in tables:
        user.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, x float8)")  # type: ignore[arg-type]
    assert run("attach", tables[0], "--features", "x").exit_code == 0
    refused = run("attach", tables[1], "--features", "x")
    assert "another --name" in str(refused.exception)
    assert "detach" not in str(refused.exception)
    assert run("attach", tables[1], "--features", "x", "--name", "second").exit_code == 0


@pytest.mark.parametrize("name", ["notices", "t_flagged_idx"])
def test_a_table_whose_objects_are_called_as_others_of_ours_gets_another_name(
    user: User, run: Run, name: str
) -> None:
    user.execute(
        f"CREATE TABLE t (id int PRIMARY KEY, x float8); CREATE TABLE {name} (id int PRIMARY KEY, x float8)"
    )
    assert run("attach", "t", "--features", "x").exit_code == 0
    refused = run("attach", name, "--features", "x")
    assert f"A source cannot be called {name}, because relation " in str(refused.exception)
    assert run("attach", name, "--features", "x", "--name", "second").exit_code == 0


def test_keys_and_ids_are_shown_as_one_types_them(user: User, runtime: Runtime, run: Run) -> None:
    user.execute("CREATE TABLE t (id bigint PRIMARY KEY, x float8)")
    table = attach_table(user, runtime, relation="t", features="x")
    table.promote()
    user.execute("INSERT INTO t VALUES (20002, 5), (-1234567, 5)")
    table.drain()
    user.execute("UPDATE outlier.scores_t SET flagged = true")
    shown = run("flagged", "t").output
    assert "20002 " in shown
    assert "-1234567 " in shown
    assert run("label", "t", "20002", "-1234567", "fraud").exit_code == 0
    assert "20002 " in run("verdicts", "t").output
