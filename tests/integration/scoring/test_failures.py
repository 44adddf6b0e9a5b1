"""Failures that no row is to blame for: nothing is lost, nothing spins, and somebody is told."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import pytest

from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.upkeep import maintenance
from tests.support import Table, attach_table, make_table, until, waits

User = psycopg.Connection


@pytest.fixture
def moody(user: User, runtime: Runtime) -> Table:
    """A source whose feature view raises the SQLSTATE that stands in a table of one row, if any."""
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    user.execute("CREATE TABLE mood (state text)")
    user.execute(
        "CREATE FUNCTION moody(x float8) RETURNS float8 LANGUAGE plpgsql AS $$ DECLARE s text;"
        " BEGIN SELECT state INTO s FROM mood; IF s IS NOT NULL THEN"
        " RAISE EXCEPTION 'in a mood' USING ERRCODE = s; END IF; RETURN x; END $$"
    )
    user.execute("CREATE VIEW f AS SELECT id, moody(x) AS x FROM t")
    table = attach_table(user, runtime, relation="t", key="id", feature_view="f")
    table.promote()
    return table


def test_a_race_lost_for_ever_ends_with_the_time_of_the_drain(moody: Table) -> None:
    moody.user.execute("INSERT INTO mood VALUES ('40001')")
    moody.user.execute("INSERT INTO t SELECT n, n FROM generate_series(1, 50) n")
    result = draining.drain(moody.runtime, moody.source_name, budget_seconds=0.5)
    assert 1 <= result.n_failed_batches <= 20  # with pauses between
    moody.user.execute("DELETE FROM mood")
    moody.drain_all()
    assert len(moody.scored()) == 50


@pytest.mark.parametrize("state", ["55000", "42501", "53100"])
def test_a_problem_of_the_set_up_is_told_and_no_row_is_blamed(moody: Table, state: str) -> None:
    moody.user.execute("INSERT INTO mood VALUES (%s)", (state,))
    moody.user.execute("INSERT INTO t SELECT n, n FROM generate_series(1, 5) n")
    for _ in range(4):
        moody.drain()
        moody.make_due()
    assert "in a mood" in str(moody.rows("SELECT last_problem FROM outlier.sources")[0][0])
    assert moody.quarantined() == {}
    moody.user.execute("DELETE FROM mood")
    moody.drain_all()
    assert len(moody.scored()) == 5
    assert moody.rows("SELECT last_problem FROM outlier.sources") == [(None,)]


def test_a_batch_too_slow_for_the_statement_timeout_is_made_smaller(moody: Table) -> None:
    moody.user.execute("INSERT INTO mood VALUES ('57014')")
    moody.user.execute("INSERT INTO t SELECT n, n FROM generate_series(1, 64) n")
    for _ in range(3):
        moody.drain()
        moody.make_due()
    assert max(moody.keys("SELECT attempts FROM outlier.queue_{source}"), default=99) >= 1
    moody.user.execute("DELETE FROM mood")
    moody.make_due()
    moody.drain_all()
    assert len(moody.scored()) + len(moody.quarantined()) == 64


def test_a_source_that_lost_its_table_does_not_keep_the_others_from_sweep_and_prune(
    user: User, runtime: Runtime
) -> None:
    user.execute("CREATE TABLE a_gone (id int PRIMARY KEY, x float8)")
    attach_table(user, runtime, relation="a_gone", key="id", features="x")
    kept = make_table(user, runtime)
    user.execute("DROP TABLE a_gone CASCADE")
    kept.insert(1, 3)
    assert kept.source_name in maintenance.sweep_all(runtime)
    assert kept.source_name in maintenance.prune_all(runtime)


def test_prune_spares_the_score_of_a_row_that_comes_back_meanwhile(
    moody: Table, connect: Callable[[], User]
) -> None:
    moody.user.execute("INSERT INTO t VALUES (1, 1), (2, 1)")
    moody.drain_all()
    moody.user.execute("DELETE FROM t WHERE id = 1")
    moody.drain_all()
    other = connect()
    other.autocommit = False
    other.execute("INSERT INTO t VALUES (1, 5)")
    other.execute("UPDATE outlier.scores_t SET change_id = change_id + 100 WHERE key = 1")
    pruning = threading.Thread(target=maintenance.prune_all, args=(moody.runtime,))
    pruning.start()
    until(lambda: waits(moody.user))
    other.commit()
    pruning.join()
    assert moody.scored() == [1, 2]
