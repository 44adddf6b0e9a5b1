"""The key column of a source that gets another type or name: the same attach again keeps what is known of its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgoutlier.db.errors import SourceError
from pgoutlier.worker.history import keeping
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.sources import attaching
from pgoutlier.worker.upkeep import maintenance
from pgoutlier.worker.verdicts import judging
from pgoutlier.worker.verdicts.judging import Verdict
from tests.integration.conftest import Run
from tests.support import Table, attach_table

User = psycopg.Connection[Any]
UUID = "'abcdef00-0000-0000-0000-' || lpad({}::text, 12, '0')"
CHANGES = {
    "integer to bigint": ("int", "bigint", "id::bigint", "{}", "3000000000"),
    "bigint to integer": ("bigint", "int", "id::int", "{}", "77"),
    "smallint to text": ("smallint", "text", "id::text", "{}", "'a b'"),
    "text to integer": ("text", "int", "id::int", "({})::text", "777"),
    "text to uuid": ("text", "uuid", "id::uuid", f"upper({UUID})", "gen_random_uuid()"),
    "uuid to text": ("uuid", "text", "id::text", f"({UUID})::uuid", "'new'"),
}


def drop_views(user: User) -> None:
    for view in ("rows_t", "comparison_t"):
        user.execute(f"DROP VIEW IF EXISTS outlier.{view} CASCADE")


def keyed(user: User, runtime: Runtime, key_type: str, key: str, **options: Any) -> Table:
    """Rows 1 to 20 scored, 21 in quarantine, and everything that holds keys turned on."""
    user.execute(f"CREATE TABLE t (id {key_type} PRIMARY KEY, x float8, y float8)")
    table = attach_table(user, runtime, relation="t", key="id", features="x,y", **options)
    table.promote()
    keeping.keep(runtime, "t")
    add(table, key, 1, 20)
    table.drain()
    user.execute(f"INSERT INTO t VALUES ({key.format(21)}, NULL, 1)")
    table.drain()
    table.promote()
    user.execute("UPDATE t SET y = y + 1")
    table.drain()
    return table


def add(table: Table, key: str, first: int, last: int) -> None:
    table.user.execute(
        f"INSERT INTO t SELECT {key.format('i')}, i, 1 FROM generate_series({first}, {last}) i"
    )


def known(table: Table) -> list[Any]:
    """All that is kept of each row, by its key as text."""
    return [
        table.rows(
            "SELECT lower(key::text), change_id, reconstruction_error, model_version FROM outlier.scores_t ORDER BY 1"
        ),
        table.rows("SELECT lower(key::text), model_version FROM outlier.score_history_t ORDER BY 1, 2"),
        table.rows("SELECT lower(key), reason FROM outlier.quarantine ORDER BY 1"),
        table.rows("SELECT lower(key), verdict FROM outlier.verdicts ORDER BY id"),
        table.rows("SELECT count(*) FROM outlier.model_versions"),
    ]


@pytest.mark.parametrize("written", [False, True], ids=["", "with columns"])
@pytest.mark.parametrize("change", CHANGES)
def test_another_type_keeps_all_that_is_known(
    user: User, runtime: Runtime, change: str, written: bool, run: Run
) -> None:
    old, new, using, key, other = CHANGES[change]
    table = keyed(user, runtime, old, key, write_columns=written)
    first = "SELECT id::text FROM t ORDER BY x LIMIT 1"
    judging.give(runtime, "t", [Verdict(table.keys(first)[0], "fraud")])
    before = known(table)
    user.execute("DROP VIEW outlier.comparison_t, outlier.rows_t CASCADE")
    user.execute(f"ALTER TABLE t ALTER id TYPE {new} USING {using}")
    user.execute(f"INSERT INTO t VALUES ({other}, 1, 1)")
    attach_table(user, runtime, relation="t", key="id", features="x,y")
    assert known(table) == before
    assert maintenance.sweep(runtime, "t") + len(table.queued()) >= 1
    add(table, f"({key})::{new}", 30, 40)
    table.make_due()
    table.drain()
    assert len(table.scored()) == 20 + 1 + 11
    types = table.keys(
        "SELECT DISTINCT format_type(atttypid, NULL) FROM pg_attribute JOIN pg_class c ON c.oid = attrelid"
        " WHERE c.relname IN ('scores_t', 'shadow_scores_t', 'score_history_t') AND attname = 'key'"
    )
    assert types == ["integer" if new == "int" else new]
    user.execute("UPDATE t SET x = 5 WHERE x IS NULL")
    table.drain()
    assert table.quarantined() == {}
    one = table.keys(first)[0]
    assert table.keys("SELECT verdict FROM outlier.scored_t WHERE id::text = %s", one) == ["fraud"]
    if written:
        assert table.keys("SELECT count(*) FROM t WHERE flagged IS NULL") == [0]
    assert run("history", "show", "t", one).exit_code == 0


def test_another_name_keeps_all_that_is_known_and_the_rights_on_the_views(
    user: User, runtime: Runtime, run: Run
) -> None:
    table = keyed(user, runtime, "int", "{}", write_columns=True)
    user.execute("CREATE ROLE reader; GRANT SELECT ON outlier.flagged_t TO reader")
    try:
        before = known(table)
        user.execute("ALTER TABLE t RENAME id TO number")
        user.execute("INSERT INTO t VALUES (50, 1, 1)")
        attach_table(user, runtime, relation="t", key="number", features="x,y")
        assert known(table) == before
        assert maintenance.sweep(runtime, "t") == 1
        user.execute("INSERT INTO t VALUES (51, 1, 1); UPDATE t SET x = 3 WHERE number = 2")
        table.drain()
        assert len(table.scored()) == 22
        assert table.keys("SELECT number FROM outlier.scored_t ORDER BY 1")[-2:] == [50, 51]
        assert table.rows("SELECT has_table_privilege('reader', 'outlier.flagged_t', 'SELECT')") == [(True,)]
        assert run("flagged", "t").exit_code == 0
    finally:
        user.execute("DROP OWNED BY reader; DROP ROLE reader")


@pytest.mark.parametrize("change", ["bigint", "renamed", "dropped"])
def test_doctor_says_that_the_key_has_changed(user: User, runtime: Runtime, run: Run, change: str) -> None:
    keyed(user, runtime, "int", "{}")
    drop_views(user)
    user.execute(
        {
            "bigint": "ALTER TABLE t ALTER id TYPE bigint",
            "renamed": "ALTER TABLE t RENAME id TO number",
            "dropped": "ALTER TABLE t DROP id",
        }[change]
    )
    said = " ".join(run("doctor").stdout.split())
    assert {
        "bigint": "the key id is bigint now, and was integer",
        "renamed": "the key id of public.t is gone",
        "dropped": "the key id of public.t is gone",
    }[change] in said


def test_a_key_that_is_gone_stands_still_and_nothing_is_removed(user: User, runtime: Runtime) -> None:
    table = keyed(user, runtime, "int", "{}")
    drop_views(user)
    add(table, "{}", 22, 25)
    before = known(table)
    user.execute("ALTER TABLE t RENAME id TO number")
    table.drain()
    assert maintenance.prune_all(runtime) == {}
    assert maintenance.sweep_all(runtime) == {}
    assert table.queued() == [22, 23, 24, 25]
    assert known(table) == before
    assert table.source.last_problem


def test_other_keys_than_those_of_the_scores_are_refused(user: User, runtime: Runtime) -> None:
    table = keyed(user, runtime, "int", "{}")
    user.execute("ALTER TABLE t ADD other int UNIQUE; UPDATE t SET other = id + 1000")
    user.execute("ALTER TABLE t ALTER other SET NOT NULL")
    before = known(table)
    with pytest.raises(SourceError, match=r"the keys are others; .*: pgoutlier adopt t --key other"):
        attach_table(user, runtime, relation="t", key="other", features="x,y")
    drop_views(user)
    user.execute("ALTER TABLE t DROP other, ALTER id TYPE uuid USING gen_random_uuid()")
    with pytest.raises(
        SourceError, match=r"of type integer, and scores cannot be kept.*pgoutlier adopt t --key id"
    ):
        attach_table(user, runtime, relation="t", key="id", features="x,y")
    assert known(table) == before
    done = attaching.adopt(runtime, "t", key="id")
    assert done.job is not None
    job_control.work(runtime, done.job.id)
    assert len(table.scored()) == 20
    user.execute("INSERT INTO t VALUES (gen_random_uuid(), 1, 1)")
    table.drain()
    assert len(table.scored()) == 21


def test_a_key_that_the_new_type_cannot_hold_is_named(user: User, runtime: Runtime) -> None:
    """It has a score, and its row is gone."""
    table = keyed(user, runtime, "text", "{}::text")
    user.execute("INSERT INTO t VALUES ('abc', 1, 1)")
    table.drain()
    user.execute("DELETE FROM t WHERE id = 'abc'")
    drop_views(user)
    user.execute("ALTER TABLE t ALTER id TYPE int USING id::int")
    with pytest.raises(SourceError, match=r"is none of type integer \(invalid input syntax.*abc"):
        attach_table(user, runtime, relation="t", key="id", features="x,y")
    user.execute("ALTER TABLE t ALTER id TYPE text")
    maintenance.prune_all(runtime)
    user.execute("ALTER TABLE t ALTER id TYPE int USING id::int")
    attach_table(user, runtime, relation="t", key="id", features="x,y")
    assert len(table.scored()) == 20


def test_keys_are_changed_while_writers_and_workers_are_at_work(
    user: User, runtime: Runtime, connect: Callable[..., User]
) -> None:
    from concurrent.futures import ThreadPoolExecutor
    from threading import Event

    table = keyed(user, runtime, "int", "{}")
    drop_views(user)
    user.execute("ALTER TABLE t ALTER id TYPE bigint")
    done = Event()
    writers = [connect(), connect()]

    def write(number: int) -> int:
        key = first = 1_000 + number * 1_000_000
        while not done.is_set():
            writers[number].execute("INSERT INTO t VALUES (%s, 1, 1)", (key,))
            key += 1
        return key - first

    def work() -> None:
        while not done.is_set():
            table.drain()

    with ThreadPoolExecutor(4) as pool:
        written = [pool.submit(write, number) for number in range(2)]
        workers = [pool.submit(work) for _ in range(2)]
        try:
            attach_table(user, runtime, relation="t", key="id", features="x,y")
        finally:
            done.set()
        n_written = sum(count.result() for count in written)
        for worker in workers:
            worker.result()
    table.drain_all()
    assert maintenance.sweep(runtime, "t") == 0
    assert len(table.scored()) == 20 + n_written


def test_a_feature_of_another_type_is_taken_as_it_is_now(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE t (id int PRIMARY KEY, x float8, y float8)")
    table = attach_table(user, runtime, relation="t", key="id", features="x,y")
    table.promote()
    drop_views(user)
    user.execute("ALTER TABLE t ALTER x TYPE numeric, ALTER y TYPE boolean USING y > 0")
    attach_table(user, runtime, relation="t", key="id", features="x,y")
    user.execute("INSERT INTO t VALUES (1, 2, true)")
    table.drain()
    assert table.scored() == [1]
