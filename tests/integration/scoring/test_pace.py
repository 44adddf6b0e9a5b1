"""Many writers of few rows each: a drain rests between batches, and rows that it will see are not rung for."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgoutlier.db.scoring import bell
from pgoutlier.db.sql import locks, long_locks
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.scoring.pace import Pace
from tests.conftest import Connect
from tests.support import Table, until

User = psycopg.Connection[Any]


def look(table: Table, session: User) -> bell.Look:
    return bell.newest(session, {"transactions": table.source.id})["transactions"]


def test_rows_that_a_drain_will_see_by_itself_are_not_rung_for(transactions: Table, connect: Connect) -> None:
    listener = connect()
    transactions.insert(1)
    assert look(transactions, listener) == bell.Look(frozenset({1}), paced=False)
    with long_locks.shared(transactions.runtime.engine, locks.PACED, transactions.source.id):
        assert look(transactions, listener) == bell.Look(frozenset(), paced=True)
    assert look(transactions, listener) == bell.Look(frozenset({1}), paced=False)


def test_rows_that_a_drain_leaves_are_rung_for_all_the_same(transactions: Table, connect: Connect) -> None:
    """It may hang."""
    listener = connect()
    transactions.insert(1)
    with long_locks.shared(transactions.runtime.engine, locks.PACED, transactions.source.id):
        until(lambda: look(transactions, listener).ids == {1}, "the row is rung for")
        transactions.insert(2)
        assert look(transactions, listener).ids == {1}


def test_several_drains_pace_a_source_and_the_last_to_end_says_so(
    transactions: Table, connect: Connect
) -> None:
    listener, engine, source_id = connect(), transactions.runtime.engine, transactions.source.id
    with long_locks.shared(engine, locks.PACED, source_id):
        with long_locks.shared(engine, locks.PACED, source_id):
            assert look(transactions, listener).paced
        assert look(transactions, listener).paced
    assert not look(transactions, listener).paced


def test_a_drain_of_rows_of_many_statements_paces_the_source_until_it_ends(
    transactions: Table, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, seen = connect(), []
    transactions.promote()
    rest = Pace.rest

    def rest_and_look(self: Pace, *args: Any) -> None:
        rest(self, *args)
        seen.append(look(transactions, listener).paced)
        if len(seen) < 4:
            transactions.insert(100 * len(seen), 100 * len(seen) + 1)  # by one statement

    monkeypatch.setattr(Pace, "rest", rest_and_look)
    for key in range(1, 21):
        transactions.insert(key)
    assert transactions.drain().n_scored == 26
    assert seen == [True] * 4
    assert look(transactions, listener) == bell.Look(frozenset(), paced=False)


def test_a_drain_of_few_rows_rests_not(transactions: Table, runtime: Runtime) -> None:
    """Whoever inserts one row after the other waits for each."""
    transactions.promote()
    for key in range(1, 4):
        transactions.insert(key)
        assert transactions.drain().n_scored == 1
    with Pace(runtime, transactions.source.id) as pace:
        pace.rest(draining.queue.Claim([1, 2, 3], 3, 0, rescore=False), started=0.0)
        assert not look(transactions, transactions.user).paced
