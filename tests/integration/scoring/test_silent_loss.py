"""No silent loss: what the worker cannot see, read or write stands still or is named, and nothing of it is removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from pgoutlier.db.scoring import unreadable
from pgoutlier.db.settings import Settings
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.upkeep import maintenance
from tests.support import Table, attach_table, until, waits

User = psycopg.Connection[Any]


# -- row-level security


@pytest.fixture
def hidden(transactions: Table, settings: Settings, role: str, database_url: str) -> Iterator[Table]:
    """A table whose rows a policy hides from the role that the worker connects as, scored before that."""
    user = transactions.user
    transactions.promote()
    transactions.insert(1, 40)
    transactions.drain()
    transactions.insert(41, 50)
    user.execute(f"GRANT USAGE ON SCHEMA outlier TO {role}")
    user.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public, outlier TO {role}")
    user.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA outlier TO {role}")
    user.execute("ALTER TABLE transactions ENABLE ROW LEVEL SECURITY")
    url = database_url.replace("postgres@", f"{role}@")
    runtime = make_runtime(
        settings.model_copy(update={"database_url": SecretStr(url)}), application_name="tests"
    )
    yield replace(transactions, runtime=runtime)
    runtime.engine.dispose()


def test_rows_that_a_policy_hides_stay_queued_and_the_problem_is_said(hidden: Table) -> None:
    assert hidden.drain().n_scored == 0
    assert hidden.queued() == list(range(41, 51))
    assert hidden.quarantined() == {}
    assert "row-level security policy" in (hidden.source.last_problem or "")


@pytest.mark.parametrize("work", [maintenance.prune_all, maintenance.sweep_all])
def test_nothing_is_removed_or_found_of_rows_that_a_policy_hides(
    hidden: Table, work: Callable[[Runtime], dict[str, int]]
) -> None:
    assert work(hidden.runtime) == {}
    assert hidden.scored() == list(range(1, 41))
    assert hidden.queued() == list(range(41, 51))


# -- one row holds up no others


def test_a_key_that_no_table_of_ours_can_hold_holds_up_no_other_row(user: User, runtime: Runtime) -> None:
    """Compressed otherwise than our columns it fits in the index of the user's table alone."""
    try:
        user.execute("CREATE TABLE t (id text COMPRESSION lz4 PRIMARY KEY, x float8)")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this PostgreSQL was built without LZ4")
    table = attach_table(user, runtime, relation="t", key="id", features="x")
    table.promote()
    user.execute("INSERT INTO t SELECT repeat('k', 400000), 1")
    user.execute("INSERT INTO t SELECT i, 1 FROM generate_series(1, 300) i")
    for _ in range(12):
        table.drain()
        table.make_due()
    assert len(table.scored()) == 300
    assert [len(key) for key in table.queued()] == [400_000]
    assert "index row" in table.keys("SELECT last_error FROM outlier.queue_t")[0]


@pytest.mark.postgres18
def test_one_long_key_takes_no_memory_for_all_rows_beside_it(
    user: User, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of a batch are padded to the longest one."""
    user.execute("CREATE TABLE t (id text PRIMARY KEY, x float8)")
    table = attach_table(user, runtime, relation="t", key="id", features="x")
    table.promote()
    user.execute(
        "INSERT INTO t SELECT CASE WHEN i = 17 THEN repeat('b', 200000) ELSE 'k' || i END, 1"
        " FROM generate_series(1, 2000) i"
    )
    sizes = []
    read = unreadable.read

    def read_and_measure(*args: Any, **options: Any) -> Any:
        result = read(*args, **options)
        sizes.append(result[1].keys.nbytes)
        return result

    monkeypatch.setattr(unreadable, "read", read_and_measure)
    assert table.drain().n_scored == 2_000
    assert table.queued() == []
    assert max(sizes) < 160_000_000


# -- housekeeping


def test_a_sweep_goes_where_another_of_the_source_is_under_way(
    transactions: Table, connect: Callable[..., User]
) -> None:
    transactions.insert(1, 3)
    transactions.user.execute("DELETE FROM outlier.queue_transactions")
    other = connect(autocommit=False)
    other.execute("LOCK TABLE transactions IN ACCESS EXCLUSIVE MODE")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(maintenance.sweep, transactions.runtime, "transactions")
        try:
            until(lambda: waits(transactions.user), "the first sweep waits for the table")
            assert maintenance.sweep(transactions.runtime, "transactions") == 0
            assert not first.done()
        finally:
            other.rollback()
        assert first.result() == 3
