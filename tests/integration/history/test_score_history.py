"""Earlier scores: kept when another version scores a row anew, whichever way it is written."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgoutlier.db.errors import SourceError
from pgoutlier.worker.history import keeping
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.upkeep import maintenance
from tests.conftest import Connect
from tests.support import FEATURES, Table, attach_table, detach_table, make_detector, register

# Nothing here differs between versions of PostgreSQL.
pytestmark = pytest.mark.postgres18

User = psycopg.Connection[Any]


@pytest.fixture
def scored(transactions: Table) -> Table:
    """Five rows scored by version 1."""
    transactions.promote()
    transactions.insert(1, 5)
    transactions.drain()
    return transactions


def kept(table: Table) -> list[tuple[Any, ...]]:
    return table.rows(
        "SELECT key, model_version, reconstruction_error FROM outlier.score_history_{source} ORDER BY replaced_at, key"
    )


def rescore(table: Table, seed: int) -> int:
    version = register(table.runtime, table.source, make_detector(FEATURES, seed=seed))
    job_control.work(table.runtime, job_control.rescore(table.runtime, table.source_name, version).id)
    return version


def test_a_rescore_keeps_the_score_of_the_version_before(scored: Table) -> None:
    assert keeping.keep(scored.runtime, scored.source_name)
    assert not keeping.keep(scored.runtime, scored.source_name)
    first = scored.errors()
    second = rescore(scored, 1)
    between = scored.errors()
    rescore(scored, 2)
    assert kept(scored) == [(key, 1, first[key]) for key in range(1, 6)] + [
        (key, second, between[key]) for key in range(1, 6)
    ]
    shown = keeping.of_row(scored.runtime, scored.source_name, "3")
    assert [row.model_version for row in shown] == [3, 2, 1]
    assert [row.replaced_at is None for row in shown] == [True, False, False]


def test_a_score_that_the_same_version_replaces_is_not_kept(scored: Table) -> None:
    keeping.keep(scored.runtime, scored.source_name)
    scored.user.execute("UPDATE transactions SET amount = 99 WHERE id = 2")
    scored.drain()
    assert kept(scored) == []
    scored.promote(make_detector(FEATURES, seed=1))
    scored.user.execute("UPDATE transactions SET amount = 9 WHERE id = 2")
    scored.drain()
    assert [row[:2] for row in kept(scored)] == [(2, 1)]


def test_flags_that_another_threshold_takes_back_stay_in_the_history(scored: Table) -> None:
    keeping.keep(scored.runtime, scored.source_name)
    job = job_control.reflag(scored.runtime, scored.source_name, 1e-9)
    job_control.work(scored.runtime, job.id)
    assert scored.keys("SELECT DISTINCT flagged FROM outlier.score_history_{source}") == [False]
    assert scored.keys("SELECT DISTINCT flagged FROM outlier.scores_{source}") == [True]


def test_stopped_it_keeps_no_more_and_the_table_stays_until_it_is_dropped(scored: Table) -> None:
    keeping.keep(scored.runtime, scored.source_name)
    rescore(scored, 1)
    assert keeping.stop(scored.runtime, scored.source_name)
    assert not keeping.stop(scored.runtime, scored.source_name)
    rescore(scored, 2)
    assert len(kept(scored)) == 5
    assert keeping.stop(scored.runtime, scored.source_name, drop=True)
    with pytest.raises(SourceError, match="pgoutlier history keep transactions"):
        keeping.of_row(scored.runtime, scored.source_name, "3")
    assert scored.keys("SELECT action FROM outlier.source_events ORDER BY id") == [
        "attach",
        "keep_history",
        "stop_history",
        "drop_history",
    ]


def test_prune_removes_old_ones_and_those_of_rows_that_are_gone(scored: Table) -> None:
    keeping.keep(scored.runtime, scored.source_name)
    rescore(scored, 1)
    scored.user.execute(
        "UPDATE outlier.score_history_transactions SET replaced_at = now() - interval '8 d' WHERE key = 1"
    )
    scored.user.execute("DELETE FROM transactions WHERE id = 2")
    maintenance.prune_all(scored.with_settings(keep_history_days=9).runtime)
    assert [row[0] for row in kept(scored)] == [1, 3, 4, 5]
    maintenance.prune_all(scored.with_settings(keep_history_days=7).runtime)
    assert [row[0] for row in kept(scored)] == [3, 4, 5]


def test_a_worker_needs_no_right_on_the_history_to_write_scores(
    scored: Table, connect: Connect, role: str
) -> None:
    keeping.keep(scored.runtime, scored.source_name)
    scored.user.execute(
        f"GRANT USAGE ON SCHEMA outlier TO {role}; GRANT ALL ON outlier.scores_transactions TO {role}"
    )
    other = connect(user=role)
    other.execute("UPDATE outlier.scores_transactions SET model_version = 7 WHERE key = 1")
    assert [row[0] for row in kept(scored)] == [1]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        other.execute("SELECT FROM outlier.score_history_transactions")


def test_detach_takes_it_along_and_a_key_of_another_type_is_one_sentence(scored: Table) -> None:
    keeping.keep(scored.runtime, scored.source_name)
    with pytest.raises(SourceError, match="'x' cannot be a key of source transactions"):
        keeping.of_row(scored.runtime, scored.source_name, "x")
    detach_table(scored)
    assert (
        scored.keys(
            "SELECT relname FROM pg_class WHERE relname LIKE '%%history%%'",
        )
        == []
    )
    assert scored.keys("SELECT proname FROM pg_proc WHERE proname LIKE 'keep_history%%'") == []


def test_an_odd_name_of_a_source_is_quoted(user: User, runtime: Runtime) -> None:
    user.execute('CREATE TABLE "Odd ""one%%" ("k;" uuid PRIMARY KEY DEFAULT gen_random_uuid(), a float8)', ())
    table = attach_table(user, runtime, relation='"Odd ""one%"', key='"k;"', features="a", name="odd_1")
    table.promote()
    keeping.keep(runtime, "odd_1")
    user.execute('INSERT INTO "Odd ""one%%" (a) VALUES (1), (2)', ())
    table.drain()
    register(runtime, table.source)
    job_control.work(runtime, job_control.rescore(runtime, "odd_1", 2).id)
    assert len(kept(table)) == 2
