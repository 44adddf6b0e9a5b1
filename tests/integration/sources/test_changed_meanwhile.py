"""A source that changes while its rows are being scored: no score is made of what its columns were."""

from __future__ import annotations

from typing import Any

import pytest

from pgoutlier.worker.scoring import draining
from pgoutlier.worker.scoring.batches import BatchReader
from tests.support import Table

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
