"""The writer's commit is never ours: what a writer of an attached table does, works as it would without us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from pgoutlier.db.ddl import history_objects, notice_objects
from pgoutlier.db.scoring import bell
from pgoutlier.db.settings import Settings
from pgoutlier.db.sql.identifiers import CHANNEL
from pgoutlier.worker.runtime import Runtime, make_runtime
from tests.servers import Postgres, running_postgres
from tests.support import Table, attach_table, heard, make_table, until

Connect = Callable[..., psycopg.Connection[Any]]
User = psycopg.Connection[Any]


# -- notifications


@pytest.fixture
def listener(connect: Connect) -> psycopg.Connection[Any]:
    """A session that hears."""
    session = connect()
    session.execute(f"LISTEN {CHANNEL}")
    return session


def test_writers_notify_only_while_a_listener_sleeps(
    transactions: Table, listener: psycopg.Connection[Any]
) -> None:
    transactions.insert(1)
    assert heard(listener, CHANNEL, transactions.user) == []
    assert bell.fall_asleep(listener, {"transactions"}) == {"transactions"}
    transactions.insert(2)
    transactions.user.execute("UPDATE transactions SET amount = amount + 1")
    assert heard(listener, CHANNEL, transactions.user) == ["transactions"] * 2
    bell.wake_up(listener, {"transactions"})
    transactions.insert(3)
    assert heard(listener, CHANNEL, transactions.user) == []
    assert transactions.queued() == [1, 1, 2, 2, 3]


def test_writers_notify_while_any_of_two_listeners_sleeps(
    transactions: Table, listener: psycopg.Connection[Any], connect: Connect
) -> None:
    other = connect()
    assert bell.fall_asleep(other, {"transactions"})
    assert bell.fall_asleep(listener, {"transactions"}) == set()
    transactions.insert(1)
    assert heard(listener, CHANNEL, transactions.user) == ["transactions"]


def test_a_listener_that_is_killed_asleep_leaves_no_writer_notifying(
    transactions: Table, listener: psycopg.Connection[Any], connect: Connect
) -> None:
    asleep = connect()
    bell.fall_asleep(asleep, {"transactions"})
    transactions.user.execute("SELECT pg_terminate_backend(%s)", (asleep.info.backend_pid,))
    until(lambda: bell.fall_asleep(listener, {"transactions"}), "its lock is free")
    bell.wake_up(listener, {"transactions"})
    transactions.insert(1)
    assert heard(listener, CHANNEL, transactions.user) == []


# -- two-phase commit


@pytest.fixture(scope="module")
def preparing(postgres: Postgres, scratch: Path) -> Iterator[Postgres]:
    """The same PostgreSQL, where transactions may be prepared."""
    folder = scratch / f"prep{postgres.version}"
    with running_postgres(folder, postgres.bin_dir, max_prepared_transactions=5) as made:
        yield made


@pytest.fixture
def database_that_prepares(preparing: Postgres) -> Iterator[str]:
    with preparing.database() as url:
        yield url


def test_a_writer_can_prepare_its_transaction_while_a_listener_sleeps(
    database_that_prepares: str, settings: Settings
) -> None:
    here = settings.model_copy(update={"database_url": SecretStr(database_that_prepares)})
    runtime = make_runtime(here, application_name="tests")
    with psycopg.connect(database_that_prepares, autocommit=True) as user:
        table = make_table(user, runtime)
        bell.fall_asleep(user, {"transactions"})
        user.execute("BEGIN")
        table.insert(1, 10)
        user.execute("PREPARE TRANSACTION 'two'")
        assert table.queued() == []
        user.execute("COMMIT PREPARED 'two'")
        assert table.queued() == list(range(1, 11))
    runtime.engine.dispose()


# -- plans


@pytest.mark.parametrize("feature_view", [False, True], ids=["columns", "feature view"])
def test_an_update_of_one_row_makes_no_plan_that_the_next_of_many_suffers_from(
    user: User, runtime: Runtime, feature_view: bool
) -> None:
    """With the plan for one row the second takes a quarter of an hour."""
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    user.execute("CREATE VIEW f AS SELECT id, x FROM t")
    how = {"feature_view": "f"} if feature_view else {"features": "x"}
    table = attach_table(user, runtime, relation="t", key="id", **how)
    user.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 60000) i")
    user.execute("DELETE FROM outlier.queue_t")
    user.execute("SET statement_timeout = '60s'")
    user.execute("UPDATE t SET x = x + 1 WHERE id = 1")
    user.execute("UPDATE t SET x = x + 1")
    assert table.rows("SELECT sum(n_keys) FROM outlier.queue_t") == [(60_001,)]


@pytest.mark.parametrize("follower", ["history", "notices"])
def test_a_score_of_one_row_makes_no_plan_that_the_next_of_many_suffers_from(
    transactions: Table, follower: str
) -> None:
    source = transactions.source
    made = {
        "history": [*history_objects.table(source.definition), *history_objects.trigger(source.definition)],
        "notices": notice_objects.create(source.definition),
    }[follower]
    user = transactions.user
    for statement in made:
        user.execute(statement)
    user.execute(
        "INSERT INTO outlier.scores_transactions SELECT i, 1, 0, now(), 1, false FROM generate_series(1, 60000) i"
    )
    user.execute("SET statement_timeout = '60s'")
    user.execute("UPDATE outlier.scores_transactions SET model_version = 2 WHERE key = 1")
    user.execute("UPDATE outlier.scores_transactions SET model_version = 3, flagged = true")
    kept = {"history": "score_history_transactions", "notices": "notices"}[follower]
    assert transactions.rows(f"SELECT count(*) FROM outlier.{kept}") == [
        (60_001 if follower == "history" else 60_000,)
    ]


# -- large statements


@pytest.mark.postgres18
def test_long_keys_are_queued_in_pieces_of_some_megabytes(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id text PRIMARY KEY, x float8)")
    attach_table(user, runtime, relation="t", key="id", features="x")
    user.execute("INSERT INTO t SELECT repeat('k', 200000) || i, 1 FROM generate_series(1, 150) i")
    user.execute("UPDATE t SET x = 2")
    rows = user.execute(
        "SELECT rescore, n_keys, octet_length(array_to_string(keys, '')) FROM outlier.queue_t"
    ).fetchall()
    for rescore in (False, True):
        assert sum(n for again, n, _ in rows if again is rescore) == 150
    assert max(size for _, _, size in rows) < 12_000_000
    assert len(rows) < 20


def test_keys_of_usual_length_make_full_pieces(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id text PRIMARY KEY, x float8)")
    attach_table(user, runtime, relation="t", key="id", features="x")
    for n in (1, 100, 101, 25_000):
        user.execute("DELETE FROM outlier.queue_t; DELETE FROM t")
        user.execute(f"INSERT INTO t SELECT 'key ' || i, 1 FROM generate_series(1, {n}) i")
        pieces = user.execute("SELECT n_keys FROM outlier.queue_t ORDER BY id").fetchall()
        assert [n for (n,) in pieces] == [10_000] * (n // 10_000) + [n % 10_000] * (n % 10_000 > 0)


# -- changes of the key's column

CHANGES = {
    "bigint": ("ALTER TABLE t ALTER id TYPE bigint", "3000000000"),
    "text": ("ALTER TABLE t ALTER id TYPE text", "'abc'"),
    "uuid": ("ALTER TABLE t ALTER id TYPE uuid USING gen_random_uuid()", "gen_random_uuid()"),
    "numeric": ("ALTER TABLE t ALTER id TYPE numeric", "1.5"),
    "renamed": ("ALTER TABLE t RENAME id TO number", "3"),
    "dropped": ("ALTER TABLE t DROP id CASCADE", None),
}


@pytest.mark.parametrize("n_rows", [1, 20_000], ids=["one row", "many rows"])
@pytest.mark.parametrize("change", CHANGES)
def test_no_change_of_the_key_column_fails_a_writer(
    user: User, runtime: Runtime, change: str, n_rows: int
) -> None:
    user.execute("CREATE TABLE t (id int, x float8, PRIMARY KEY (id))")
    attach_table(user, runtime, relation="t", key="id", features="x")
    user.execute("INSERT INTO t VALUES (1, 1), (2, 2)")
    drop_views(user)
    statement, value = CHANGES[change]
    user.execute(statement)
    if value is None:
        user.execute(f"INSERT INTO t (x) SELECT 3 FROM generate_series(1, {n_rows})")
    else:
        user.execute(f"INSERT INTO t SELECT {value}, 3")
    user.execute("UPDATE t SET x = x + 1")
    user.execute("DELETE FROM t")


def drop_views(user: User) -> None:
    """Those of ours on t, which PostgreSQL would not let it change beneath."""
    user.execute("DROP VIEW outlier.rows_t CASCADE")


def test_keys_that_fit_are_queued_all_the_same_after_a_change_of_type(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    table = attach_table(user, runtime, relation="t", key="id", features="x")
    drop_views(user)
    user.execute("ALTER TABLE t ALTER id TYPE bigint")
    user.execute("INSERT INTO t VALUES (7, 1)")
    assert table.queued() == [7]
