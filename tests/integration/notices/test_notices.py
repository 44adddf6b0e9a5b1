"""Notices: which rows get one, whichever way the score was written, and how they are read without missing any."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgoutlier.db.ddl import installation
from pgoutlier.db.notices import notices
from pgoutlier.worker.notices import webhook_control
from pgoutlier.worker.upkeep import maintenance
from tests.conftest import Connect
from tests.support import FEATURES, Table, detach_table, heard, make_detector

# On the oldest one, test_sql_cookbook has notices written.
pytestmark = pytest.mark.postgres18

OPERATIONS = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()


@pytest.fixture
def told(transactions: Table) -> Table:
    """Notices are on, and nothing is sent. Rows with an amount of a million or more are flagged."""
    transactions.promote(make_detector(FEATURES, threshold=1e9))
    webhook_control.set_webhook(transactions.runtime, "transactions", None)
    return transactions


def insert(table: Table, *rows: tuple[int, float]) -> None:
    for key, amount in rows:
        table.user.execute("INSERT INTO transactions VALUES (%s, %s, 1, 1)", (key, amount))


def keys(table: Table) -> list[str]:
    return table.keys("SELECT key FROM outlier.flagged_notices ORDER BY id")


def write_by_hand(table: Table, key: int, flagged: bool) -> None:
    """As an upsert, which fires both triggers."""
    table.user.execute(
        "INSERT INTO outlier.scores_transactions (key, change_id, reconstruction_error, model_version, flagged)"
        " VALUES (%s, 1, 7.5, 1, %s) ON CONFLICT (key) DO UPDATE SET flagged = excluded.flagged",
        (key, flagged),
    )


def test_a_row_that_is_scored_and_flagged_gets_a_notice(told: Table) -> None:
    insert(told, (1, 5.0), (2, 2e6), (3, 6.0), (4, 3e6))
    told.drain()
    assert keys(told) == ["2", "4"]
    (same,) = told.rows(
        "SELECT bool_and((n.reconstruction_error, n.model_version, n.scored_at, n.top_features)"
        " = (s.reconstruction_error, s.model_version, s.scored_at, s.top_features) AND n.threshold = 1e9"
        " AND n.source = 'transactions')"
        " FROM outlier.flagged_notices n JOIN outlier.scores_transactions s ON s.key = n.key::bigint"
    )
    assert same == (True,)


def test_a_row_that_is_scored_again_gets_one_only_when_it_becomes_flagged(told: Table) -> None:
    insert(told, (1, 5.0))
    for amount, expected in ((2e6, 1), (3e6, 1), (5.0, 1), (2e6, 2)):
        told.user.execute("UPDATE transactions SET amount = %s WHERE id = 1", (amount,))
        told.drain()
        assert keys(told) == ["1"] * expected


def test_an_upsert_by_anybody_counts_too(told: Table) -> None:
    for flagged in (True, True, False, True):
        write_by_hand(told, 1, flagged)
    told.user.execute("UPDATE outlier.scores_transactions SET flagged = false")
    told.user.execute("UPDATE outlier.scores_transactions SET flagged = true")
    assert keys(told) == ["1", "1", "1"]


def test_copy_counts_too(told: Table) -> None:
    columns = "key, change_id, reconstruction_error, model_version, flagged"
    with told.user.cursor().copy(f"COPY outlier.scores_transactions ({columns}) FROM STDIN") as copy:
        for key in range(10):
            copy.write_row((key, 1, 1.0, 1, key % 5 == 0))
    assert keys(told) == ["0", "5"]


def test_a_write_that_is_rolled_back_gives_none(told: Table) -> None:
    with told.user.transaction(force_rollback=True):
        write_by_hand(told, 1, True)
    assert keys(told) == []


def test_a_quiet_transaction_gives_none(told: Table) -> None:
    with told.user.transaction():
        told.user.execute("SET LOCAL outlier.quiet = 'on'")
        write_by_hand(told, 1, True)
    write_by_hand(told, 2, True)
    assert keys(told) == ["2"]


def test_one_notification_a_statement_says_which_after_the_commit(told: Table, connect: Connect) -> None:
    listening = connect()
    listening.execute("LISTEN outlier_flagged")
    insert(told, *((key, 2e6) for key in range(1, 8)))
    told.drain()
    write_by_hand(told, 99, False)
    (payload,) = heard(listening, "outlier_flagged", told.user)
    ids = told.keys("SELECT id FROM outlier.flagged_notices ORDER BY id")
    assert json.loads(payload) == {
        "source": "transactions",
        "n": 7,
        "first_id": ids[0],
        "last_id": ids[-1],
    }


def test_where_they_are_off_there_is_no_trigger(transactions: Table) -> None:
    hooked = (
        "SELECT tgname FROM pg_trigger WHERE tgrelid = 'outlier.scores_transactions'::regclass"
        " AND tgname LIKE 'outlier_notice_%%'"
    )
    assert transactions.keys(hooked) == []
    webhook_control.set_webhook(transactions.runtime, "transactions", None)
    assert len(transactions.keys(hooked)) == 2
    assert webhook_control.remove(transactions.runtime, "transactions")
    assert not webhook_control.remove(transactions.runtime, "transactions")
    assert transactions.keys(hooked) == []
    write_by_hand(transactions, 1, True)
    assert keys(transactions) == []


def test_detaching_leaves_nothing(told: Table) -> None:
    write_by_hand(told, 1, True)
    detach_table(told)
    assert keys(told) == []
    assert told.keys("SELECT source FROM outlier.webhooks") == []
    assert told.keys("SELECT proname FROM pg_proc WHERE proname LIKE 'notice_%%'") == []


def test_attaching_again_mends_the_triggers(told: Table) -> None:
    told.user.execute("DROP FUNCTION outlier.notice_insert_transactions() CASCADE")
    told.user.execute("ALTER TABLE outlier.scores_transactions DISABLE TRIGGER outlier_notice_update")
    source = told.source
    with told.runtime.engine.begin() as connection:
        assert set(notices.triggers_enabled(connection, "transactions").values()) == {False}
        installation.repair(connection, source.definition, ("id", *FEATURES, "note"))
        assert set(notices.triggers_enabled(connection, "transactions").values()) == {True}


def test_a_writer_of_scores_needs_no_right_on_notices(told: Table, role: str) -> None:
    told.user.execute(
        f"GRANT USAGE ON SCHEMA outlier TO {role};"
        f" GRANT SELECT, INSERT, UPDATE ON outlier.scores_transactions TO {role}; SET ROLE {role}"
    )
    write_by_hand(told, 1, True)
    told.user.execute("RESET ROLE")
    assert keys(told) == ["1"]


def recipe() -> str:
    """The query of docs/operations.md that reads what has become visible since the last time."""
    found = re.search(r"^```sql\n(SELECT .*?pg_visible_in_snapshot.*?)^```", OPERATIONS, re.M | re.S)
    assert found is not None
    return found[1].replace("payments", "transactions").replace(":'seen'", "%(seen)s").replace(";", "")


def read(reader: psycopg.Connection[Any], seen: str) -> tuple[list[str], str]:
    rows = reader.execute(recipe().encode(), {"seen": seen}).fetchall()
    return [row[1] for row in rows], rows[-1][-1] if rows else seen


def test_the_documented_query_misses_none_that_is_committed_late_and_gives_none_twice(
    told: Table, connect: Connect
) -> None:
    reader, late, later = connect(), connect(autocommit=False), connect(autocommit=False)
    seen = reader.execute("SELECT pg_current_snapshot()::text").fetchone()[0]  # type: ignore[index]
    write = (
        "INSERT INTO outlier.scores_transactions (key, change_id, reconstruction_error, model_version, flagged)"
        " VALUES (%s, 1, 1, 1, true)"
    )
    late.execute(write, (1,))
    later.execute(write, (2,))
    write_by_hand(told, 3, True)
    found, seen = read(reader, seen)
    assert found == ["3"]
    later.commit()
    write_by_hand(told, 4, True)
    found, seen = read(reader, seen)
    assert found == ["2", "4"]
    late.commit()
    found, seen = read(reader, seen)
    assert found == ["1"]
    assert read(reader, seen) == ([], seen)


def test_prune_removes_old_ones_and_keeps_what_is_to_be_delivered(told: Table) -> None:
    old = "UPDATE outlier.notices SET created_at = now() - interval '8 days' WHERE key = '1'"
    older = (
        "UPDATE outlier.notices SET waits = true, created_at = now() - interval '%s days' WHERE key = '%s'"
    )
    for key in (1, 2, 3, 4):
        write_by_hand(told, key, True)
    told.user.execute(old)
    told.user.execute(older % (8, 2))  # type: ignore[arg-type]
    told.user.execute(older % (91, 3))  # type: ignore[arg-type]
    told.user.execute(
        "INSERT INTO outlier.dead_letters (id, source, n_notices, attempts, last_error, created_at)"
        " VALUES (gen_random_uuid(), 'transactions', 1, 10, 'x', now() - interval '91 days')"
    )
    for key in (1, 2, 3, 4):
        told.user.execute("INSERT INTO transactions VALUES (%s, 1, 1, 1)", (key,))
    maintenance.prune_all(told.runtime)
    assert keys(told) == ["2", "4"]
    assert told.keys("SELECT id FROM outlier.dead_letters") == []
