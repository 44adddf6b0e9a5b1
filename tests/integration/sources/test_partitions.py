"""Tables in partitions: what is read of them, and partitions that come, go and change under way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from pgoutlier.db.scoring import claimed_rows, queue
from pgoutlier.db.upkeep import turns
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.upkeep import maintenance
from tests.conftest import Connect
from tests.support import Connection, Table, attach_table

PAYMENTS = """
CREATE TABLE payments (id bigint, at timestamptz, x float8, y float8, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)
"""
MONTH = "CREATE TABLE payments_{n} PARTITION OF payments FOR VALUES FROM ('2026-{n:02}-01') TO ('2026-{next:02}-01')"


def month(n: int) -> str:
    return MONTH.format(n=n, next=n + 1)


@pytest.fixture
def payments(user: Connection, runtime: Runtime) -> Table:
    """In eight months, attached, with a champion."""
    user.execute("SET timezone = 'UTC'")
    user.execute(PAYMENTS)
    for n in range(1, 9):
        user.execute(month(n))  # type: ignore[arg-type]
    table = attach_table(user, runtime, relation="payments", features="x,y")
    table.promote()
    return table


def insert(
    user: Connection, first: int, last: int, *, months: tuple[int, ...], into: str = "payments"
) -> None:
    user.execute(
        f"INSERT INTO {into} SELECT i, make_timestamptz(2026, m, 1 + (i %% 28)::integer, 0, 0, 0, 'UTC'), i * 0.5,"  # type: ignore[arg-type]
        " sqrt(i) FROM generate_series(%s::bigint, %s::bigint) i, unnest(%s::int[]) m",
        (first, last, list(months)),
    )


def n_unscored(table: Table) -> int:
    return int(
        table.keys(
            "SELECT count(*) FROM payments t WHERE NOT EXISTS (SELECT FROM outlier.scores_payments s"
            " WHERE s.key_1 = t.id AND s.key_2 = t.at)"
        )[0]
    )


def partitions_read(table: Table, *, n_rows: int) -> set[str]:
    """Those in the plan of the read of one claim."""
    with table.runtime.engine.begin() as connection, plans(connection) as found:
        queue.prepare(connection)
        claim = queue.claim(connection, table.source.definition, at_most=n_rows, whole_batch_attempts=3)
        assert claim.n_keys == n_rows
        claimed_rows.read_claimed(connection, table.source.definition, claim)
    [plan] = [text for text in found if "lseg" in text]
    return set(re.findall(r" on (payments_\d+)", plan))


@contextmanager
def plans(connection: Any) -> Iterator[list[str]]:
    """The plans of statements as they are run."""
    found: list[str] = []
    session = connection.connection.driver_connection
    session.add_notice_handler(lambda notice: found.append(notice.message_primary or ""))
    session.execute("LOAD 'auto_explain'")
    for name, value in {
        "auto_explain.log_min_duration": "0",
        "auto_explain.log_level": "notice",
        "auto_explain.log_nested_statements": "off",
        "client_min_messages": "notice",
    }.items():
        session.execute("SELECT set_config(%s, %s, true)", (name, value))
    yield found


@pytest.mark.parametrize("n_rows", [20, 1_000], ids=["few", "many"])
def test_a_claim_reads_the_partitions_that_its_keys_are_in_and_no_other(payments: Table, n_rows: int) -> None:
    insert(payments.user, 1, 3_000, months=(2, 3, 6))
    payments.drain_all()
    insert(payments.user, 10_001, 10_000 + n_rows // 2, months=(4, 5))
    payments.user.execute("ANALYZE payments")
    assert partitions_read(payments, n_rows=n_rows) == {"payments_4", "payments_5"}


def test_rows_that_move_to_another_partition_have_one_score(payments: Table) -> None:
    insert(payments.user, 1, 100, months=(1,))
    payments.drain_all()
    payments.user.execute("UPDATE payments SET at = at + interval '1 month' WHERE id <= 40")
    payments.drain_all()
    assert n_unscored(payments) == 0
    maintenance.prune_all(payments.runtime)
    assert payments.rows("SELECT count(*), count(DISTINCT key_1) FROM outlier.scores_payments") == [
        (100, 100)
    ]


def test_a_partition_that_is_attached_later_brings_its_rows_under_the_sweep(payments: Table) -> None:
    user = payments.user
    user.execute("CREATE TABLE payments_9 (LIKE payments INCLUDING ALL)")
    insert(user, 1, 50, months=(9,), into="payments_9")
    user.execute(
        "ALTER TABLE payments ATTACH PARTITION payments_9 FOR VALUES FROM ('2026-09-01') TO ('2026-10-01')"
    )
    assert maintenance.sweep(payments.runtime, "payments") == 50
    payments.drain_all()
    assert n_unscored(payments) == 0


def test_scores_of_a_partition_that_is_dropped_or_detached_go_with_the_next_prune(payments: Table) -> None:
    insert(payments.user, 1, 30, months=(1, 2, 3))
    payments.drain_all()
    payments.user.execute("DROP TABLE payments_1; ALTER TABLE payments DETACH PARTITION payments_2")
    maintenance.prune_all(payments.runtime)
    assert payments.keys("SELECT DISTINCT extract(month from key_2)::int FROM outlier.scores_payments") == [3]


def test_partitions_are_made_attached_detached_and_dropped_while_rows_are_written_and_scored(
    payments: Table, connect: Connect
) -> None:
    """None of it fails or is held up by the others for long, and each row that stays has one score."""

    def write() -> None:
        with connect() as user:
            for n in range(150):
                insert(user, n * 10, n * 10 + 9, months=(6, 7, 8))

    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(write)
        n = 9
        while not writing.done():
            user = payments.user
            user.execute(f"CREATE TABLE payments_{n} (LIKE payments INCLUDING ALL)")  # type: ignore[arg-type]
            insert(user, 1, 20, months=(n,), into=f"payments_{n}")
            user.execute(
                f"ALTER TABLE payments ATTACH PARTITION payments_{n}"  # type: ignore[arg-type]
                f" FOR VALUES FROM ('2026-{n:02}-01') TO ('2026-{n + 1:02}-01')"
            )
            payments.drain()
            user.execute(
                f"ALTER TABLE payments DETACH PARTITION payments_{n - 8}; DROP TABLE payments_{n - 8}"
            )  # type: ignore[arg-type]
            n += 1
            if n > 11:
                break
        while not writing.done():
            payments.drain()
        writing.result()
    maintenance.sweep(payments.runtime, "payments")
    payments.drain_all()
    maintenance.prune_all(payments.runtime)
    assert n_unscored(payments) == 0
    assert payments.rows(
        "SELECT (SELECT count(*) FROM outlier.scores_payments) = (SELECT count(*) FROM payments)"
    ) == [(True,)]


def test_rows_of_partitions_are_estimated_by_looking_the_partitions_up_once(payments: Table) -> None:
    insert(payments.user, 1, 100, months=(2, 3))
    payments.user.execute("ANALYZE payments_2, payments_3")
    with payments.runtime.engine.begin() as connection, plans(connection) as found:
        assert turns.n_rows(connection, payments.source.definition.relation) == 200
    [plan] = [text for text in found if "reltuples" in text]
    assert "pg_partition_tree" in plan
    assert "SubPlan" not in plan  # which would be run for each relation of the database
