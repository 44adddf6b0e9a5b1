"""The table of a source that is renamed, moved, replaced, dropped or restored: nothing is mistaken for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgoutlier.db.errors import SourceError, TableReplaced
from pgoutlier.db.settings import Settings
from pgoutlier.worker.doctor import source_checks
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.scoring import batches
from pgoutlier.worker.sources import attaching
from pgoutlier.worker.status import flagged_rows
from pgoutlier.worker.training import training
from pgoutlier.worker.upkeep import maintenance
from tests.integration.conftest import Run
from tests.servers import Postgres
from tests.support import Table, attach_table, make_detector

User = psycopg.Connection[Any]

SWAP = """
BEGIN; CREATE TABLE n (LIKE t INCLUDING ALL); INSERT INTO n VALUES (1001, 0, 0), (1002, 60, 0);
ALTER TABLE t RENAME TO t_old; ALTER TABLE n RENAME TO t; {then} COMMIT;
"""
REPLACED = {
    "swapped": SWAP.format(then=""),
    "swapped and dropped": SWAP.format(then="DROP TABLE t_old CASCADE;"),
    "made again": "DROP TABLE t CASCADE; CREATE TABLE t (id int PRIMARY KEY, x float8, y float8);"
    " INSERT INTO t VALUES (1001, 0, 0), (1002, 60, 0)",
    "schemas swapped": "CREATE SCHEMA s; ALTER TABLE t SET SCHEMA s; CREATE TABLE t (LIKE s.t INCLUDING ALL);"
    " INSERT INTO t VALUES (1001, 0, 0), (1002, 60, 0)",
    "by a view": "ALTER TABLE t RENAME TO t_old; CREATE VIEW t AS SELECT * FROM t_old",
    "gone": "DROP TABLE t CASCADE",
}
TABLES = [case for case in REPLACED if case not in {"by a view", "gone"}]


@pytest.fixture
def table(user: User, runtime: Runtime) -> Table:
    """Two scored rows, the first of them flagged, and one that is queued."""
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8, y float8)")
    made = attach_table(user, runtime, relation="t", key="id", features="x,y")
    detector = make_detector(("x", "y"))
    made.promote(detector)
    user.execute("INSERT INTO t VALUES (1001, 60, 0), (1002, 0, 0)")
    made.drain()
    errors = made.errors()
    made.promote(make_detector(("x", "y"), threshold=(errors[1001] + errors[1002]) / 2))
    user.execute("UPDATE t SET x = x + 0.001")
    made.drain()
    assert flags(made) == {1001: True, 1002: False}
    user.execute("INSERT INTO t VALUES (1003, 1, 1)")
    return made


def flags(table: Table) -> dict[int, bool]:
    return dict(table.rows("SELECT key, flagged FROM outlier.scores_t"))


def finding(table: Table) -> source_checks.Finding:
    with table.runtime.engine.begin() as connection:
        return next(iter(source_checks.of_source(connection, table.runtime, table.source)))


@pytest.mark.parametrize("case", REPLACED)
def test_nothing_is_scored_removed_or_found_by_the_name_of_another_table(
    table: Table, case: str, run: Run
) -> None:
    before = table.errors()
    table.user.execute(REPLACED[case])
    assert table.drain().n_scored == 0
    maintenance.sweep_all(table.runtime)
    maintenance.prune_all(table.runtime)
    assert table.queued() == [1003]
    assert table.errors() == before
    assert table.quarantined() == {}
    for refused in (
        lambda: job_control.backfill(table.runtime, "t"),
        lambda: job_control.rescore(table.runtime, "t"),
        lambda: training.train(table.runtime, "t"),
        lambda: maintenance.sweep(table.runtime, "t"),
    ):
        with pytest.raises(TableReplaced):
            refused()
    problem = table.source.table_problem or ""
    command = f"pgoutlier {'adopt' if case in TABLES else 'detach'} t"
    assert command in problem or "--name t" in problem
    assert finding(table).detail == problem
    shown = json.loads(run("status", "--json").stdout)["sources"][0]
    assert shown["problem"] == problem


@pytest.mark.parametrize("case", TABLES)
def test_adopted_every_row_of_the_new_table_is_scored_anew(table: Table, case: str, run: Run) -> None:
    table.user.execute("CREATE ROLE reader; GRANT SELECT ON outlier.scored_t TO reader")
    try:
        table.user.execute(REPLACED[case])
        granted = "SELECT has_table_privilege('reader', 'outlier.scored_t', 'SELECT')"
        with pytest.raises(TableReplaced, match="adopt t"):
            attach_table(table.user, table.runtime, relation="t", key="id", features="x,y")
        done = run("adopt", "t", "--yes")
        assert done.exit_code == 0, done.output
        assert table.queued() == []
        job_control.work(table.runtime, 1)
        assert flags(table) == {1001: False, 1002: True}
        table.user.execute("INSERT INTO t VALUES (1004, 1, 1)")
        assert table.queued() == [1004]
        table.drain()
        assert table.scored() == [1001, 1002, 1004]
        assert table.keys("SELECT id FROM outlier.flagged_t") == [1002]
        assert finding(table).ok
        if case in {"swapped", "schemas swapped"}:  # elsewhere the views were dropped with their table
            assert table.rows(granted) == [(True,)]
            old = "t_old" if case == "swapped" else "s.t"
            table.user.execute(f"UPDATE {old} SET x = 7; INSERT INTO {old} VALUES (5000, 1, 1)")
            assert table.queued() == []
    finally:
        table.user.execute("DROP OWNED BY reader; DROP ROLE reader")


def test_a_table_that_is_renamed_or_moved_is_the_same_table(table: Table, run: Run) -> None:
    table.user.execute("ALTER TABLE t RENAME TO paid; CREATE SCHEMA s; ALTER TABLE paid SET SCHEMA s")
    table.user.execute("INSERT INTO s.paid VALUES (1004, 60, 0)")
    table.drain()
    assert flags(table) == {1001: True, 1002: False, 1003: False, 1004: True}
    assert maintenance.sweep(table.runtime, "t") == 0
    assert maintenance.prune_all(table.runtime) == {"t": 0}
    assert finding(table).ok
    assert finding(table).detail.startswith("s.paid by id")
    assert json.loads(run("sources", "--json").stdout)[0]["relation_name"] == "paid"
    attach_table(table.user, table.runtime, relation="s.paid", key="id", features="x,y", name="t")
    # From now on that is its name, and whatever is called t is no business of ours.
    table.user.execute("CREATE TABLE t (id int)")
    table.user.execute("INSERT INTO s.paid VALUES (1005, 60, 0)")
    table.drain()
    assert flags(table)[1005]


def test_after_a_swap_one_can_go_on_with_the_old_table_under_its_new_name(table: Table) -> None:
    table.user.execute(REPLACED["swapped"])
    table.drain()
    assert table.queued() == [1003]
    attach_table(table.user, table.runtime, relation="t_old", key="id", features="x,y", name="t")
    table.drain()
    assert flags(table) == {1001: True, 1002: False, 1003: False}


def test_a_swap_that_is_taken_back_is_forgotten(table: Table) -> None:
    table.user.execute(REPLACED["swapped"])
    table.drain()
    table.user.execute("BEGIN; ALTER TABLE t RENAME TO n; ALTER TABLE t_old RENAME TO t; COMMIT")
    table.make_due()
    table.drain()
    assert flags(table) == {1001: True, 1002: False, 1003: False}
    assert table.source.last_problem is None


def test_a_swap_between_finding_the_source_and_reading_its_rows_scores_nothing(table: Table) -> None:
    with batches.BatchReader(table.runtime, "t") as reader:
        table.user.execute(REPLACED["swapped"])
        batch = reader.next()
        assert batch is not None
        with pytest.raises(batches.BatchFailed) as failed:
            batches.score_batch(table.runtime, reader.source, batch)
    assert isinstance(failed.value.cause, TableReplaced)
    assert table.queued() == [1003]
    assert 1003 not in table.scored()


def test_a_table_that_is_being_scored_cannot_be_swapped_under_the_scores(
    table: Table, connect: Callable[..., User]
) -> None:
    other = connect()
    other.execute("SET lock_timeout = '100ms'")
    with batches.BatchReader(table.runtime, "t") as reader:
        batch = reader.next()
        assert batch is not None
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("ALTER TABLE t RENAME TO t_old")
        batches.score_batch(table.runtime, reader.source, batch)
    assert flags(table)[1003] is False


@pytest.mark.parametrize("work", ["sweep", "prune"])
def test_housekeeping_that_read_another_table_is_taken_back(
    table: Table, work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The swap is committed after the source was found."""
    from pgoutlier.db.sources import sources

    found = sources.at_work

    def then_swapped(*arguments: Any) -> Any:
        source = found(*arguments)
        table.user.execute(REPLACED["swapped"])
        return source

    before = table.errors()
    monkeypatch.setattr(sources, "at_work", then_swapped)
    if work == "sweep":
        with pytest.raises(TableReplaced):
            maintenance.sweep(table.runtime, "t")
    else:
        assert maintenance.prune_all(table.runtime) == {}
    assert table.errors() == before
    assert table.queued() == [1003]


def test_a_range_of_a_job_that_read_another_table_is_taken_back(table: Table) -> None:
    table.user.execute("DELETE FROM outlier.scores_t WHERE key = 1002")
    job = job_control.backfill(table.runtime, "t")
    table.user.execute(REPLACED["swapped"])
    assert job_control.work(table.runtime, job.id) is False
    assert table.scored() == [1001]
    described = job_control.described(table.runtime, job.id)
    assert described.status == "running"
    assert "adopt t" in (described.problem or "")


def test_a_feature_view_that_reads_the_old_table_is_named(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8, y float8)")
    user.execute("CREATE VIEW below AS SELECT * FROM t; CREATE VIEW f AS SELECT id, x, y FROM below")
    attach_table(user, runtime, relation="t", key="id", feature_view="f")
    user.execute(REPLACED["swapped"])
    with pytest.raises(
        SourceError, match=r"The feature view public\.f reads the table that was attached before"
    ):
        attaching.adopt(runtime, "t")
    user.execute("CREATE OR REPLACE VIEW below AS SELECT * FROM t")
    attaching.adopt(runtime, "t")


def test_columns_are_written_in_the_table_that_is_adopted(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8, y float8)")
    table = attach_table(user, runtime, relation="t", key="id", features="x,y", write_columns=True)
    table.promote()
    user.execute("INSERT INTO t VALUES (1, 1, 1)")
    table.drain()
    user.execute(
        "BEGIN; CREATE TABLE n AS SELECT id, x, y FROM t; ALTER TABLE n ADD PRIMARY KEY (id);"
        " DROP TABLE t CASCADE; ALTER TABLE n RENAME TO t; COMMIT"
    )
    assert table.drain().n_scored == 0
    done = attaching.adopt(runtime, "t")
    assert done.job is not None
    job_control.work(runtime, done.job.id)
    assert user.execute("SELECT flagged FROM t").fetchall() == [(False,)]
    user.execute("ALTER TABLE t RENAME TO paid; INSERT INTO paid VALUES (2, 1, 1)")
    assert table.drain().n_scored == 0
    assert "--name t" in (table.source.table_problem or "")
    attach_table(user, runtime, relation="paid", key="id", features="x,y", name="t", write_columns=True)
    table.make_due()
    table.drain()
    assert user.execute("SELECT flagged FROM paid").fetchall() == [(False,), (False,)]


def test_a_source_goes_on_in_a_database_that_was_restored(
    table: Table, postgres: Postgres, database_url: str, empty_database_url: str, settings: Settings
) -> None:
    """The table has another oid there, and the dump says which it is."""
    table.user.execute("CREATE TABLE before_it (x int); DROP TABLE before_it")
    dump = postgres.run("pg_dump", database_url)
    postgres.run("psql", empty_database_url, "--quiet", stdin=dump)
    from pydantic import SecretStr

    runtime = make_runtime(settings.model_copy(update={"database_url": SecretStr(empty_database_url)}))
    with psycopg.connect(empty_database_url, autocommit=True) as user:
        restored = Table(user, runtime, "t")
        assert restored.source.table_problem is None
        restored.drain()
        assert flags(restored) == {1001: True, 1002: False, 1003: False}
    runtime.engine.dispose()


def test_the_flagged_rows_of_a_table_that_is_gone_are_no_traceback(table: Table) -> None:
    table.user.execute("DROP TABLE t CASCADE")
    with pytest.raises(SourceError, match=r"There is no table public\.t any more"):
        flagged_rows.newest(table.runtime, "t", since=None, limit=5)


def test_a_table_of_another_source_is_not_adopted(table: Table) -> None:
    table.user.execute("CREATE TABLE u (id int PRIMARY KEY, x float8, y float8)")
    attach_table(table.user, table.runtime, relation="u", key="id", features="x,y")
    table.user.execute("DROP TABLE t CASCADE; ALTER TABLE u RENAME TO t")
    with pytest.raises(SourceError, match="is the table of source u"):
        attaching.adopt(table.runtime, "t")
