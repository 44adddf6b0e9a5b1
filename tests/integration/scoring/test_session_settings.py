"""Whatever an administrator has set for the database or a role, rows are scored as without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import make_url

from pgoutlier.db.settings import Settings
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.status import flagged_rows
from pgoutlier.worker.upkeep import maintenance
from tests.conftest import Connect
from tests.pgbouncer import running_pgbouncer
from tests.support import FEATURES, Table, make_detector, make_table, quick_settings

User = psycopg.Connection[Any]
SETTINGS = {
    "default_transaction_isolation": "serializable",
    "array_nulls": "off",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
    "transform_null_equals": "on",
    "bytea_output": "escape",
    "TimeZone": "Asia/Kathmandu",
    "plpgsql.extra_errors": "all",
    "plpgsql.variable_conflict": "use_column",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_are_scored_as_without_a_setting(
    user: User, settings: Settings, connect: Connect, database_url: str, name: str
) -> None:
    set_for_all(user, database_url, name)
    rows_are_scored_as_ever(user, connect(), make_runtime(settings, application_name="tests"))


def test_rows_are_scored_as_without_settings_through_a_pooler(
    user: User, connect: Connect, database_url: str, scratch: Path
) -> None:
    """Which tells us its sessions' settings as they were, and sets some of them by what we have told it."""
    set_for_all(user, database_url, *SETTINGS)
    with running_pgbouncer(database_url, scratch, n_sessions=2) as pgbouncer:
        rows_are_scored_as_ever(user, connect(), make_runtime(quick_settings(pgbouncer.url)))
        with psycopg.connect(pgbouncer.url, prepare_threshold=None) as other, other.cursor() as cursor:
            for name, value in SETTINGS.items():
                assert cursor.execute(f"SHOW {name}".encode()).fetchall() == [(value,)]


def set_for_all(user: User, database_url: str, *names: str) -> None:
    for name in names:
        user.execute(
            f"ALTER DATABASE {make_url(database_url).database} SET {name} = '{SETTINGS[name]}'".encode()
        )


def rows_are_scored_as_ever(user: User, owner: User, runtime: Runtime) -> None:
    table = make_table(owner, runtime)
    detector = make_detector(FEATURES, threshold=1e6)
    table.promote(detector)
    fill(table)
    flagged = flagged_rows.newest(runtime, "transactions", since=None, limit=9).rows
    runtime.engine.dispose()
    keys = [*range(1, 7), *range(8, 61), 70]
    rows = np.array([(1e9 / 3 if key in (5, 6) else key * 0.5, key % 24, key**0.5) for key in keys])
    user.execute("SET extra_float_digits = 1")
    stored = dict(
        user.execute("SELECT key, reconstruction_error FROM outlier.scores_transactions").fetchall()
    )
    assert sorted(stored) == keys
    assert [stored[key] for key in keys] == pytest.approx(detector.score(rows).reconstruction_error, rel=1e-6)
    assert {row["id"]: row["reconstruction_error"] for row in flagged} == {5: stored[5], 6: stored[6]}
    table.user.execute("SET DateStyle = ISO")
    assert table.quarantined() == {"100": ("null", "amount")}
    assert table.queued() == []


def fill(table: Table) -> None:
    """Rows of which two are flagged, one is incomplete, one gets past the triggers and one is gone again."""
    user, insert = table.user, table.insert
    insert(1, 60)
    user.execute("UPDATE transactions SET amount = 1e9 / 3 WHERE id IN (5, 6)")
    user.execute("INSERT INTO transactions VALUES (100, NULL, 1, 1, '3/4/2026')")
    table.drain()
    user.execute("ALTER TABLE transactions DISABLE TRIGGER USER")
    insert(70)
    user.execute("ALTER TABLE transactions ENABLE TRIGGER USER")
    assert maintenance.sweep(table.runtime, "transactions") == 1
    table.drain()
    user.execute("DELETE FROM transactions WHERE id = 7")
    maintenance.prune_all(table.runtime)


def test_transactions_of_ours_see_what_was_committed_before_each_statement(
    user: User, settings: Settings, database_url: str
) -> None:
    name = make_url(database_url).database
    user.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'".encode())
    runtime = make_runtime(settings, application_name="tests")
    with runtime.engine.begin() as connection:
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"
    runtime.engine.dispose()
