"""A table that a subscription writes: what logical replication applies is queued and scored as any other change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from pgoutlier.db.settings import Settings
from pgoutlier.worker.doctor import source_checks
from pgoutlier.worker.runtime import make_runtime
from tests.servers import Postgres, running_postgres
from tests.support import Table, attach_table, until

User = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def replicating(postgres: Postgres, scratch: Path) -> Iterator[Postgres]:
    """The same PostgreSQL, where changes are decoded."""
    folder = scratch / f"repl{postgres.version}"
    with running_postgres(folder, postgres.bin_dir, wal_level="logical") as made:
        yield made


TABLES = {
    "table": "CREATE TABLE t (id int PRIMARY KEY, x float8, note text)",
    "partitioned": "CREATE TABLE t (id int PRIMARY KEY, x float8, note text) PARTITION BY RANGE (id);"
    " CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (50); CREATE TABLE t2 PARTITION OF t DEFAULT",
}


@pytest.fixture(params=TABLES)
def pair(
    request: pytest.FixtureRequest, replicating: Postgres, settings: Settings
) -> Iterator[tuple[User, Table]]:
    """(the publisher's session, the table at the subscriber, attached before there was a subscription)."""
    with (
        replicating.database(template="template0") as there,
        replicating.database() as here,
        psycopg.connect(there, autocommit=True) as publisher,
        psycopg.connect(here, autocommit=True) as user,
    ):
        publisher.execute(f"{TABLES[request.param]}; CREATE PUBLICATION p FOR TABLE t")
        publisher.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        user.execute(TABLES[request.param])
        runtime = make_runtime(settings.model_copy(update={"database_url": SecretStr(here)}))
        table = attach_table(user, runtime, relation="t", key="id", features="x")
        table.promote()
        with user.cursor() as cursor:
            cursor.execute(
                f"CREATE SUBSCRIPTION s CONNECTION '{there}' PUBLICATION p"
                " WITH (create_slot = false, slot_name = s, copy_data = false)"
            )
        yield publisher, table
        user.execute("ALTER SUBSCRIPTION s DISABLE; ALTER SUBSCRIPTION s SET (slot_name = NONE)")
        user.execute("DROP SUBSCRIPTION s")
        runtime.engine.dispose()

        def dropped() -> bool:
            with suppress(psycopg.errors.ObjectInUse):
                publisher.execute("SELECT pg_drop_replication_slot('s')")
                return True
            return False

        until(dropped, "the slot is free")


def said(table: Table) -> source_checks.Finding:
    with table.runtime.engine.begin() as connection:
        found = source_checks.of_source(connection, table.runtime, table.source)
        return next(finding for finding in found if finding.what == "t triggers")


def applied(publisher: User, table: Table, statement: str) -> None:
    """Have the subscriber apply a statement of the publisher, all of it."""
    publisher.execute(statement)
    position = publisher.execute("SELECT pg_current_wal_lsn()").fetchone()
    assert position is not None

    def there() -> bool:
        return bool(
            table.user.execute(
                "SELECT FROM pg_stat_subscription WHERE relid IS NULL AND latest_end_lsn >= %s", position
            ).rowcount
        )

    until(there, "the subscriber has applied it")


def attach_again(table: Table, **options: Any) -> None:
    attach_table(table.user, table.runtime, relation="t", key="id", features="x", **options)


def test_replicated_rows_are_queued_once_the_table_is_attached_again(pair: tuple[User, Table]) -> None:
    publisher, table = pair
    assert not said(table).ok
    assert "keep their scores" in said(table).detail
    attach_again(table)
    assert said(table).ok
    applied(publisher, table, "INSERT INTO t SELECT i, i, 'x' FROM generate_series(40, 60) i")
    until(lambda: len(table.queued()) == 21, "all are queued")
    table.drain_all()
    before = table.errors()
    applied(publisher, table, "UPDATE t SET note = 'y'; UPDATE t SET x = 1000 WHERE id IN (41, 60)")
    until(lambda: table.rows("SELECT count(*) FROM t WHERE x = 1000") == [(2,)], "it is there")
    assert table.queued() == [41, 60]
    table.drain_all()
    changed = {key for key, error in table.errors().items() if error != before[key]}
    assert changed == {41, 60}


def test_writers_of_the_subscriber_itself_queue_each_row_once(pair: tuple[User, Table]) -> None:
    _, table = pair
    attach_again(table)
    table.user.execute(
        "INSERT INTO t SELECT i, i, 'x' FROM generate_series(1, 3) i; UPDATE t SET x = 9 WHERE id = 2"
    )
    assert table.queued() == [1, 2, 2, 3]


def test_what_an_administrator_sets_is_left_and_said(pair: tuple[User, Table]) -> None:
    publisher, table = pair
    attach_again(table)
    table.user.execute("ALTER TABLE t DISABLE TRIGGER outlier_t_update_row")
    attach_again(table)
    assert not said(table).ok
    assert "ALTER TABLE public.t ENABLE REPLICA TRIGGER outlier_t_update_row;" in said(table).mend
    attach_again(table, row_triggers=False)
    applied(publisher, table, "INSERT INTO t VALUES (1, 1, 'x')")
    until(lambda: table.rows("SELECT count(*) FROM t") == [(1,)], "it is there")
    assert table.queued() == []
    attach_again(table, row_triggers=True)
    assert said(table).ok


def test_a_change_of_the_key_does_not_stop_the_replication(pair: tuple[User, Table]) -> None:
    publisher, table = pair
    attach_again(table)
    table.user.execute("SELECT outlier.before_migration('t')")
    if table.rows("SELECT relkind::text FROM pg_class WHERE relname = 't'") == [("p",)]:
        pytest.skip("PostgreSQL does not alter the type of a partition key")
    table.user.execute("ALTER TABLE t ALTER id TYPE bigint")
    publisher.execute("ALTER TABLE t ALTER id TYPE bigint")
    applied(publisher, table, "INSERT INTO t VALUES (3000000000, 1, 'x'), (7, 1, 'x')")
    until(lambda: table.rows("SELECT count(*) FROM t") == [(2,)], "they are there")
    assert table.queued() == [7]
    table.user.execute("SELECT outlier.after_migration('t')")
    attach_again(table)
    applied(publisher, table, "UPDATE t SET x = 2")
    until(lambda: table.rows("SELECT count(*) FROM t WHERE x = 2") == [(2,)], "it is there")
    assert sorted(set(table.queued())) == [7, 3_000_000_000]


def test_with_a_feature_view_and_written_columns_replicated_changes_count_and_ours_do_not(
    pair: tuple[User, Table],
) -> None:
    publisher, table = pair
    table.user.execute(
        "CREATE TABLE u (id int PRIMARY KEY, x float8, note text); CREATE VIEW f AS SELECT id, x FROM u"
    )
    publisher.execute(
        "CREATE TABLE u (id int PRIMARY KEY, x float8, note text); ALTER PUBLICATION p ADD TABLE u"
    )
    table.user.execute("ALTER SUBSCRIPTION s REFRESH PUBLICATION WITH (copy_data = false)")
    other = attach_table(
        table.user, table.runtime, relation="u", key="id", feature_view="f", write_columns=True
    )
    other.promote()
    applied(publisher, table, "INSERT INTO u VALUES (1, 1, 'x')")
    until(lambda: other.queued() == [1], "it is queued")
    other.drain_all()
    assert other.rows("SELECT flagged FROM u") == [(False,)]
    assert other.queued() == []
    applied(publisher, table, "UPDATE u SET note = 'y'")
    until(lambda: other.queued() == [1], "any column may feed the view")
