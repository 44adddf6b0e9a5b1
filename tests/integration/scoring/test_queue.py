"""What gets into the queue, in the writer's own transaction, and how workers share it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import Connection, Engine

from pgoutlier.db.ddl import installation
from pgoutlier.db.ddl.queue_triggers import EVENTS
from pgoutlier.db.scoring import bell, quarantine, queue, scores
from pgoutlier.db.scoring.claimed_rows import read_claimed
from pgoutlier.db.scoring.quarantine import Entry
from pgoutlier.db.scoring.queue import Claim
from pgoutlier.db.sources import sources
from pgoutlier.db.sql.identifiers import CHANNEL
from pgoutlier.models_store import registry
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring.batches import score_claimed
from pgoutlier.worker.upkeep import maintenance
from tests.conftest import Connect
from tests.support import (
    ASKED,
    HUNG_SECONDS,
    Table,
    attach_table,
    detach_table,
    heard,
    make_detector,
    make_table,
    until,
    waits,
)

User = psycopg.Connection[Any]


@pytest.fixture
def claims(engine: Engine, transactions: Table) -> Iterator[Callable[..., tuple[Connection, Claim]]]:
    """Each call claims in a transaction of its own, which stays open."""
    opened: list[Connection] = []

    def claim(*, at_most: int = 10_000) -> tuple[Connection, Claim]:
        connection = engine.connect()
        connection.begin()
        opened.append(connection)
        return connection, queue.claim(
            connection, transactions.source.definition, at_most=at_most, whole_batch_attempts=3
        )

    yield claim
    for connection in opened:
        connection.close()


def keys_of(connection: Connection, claim: Claim) -> list[Any]:
    found = connection.exec_driver_sql(
        "SELECT unnest(keys) FROM outlier.queue_transactions WHERE id = ANY (%s)", (claim.queue_ids,)
    )
    return sorted(found.scalars())


def commit_while_another_drains(slow: Connection, table: Table, claim: Claim) -> None:
    """The claim is finished and committed once the other worker waits for it, or is done."""
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(table.drain)
        until(lambda: other.done() or waits(table.user))
        queue.finish(slow, table.source, claim.queue_ids)
        slow.commit()
        other.result(HUNG_SECONDS)


def finish(connection: Connection, table: Table, claim: Claim) -> None:
    """What a worker does between its claim and its commit."""
    source = table.source
    champion = registry.champion(connection, source, table.runtime.cache)
    assert champion is not None
    score_claimed(connection, source, claim, read_claimed(connection, source.definition, claim), champion)
    queue.finish(connection, source, claim.queue_ids)
    connection.commit()


def sweep(table: Table) -> int:
    return maintenance.sweep(table.runtime, table.source_name)


def past_the_triggers(table: Table, statement: str) -> None:
    """Run a statement as logical replication would: ordinary triggers do not fire."""
    with table.user.transaction():
        table.user.execute("SET LOCAL session_replication_role = replica")
        table.user.execute(statement)  # type: ignore[arg-type]


# -- what statements queue


@pytest.mark.parametrize(
    ("statement", "queued"),
    [
        ("INSERT INTO transactions VALUES (9, 1, 1, 1)", [9]),
        ("INSERT INTO transactions (id) VALUES (8), (9), (7)", [7, 8, 9]),
        ("INSERT INTO transactions SELECT id + 10 FROM transactions", [11, 12, 13]),
        ("INSERT INTO transactions SELECT 9 WHERE false", []),
        ("INSERT INTO transactions (id) VALUES (1), (9) ON CONFLICT DO NOTHING", [9]),
        (
            "INSERT INTO transactions VALUES (1, 99), (9, 1) ON CONFLICT (id) DO UPDATE SET amount = excluded.amount",
            [1, 9],
        ),
        (
            "INSERT INTO transactions VALUES (1) ON CONFLICT (id) DO UPDATE SET note = 'seen again'",
            [],
        ),
        ("UPDATE transactions SET amount = amount + 1 WHERE id < 3", [1, 2]),
        ("UPDATE transactions SET amount = NULL WHERE id = 1", [1]),
        ("UPDATE transactions SET amount = 'NaN', hour = 3 WHERE id = 1", [1]),
        ("UPDATE transactions SET note = 'x'", []),
        ("UPDATE transactions SET amount = amount", []),
        ("UPDATE transactions SET amount = 1 WHERE id = 77", []),
        ("UPDATE transactions SET id = 9 WHERE id = 1", [9]),
        (
            "UPDATE transactions SET id = id + 1 WHERE id = 3; UPDATE transactions SET id = 3 WHERE id = 2",
            [3, 4],
        ),
        ("DELETE FROM transactions", []),
        ("TRUNCATE transactions", []),
        (
            "MERGE INTO transactions t USING (VALUES (1, 50.0), (2, NULL), (9, 60.0)) s (id, amount) ON t.id = s.id"
            " WHEN MATCHED AND s.amount IS NULL THEN DELETE"
            " WHEN MATCHED THEN UPDATE SET amount = s.amount"
            " WHEN NOT MATCHED THEN INSERT (id, amount) VALUES (s.id, s.amount)",
            [1, 9],
        ),
        (
            "WITH gone AS (DELETE FROM transactions WHERE id = 1 RETURNING *)"
            " INSERT INTO transactions SELECT id + 100, amount, hour, distance FROM gone",
            [101],
        ),
    ],
)
def test_a_statement_queues_the_rows_that_need_a_score(
    transactions: Table, statement: str, queued: list[int]
) -> None:
    transactions.insert(1, 3)
    transactions.user.execute("DELETE FROM outlier.queue_transactions")
    transactions.user.execute(statement)  # type: ignore[arg-type]
    assert transactions.queued() == queued


def test_copy_queues_its_rows(transactions: Table) -> None:
    with transactions.user.cursor().copy("COPY transactions (id, amount) FROM STDIN") as copy:
        for key in range(25):
            copy.write_row((key, 1.5))
    assert transactions.queued() == list(range(25))
    assert transactions.keys("SELECT n_keys FROM outlier.queue_transactions") == [25]


def test_an_update_without_a_where_takes_one_queue_row(transactions: Table) -> None:
    transactions.insert(1, 100)
    transactions.user.execute("UPDATE transactions SET amount = amount + 1")
    assert transactions.keys("SELECT n_keys FROM outlier.queue_transactions ORDER BY id") == [100, 100]


def test_a_transaction_rolled_back_leaves_nothing(transactions: Table, connect: Connect) -> None:
    writer = connect(autocommit=False)
    writer.execute("INSERT INTO transactions (id) VALUES (1)")
    writer.rollback()
    writer.execute("INSERT INTO transactions (id) VALUES (2)")
    writer.execute("SAVEPOINT here")
    writer.execute("INSERT INTO transactions (id) VALUES (3)")
    writer.execute("ROLLBACK TO here")
    writer.commit()
    assert transactions.queued() == [2]


def test_an_insert_refused_by_a_constraint_leaves_nothing(transactions: Table) -> None:
    transactions.insert(1)
    with pytest.raises(psycopg.errors.UniqueViolation):
        transactions.user.execute("INSERT INTO transactions (id) VALUES (2), (1)")
    assert transactions.queued() == [1]


def test_a_feature_column_dropped_or_renamed_does_not_break_the_writer(transactions: Table) -> None:
    transactions.insert(1, 2)
    transactions.user.execute("DELETE FROM outlier.queue_transactions")
    transactions.user.execute("ALTER TABLE transactions RENAME distance TO way")
    transactions.user.execute("ALTER TABLE transactions DROP hour CASCADE")
    transactions.user.execute("UPDATE transactions SET amount = 5 WHERE id = 1")
    transactions.user.execute("INSERT INTO transactions (id) VALUES (3)")
    assert transactions.queued() == [1, 3]


def test_one_notification_a_statement(transactions: Table, connect: Connect) -> None:
    listener = connect()
    listener.execute(f"LISTEN {CHANNEL}")
    bell.fall_asleep(listener, {"transactions"})
    transactions.insert(1, 25_000)
    transactions.user.execute("UPDATE transactions SET amount = 0")
    transactions.user.execute("UPDATE transactions SET note = ''")
    assert heard(listener, CHANNEL, transactions.user) == ["transactions", "transactions"]


@pytest.mark.parametrize("key", ["g", "'key ' || g", "md5(g::text)::uuid"], ids=["bigint", "text", "uuid"])
def test_a_large_statement_is_queued_in_pieces(user: User, runtime: Runtime, key: str) -> None:
    user.execute(f"CREATE TABLE big AS SELECT {key} AS id, 1.0::float8 AS x FROM generate_series(1, 0) g")  # type: ignore[arg-type]
    user.execute("ALTER TABLE big ADD PRIMARY KEY (id)")
    user.execute("ALTER TABLE big ALTER id TYPE bigint") if key == "g" else None
    attach_table(user, runtime, relation="big", key="id", features="x")
    user.execute(f"INSERT INTO big SELECT {key}, 1 FROM generate_series(1, 25000) g")  # type: ignore[arg-type]
    user.execute("UPDATE big SET x = 2")
    pieces = user.execute("SELECT n_keys, cardinality(keys) FROM outlier.queue_big ORDER BY id").fetchall()
    assert pieces == [(10_000, 10_000), (10_000, 10_000), (5_000, 5_000)] * 2
    assert user.execute(
        "SELECT count(*), count(DISTINCT k) FROM outlier.queue_big, unnest(keys) k JOIN big ON id = k"
    ).fetchone() == (50_000, 25_000)


# -- sharing


def test_two_claims_never_overlap(
    transactions: Table, claims: Callable[..., tuple[Connection, Claim]]
) -> None:
    for key in range(10):
        transactions.insert(key)
    first = claims(at_most=4)
    second = claims(at_most=4)
    third = claims(at_most=4)
    fourth = claims(at_most=4)
    assert keys_of(*first) == [0, 1, 2, 3]
    assert keys_of(*second) == [4, 5, 6, 7]
    assert keys_of(*third) == [8, 9]
    assert not fourth[1]
    first[0].rollback()
    assert keys_of(*claims()) == [0, 1, 2, 3]


def test_many_workers_score_every_row_once(transactions: Table) -> None:
    transactions.promote()
    for start in range(0, 2_000, 50):
        transactions.insert(start, start + 49)
    transactions = transactions.with_settings(batch_rows=100)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: transactions.drain(), range(4)))
    assert sum(result.n_scored for result in done) == 2_000
    assert transactions.scored() == list(range(2_000))
    assert transactions.queued() == []


def test_workers_with_changes_of_the_same_rows_do_not_deadlock(transactions: Table) -> None:
    names = transactions.source.definition.feature_names
    errors = make_detector(names).score([[amount, 1, 1] for amount in range(500)]).reconstruction_error
    transactions.promote(make_detector(names, threshold=float(np.median(errors))))
    transactions.user.execute(
        "INSERT INTO transactions (id, amount, hour, distance)"
        " SELECT i, nullif(i % 11, 0) * i, 1, 1"
        " FROM generate_series(1, 500) i ORDER BY random()"
    )
    for step in range(1, 9):
        order = "DESC" if step % 2 else "ASC"
        transactions.user.execute(
            "UPDATE transactions t SET amount = amount + 1, hour = hour + 1 FROM"
            f" (SELECT id FROM transactions ORDER BY id {order}) o WHERE o.id = t.id"  # type: ignore[arg-type]
        )
    transactions = transactions.with_settings(batch_rows=500)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: transactions.drain(), range(4)))
    assert sum(result.n_failed_batches for result in done) == 0
    assert transactions.queued() == []
    assert len(transactions.quarantined()) == 500 // 11
    assert len(transactions.scored()) == 500 - 500 // 11
    assert 0 < len(transactions.keys("SELECT id FROM outlier.flagged_transactions")) < 500 - 500 // 11


@pytest.mark.parametrize("rescore", [False, True])
@pytest.mark.parametrize(
    ("key_type", "key"),
    [("bigint", "500 - i"), ("uuid", "md5(i::text)::uuid"), ("text", "'é' || (i * 7919) % 503")],
)
def test_scores_are_written_in_the_order_of_their_keys(
    user: User, runtime: Runtime, key_type: str, key: str, rescore: bool
) -> None:
    user.execute(f"CREATE TABLE big (id {key_type} PRIMARY KEY, x real)")  # type: ignore[arg-type]
    table = attach_table(user, runtime, relation="big", key="id", features="x")
    errors = make_detector(["x"]).score([[x] for x in range(500)]).reconstruction_error
    table.promote(make_detector(["x"], threshold=float(np.median(errors))))
    user.execute(
        "CREATE TABLE written (n serial, key text);"
        " CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO written (key) VALUES (new.key); RETURN new; END';"
        " CREATE TRIGGER note BEFORE INSERT ON outlier.scores_big FOR EACH ROW EXECUTE FUNCTION note()"
    )
    user.execute(
        f"INSERT INTO big SELECT {key}, nullif(i, 9) FROM generate_series(1, 500) i"  # type: ignore[arg-type]
    )
    if rescore:
        user.execute("UPDATE big SET x = x + 1")
    table.drain_all()
    assert 0 < len(table.keys("SELECT key FROM outlier.scores_big WHERE flagged")) < 499
    in_order = table.keys(
        "SELECT id::text FROM big ORDER BY CASE WHEN pg_typeof(id) <> 'text'::regtype THEN id END,"
        ' id::text COLLATE "C"'
    )
    assert table.keys("SELECT key FROM written ORDER BY n") == in_order


def test_small_queue_rows_make_one_batch_and_a_large_one_is_a_batch_by_itself(
    transactions: Table, claims: Callable[..., tuple[Connection, Claim]]
) -> None:
    transactions.insert(1, 10_000)
    for key in range(10_001, 10_101):
        transactions.insert(key)
    assert claims()[1].n_keys == 10_000
    assert claims()[1].n_keys == 100


def test_a_claim_keeps_to_its_size(
    transactions: Table, claims: Callable[..., tuple[Connection, Claim]]
) -> None:
    for start in range(0, 1_000, 100):
        transactions.insert(start, start + 99)
    assert claims(at_most=250)[1].n_keys == 200
    assert claims(at_most=1)[1].n_keys == 100


def test_a_row_put_off_is_not_claimed_before_its_time(
    transactions: Table, claims: Callable[..., tuple[Connection, Claim]]
) -> None:
    transactions.insert(1)
    connection, claim = claims()
    queue.postpone(
        connection,
        transactions.source.definition,
        claim.queue_ids,
        delay_seconds=60,
        error="no reason",
        count_attempt=True,
    )
    assert not queue.has_due(connection, transactions.source.definition)
    connection.commit()
    assert not claims()[1]
    depth = queue.depth(connection, transactions.source.definition)
    assert (depth.n_keys, depth.n_postponed, depth.last_error) == (1, 1, "no reason")


def test_rows_committed_late_are_scored(transactions: Table, connect: Connect) -> None:
    transactions.promote()
    slow = connect(autocommit=False)
    slow.execute("INSERT INTO transactions VALUES (1, 1, 1, 1)")
    transactions.insert(2, 5)
    transactions.drain()
    assert transactions.scored() == [2, 3, 4, 5]
    slow.commit()
    transactions.drain()
    assert transactions.scored() == [1, 2, 3, 4, 5]


# -- the later change wins, in whatever order workers finish


def test_a_score_of_an_older_read_never_replaces_a_newer_one(
    transactions: Table, claims: Callable[..., tuple[Connection, Claim]]
) -> None:
    transactions.promote()
    transactions.insert(1, 3)
    slow, claim = claims()
    source = transactions.source
    stale = read_claimed(slow, source.definition, claim)
    transactions.user.execute("UPDATE transactions SET amount = 1e6 WHERE id = 1")
    transactions.drain()
    newer = transactions.errors()
    assert set(newer) == {1}
    champion = registry.champion(slow, source, transactions.runtime.cache)
    assert champion is not None
    scored = champion.detector.score(stale.matrix)
    rows = scores.ScoredRows(
        stale.change_ids,
        stale.keys,
        scored.reconstruction_error,
        scored.reconstruction_error > 1e300,
        top_indices=stale.change_ids[:0].reshape(0, 1),
        top_contributions=scored.contributions[:0, :1],
        top_values=np.empty((0, 1)),
    )
    scores.write(slow, source.definition, rows, model_version=champion.version, may_exist=claim.rescore)
    queue.finish(slow, source, claim.queue_ids)
    slow.commit()
    assert transactions.errors()[1] == newer[1]
    assert transactions.scored() == [1, 2, 3]


def test_a_newer_change_is_scored_after_an_older_read(
    transactions: Table, claims: Callable[..., tuple[Connection, Claim]]
) -> None:
    transactions.promote()
    transactions.insert(1)
    slow, claim = claims()
    transactions.user.execute("UPDATE transactions SET amount = 1e6")
    finish(slow, transactions, claim)
    transactions.drain()
    changes = transactions.keys("SELECT change_id FROM outlier.scores_transactions")
    assert changes == [2]
    [expected] = transactions.errors().values()
    transactions.user.execute("UPDATE transactions SET amount = 2e6; UPDATE transactions SET amount = 1e6")
    transactions.drain()
    assert transactions.errors() == {1: expected}


def test_a_row_spoilt_while_it_is_scored_keeps_no_score(
    transactions: Table, claims: Callable[..., tuple[Connection, Claim]]
) -> None:
    transactions.promote()
    transactions.insert(1, 2)
    slow, claim = claims()
    source = transactions.source
    champion = registry.champion(slow, source, transactions.runtime.cache)
    assert champion is not None
    score_claimed(slow, source, claim, read_claimed(slow, source.definition, claim), champion)
    transactions.user.execute("UPDATE transactions SET amount = NULL WHERE id = 1")
    commit_while_another_drains(slow, transactions, claim)
    assert transactions.scored() == [2]
    assert transactions.quarantined() == {"1": ("null", "amount")}


def test_a_row_mended_while_it_is_quarantined_leaves_quarantine(
    transactions: Table, claims: Callable[..., tuple[Connection, Claim]]
) -> None:
    transactions.promote()
    transactions.user.execute("INSERT INTO transactions VALUES (1, NULL, 1, 1), (2, 1, 1, 1)")
    slow, claim = claims()
    source = transactions.source
    entries = [Entry("1", claim.queue_ids[0], "null", "amount")]
    quarantine.take_places(slow, source.definition, entries)
    quarantine.put(slow, source, entries)
    transactions.user.execute("UPDATE transactions SET amount = 1 WHERE id = 1")
    commit_while_another_drains(slow, transactions, claim)
    assert transactions.scored() == [1]
    assert transactions.quarantined() == {}


# -- the sweep


def test_the_sweep_finds_what_got_past_the_triggers(transactions: Table) -> None:
    transactions.promote()
    transactions.insert(1, 3)
    transactions.drain()
    past_the_triggers(transactions, "INSERT INTO transactions SELECT i, 1, 1, 1 FROM generate_series(4, 6) i")
    transactions.user.execute("ALTER TABLE transactions DISABLE TRIGGER USER")
    transactions.insert(7)
    transactions.user.execute("ALTER TABLE transactions ENABLE TRIGGER USER")
    assert sweep(transactions) == 4
    assert transactions.queued() == [4, 5, 6, 7]
    assert sweep(transactions) == 0
    transactions.drain()
    assert transactions.scored() == [1, 2, 3, 4, 5, 6, 7]
    assert sweep(transactions) == 0


def test_the_sweep_finds_nothing_that_is_queued_scored_or_quarantined(transactions: Table) -> None:
    transactions.promote()
    transactions.insert(1)
    transactions.user.execute("INSERT INTO transactions VALUES (2, NULL)")
    transactions.drain()
    transactions.insert(3)
    assert sweep(transactions) == 0
    assert transactions.queued() == [3]


def test_the_sweep_leaves_what_a_worker_holds(
    transactions: Table, claims: Callable[..., tuple[Connection, Claim]]
) -> None:
    transactions.promote()
    transactions.insert(1, 3)
    worker, claim = claims()
    assert sweep(transactions) == 0
    finish(worker, transactions, claim)
    assert sweep(transactions) == 0


@pytest.mark.parametrize("frozen", [False, True])
def test_rows_from_before_attach_are_swept_up_only_when_a_backfill_has_been_through_them(
    user: User, runtime: Runtime, frozen: bool
) -> None:
    table = make_table(user, runtime)
    detach_table(table)
    table.insert(1, 12_000)
    if frozen:
        user.execute("VACUUM (FREEZE) transactions")
    attach_table(user, runtime, **ASKED)
    assert sweep(table) == 0
    past_the_triggers(table, "INSERT INTO transactions (id) VALUES (0)")
    assert sweep(table) == 1
    with runtime.engine.begin() as connection:
        sources.include_old_rows(connection, table.source.id)
    assert sweep(table) == 12_000
    assert table.keys("SELECT n_keys FROM outlier.queue_transactions ORDER BY id") == [1, 10_000, 2_000]
    assert sweep(table) == 0


def test_a_transaction_that_was_open_when_the_table_was_attached_holds_it_up(
    user: User, runtime: Runtime, connect: Connect
) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    early = connect(autocommit=False)
    early.execute("INSERT INTO t VALUES (1, 1)")
    observer = connect()
    with ThreadPoolExecutor(1) as pool:
        attaching = pool.submit(attach_table, user, runtime, relation="t", key="id", features="x")
        until(lambda: attaching.done() or waits(observer))
        assert not attaching.done()
        early.commit()
        table = attaching.result(HUNG_SECONDS)
    user.execute("INSERT INTO t VALUES (2, 1)")
    assert table.queued() == [2]


def test_the_sweep_goes_on_after_two_billion_transactions(transactions: Table) -> None:
    transactions.user.execute("UPDATE outlier.sources SET attached_xid = attached_xid - 3000000000")
    past_the_triggers(transactions, "INSERT INTO transactions (id) VALUES (1)")
    assert sweep(transactions) == 1


def test_sweeps_at_once_find_each_row_once(transactions: Table) -> None:
    past_the_triggers(transactions, "INSERT INTO transactions SELECT generate_series(1, 3000)")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: sweep(transactions), range(3)))
    assert sorted(found) == [0, 0, 3_000]
    assert len(transactions.queued()) == 3_000


def test_a_swept_row_never_outranks_a_change(
    transactions: Table, claims: Callable[..., tuple[Connection, Claim]]
) -> None:
    transactions.promote()
    past_the_triggers(transactions, "INSERT INTO transactions VALUES (1, 1, 1, 1)")
    assert sweep(transactions) == 1
    slow, claim = claims()
    transactions.user.execute("UPDATE transactions SET amount = 1e6")
    transactions.drain()
    newer = transactions.errors()
    finish(slow, transactions, claim)
    assert transactions.errors() == newer
    assert transactions.keys("SELECT change_id > 0 FROM outlier.scores_transactions") == [True]


def test_triggers_that_are_off_can_be_seen(transactions: Table) -> None:
    def enabled() -> dict[str, bool]:
        with transactions.runtime.engine.begin() as connection:
            return installation.triggers_enabled(connection, transactions.source.definition)

    assert enabled() == dict.fromkeys(EVENTS, True)
    transactions.user.execute("ALTER TABLE transactions DISABLE TRIGGER outlier_transactions_insert")
    transactions.user.execute("DROP TRIGGER outlier_transactions_update ON transactions")
    assert enabled() == dict.fromkeys(EVENTS, False)


def test_keys_are_numbered_in_the_order_of_their_changes(transactions: Table, connect: Connect) -> None:
    """For one key the later change has the larger id, whichever of the two transactions began first."""
    transactions.insert(1)
    first, second = connect(autocommit=False), connect(autocommit=False)
    second.execute("SELECT 1")
    first.execute("UPDATE transactions SET amount = 10 WHERE id = 1")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second.execute, "UPDATE transactions SET amount = 20 WHERE id = 1")
        until(lambda: waits(transactions.user))
        first.commit()
        waiting.result(HUNG_SECONDS)
    second.commit()
    ids = transactions.keys("SELECT id FROM outlier.queue_transactions ORDER BY queued_at")
    assert all(earlier < later for earlier, later in itertools.pairwise(ids))
    assert transactions.keys("SELECT amount FROM transactions") == [20]
