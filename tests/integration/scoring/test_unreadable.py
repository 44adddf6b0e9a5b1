"""Rows that PostgreSQL cannot read: whoever reads many names them, and goes on with the rest."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from pgoutlier.db.scoring import unreadable
from pgoutlier.worker.drift import measuring
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.report import of_source
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.training import training
from tests.integration.conftest import Run
from tests.readings import READINGS, WINDOW, insert
from tests.support import Table, attach_table, make_detector, plain_recipe, until

User = psycopg.Connection[Any]

SMALL = plain_recipe(name="small", epochs=1, early_stopping=None, batch_size=64)
SHOP = "CREATE TABLE shop (id bigint PRIMARY KEY, amount numeric(10,2), items int)"
PRICES = "CREATE VIEW prices AS SELECT id, amount / items AS price, amount FROM shop"
REFUSED = ("error", None)
DIVISION = "DivisionByZero: division by zero"


def add(user: User, first: int, last: int, *, every: int | None = None) -> None:
    """Rows of the shop; every so many of them has no items, so that it has no price."""
    user.execute(
        "INSERT INTO shop SELECT i, 5 + i %% 90, CASE WHEN i %% %s = 0 THEN 0 ELSE 1 + i %% 4 END"
        " FROM generate_series(%s::int, %s::int) i",
        (every or last + 1, first, last),
    )


@pytest.fixture
def shop(user: User, runtime: Runtime) -> Table:
    """Attached with a view that divides, empty."""
    user.execute(SHOP)
    user.execute(PRICES)
    return attach_table(user, runtime, relation="shop", key="id", feature_view="prices", recipe=SMALL)


# -- training


@pytest.mark.parametrize("queued", [False, True])
def test_the_first_training_leaves_out_what_cannot_be_read_and_names_it(
    user: User, runtime: Runtime, queued: bool
) -> None:
    user.execute(SHOP)
    user.execute(PRICES)
    if not queued:
        add(user, 1, 1000, every=700)
    table = attach_table(user, runtime, relation="shop", key="id", feature_view="prices", recipe=SMALL)
    if queued:
        add(user, 1, 1000, every=700)
    made = training.train(runtime, "shop")
    assert (made.promoted, made.n_rows, made.left_out) == (True, 999, {"unreadable": 1})
    assert made.unreadable == training.Unreadable(1, "700", DIVISION)
    assert f"such as that of key 700 ({DIVISION})" in " ".join(made.sentences())
    assert table.quarantined() == {"700": REFUSED}
    assert table.keys("SELECT metrics -> 'unreadable' FROM outlier.model_versions") == [
        {"n_rows": 1, "key": "700", "error": DIVISION}
    ]
    table.drain_all()
    assert len(table.scored()) == (999 if queued else 0)
    assert table.quarantined() == {"700": REFUSED}
    again = training.train(runtime, "shop")
    assert (again.left_out["quarantined"], again.unreadable) == (1, None)
    user.execute("UPDATE shop SET items = 1 WHERE id = 700")
    table.drain_all()
    assert 700 in table.scored()
    assert table.quarantined() == {}


KINDS: dict[str, tuple[str, str, str | None]] = {
    "a number too large for a double": ("numeric", "1e400", None),
    "a number too large for the view's type": ("bigint", "40000", "x::smallint"),
    "text that is no number": ("text", "'twelve'", "x::float8"),
    "the logarithm of nothing": ("float8", "0", "ln(x)"),
    "a time that is none": (
        "text",
        "'45'",
        "extract(epoch FROM ('2026-01-' || lpad(x, 2, '0'))::date)",
    ),
    "a function that raises": ("float8", "-1", "picky(x)"),
    "a statement that finds two rows": (
        "float8",
        "-1",
        "(SELECT 1 FROM generate_series(1, CASE WHEN x < 0 THEN 2 ELSE 1 END))",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_row_that_cannot_be_read_is_left_out(user: User, runtime: Runtime, kind: str) -> None:
    column_type, value, expression = KINDS[kind]
    user.execute(
        "CREATE FUNCTION picky(x float8) RETURNS float8 LANGUAGE plpgsql AS $$"
        " BEGIN IF x < 0 THEN RAISE EXCEPTION 'less than nothing: %', x; END IF; RETURN x; END $$"
    )
    user.execute(f"CREATE TABLE t (id int PRIMARY KEY, x {column_type}, y float8)")
    user.execute(f"INSERT INTO t SELECT i, (1 + i % 2)::{column_type}, i FROM generate_series(1, 400) i")
    user.execute(f"INSERT INTO t VALUES (7000, {value}, 0)")
    view = None
    if expression:
        view = "v"
        user.execute(f"CREATE VIEW v AS SELECT id, {expression} AS x, y FROM t")
    table = attach_table(
        user, runtime, relation="t", key="id", features="x,y", feature_view=view, recipe=SMALL
    )
    made = training.train(runtime, "t")
    assert (made.n_rows, made.left_out) == (400, {"unreadable": 1})
    assert table.quarantined() == {"7000": REFUSED}


@pytest.mark.parametrize("key_type", ["text", "varchar(40)", "uuid", "smallint"])
def test_it_is_named_by_its_key_of_any_type(user: User, runtime: Runtime, key_type: str) -> None:
    """Keys that look like SQL, and a column that is named like the variable of a function."""
    key = (
        "i" if key_type == "smallint" else "md5(i::text)::uuid" if key_type == "uuid" else "'%s, \"''$' || i"
    )
    user.execute(f'CREATE TABLE t ("place %s" {key_type} PRIMARY KEY, tried int, state float8[])')
    user.execute(
        f"INSERT INTO t SELECT {key}, i % 300, ARRAY[i, 1] FROM generate_series(1, 600) i".replace("%", "%%"),
        (),
    )
    user.execute('CREATE VIEW v AS SELECT "place %%s", 1 / tried AS tried, state FROM t', ())
    table = attach_table(
        user,
        runtime,
        relation="t",
        key='"place %s"',
        features="tried,state[2]",
        feature_view="v",
        recipe=SMALL,
    )
    made = training.train(runtime, "t")
    assert (made.n_rows, made.left_out) == (598, {"unreadable": 2})
    zeros = user.execute('SELECT "place %%s"::text FROM t WHERE tried = 0', ()).fetchall()
    assert set(table.quarantined()) == {key for (key,) in zeros}


@pytest.mark.postgres18
def test_one_row_in_ten_that_cannot_be_read_leaves_the_others(shop: Table) -> None:
    add(shop.user, 1, 30_000, every=10)
    made = training.train(shop.runtime, "shop")
    assert (made.n_rows, made.left_out) == (27_000, {"unreadable": 3_000})
    assert len(shop.quarantined()) == 3_000
    shop.drain_all()
    assert len(shop.scored()) == 27_000


@pytest.mark.postgres18
def test_rows_that_are_incomplete_or_flagged_are_told_from_those_that_cannot_be_read(shop: Table) -> None:
    shop.promote(make_detector(shop.source.definition.feature_names, threshold=1e9))
    add(shop.user, 1, 600, every=300)
    shop.drain_all()
    shop.user.execute("UPDATE outlier.scores_shop SET flagged = true WHERE key IN (5, 6)")
    shop.user.execute("ALTER TABLE shop DISABLE TRIGGER USER")
    shop.user.execute("UPDATE shop SET items = NULL WHERE id = 7")
    shop.user.execute("UPDATE shop SET items = 0 WHERE id IN (6, 8)")
    made = training.train(shop.runtime, "shop")
    assert made.left_out == {"flagged": 2, "quarantined": 2, "incomplete": 1, "unreadable": 1}
    assert 8 in shop.scored(), "a change of it has been scored, which a training does not undo"


def test_a_row_that_cannot_be_read_ends_the_history_of_those_behind_it(user: User, runtime: Runtime) -> None:
    user.execute(READINGS)
    user.execute("CREATE VIEW v AS SELECT id, taken_at, machine, 1 / (a - 9) AS a, b FROM readings")
    recipe = plain_recipe(
        name="sequence", layers=(), recurrent={"window": WINDOW, "encoder": (4,), "decoder": (4,)}, epochs=1
    )
    table = attach_table(
        user,
        runtime,
        relation="readings",
        key="id",
        feature_view="v",
        features="a,b",
        time="taken_at",
        entity="machine",
        recipe=recipe,
    )
    table.promote(make_detector(("a", "b"), recipe=recipe))
    insert(table, *((i, "m", i) for i in range(1, 401)))
    user.execute("UPDATE readings SET a = 9 WHERE id = 200")
    table.drain_all()
    assert table.scored() == [*range(1, 200), *range(201, 401)]
    assert table.quarantined() == {"200": REFUSED}
    user.execute("DELETE FROM outlier.quarantine")
    made = training.train(runtime, "readings")
    assert (made.n_rows, made.left_out) == (399, {"unreadable": 1})


# -- views that answer otherwise than row by row


@pytest.mark.postgres18
def test_a_view_that_groups_its_rows_is_read_around_one_of_them(user: User, runtime: Runtime) -> None:
    user.execute(SHOP)
    user.execute("CREATE VIEW grouped AS SELECT id, sum(amount) / sum(items) AS price FROM shop GROUP BY id")
    add(user, 1, 500, every=400)
    table = attach_table(user, runtime, relation="shop", key="id", feature_view="grouped", recipe=SMALL)
    assert training.train(runtime, "shop").left_out == {"unreadable": 1}
    assert table.quarantined() == {"400": REFUSED}


@pytest.mark.postgres18
def test_a_view_of_which_no_row_can_be_read_is_not_blamed_on_its_rows(user: User, runtime: Runtime) -> None:
    user.execute(SHOP)
    user.execute("CREATE VIEW all_of_it AS SELECT id, sum(amount / items) OVER () AS price FROM shop")
    add(user, 1, 500)
    table = attach_table(user, runtime, relation="shop", key="id", feature_view="all_of_it", recipe=SMALL)
    user.execute("UPDATE shop SET items = 0 WHERE id = 3")
    with pytest.raises((psycopg.errors.DivisionByZero, DBAPIError)):
        training.train(runtime, "shop")
    assert table.quarantined() == {}


@pytest.mark.postgres18
def test_a_search_that_takes_too_long_is_given_up(shop: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    add(shop.user, 1, 500, every=300)
    monkeypatch.setattr(unreadable, "_LONGEST_SEARCH_SECONDS", 0.0)
    with pytest.raises(psycopg.errors.DivisionByZero):
        training.train(shop.runtime, "shop")


# -- everybody else who reads


@pytest.mark.postgres18
def test_drift_and_report_pass_over_rows_that_cannot_be_read(shop: Table) -> None:
    add(shop.user, 1, 900)
    training.train(shop.runtime, "shop")
    shop.user.execute("UPDATE shop SET amount = amount")
    shop.user.execute("UPDATE shop SET amount = amount + 1")
    shop.drain_all()
    assert len(shop.scored()) == 900
    shop.user.execute("ALTER TABLE shop DISABLE TRIGGER USER")
    shop.user.execute("UPDATE shop SET items = 0 WHERE id IN (400, 900)")
    assert measuring.measure(shop.runtime, "shop").n_rows == 898
    version, page = of_source.live_page(shop.runtime, "shop")
    assert version == 1
    assert "898 rows that version 1 scored" in page


@pytest.mark.postgres18
def test_the_report_of_a_training_passes_over_frauds_that_cannot_be_read(
    user: User, runtime: Runtime
) -> None:
    user.execute("CREATE TABLE shop (id int PRIMARY KEY, amount numeric, items int, fraud bool)")
    user.execute("INSERT INTO shop SELECT i, i % 90, 1 + i % 4, i % 50 = 0 FROM generate_series(1, 900) i")
    user.execute("UPDATE shop SET items = 0 WHERE id IN (100, 101)")
    user.execute(PRICES)
    table = attach_table(
        user, runtime, relation="shop", key="id", feature_view="prices", label="fraud", recipe=SMALL
    ).with_settings(training_reports=True)
    made = training.train(table.runtime, "shop")
    assert made.left_out == {"labelled_fraud": 18, "unreadable": 1}
    assert len(table.rows("SELECT FROM outlier.model_reports")) == 1


@pytest.mark.postgres18
@pytest.mark.parametrize("kind", ["backfill", "rescore"])
def test_a_job_passes_over_rows_that_cannot_be_read(shop: Table, kind: str) -> None:
    table = shop.with_settings(job_range_rows=50)
    names = table.source.definition.feature_names
    table.promote(make_detector(names))
    add(shop.user, 1, 300)
    if kind == "backfill":
        shop.user.execute("DELETE FROM outlier.queue_shop")
    table.drain_all()
    shop.user.execute("ALTER TABLE shop DISABLE TRIGGER USER")
    shop.user.execute("UPDATE shop SET items = 0 WHERE id IN (70, 75, 299)")
    shop.user.execute("ALTER TABLE shop ENABLE TRIGGER USER")
    if kind == "rescore":
        table.promote(make_detector(names, seed=1))
    start = job_control.backfill if kind == "backfill" else job_control.rescore
    job = start(table.runtime, "shop")

    def finished() -> bool:
        job_control.work(table.runtime, job.id)
        return job_control.described(table.runtime, job.id).status != "running"

    until(finished)
    done = job_control.described(table.runtime, job.id)
    assert (done.status, done.n_done, done.n_quarantined) == ("succeeded", 297, 3)
    assert set(table.quarantined()) == {"70", "75", "299"}
    assert len(table.scored()) == 297


@pytest.mark.postgres18
def test_live_scoring_finds_many_rows_in_one_batch(shop: Table) -> None:
    shop.promote()
    add(shop.user, 1, 5_000, every=4)
    shop.drain_all()
    assert len(shop.scored()) == 3_750
    assert len(shop.quarantined()) == 1_250
    assert shop.keys("SELECT DISTINCT detail FROM outlier.quarantine") == [DIVISION]


def test_what_is_read_around_others_is_what_is_read_without_them(shop: Table) -> None:
    shop.promote(make_detector(shop.source.definition.feature_names, threshold=0.5))
    add(shop.user, 1, 200)
    shop.drain_all()
    alone = shop.errors()
    add(shop.user, 201, 210, every=205)
    shop.user.execute("UPDATE shop SET amount = amount + 0")
    shop.drain_all()
    assert {key: shop.errors()[key] for key in alone} == pytest.approx(alone)
    assert np.isfinite(list(shop.errors().values())).all()


@pytest.mark.postgres18
def test_the_command_names_them_in_words_and_in_json(shop: Table, run: Run) -> None:
    add(shop.user, 1, 500, every=300)
    done = run("train", "shop", "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["left_out"] == {"unreadable": 1}
    assert made["unreadable"] == {"n_rows": 1, "key": "300", "error": DIVISION}
    shown = run("models", "show", "shop", "1")
    assert f"1 rows, such as key 300: {DIVISION}" in shown.output
