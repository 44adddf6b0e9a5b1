"""All keys are looked at once in a stated time, and what is new at once; a look reads no more where there are more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgoutlier.db.settings import Settings
from pgoutlier.db.sql.identifiers import Relation
from pgoutlier.db.upkeep import turns
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.upkeep import maintenance
from tests.integration.conftest import Run
from tests.servers import Postgres
from tests.support import ASKED, Table, attach_table, make_table, until

User = psycopg.Connection[Any]

STRETCH = 100


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look goes through a hundred keys, and through as many of the newest again."""
    monkeypatch.setattr("pgoutlier.db.upkeep.turns.KEYS_PER_STRETCH", STRETCH)
    monkeypatch.setattr("pgoutlier.db.upkeep.sweeping._OVERLAP", 10)
    # However long a test takes.
    monkeypatch.setattr("pgoutlier.db.upkeep.turns._LEAST_KEYS_PER_SECOND", 1e-6)


def past_the_triggers(table: Table, statement: str) -> None:
    table.user.execute("ALTER TABLE transactions DISABLE TRIGGER USER")
    table.user.execute(statement.encode())
    table.user.execute("ALTER TABLE transactions ENABLE TRIGGER USER")


def score_all(table: Table) -> None:
    table.user.execute(
        "INSERT INTO outlier.scores_transactions (key, change_id, reconstruction_error, model_version, flagged)"
        " SELECT id, 1, id, 1, id % 50 = 0 FROM transactions ON CONFLICT DO NOTHING"
    )


def sweep(table: Table, **how: Any) -> int:
    return maintenance.sweep(table.runtime, table.source_name, **how)


def prune(table: Table) -> int:
    return maintenance.prune_all(table.runtime)[table.source_name]


def place(table: Table, task: str = "sweep") -> str | None:
    return table.keys(
        "SELECT place FROM outlier.upkeep_places JOIN outlier.sources s ON s.id = source_id WHERE task = %s",
        task,
    )[0]


@pytest.fixture
def thousand(transactions: Table) -> Table:
    """Keys 1 to 1,000, scored; one in a hundred got past the triggers and is not."""
    transactions.insert(1, 1_000)
    score_all(transactions)
    transactions.user.execute("TRUNCATE outlier.queue_transactions")
    transactions.user.execute("DELETE FROM outlier.scores_transactions WHERE key % 100 = 50")
    return transactions


def test_old_rows_are_found_when_their_turn_comes_and_all_in_one_turn(thousand: Table) -> None:
    found = [sweep(thousand) for _ in range(10)]
    assert found == [1] * 10
    assert thousand.queued() == list(range(50, 1_001, 100))
    assert place(thousand) == "1000"
    sweep(thousand)
    assert thousand.keys("SELECT count(*) FROM outlier.upkeep_places WHERE turn_ended_at IS NOT NULL") == [1]
    assert [sweep(thousand) for _ in range(10)] == [0] * 10


def test_a_look_goes_on_where_another_process_ended(thousand: Table, settings: Settings) -> None:
    assert sweep(thousand) == 1
    other = make_runtime(settings)
    assert maintenance.sweep(other, "transactions") == 1
    other.engine.dispose()
    assert thousand.queued() == [50, 150]


def test_all_rows_are_looked_at_at_once_when_asked_for(thousand: Table, run: Run) -> None:
    sweep(thousand)
    told: list[tuple[int, int]] = []
    thousand.user.execute("ANALYZE transactions")
    assert sweep(thousand, whole=True, on_progress=lambda *far: told.append(far)) == 9
    assert [n for n, _ in told] == list(range(100, 1_001, 100))
    assert {of for _, of in told} == {1_000}
    assert place(thousand) is None
    thousand.user.execute("TRUNCATE outlier.queue_transactions")
    assert run("sweep", "transactions", "--all").output == "10 rows queued.\n"
    assert run("sweep", "transactions").output == "0 rows queued.\n"


def test_what_is_new_is_found_at_once(thousand: Table) -> None:
    sweep(thousand)
    past_the_triggers(thousand, "INSERT INTO transactions SELECT generate_series(1001, 1350)")
    assert sweep(thousand) == 1 + 350  # one in its turn
    assert set(range(1_001, 1_351)) < set(thousand.queued())
    past_the_triggers(thousand, "INSERT INTO transactions VALUES (1351)")
    assert sweep(thousand) == 2


def test_a_row_with_the_largest_key_there_is_hides_none_of_those_that_are_new(thousand: Table) -> None:
    past_the_triggers(thousand, f"INSERT INTO transactions VALUES ({2**63 - 1})")
    sweep(thousand)
    past_the_triggers(thousand, "INSERT INTO transactions VALUES (1001)")
    sweep(thousand)
    assert {1_001, 2**63 - 1} <= set(thousand.queued())


def test_rows_that_come_in_order_of_time_are_new_by_an_index_on_it(user: User, runtime: Runtime) -> None:
    user.execute(
        "CREATE TABLE transactions (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), amount float8, at timestamptz)"
    )
    table = attach_table(user, runtime, relation="transactions", key="id", features="amount", time="at")
    user.execute(
        "INSERT INTO transactions (at) SELECT now() - i * interval '1 s' FROM generate_series(1, 1000) i"
    )
    score_uuids = (
        "INSERT INTO outlier.scores_transactions (key, change_id, reconstruction_error, model_version, flagged)"
        " SELECT id, 1, 1, 1, false FROM transactions ON CONFLICT DO NOTHING"
    )
    user.execute(score_uuids)
    user.execute("TRUNCATE outlier.queue_transactions")
    new = "INSERT INTO transactions (at) SELECT clock_timestamp() FROM generate_series(1, 50)"
    sweep(table)
    past_the_triggers(table, new)
    assert sweep(table) < 50  # only those whose turn it is
    user.execute(score_uuids)
    user.execute("TRUNCATE outlier.queue_transactions")
    user.execute("CREATE INDEX ON transactions (at DESC NULLS LAST)")
    sweep(table)
    past_the_triggers(table, new)
    assert sweep(table) == 50


def test_under_a_key_of_several_columns_what_is_new_is_told_by_time_once_an_index_leads_with_it(
    user: User, runtime: Runtime
) -> None:
    user.execute(
        "CREATE TABLE transactions (tenant int, id int, amount float8, at timestamptz, PRIMARY KEY (tenant, id))"
    )
    table = attach_table(user, runtime, relation="transactions", features="amount", time="at")
    new = "INSERT INTO transactions SELECT i % 9, {n} + i, 1, clock_timestamp() FROM generate_series(1, {rows}) i"
    score = (
        "INSERT INTO outlier.scores_transactions"
        " (key_1, key_2, change_id, reconstruction_error, model_version, flagged)"
        " SELECT tenant, id, 1, 1, 1, false FROM transactions ON CONFLICT DO NOTHING"
    )
    past_the_triggers(table, new.format(n=0, rows=900))
    user.execute(score)
    sweep(table)
    past_the_triggers(table, new.format(n=1_000, rows=90))
    assert sweep(table) < 90  # those of the last tenants, and those whose turn it is
    user.execute(score)
    user.execute("TRUNCATE outlier.queue_transactions; CREATE INDEX ON transactions (at)")
    sweep(table)
    past_the_triggers(table, new.format(n=2_000, rows=90))
    assert sweep(table) == 90


def test_the_longer_ago_the_last_look_was_the_more_a_look_goes_through(
    thousand: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(thousand)
    thousand.user.execute("ANALYZE transactions")
    # Four hours of a day are a sixth of a thousand keys and some room: two stretches.
    ago = "UPDATE outlier.upkeep_places SET looked_at = now() - interval '4 hours'"
    thousand.user.execute(ago)
    sweep(thousand)
    assert place(thousand) == "300"
    monkeypatch.setattr("pgoutlier.db.upkeep.turns._LEAST_KEYS_PER_SECOND", 400 / 4 / 3600)
    thousand.user.execute(ago)
    sweep(thousand)
    assert place(thousand) in {"700", "800"}


@pytest.mark.parametrize("kind", ["text", "text of another collation", "uuid", "smallint"])
def test_keys_of_every_type_are_gone_through(user: User, runtime: Runtime, kind: str) -> None:
    made = {
        "text": ("text", "'key ' || i"),
        "text of another collation": ('text COLLATE "C"', "chr(64 + i % 60) || i"),
        "uuid": ("uuid", "md5(i::text)::uuid"),
        "smallint": ("smallint", "i - 32768"),
    }[kind]
    user.execute(f"CREATE TABLE transactions (id {made[0]} PRIMARY KEY, amount float8)".encode())
    table = attach_table(user, runtime, relation="transactions", key="id", features="amount")
    user.execute(f"INSERT INTO transactions SELECT {made[1]}, 1 FROM generate_series(0, 449) i".encode())
    score_all_of = (
        "INSERT INTO outlier.scores_transactions (key, change_id, reconstruction_error, model_version, flagged)"
        " SELECT id, 1, 1, 1, false FROM transactions"
    )
    user.execute(score_all_of)
    user.execute("TRUNCATE outlier.queue_transactions")
    user.execute("DELETE FROM outlier.scores_transactions WHERE hashtext(key::text) % 10 = 0")
    [missed] = table.keys("SELECT 450 - count(*) FROM outlier.scores_transactions")
    assert sum(sweep(table) for _ in range(5)) == missed
    assert [sweep(table) for _ in range(5)] == [0] * 5
    user.execute("DELETE FROM transactions WHERE hashtext(id::text) % 10 <> 0")
    assert sum(prune(table) for _ in range(2)) == 450 - missed
    assert table.scored() == []


def test_rows_that_are_gone_are_found_when_their_turn_comes(thousand: Table) -> None:
    thousand.user.execute("DELETE FROM transactions WHERE id IN (3, 503, 903)")
    assert prune(thousand) == 1
    assert sorted(prune(thousand) for _ in range(10)) == [0] * 8 + [1, 1]
    assert not {3, 503, 903} & set(thousand.scored())


def test_what_goes_does_not_count_for_what_a_look_goes_through_and_goes_in_batches(thousand: Table) -> None:
    thousand.user.execute("DELETE FROM transactions WHERE id <= 850")
    thousand.user.execute(
        "CREATE TABLE gone (xid bigint); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO gone VALUES (pg_current_xact_id()::text::bigint); RETURN OLD; END';"
        "CREATE TRIGGER note BEFORE DELETE ON outlier.scores_transactions FOR EACH ROW EXECUTE FUNCTION note()"
    )
    assert prune(thousand) == 841
    batches = thousand.keys("SELECT count(*) FROM gone GROUP BY xid")
    assert max(batches) <= STRETCH
    assert len(thousand.scored()) == 149


def test_quarantine_history_and_scores_of_challengers_have_turns_of_their_own(thousand: Table) -> None:
    thousand.user.execute(
        "INSERT INTO outlier.quarantine (source_id, key, reason, change_id)"
        " SELECT s.id, i, 'null', 1 FROM outlier.sources s, generate_series(1, 250) i"
    )
    thousand.user.execute(
        "INSERT INTO outlier.shadow_scores_transactions (key, change_id, reconstruction_error, model_version,"
        " would_flag) SELECT i, 1, 1, 2, false FROM generate_series(1, 250) i"
    )
    thousand.user.execute("DELETE FROM transactions WHERE id <= 250")
    removed = [prune(thousand) for _ in range(2)]
    assert sum(removed) == 250 + 247 + 250
    tasks = thousand.keys("SELECT task FROM outlier.upkeep_places ORDER BY 1")
    assert tasks == ["challenger", "quarantine", "scores"]


def test_the_same_attach_again_begins_anew(thousand: Table) -> None:
    sweep(thousand)
    attach_table(thousand.user, thousand.runtime, **ASKED)
    assert thousand.keys("SELECT task FROM outlier.upkeep_places") == []
    assert sweep(thousand) == 0


def test_two_prunes_at_once_are_one(thousand: Table, connect: Callable[..., User]) -> None:
    other = connect(autocommit=False)
    other.execute("SELECT pg_advisory_xact_lock(hashtext('outlier.scores'), %s)", (thousand.source.id,))
    thousand.user.execute("DELETE FROM transactions WHERE id = 3")
    assert prune(thousand) == 0
    other.rollback()
    assert prune(thousand) == 1


# -- what is read


@pytest.fixture(scope="module")
def rows_read(postgres: Postgres) -> Iterator[Callable[[str, int], int]]:
    """Runs something over a table of so many scored rows; returns how many rows of tables and indexes it read."""
    with postgres.database() as url, psycopg.connect(url, autocommit=True) as user:
        settings = Settings(_env_file=None, database_url=url, broker_url="redis://no.broker.invalid:1/0")
        runtime = make_runtime(settings)
        table = make_table(user, runtime)
        work = {"sweep": sweep, "prune": prune}

        def read(what: str, n_rows: int) -> int:
            user.execute(
                "INSERT INTO transactions SELECT generate_series((SELECT coalesce(max(id), 0) + 1 FROM transactions),"
                " %s::int)",
                (n_rows,),
            )
            user.execute("TRUNCATE outlier.queue_transactions")
            score_all(table)
            user.execute("VACUUM ANALYZE transactions, outlier.scores_transactions")
            work[what](table)
            before = n_read(user, runtime)
            work[what](table)
            return n_read(user, runtime) - before

        yield read
        runtime.engine.dispose()


def n_read(user: User, runtime: Runtime) -> int:
    runtime.engine.dispose()  # whose sessions then say what they have read
    user.execute("SELECT pg_stat_force_next_flush()")
    others = "SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    until(lambda: user.execute(others + " AND datname = current_database()").rowcount == 0)
    [(n,)] = user.execute(
        "SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname ~ 'transactions')"
        " + (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname ~ 'transactions')"
    ).fetchall()
    return int(n)


@pytest.mark.parametrize("what", ["sweep", "prune"])
def test_a_look_reads_as_many_rows_of_a_table_that_is_twice_as_large(
    rows_read: Callable[[str, int], int], what: str
) -> None:
    first = {"sweep": 5_000, "prune": 20_000}[what]
    small, large = rows_read(what, first), rows_read(what, 2 * first)
    assert 0 < large <= 1.2 * small
    assert large < first


def test_the_number_of_rows_is_estimated_over_all_partitions(user: User, runtime: Runtime) -> None:
    user.execute(
        "CREATE TABLE t (id int PRIMARY KEY, x float8) PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE high PARTITION OF t FOR VALUES FROM (100) TO (1000) PARTITION BY RANGE (id);"
        "CREATE TABLE higher PARTITION OF high FOR VALUES FROM (100) TO (1000);"
        "INSERT INTO t SELECT i FROM generate_series(1, 999) i; ANALYZE t"
    )
    with runtime.engine.begin() as connection:
        assert turns.n_rows(connection, Relation("public", "t")) == 999
