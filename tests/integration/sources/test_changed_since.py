"""Tables whose shape changes after they were attached: partitions that come and go, keys that are unique no more."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgoutlier.worker.doctor.finding import Finding
from pgoutlier.worker.doctor.source_checks import of_source
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.upkeep import maintenance
from tests.support import Table, attach_table

User = psycopg.Connection[Any]

PARTITIONED = (
    "CREATE TABLE t (id int PRIMARY KEY, x float8) PARTITION BY RANGE (id);"
    " CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (50); CREATE TABLE high PARTITION OF t DEFAULT"
)


def scored_table(user: User, runtime: Runtime, statement: str) -> Table:
    """Rows 1 to 99 with scores."""
    user.execute(statement.encode())
    table = attach_table(user, runtime, relation="t", key="id", features="x")
    table.promote()
    user.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 99) i")
    table.drain()
    return table


def of_table(table: Table) -> Finding:
    with table.runtime.engine.begin() as connection:
        return next(iter(of_source(connection, table.runtime, table.source)))


def test_rows_of_a_partition_that_is_away_for_a_while_are_scored_when_it_is_back(
    user: User, runtime: Runtime
) -> None:
    table = scored_table(user, runtime, PARTITIONED)
    errors = table.errors()
    user.execute("ALTER TABLE t DETACH PARTITION low")
    maintenance.prune_all(runtime)
    assert table.scored() == list(range(50, 100))
    user.execute("ALTER TABLE t ATTACH PARTITION low FOR VALUES FROM (0) TO (50)")
    assert maintenance.sweep(runtime, "t") == 49
    table.drain()
    assert table.errors() == errors


def test_a_partition_with_the_same_keys_is_scored_anew_as_the_docs_say(user: User, runtime: Runtime) -> None:
    table = scored_table(user, runtime, PARTITIONED)
    user.execute(
        "CREATE TABLE other (id int PRIMARY KEY, x float8); INSERT INTO other VALUES (1, 7), (10, 10)"
    )
    user.execute(
        "BEGIN; ALTER TABLE t DETACH PARTITION low; ALTER TABLE t ATTACH PARTITION other FOR VALUES FROM (0) TO (50);"
        " DELETE FROM outlier.scores_t s USING other p WHERE s.key = p.id; COMMIT"
    )
    maintenance.sweep(runtime, "t")
    maintenance.prune_all(runtime)
    table.drain()
    errors = table.errors()
    assert sorted(errors) == [1, 10, *range(50, 100)]
    user.execute("UPDATE t SET x = 10 WHERE id = 1")
    table.drain()
    assert table.errors()[1] == pytest.approx(errors[10])
    assert errors[1] != errors[10]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ALTER TABLE t DROP CONSTRAINT t_pkey", "id is not unique in public.t"),
        (
            "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD UNIQUE (id), ALTER id DROP NOT NULL",
            "The key id may be NULL",
        ),
        ("CREATE TABLE child () INHERITS (t)", "public.child inherits from public.t"),
    ],
)
def test_a_key_that_is_unique_no_more_stops_nobody_and_is_named(
    user: User, runtime: Runtime, change: str, said: str
) -> None:
    table = scored_table(user, runtime, "CREATE TABLE t (id int PRIMARY KEY, x float8)")
    assert of_table(table).ok
    user.execute(change.encode())
    user.execute(f"INSERT INTO {'child' if 'child' in change else 't'} VALUES (100, 1)".encode())
    if "UNIQUE" not in change:
        user.execute("INSERT INTO t VALUES (100, 2)")
    if "INHERITS" not in change:
        user.execute("INSERT INTO t VALUES (101, 3)")
    maintenance.sweep(runtime, "t")
    assert table.drain().n_failed_batches == 0
    assert table.queued() == []
    assert 100 in table.scored()
    assert not of_table(table).ok
    assert said in of_table(table).detail
