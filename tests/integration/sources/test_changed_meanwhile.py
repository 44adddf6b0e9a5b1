"""A source that changes while its rows are being scored: no score is made of what its columns were."""

from __future__ import annotations

from typing import Any

import pytest

from pgoutlier.worker.scoring import draining
from pgoutlier.worker.scoring.batches import BatchReader
from pgoutlier.worker.upkeep import maintenance
from tests.support import ASKED, Table, attach_table

SWAP = (
    "BEGIN; SELECT outlier.before_migration('transactions');"
    " ALTER TABLE transactions RENAME amount TO other; ALTER TABLE transactions RENAME hour TO amount;"
    " ALTER TABLE transactions RENAME other TO hour; SELECT outlier.after_migration('transactions'); COMMIT"
)


def test_a_migration_amid_a_drain_leaves_no_score_of_other_columns(
    transactions: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    transactions.promote()
    transactions.insert(1, 100)
    transactions.drain_all()
    done: list[int] = []
    score = draining.score_batch

    def migrated_after_the_first(*args: Any) -> Any:
        result = score(*args)
        done.append(1)
        if len(done) == 1:
            transactions.user.execute(SWAP)
        return result

    monkeypatch.setattr(draining, "score_batch", migrated_after_the_first)
    monkeypatch.setattr(BatchReader, "read_ahead", lambda reader: None)  # which would hold the migration up
    for key in range(101, 131):
        transactions.insert(key)
    small = transactions.with_settings(batch_rows=10)
    small.drain_all()
    monkeypatch.undo()
    assert len(done) > 2
    made = transactions.errors()
    transactions.user.execute("UPDATE outlier.scores_transactions SET reconstruction_error = 0")
    transactions.user.execute(
        "INSERT INTO outlier.queue_transactions (keys, n_keys, rescore)"
        " SELECT array_agg(id), count(*), true FROM transactions"
    )
    transactions.drain_all()
    assert made == pytest.approx(transactions.errors(), rel=1e-6)
    assert len(made) == 130


AWAY = "ALTER TABLE transactions RENAME amount TO amount_before; "
TAKEN = {
    "two that are read change places": "ALTER TABLE transactions RENAME amount TO other;"
    " ALTER TABLE transactions RENAME hour TO amount; ALTER TABLE transactions RENAME other TO hour",
    "one that is not read": AWAY + "ALTER TABLE transactions RENAME extra TO amount",
    "a new one": AWAY + "ALTER TABLE transactions ADD amount float8",
    "a new one in place of one that is dropped": "DROP VIEW outlier.rows_transactions CASCADE;"
    " ALTER TABLE transactions DROP amount, ADD amount float8",
}
BACK = {
    "two that are read change places": TAKEN["two that are read change places"],
    "one that is not read": "ALTER TABLE transactions RENAME amount TO extra;"
    " ALTER TABLE transactions RENAME amount_before TO amount",
}


@pytest.fixture
def scored(transactions: Table) -> Table:
    transactions.user.execute("ALTER TABLE transactions ADD extra float8")
    transactions.promote()
    transactions.insert(1, 10)
    transactions.drain()
    return transactions


@pytest.mark.parametrize("case", TAKEN)
def test_nothing_is_scored_where_the_name_of_a_column_has_gone_to_another(scored: Table, case: str) -> None:
    user, errors = scored.user, scored.errors()
    user.execute(f"BEGIN; {TAKEN[case]}; COMMIT".encode())
    user.execute(
        "UPDATE transactions SET distance = distance + 1 WHERE id = 1; INSERT INTO transactions (id) VALUES (11)"
    )
    assert scored.drain().n_scored == 0
    problem = scored.source.table_problem or ""
    assert problem.startswith(
        "The column amount of public.transactions is another one than was attached, which is "
    )
    assert scored.source.last_problem == problem
    maintenance.prune_all(scored.runtime)
    maintenance.sweep_all(scored.runtime)
    assert scored.errors() == errors
    assert scored.queued() == [1, 11]
    if case in BACK:
        user.execute(f"BEGIN; {BACK[case]}; COMMIT".encode())
    else:
        attach_table(user, scored.runtime, **ASKED)
        user.execute("UPDATE transactions SET amount = 1, hour = 1, distance = 1")
    scored.make_due()
    scored.drain_all()
    assert scored.source.table_problem is None
    assert scored.source.last_problem is None
    assert 1 in scored.scored()
    assert scored.errors()[1] != errors[1]


def test_a_name_that_goes_to_another_column_amid_a_drain_takes_its_batch_back(
    scored: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = scored.errors()
    scored.user.execute("UPDATE transactions SET distance = distance + 1")
    read = BatchReader.next

    def read_after_the_change(reader: BatchReader) -> Any:
        if reader.source.table_problem is None:
            scored.user.execute(f"BEGIN; {TAKEN['two that are read change places']}; COMMIT".encode())
        return read(reader)

    monkeypatch.setattr(BatchReader, "next", read_after_the_change)
    assert scored.drain().n_scored == 0
    assert scored.errors() == errors
    assert "is another one than was attached" in (scored.source.table_problem or "")


def test_between_the_two_calls_of_a_migration_nothing_is_scored_by_a_name_that_another_column_has(
    scored: Table,
) -> None:
    user = scored.user
    user.execute("SELECT outlier.before_migration('transactions')")
    user.execute(f"BEGIN; {TAKEN['two that are read change places']}; COMMIT".encode())
    user.execute("UPDATE transactions SET distance = distance + 1")
    assert scored.drain().n_scored == 0
    user.execute("SELECT outlier.after_migration('transactions')")
    assert scored.source.table_problem is None
    scored.make_due()
    scored.drain_all()
    made = scored.errors()
    user.execute("UPDATE transactions SET distance = distance - 1")
    scored.drain_all()
    user.execute("UPDATE transactions SET distance = distance + 1")
    scored.drain_all()
    assert scored.errors() == pytest.approx(made)


def test_columns_are_known_by_their_names_in_a_database_that_was_restored(scored: Table) -> None:
    """There they may have other numbers, and the table has another."""
    scored.user.execute("UPDATE outlier.sources SET columns = jsonb_set(columns, '{table}', '1')")
    scored.user.execute("UPDATE outlier.sources SET columns = jsonb_set(columns, '{numbers,amount}', '77')")
    assert scored.source.table_problem is None
    scored.insert(11)
    assert scored.drain().n_scored == 1
