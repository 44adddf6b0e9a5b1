"""The newest rows are read by an index, however it has its NULLs, and attach and doctor say where one is missing."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from pgoutlier.db.sql.statements import compose, one, run
from pgoutlier.db.training.newest import Window, missing_index, newest_rows
from pgoutlier.worker.doctor import source_checks
from pgoutlier.worker.runtime import Runtime
from tests.integration.conftest import Run
from tests.support import Table, attach_table

User = psycopg.Connection[Any]

ORDERS = ["at", "at DESC", "at NULLS FIRST", "at DESC NULLS LAST", "at, x"]


@pytest.fixture
def payments(user: User, runtime: Runtime) -> Table:
    """5,000 rows, one a minute, the last of them without a time."""
    user.execute("CREATE TABLE payments (id bigint PRIMARY KEY, x float8, at timestamptz)")
    user.execute(
        "INSERT INTO payments SELECT i, i, '2026-01-01'::timestamptz"
        " + CASE WHEN i <= 4000 THEN i END * interval '1 min' FROM generate_series(1, 5000) i; ANALYZE payments"
    )
    return attach_table(user, runtime, relation="payments", key="id", features="x", time="at")


def window(table: Table, newest: int) -> Window:
    with table.runtime.engine.begin() as connection:
        return newest_rows(connection, table.source.definition, newest)


def keys(table: Table, newest: int) -> list[int]:
    with table.runtime.engine.begin() as connection:
        statement = compose(
            "SELECT w.key FROM ({w}) w ORDER BY w.moment DESC NULLS LAST, w.key", w=window(table, newest).rows
        )
        return [key for (key,) in run(connection, statement)]


def plan(table: Table, newest: int) -> list[str]:
    """How the table is read."""
    with table.runtime.engine.begin() as connection:
        found = run(connection, compose("EXPLAIN ANALYZE {w}", w=window(table, newest).rows))
        return [line for (line,) in found if " on payments b" in line]


@pytest.mark.parametrize("order", ORDERS)
def test_the_newest_rows_are_found_by_an_index_in_any_order(payments: Table, order: str) -> None:
    payments.user.execute(f"CREATE INDEX ON payments ({order})".encode())
    assert sorted(keys(payments, 100)) == list(range(3_901, 4_001))
    scans = plan(payments, 100)
    assert len(scans) == 2
    assert "using payments_at" in scans[0]
    assert "never executed" in scans[1], "rows without a time are looked at where those with one do not do"


def test_rows_without_a_time_are_older_than_all_others(payments: Table) -> None:
    found = keys(payments, 4_010)
    assert found[:4_000] == list(range(4_000, 0, -1))
    assert set(found[4_000:]) <= set(range(4_001, 5_001))
    assert len(found) == 4_010


def test_the_newest_by_their_keys_are_read_by_the_index_of_the_key(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE payments (id bigint PRIMARY KEY, x float8)")
    user.execute("INSERT INTO payments SELECT i, i FROM generate_series(1, 5000) i; ANALYZE payments")
    table = attach_table(user, runtime, relation="payments", key="id", features="x")
    assert sorted(keys(table, 10)) == list(range(4_991, 5_001))
    [scan] = plan(table, 10)
    assert "Scan Backward using payments_pkey" in scan


def test_keys_that_lie_together_are_told(payments: Table) -> None:
    span = window(payments, 100).span
    assert span is not None
    assert (span.after, span.up_to) == ("3900", "4000")
    payments.user.execute("UPDATE payments SET at = '2026-01-09' WHERE id = 1")
    assert window(payments, 100).span is None, "one of them lies far from the others"


@pytest.mark.parametrize("kind", ["smallint", "integer", "bigint"])
def test_a_span_begins_at_the_smallest_number_there_is(user: User, runtime: Runtime, kind: str) -> None:
    smallest = {"smallint": -(2**15), "integer": -(2**31), "bigint": -(2**63)}[kind]
    user.execute(f"CREATE TABLE payments (id {kind} PRIMARY KEY, x float8)".encode())
    user.execute("INSERT INTO payments VALUES (%s, 1)", (smallest,))
    table = attach_table(user, runtime, relation="payments", key="id", features="x")
    span = window(table, 10).span
    assert span is not None
    with runtime.engine.begin() as connection:
        statement = compose(
            "SELECT count(*) FROM public.payments t WHERE {there}",
            there=span.has(table.source.definition.key.in_theirs("t")),
        )
        assert one(connection, statement) == 1


def test_attach_says_which_index_to_make_and_doctor_reminds(
    user: User, runtime: Runtime, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.execute('CREATE TABLE payments (id bigint PRIMARY KEY, x float8, "Paid At" timestamptz)')
    statement = 'CREATE INDEX CONCURRENTLY ON public.payments ("Paid At");'
    asked = ("attach", "payments", "--features", "x", "--time", "Paid At")
    assert json.loads(run(*asked, "--json").output)["time_index_advice"] == statement
    assert f"quickly, first run: {statement}" in run(*asked).output
    table = Table(user, runtime, "payments")

    def finding() -> Any:
        with runtime.engine.begin() as connection:
            return source_checks._newest(connection, runtime, table.source)

    assert finding().ok
    assert statement in finding().detail
    user.execute("INSERT INTO payments SELECT i, 1, now() FROM generate_series(1, 2000) i; ANALYZE payments")
    monkeypatch.setattr(source_checks, "_MANY_ROWS", 1_000)
    assert (finding().ok, finding().mend) == (False, statement)
    user.execute(statement.encode())
    assert finding().ok
    assert json.loads(run(*asked, "--json").output)["time_index_advice"] is None


def test_the_index_of_a_partitioned_table_is_advised_as_postgres_makes_it(
    user: User, runtime: Runtime
) -> None:
    user.execute(
        "CREATE TABLE t (id int PRIMARY KEY, x float8, at timestamptz) PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100)"
    )
    table = attach_table(user, runtime, relation="t", key="id", features="x", time="at")
    with runtime.engine.begin() as connection:
        statement = missing_index(connection, table.source.definition)
        assert statement == "CREATE INDEX ON public.t (at);"
        user.execute(statement.encode())
        assert missing_index(connection, table.source.definition) is None
