"""A pooler between us and PostgreSQL that gives each transaction another session, which others use before and after."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url

from pgoutlier.db import migrate
from pgoutlier.db.engine import is_shared, make_engine
from pgoutlier.db.errors import LockLost, TrainingBusy
from pgoutlier.db.sql import long_locks, statements
from pgoutlier.db.status import overview
from pgoutlier.detector import Progress
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import TrainingWindow
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.listener import listen
from pgoutlier.worker.notices import delivering, webhook_control
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.schedules import scheduling
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.status import flagged_rows
from pgoutlier.worker.thresholds import thresholds
from pgoutlier.worker.training import training
from pgoutlier.worker.upkeep import maintenance
from pgoutlier.worker.verdicts import judging
from pgoutlier.worker.versions import versions
from tests.integration.conftest import Run
from tests.pgbouncer import PgBouncer, running_pgbouncer
from tests.support import (
    FEATURES,
    Table,
    attach_table,
    detach_table,
    make_detector,
    plain_recipe,
    quick_settings,
    register,
    until,
)

User = psycopg.Connection[Any]
# What would be otherwise in a session that has nothing of ours.
OURS = {
    "search_path": "pg_catalog, pg_temp",
    "row_security": "off",
    "transaction_isolation": "read committed",
}
RECIPE = plain_recipe(name="small", epochs=2, early_stopping=None, batch_size=64)


@pytest.fixture
def pooled(scratch: Path, database_url: str) -> Iterator[PgBouncer]:
    """Of two sessions for whoever comes."""
    with running_pgbouncer(database_url, scratch) as pgbouncer:
        yield pgbouncer


@pytest.fixture
def ways(pooled: PgBouncer, database_url: str) -> Iterator[dict[str, Runtime]]:
    """By a pooler, by one and past it, and without one."""
    settings = {
        "pooled": quick_settings(pooled.url),
        "both": quick_settings(pooled.url).model_copy(
            update={"database_direct_url": SecretStr(database_url)}
        ),
        "direct": quick_settings(database_url),
    }
    made = {name: make_runtime(each, application_name="tests") for name, each in settings.items()}
    yield made
    for each in made.values():
        each.engine.dispose()
        each.sessions.dispose()


def settings_of(connection: Any) -> dict[str, str]:
    return {name: str(statements.one(connection, "SELECT current_setting(%s)", (name,))) for name in OURS}


@pytest.mark.postgres18
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_settings_hold_in_each_transaction_and_in_none_of_others(
    scratch: Path, database_url: str, user: User, mode: str
) -> None:
    name = make_url(database_url).database
    user.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'".encode())
    with running_pgbouncer(database_url, scratch, mode=mode, n_sessions=3) as pgbouncer:
        engine = make_engine(pgbouncer.url)
        for _ in range(2):
            with engine.begin() as connection, engine.begin() as other:
                assert is_shared(connection)
                assert settings_of(connection) == settings_of(other) == OURS
                with connection.begin_nested() as savepoint:
                    savepoint.rollback()
                assert settings_of(connection) == OURS
        engine.dispose()
        assert pgbouncer.left_in_sessions() == set()


@pytest.mark.postgres18
def test_what_is_left_in_a_session_is_found_by_these_tests(pooled: PgBouncer) -> None:
    with ExitStack() as opened:
        session: User = opened.enter_context(
            psycopg.connect(pooled.url, autocommit=True, prepare_threshold=0)
        )
        session.execute("SELECT 1")
        session.execute("SELECT pg_advisory_lock(1)")
        session.execute("LISTEN somebody")
        session.execute("SET work_mem = '5MB'")
        session.execute("CREATE TEMPORARY TABLE here (id int)")
    kinds = {what.split()[0] for what in pooled.left_in_sessions()}
    assert kinds == {"prepared", "advisory", "channel", "setting", "temporary"}


@pytest.mark.postgres18
def test_a_statement_that_begins_a_transaction_finds_the_settings_in_it(ways: dict[str, Runtime]) -> None:
    """The driver would begin one without them."""
    for runtime in ways.values():
        with runtime.engine.connect() as connection:
            assert settings_of(connection) == OURS
            connection.rollback()
            assert settings_of(connection) == OURS


@pytest.mark.postgres18
def test_the_schema_is_made_through_a_pooler(scratch: Path, empty_database_url: str) -> None:
    with running_pgbouncer(empty_database_url, scratch, n_sessions=1) as pgbouncer:
        engine = make_engine(pgbouncer.url)
        migrate.upgrade(engine)
        with engine.begin() as connection:
            migrate.require_current(connection)
        engine.dispose()
        assert pgbouncer.left_in_sessions() == set()


@pytest.mark.postgres18
def test_statements_stay_prepared_in_sessions_of_our_own_alone(ways: dict[str, Runtime]) -> None:
    for name, runtime in ways.items():
        with runtime.engine.begin() as connection:
            for _ in range(10):
                statements.run(connection, "SELECT %s::int", (1,))
            prepared = statements.one(connection, "SELECT count(*) FROM pg_prepared_statements")
        assert (prepared > 0) == (name == "direct")


@pytest.fixture
def make_payments(user: User) -> Callable[[Runtime], Table]:
    """A table of 2,000 payments that is attached by this way, whose scores are written into it, too."""

    def make(runtime: Runtime) -> Table:
        user.execute(
            "CREATE TABLE payments (id bigint PRIMARY KEY, amount float8, hour float8, distance float8,"
            " at timestamptz)"
        )
        insert(user, 1, 2_000)
        asked = {"relation": "payments", "features": ",".join(FEATURES), "time": "at", "write_columns": True}
        return attach_table(user, runtime, recipe=RECIPE, **asked)

    return make


def insert(user: User, first: int, last: int) -> None:
    user.execute(
        "INSERT INTO payments SELECT i, sin(i) * 50, i %% 24, sqrt(i),"
        " '2024-01-01'::timestamptz + i * '1 hour'::interval FROM generate_series(%s::int, %s::int) i",
        (first, last),
    )


@pytest.mark.parametrize("n_sessions", [1, 3])
def test_the_job_is_done_with_few_sessions_for_all_and_nothing_is_left_in_them(
    scratch: Path, database_url: str, user: User, make_payments: Callable[[Runtime], Table], n_sessions: int
) -> None:
    """With one session, whoever holds it and waits for another would wait for ever."""
    with running_pgbouncer(database_url, scratch, n_sessions=n_sessions) as pgbouncer, ExitStack() as opened:
        runtimes = [make_runtime(quick_settings(pgbouncer.url)) for _ in range(3)]
        for runtime in runtimes:
            opened.callback(runtime.engine.dispose)
        runtime = runtimes[0]
        table = make_payments(runtime)
        webhook_control.set_webhook(runtime, "payments", "https://nobody.invalid/")
        table.promote(make_detector(FEATURES, threshold=2.0))
        challenger = register(runtime, table.source, make_detector(FEATURES, seed=1))
        versions.challenge(runtime, "payments", challenger, reason="test")
        for first in range(2_001, 4_001, 100):
            insert(user, first, first + 99)
        for key in range(4_001, 4_101):
            insert(user, key, key)
        job = job_control.backfill(runtime, "payments").id
        small = [table_of(each, table).with_settings(batch_rows=100, job_range_rows=100) for each in runtimes]
        with ThreadPoolExecutor(6) as pool:
            # As tasks do: who is amid more work looks whether there is enough for others.
            drains = [
                pool.submit(draining.drain, each.runtime, "payments", call_for_help=lambda: None)
                for each in small
            ]
            works = [pool.submit(job_control.work, each.runtime, job) for each in small]
            assert sum(drain.result().n_failed_batches for drain in drains) == 0
            for work in works:
                work.result()
        until(lambda: not job_control.work(runtime, job) and not table.queued(), "all rows are scored")
        assert len(table.scored()) == 4_100
        every_use_of_the_scores(table, runtime)
        assert delivering.deliver(runtime, "payments").n_delivered == 0  # there is no secret
        with runtime.engine.begin() as connection:
            scheduling.seed(connection, follow=True)
        assert scheduling.tick(runtime, "beat", lambda *_: None) is not None
        for each in runtimes:
            each.engine.dispose()
        assert pgbouncer.left_in_sessions() == set()


def table_of(runtime: Runtime, table: Table) -> Table:
    return replace(table, runtime=runtime)


def every_use_of_the_scores(table: Table, runtime: Runtime) -> None:
    flagged = flagged_rows.newest(runtime, "payments", since=None, limit=5).rows
    assert len(flagged) == 5
    judging.label(runtime, "payments", [str(row["id"]) for row in flagged], "fraud")
    table.user.execute("DELETE FROM payments WHERE id = 2001")
    maintenance.prune_all(runtime)
    assert len(table.scored()) == 4_099
    table.user.execute("ALTER TABLE payments DISABLE TRIGGER USER")
    insert(table.user, 2_001, 2_001)
    table.user.execute("ALTER TABLE payments ENABLE TRIGGER USER")
    assert maintenance.sweep(runtime, "payments") == 1
    table.drain_all()
    assert thresholds.describe(runtime, "payments", window=None)
    source = table.source
    with runtime.engine.begin() as connection:
        [found] = overview.describe(connection, [source])
    assert found.n_queued == 0


HOLDERS = ("pooled", "both", "direct")


@pytest.mark.parametrize("first", HOLDERS)
def test_a_lock_is_held_by_one_whichever_way_the_others_come(
    ways: dict[str, Runtime], transactions: Table, first: str
) -> None:
    source_id = transactions.source.id
    with long_locks.held(ways[first].sessions, "training", source_id) as lock:
        assert lock is not None
        for other in ways.values():
            with long_locks.held(other.sessions, "training", source_id) as refused:
                assert refused is None
            with long_locks.held(other.sessions, "webhook", source_id) as another:
                assert another is not None
        with ways["pooled"].engine.begin() as connection:
            lock.require(connection)
    assert transactions.rows("SELECT FROM outlier.held_locks") == []
    for other in ways.values():
        with long_locks.held(other.sessions, "training", source_id) as free:
            assert free is not None


def lose_locks(user: User) -> None:
    """What happens when a process stands still for longer than its lease, or its session is lost."""
    user.execute("UPDATE outlier.held_locks SET until = clock_timestamp() WHERE until < 'infinity'")
    user.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
    )


@pytest.mark.parametrize("first", HOLDERS)
@pytest.mark.parametrize("second", HOLDERS)
def test_a_lock_that_was_lost_is_another_s_and_its_holder_finds_out(
    ways: dict[str, Runtime], transactions: Table, first: str, second: str
) -> None:
    source_id = transactions.source.id
    with long_locks.held(ways[first].sessions, "training", source_id) as lock:
        assert lock is not None
        lose_locks(transactions.user)
        # Nobody has taken it: it is still this one's.
        with ways["pooled"].engine.begin() as connection:
            lock.require(connection)

        def taken() -> bool:
            # A session that was ended is there for a moment.
            with long_locks.held(ways[second].sessions, "training", source_id) as taken_over:
                if taken_over is None:
                    return False
                with ways["pooled"].engine.begin() as connection:
                    taken_over.require(connection)
                    assert not lock.renew(connection)
                    with pytest.raises(LockLost, match="'training' is another's"):
                        lock.require(connection)
                return True

        until(taken, "the lock is taken over")


@pytest.mark.postgres18
def test_nobody_takes_a_lock_over_while_what_it_is_for_is_written(
    ways: dict[str, Runtime], transactions: Table
) -> None:
    source_id = transactions.source.id
    with long_locks.held(ways["pooled"].sessions, "training", source_id) as lock:
        assert lock is not None
        with ways["direct"].engine.begin() as connection:
            lock.require(connection)
            transactions.user.execute("SET lock_timeout = '50ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                transactions.user.execute("UPDATE outlier.held_locks SET until = now()")


@pytest.mark.postgres18
def test_a_detach_waits_for_what_is_being_written(ways: dict[str, Runtime], transactions: Table) -> None:
    source = transactions.source
    with (
        long_locks.held(ways["pooled"].sessions, "training", source.id) as lock,
        ThreadPoolExecutor(1) as pool,
    ):
        assert lock is not None
        with ways["pooled"].engine.begin() as connection:
            lock.require(connection)
            detached = pool.submit(detach_table, transactions)
            waits = "SELECT FROM pg_locks WHERE NOT granted AND locktype IN ('tuple', 'transactionid')"
            until(lambda: transactions.rows(waits), "the detach waits")
            window = TrainingWindow(n_rows=500, first=None, last=None)
            detector, seal = make_detector(FEATURES), ways["pooled"].seal
            registry.register(connection, source, detector, window=window, metrics={}, seal=seal)
        detached.result()
        with ways["pooled"].engine.begin() as connection, pytest.raises(LockLost, match="was detached"):
            lock.require(connection)


@pytest.mark.postgres18
def test_a_lease_is_renewed_for_as_long_as_it_is_needed(
    ways: dict[str, Runtime], transactions: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_locks, "_RENEWED_EVERY", timedelta(seconds=0.01))
    monkeypatch.setattr(long_locks, "LEASE", timedelta(seconds=60))
    ends = "SELECT until FROM outlier.held_locks"
    with long_locks.held(ways["pooled"].sessions, "training", transactions.source.id):
        [first] = transactions.keys(ends)
        until(lambda: transactions.keys(ends)[0] > first, "the lease is renewed")
    threads = [thread.name for thread in threading.enumerate()]
    until(lambda: "lease training" not in [t.name for t in threading.enumerate()], f"{threads} end")


@pytest.mark.postgres18
@pytest.mark.parametrize("way", HOLDERS)
def test_a_training_that_lost_its_lock_registers_nothing(
    ways: dict[str, Runtime], make_payments: Callable[[Runtime], Table], way: str
) -> None:
    table = make_payments(ways[way])
    source_id = table.source.id

    def on_progress(progress: Progress) -> None:
        if progress.epoch == 1:
            with pytest.raises(TrainingBusy):
                training.train(ways["pooled"], "payments")
        if progress.epoch == progress.n_epochs:  # it hears of it when it would register
            table.user.execute("UPDATE outlier.held_locks SET holder = gen_random_uuid()")

    with pytest.raises(LockLost):
        training.train(ways[way], "payments", on_progress=on_progress)
    assert table.rows("SELECT FROM outlier.model_versions WHERE source_id = %s", source_id) == []
    assert table.keys("SELECT status FROM outlier.training_runs") == ["failed"]
    table.user.execute("DELETE FROM outlier.held_locks")
    assert training.train(ways[way], "payments").promoted


@pytest.mark.postgres18
def test_a_listener_without_notifications_looks_for_new_rows(
    pooled: PgBouncer, ways: dict[str, Runtime], transactions: Table, run: Run
) -> None:
    rung, stop, ready = [], threading.Event(), threading.Event()
    listening = threading.Thread(
        target=listen,
        args=(pooled.url, rung.append, stop),
        kwargs={"ring_flagged": rung.append, "on_ready": ready.set},
    )
    listening.start()
    try:
        assert ready.wait(60)
        for key in range(1, 4):
            before = len(rung)
            transactions.insert(key)
            until(lambda: len(rung) > before, "a row is heard of")  # noqa: B023
        assert set(rung) == {"transactions"}
        assert json.loads(run("status", "--json").output)["listeners"] == 1
    finally:
        stop.set()
        listening.join()
    assert pooled.left_in_sessions() == set()


@pytest.mark.postgres18
def test_doctor_says_what_the_urls_lead_to(
    pooled: PgBouncer, run: Run, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    def told() -> dict[str, dict[str, Any]]:
        return {found["what"]: found for found in json.loads(run("doctor", "--json").output)}

    assert not {"pooler", "direct URL"} & set(told())
    monkeypatch.setenv("PGOUTLIER_DATABASE_URL", pooled.url)
    found = told()
    assert found["pooler"]["ok"]
    assert "free after 60 s" in found["pooler"]["detail"]
    for direct, detail, ok in (
        (database_url, "leads to the same database", True),
        (pooled.url, "leads through a pooler, too", False),
        (
            make_url(database_url).set(database="postgres").render_as_string(False),
            "another server or database",
            False,
        ),
        ("postgresql://somebody:secret@127.0.0.1:9/nowhere", "refused", False),
    ):
        monkeypatch.setenv("PGOUTLIER_DATABASE_DIRECT_URL", direct)
        output = run("doctor", "--json").output
        assert "secret" not in output
        found = {each["what"]: each for each in json.loads(output)}
        assert (found["direct URL"]["ok"], detail in found["direct URL"]["detail"]) == (ok, True)
