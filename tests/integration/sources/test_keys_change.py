"""Keys of several columns whose table changes: other types, other names, another number of columns."""

from __future__ import annotations

from typing import Any

import pytest

from pgoutlier.db.errors import SourceError
from pgoutlier.db.notices import notices
from pgoutlier.worker.history import keeping
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.sources import attaching
from pgoutlier.worker.verdicts import judging
from tests.support import Connection, Table, attach_table, make_detector


@pytest.fixture
def orders(user: Connection, runtime: Runtime) -> Table:
    """Ten scored rows under a key of two columns, two of them judged, with a history."""
    user.execute("CREATE TABLE orders (tenant int, id int, x float8, y float8, PRIMARY KEY (tenant, id))")
    table = attach_table(user, runtime, relation="orders", features="x,y")
    table.promote()
    insert(user, 1, 10)
    table.drain_all()
    keeping.keep(runtime, "orders")
    judging.label(runtime, "orders", [["1", "1"], ["0", "2"]], "fraud")
    return table


def insert(user: Connection, first: int, last: int) -> None:
    user.execute(
        "INSERT INTO orders (tenant, id, x, y) SELECT i %% 2, i, i, sqrt(i) FROM generate_series(%s::int, %s::int) i",
        (first, last),
    )


def seen(table: Table) -> list[tuple[Any, ...]]:
    return table.rows("SELECT x, reconstruction_error, verdict FROM outlier.scored_orders ORDER BY x")


def test_wider_types_are_taken_over_by_the_same_attach_and_keep_what_there_is(orders: Table) -> None:
    user, before = orders.user, seen(orders)
    user.execute("SELECT outlier.before_migration('orders')")
    user.execute("ALTER TABLE orders ALTER id TYPE bigint, ALTER tenant TYPE smallint")
    user.execute("SELECT outlier.after_migration('orders')")
    table = attach_table(user, orders.runtime, relation="orders", features="x,y")
    assert table.source.definition.key.types == ("smallint", "bigint")
    assert seen(table) == before
    user.execute("INSERT INTO orders VALUES (1, 3000000000, 11, 1)")
    table.drain_all()
    assert len(seen(table)) == 11
    assert len(keeping.of_row(table.runtime, "orders", ["1", "3000000000"])) == 1


def test_renamed_columns_are_followed_by_the_functions_for_migrations(orders: Table) -> None:
    user, before = orders.user, seen(orders)
    user.execute("SELECT outlier.before_migration('orders')")
    user.execute('ALTER TABLE orders RENAME id TO "No"; ALTER TABLE orders RENAME tenant TO shop')
    user.execute("SELECT outlier.after_migration('orders')")
    assert orders.source.definition.key.columns == ("shop", "No")
    assert seen(orders) == before
    user.execute("INSERT INTO orders VALUES (1, 11, 11, 1)")
    user.execute("UPDATE orders SET y = y + 1 WHERE x <= 3")
    orders.drain_all()
    assert len(seen(orders)) == 11
    assert {row[0] for row, old in zip(seen(orders), before, strict=False) if row != old} == {1, 2, 3}


def test_a_key_of_other_columns_is_refused_and_adopted(orders: Table) -> None:
    """Versions stay; what was kept under the old keys goes, and verdicts are withdrawn."""
    user = orders.user
    user.execute("ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD PRIMARY KEY (id)")
    with pytest.raises(
        SourceError, match=r"kept under a key of type integer; .* pgoutlier adopt orders --key id"
    ):
        attach_table(user, orders.runtime, relation="orders", features="x,y")
    done = attaching.adopt(orders.runtime, "orders", key="id")
    assert done.job is not None
    job_control.work(orders.runtime, done.job.id)
    table = Table(user, orders.runtime, "orders")
    assert table.scored() == list(range(1, 11))
    assert {verdict for *_, verdict in seen(table)} == {None}
    assert table.rows("SELECT count(*) FROM outlier.score_history_orders") == [(0,)]
    judging.label(orders.runtime, "orders", ["3"], "normal")
    assert table.rows("SELECT verdict FROM outlier.scored_orders WHERE id = 3") == [("normal",)]
    table.promote(make_detector(("x", "y"), seed=5))
    user.execute("UPDATE orders SET y = y + 1")
    table.drain_all()
    assert table.rows("SELECT count(*) FROM outlier.score_history_orders") == [(10,)]


def test_a_table_that_becomes_one_in_partitions_is_adopted_with_its_longer_key(
    user: Connection, runtime: Runtime
) -> None:
    user.execute("CREATE TABLE logs (id bigint PRIMARY KEY, at timestamptz NOT NULL, x float8, y float8)")
    table = attach_table(user, runtime, relation="logs", features="x,y")
    table.promote()
    user.execute("INSERT INTO logs SELECT i, '2026-01-15', i, i FROM generate_series(1, 50) i")
    table.drain_all()
    user.execute(
        "ALTER TABLE logs RENAME TO logs_old;"
        " CREATE TABLE logs (LIKE logs_old, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
        " CREATE TABLE logs_1 PARTITION OF logs FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');"
        " INSERT INTO logs SELECT * FROM logs_old"
    )
    with pytest.raises(SourceError, match="id is only part of the key"):
        attaching.adopt(runtime, "logs")
    done = attaching.adopt(runtime, "logs", key="id,at")
    assert done.job is not None
    job_control.work(runtime, done.job.id)
    user.execute("INSERT INTO logs VALUES (51, '2026-01-16', 1, 1)")
    table.drain_all()
    assert table.rows("SELECT count(*) FROM outlier.scored_logs") == [(51,)]
    user.execute("DROP TABLE logs_old")
    assert table.rows("SELECT count(*) FROM outlier.scored_logs") == [(51,)]


def test_notices_of_a_key_of_several_columns_say_it_as_the_views_do(orders: Table) -> None:
    with orders.runtime.engine.begin() as connection:
        notices.turn_on(connection, orders.source)
    orders.promote(make_detector(("x", "y"), threshold=0.0))
    insert(orders.user, 11, 13)
    orders.drain_all()
    told = [key for (key,) in orders.rows("SELECT key FROM outlier.notices ORDER BY id")]
    shown = orders.rows("SELECT row_key FROM outlier.flagged_orders WHERE x > 10")
    assert sorted(told) == sorted(key for (key,) in shown)
    assert orders.source.definition.key.by_column(told[0]).keys() == {"tenant", "id"}  # type: ignore[union-attr]
