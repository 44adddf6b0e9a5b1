"""Scores in partitions by the time in the key: every time finds its score, upkeep makes partitions and drops them."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from threading import Event
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgoutlier.db import migrate
from pgoutlier.db.errors import SchemaNotReady, SourceError
from pgoutlier.db.scoring import score_partitions
from pgoutlier.db.sql import statements
from pgoutlier.db.status import overview
from pgoutlier.db.training import training_runs
from pgoutlier.db.upkeep import score_partitions as ended_partitions
from pgoutlier.worker.cli.status import note
from pgoutlier.worker.history import keeping
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.notices import webhook_control
from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.scoring import partitions
from pgoutlier.worker.sources import attaching
from pgoutlier.worker.upkeep import maintenance
from pgoutlier.worker.upkeep import partitions as upkeep_partitions
from pgoutlier.worker.versions import versions
from tests.integration.conftest import Run
from tests.servers import Postgres
from tests.support import (
    Connection,
    Table,
    attach_table,
    detach_table,
    make_detector,
    quick_settings,
    refusal,
    register,
    sessions_on,
    until,
    waits,
)

ASKED: dict[str, Any] = {
    "relation": "pay",
    "key": "id,paid_at",
    "features": "x,y",
    "partition_scores": "month",
}
PAY = "CREATE TABLE pay (id bigint, paid_at timestamptz, x float8, y float8, PRIMARY KEY (id, paid_at))"
BY_MONTH = (
    PAY + " PARTITION BY RANGE (paid_at);"
    "CREATE TABLE pay_1 PARTITION OF pay FOR VALUES FROM ('2025-01-01') TO ('2025-02-01');"
    "CREATE TABLE pay_2 PARTITION OF pay FOR VALUES FROM ('2025-02-01') TO ('2025-03-01');"
    "CREATE TABLE pay_3 PARTITION OF pay DEFAULT"
)
JANUARY, FEBRUARY = date(2025, 1, 1), date(2025, 2, 1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgoutlier.worker.upkeep.partitions._PAUSES_SECONDS", (0.01,))
    monkeypatch.setattr("pgoutlier.worker.scoring.partitions._known", {})
    monkeypatch.setattr("pgoutlier.db.scoring.score_partitions.WORTH_A_PARTITION", 20)


@pytest.fixture
def pay(user: Connection, runtime: Runtime) -> Table:
    """A table in months, and its scores, with a champion and a challenger."""
    user.execute(BY_MONTH)
    table = attach_table(user, runtime, **ASKED)
    table.promote()
    return table


def insert(table: Table, first: int, last: int, at: str) -> None:
    table.user.execute(
        "INSERT INTO pay SELECT i, %s::timestamptz + i * interval '1 min', i, sqrt(i)"
        " FROM generate_series(%s::int, %s::int) i",
        (at, first, last),
    )


def lying(table: Table, kind: str = "scores") -> dict[str, int]:
    """Scores by where they lie: the first day of a partition, or rest; the empty ones left out."""
    found = table.rows(
        f"SELECT split_part(tableoid::regclass::text, '$', 2), count(*) FROM outlier.{kind}_pay GROUP BY 1"
    )
    return {where.rstrip('"'): n for where, n in found}


def there(table: Table) -> set[date]:
    with table.runtime.engine.begin() as connection:
        return {p.first for p in score_partitions.listed(connection, table.source.definition)}


def unscored(table: Table) -> list[Any]:
    return table.rows(
        "SELECT id, paid_at::text FROM pay p WHERE (SELECT count(*) FROM outlier.scores_pay s"
        " WHERE s.key_1 = p.id AND s.key_2 = p.paid_at) <> 1"
    )


def flush(table: Table) -> None:
    """Have PostgreSQL know what was written."""
    table.runtime.engine.dispose()
    table.user.execute("SELECT pg_stat_force_next_flush()")
    others = "SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    until(lambda: not table.rows(others + " AND datname = current_database()"), "the sessions have ended")


def prune(table: Table) -> int:
    return maintenance.prune_all(table.runtime).get("pay", -1)


@pytest.mark.postgres18
def test_partitions_are_there_ahead(pay: Table) -> None:
    month = datetime.now(UTC).date().replace(day=1)
    assert min(there(pay)) == month
    assert len(there(pay)) == 3
    assert prune(pay) == 0
    assert len(there(pay)) == 3


def test_scores_lie_in_the_partition_of_their_time_and_few_of_a_period_in_the_default_one(pay: Table) -> None:
    insert(pay, 1, 100, "2025-01-05")
    insert(pay, 101, 119, "2024-07-05")
    insert(pay, 120, 125, "2025-02-05")
    pay.user.execute("INSERT INTO pay VALUES (126, now(), 1, 2)")
    pay.drain_all()
    now = f"{datetime.now(UTC):%Y%m01}"
    assert lying(pay) == {"20250101": 100, "rest": 19 + 6, now: 1}
    assert not unscored(pay)
    # What comes later to a period that has few gets it a partition, with those.
    insert(pay, 200, 250, "2025-02-07")
    pay.drain_all()
    assert lying(pay) == {"20250101": 100, "20250201": 6 + 51, "rest": 19, now: 1}
    assert not unscored(pay)


def test_what_has_gathered_in_the_default_partition_is_moved_by_a_prune(
    pay: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in range(1, 41, 10):
        insert(pay, first, first + 9, "2025-01-05")
        pay.drain_all()
    assert lying(pay) == {"rest": 40}
    before = pay.rows("SELECT * FROM outlier.scores_pay ORDER BY 1")
    prune(pay)
    assert lying(pay) == {"20250101": 40}
    assert pay.rows("SELECT * FROM outlier.scores_pay ORDER BY 1") == before


def test_a_partition_goes_with_the_users_and_with_it_the_scores_of_the_challenger(pay: Table) -> None:
    challenger = register(pay.runtime, pay.source, make_detector(pay.source.definition.feature_names, seed=1))
    versions.challenge(pay.runtime, "pay", challenger, reason="test")
    insert(pay, 1, 100, "2025-01-05")
    insert(pay, 101, 200, "2025-02-05")
    pay.drain_all()
    assert lying(pay) == lying(pay, "shadow_scores") == {"20250101": 100, "20250201": 100}
    pay.user.execute("DROP TABLE pay_1")
    assert prune(pay) == 1
    assert FEBRUARY in there(pay)
    assert JANUARY not in there(pay)
    assert lying(pay) == lying(pay, "shadow_scores") == {"20250201": 100}
    pay.user.execute("ALTER TABLE pay DETACH PARTITION pay_2")
    assert prune(pay) == 1
    assert lying(pay) == {}
    # It comes back: its rows are scored, once, and have a partition again.
    pay.user.execute(
        "ALTER TABLE pay ATTACH PARTITION pay_2 FOR VALUES FROM ('2025-02-01') TO ('2025-03-01')"
    )
    pay.user.execute("UPDATE outlier.sources SET attached_xid = NULL")
    partitions._known.clear()
    maintenance.sweep(pay.runtime, "pay", whole=True)
    pay.drain_all()
    assert lying(pay) == {"20250201": 100}
    assert not unscored(pay)


def test_what_was_scored_since_the_last_training_is_as_much_after_a_partition_has_gone(pay: Table) -> None:
    def is_due(after_rows: int) -> bool:
        with pay.runtime.engine.begin() as connection:
            return "pay" in training_runs.sources_to_retrain(
                connection, older_than_seconds=1e9, after_rows=after_rows
            )

    insert(pay, 1, 100, "2025-01-05")
    pay.drain_all()
    flush(pay)
    with pay.runtime.engine.begin() as connection:
        training_runs.start_run(connection, pay.source.id, recipe={}, seed=0)
    insert(pay, 101, 150, "2025-02-05")
    pay.drain_all()
    flush(pay)
    assert [is_due(50), is_due(51)] == [True, False]
    pay.user.execute("DROP TABLE pay_1")
    assert prune(pay) == 1
    assert [is_due(50), is_due(51)] == [True, False]


def test_one_row_of_the_users_keeps_a_partition_and_the_other_scores_go_one_by_one(pay: Table) -> None:
    insert(pay, 1, 100, "2025-01-05")
    pay.drain_all()
    pay.user.execute("DELETE FROM pay WHERE id > 1")
    assert prune(pay) == 99
    assert lying(pay) == {"20250101": 1}
    pay.user.execute("DELETE FROM pay")
    assert prune(pay) == 1
    assert JANUARY not in there(pay)


@pytest.mark.postgres18
def test_looking_for_rows_under_the_lock_is_given_up(pay: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    insert(pay, 1, 100, "2025-01-05")
    pay.drain_all()
    pay.user.execute("DELETE FROM pay")
    monkeypatch.setattr("pgoutlier.db.upkeep.score_partitions._LONGEST_LOOK", "1ms")
    monkeypatch.setattr(
        "pgoutlier.db.upkeep.score_partitions._finds_rows",
        lambda connection, source: statements.run(connection, "SELECT pg_sleep(0.05)") and True,
    )
    assert prune(pay) == 100  # one by one
    assert JANUARY in there(pay)


@pytest.mark.postgres18
def test_where_nothing_finds_the_users_rows_by_time_scores_go_one_by_one_and_then_the_partition(
    user: Connection, runtime: Runtime
) -> None:
    user.execute(PAY)
    table = attach_table(user, runtime, **ASKED)
    table.promote()
    insert(table, 1, 100, "2025-01-05")
    table.drain_all()
    user.execute("DELETE FROM pay")
    assert prune(table) == 100
    assert JANUARY in there(table)
    assert prune(table) == 1
    assert JANUARY not in there(table)


def test_a_score_of_another_partition_at_the_same_place_stays(pay: Table) -> None:
    # The first score of each partition lies at (0,1).
    insert(pay, 1, 100, "2025-01-05")
    pay.drain_all()
    insert(pay, 101, 200, "2025-02-05")
    pay.drain_all()
    pay.user.execute("DELETE FROM pay WHERE id BETWEEN 1 AND 50 OR id = 150")
    assert prune(pay) == 51
    assert lying(pay) == {"20250101": 50, "20250201": 99}
    assert not unscored(pay)


TIMES = st.one_of(
    st.sampled_from(
        [
            *(
                "infinity",
                "-infinity",
                "0001-01-01 00:00:00+00",
                "0001-01-01 BC",
                "4713-01-01 00:00:00+00 BC",
            ),
            *("9998-12-31 23:59:59.999999+00", "9999-01-01 00:00:00+00", "9999-12-31 23:59:59+00"),
            *("294276-12-31 23:59:59+00", "2024-02-29 00:00:00+00", "1969-12-31 23:59:59.999999+00"),
            *("2025-01-31 23:59:59.999999-11", "2025-02-01 00:00:00+14", "1000-01-01+00", "0999-12-31+00"),
        ]
    ),
    st.datetimes(timezones=st.just(UTC)).map(str),
)


@pytest.mark.parametrize("period", ["day", "week", "month", "year"])
@pytest.mark.parametrize("kind", ["timestamptz", "timestamp", "date"])
@pytest.mark.postgres18
def test_any_time_finds_its_score(
    user: Connection, runtime: Runtime, kind: str, period: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgoutlier.db.scoring.score_partitions.WORTH_A_PARTITION", 2)
    user.execute(PAY.replace("timestamptz", kind).encode())
    table = attach_table(user, runtime, **{**ASKED, "partition_scores": period})
    table.promote()
    moment = "timezone('UTC', key_2)" if kind == "timestamptz" else "key_2::timestamp"
    elsewhere = (
        "SELECT key_2::text, tableoid::regclass::text FROM outlier.scores_pay WHERE tableoid::regclass::text !~ 'rest'"
        f" AND tableoid::regclass::text !~ to_char(date_trunc('{period}', {moment}), 'YYYYMMDD')"
    )

    @settings(max_examples=10, suppress_health_check=list(HealthCheck))
    @given(times=st.lists(TIMES, min_size=1, max_size=20))
    @example(times=["0001-01-01 00:00:00+00", "0001-03-01", "9998-12-31 23:59:59+00", "9998-10-31"] * 3)
    @example(times=["2025-01-05"] * 3 + ["infinity", "-infinity", "4713-01-01 BC", "9999-12-31"])
    def finds(times: list[str]) -> None:
        partitions._known.clear()
        user.execute("TRUNCATE pay, outlier.scores_pay")
        user.execute(
            f"INSERT INTO pay SELECT n, t::{kind}, n, 1 FROM unnest(%s::text[]) WITH ORDINALITY u (t, n)".encode(),
            (times,),
        )
        table.drain_all()
        upkeep_partitions.keep(runtime, table.source)
        assert not unscored(table)
        assert table.rows(elsewhere) == []  # what the worker takes for the period of a key is PostgreSQL's

    finds()


@pytest.mark.parametrize("n_rows", [5, 18])  # by one statement, and by COPY
def test_a_score_on_its_way_into_the_default_partition_finds_the_one_that_was_made_meanwhile(
    pay: Table, connect: Callable[..., Connection], n_rows: int
) -> None:
    insert(pay, 1, n_rows, "2025-01-05")
    maker = connect(autocommit=False)
    maker.execute("SELECT outlier.make_scores_pay('2025-01-01')")
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(pay.drain)
        until(lambda: waits(pay.user), "the drain waits for the default partition")
        maker.commit()
        assert drained.result().n_scored == n_rows
    assert lying(pay) == {"20250101": n_rows}
    assert not unscored(pay)


def test_a_drain_that_is_under_way_keeps_its_partition_from_being_dropped(
    pay: Table, connect: Callable[..., Connection]
) -> None:
    insert(pay, 1, 100, "2025-01-05")
    pay.drain_all()
    pay.user.execute("DELETE FROM pay WHERE id <= 100")
    other = connect(autocommit=False)
    other.execute(
        "INSERT INTO outlier.scores_pay (key_1, key_2, change_id, reconstruction_error, model_version, flagged)"
        " VALUES (1000, '2025-01-07', 1, 1, 1, false)"
    )
    assert prune(pay) == 100  # one by one
    other.rollback()
    assert JANUARY in there(pay)


def test_a_row_that_comes_to_a_partition_between_the_look_and_the_lock_keeps_it(pay: Table) -> None:
    insert(pay, 1, 100, "2025-01-05")
    pay.drain_all()
    pay.user.execute("DELETE FROM pay")
    with pay.runtime.engine.begin() as connection:
        [ended] = ended_partitions.ended(connection, pay.source)
    insert(pay, 7, 7, "2025-01-05")
    with pay.runtime.engine.begin() as connection:
        assert not ended_partitions.drop(connection, pay.source, ended)
    pay.drain_all()
    prune(pay)
    assert not unscored(pay)
    assert lying(pay) == {"20250101": 1}


def test_a_worker_without_other_rights_makes_and_drops_partitions(
    pay: Table, role: str, database_url: str
) -> None:
    granting.grant(pay.runtime, role, "worker")
    worker = make_runtime(quick_settings(database_url.replace("postgres@", f"{role}@")))
    try:
        as_worker = Table(pay.user, worker, "pay")
        insert(pay, 1, 100, "2025-01-05")
        as_worker.drain_all()
        assert lying(pay) == {"20250101": 100}
        for first in range(201, 241, 10):
            insert(pay, first, first + 9, "2025-02-05")
            as_worker.drain_all()
        partitions._known.clear()
        now = f"{datetime.now(UTC):%Y%m01}"
        pay.user.execute(f'DROP TABLE pay_1; DROP TABLE outlier."scores_pay${now}"'.encode())
        assert prune(as_worker) == 1
        assert lying(pay) == {"20250201": 40}
        assert len(there(pay)) == 4
    finally:
        worker.engine.dispose()
    owners = pay.keys(
        "SELECT DISTINCT pg_get_userbyid(relowner)::text FROM pg_class WHERE relname ~ '^scores_pay'"
    )
    assert owners == ["postgres"]


@pytest.mark.postgres18
def test_everybody_else_may_not(pay: Table, role: str) -> None:
    for function in ("make_scores_pay", "drop_scores_pay"):
        assert pay.keys(
            f"SELECT has_function_privilege('{role}', 'outlier.{function}(date)', 'EXECUTE')"
        ) == [False]


def test_detach_leaves_nothing_behind(pay: Table) -> None:
    insert(pay, 1, 100, "2025-01-05")
    pay.drain_all()
    detach_table(pay)
    ours = "SELECT relname FROM pg_class WHERE relname ~ '_pay' AND relnamespace = 'outlier'::regnamespace"
    assert pay.keys(ours) == []
    assert pay.keys("SELECT proname FROM pg_proc WHERE proname ~ '_pay$'") == []


@pytest.mark.postgres18
def test_the_same_attach_again_keeps_the_partitions_and_another_is_refused(pay: Table) -> None:
    insert(pay, 1, 100, "2025-01-05")
    pay.drain_all()
    attach_table(pay.user, pay.runtime, **{**ASKED, "partition_scores": None})
    assert lying(pay) == {"20250101": 100}
    with pytest.raises(SourceError, match="are partitioned by month, which cannot be changed in place"):
        attach_table(pay.user, pay.runtime, **{**ASKED, "partition_scores": "day"})


@pytest.mark.postgres18
def test_what_cannot_be_partitioned_is_refused(user: Connection, runtime: Runtime) -> None:
    user.execute("CREATE TABLE pay (id bigint PRIMARY KEY, paid_at timestamptz, x float8, y float8)")
    asked = {**ASKED, "key": "id", "time": "paid_at"}
    assert refusal(runtime, **asked) == (
        "The key of public.pay (id) has no column of type timestamptz, timestamp or date by which its scores could be"
        " partitioned; leave --partition-scores out, or name a key that has one."
    )
    assert "name one of day, week, month, year" in refusal(runtime, **{**asked, "partition_scores": "hour"})


@pytest.mark.postgres18
def test_scores_in_one_table_stay_there(user: Connection, runtime: Runtime) -> None:
    user.execute(BY_MONTH)
    attach_table(user, runtime, **{**ASKED, "partition_scores": None})
    with pytest.raises(
        SourceError, match="are in one table, which cannot be changed in place: to have them by month"
    ):
        attach_table(user, runtime, **ASKED)


@pytest.mark.postgres18
def test_scores_that_a_prune_cannot_move_are_said(
    pay: Table, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in range(1, 41, 10):
        insert(pay, first, first + 9, "2025-01-05")
        pay.drain_all()
    flush(pay)
    for module in ("db.scoring.score_partitions", "worker.cli.status"):
        monkeypatch.setattr(f"pgoutlier.{module}.MOST_MOVED", 30)
    found = {f["what"]: f for f in json.loads(run("doctor", "--json").output)}
    assert not found["pay scores kept"]["ok"]
    with pay.runtime.engine.begin() as connection:
        [figures] = overview.describe(connection, [pay.source])
    assert note(figures) == "~40 scores in no partition: see pgoutlier doctor"
    attach_table(pay.user, pay.runtime, **ASKED)  # with functions that move no more
    assert prune(pay) == 0
    assert lying(pay) == {"rest": 40}


@pytest.mark.postgres18
def test_a_default_partition_that_was_dropped_is_said_and_made_again(pay: Table, run: Run) -> None:
    pay.user.execute('DROP TABLE outlier."scores_pay$rest", outlier."shadow_scores_pay$rest"')
    found = {f["what"]: f for f in json.loads(run("doctor", "--json").output)}
    assert found["pay views"]["detail"] == "there is no scores_pay$rest, shadow_scores_pay$rest"
    attach_table(pay.user, pay.runtime, **ASKED)
    insert(pay, 1, 5, "2025-01-05")
    pay.drain_all()
    assert lying(pay) == {"rest": 5}


def test_a_key_of_a_wider_type_keeps_the_partitions(user: Connection, runtime: Runtime) -> None:
    user.execute(
        "CREATE TABLE pay (id int, paid_at timestamptz, x float8, y float8, PRIMARY KEY (id, paid_at))"
    )
    table = attach_table(user, runtime, **ASKED)
    table.promote()
    insert(table, 1, 100, "2025-01-05")
    table.drain_all()
    user.execute("SELECT outlier.before_migration('pay'); ALTER TABLE pay ALTER id TYPE bigint")
    attach_table(user, runtime, **ASKED)
    user.execute(f"INSERT INTO pay VALUES ({2**40}, '2025-01-09', 1, 1)".encode())
    table.drain_all()
    assert lying(table) == {"20250101": 101}
    assert not unscored(table)


def test_jobs_history_and_written_columns_work_on_partitions(user: Connection, runtime: Runtime) -> None:
    user.execute(BY_MONTH)
    table = attach_table(user, runtime, **ASKED, write_columns=True)
    table.promote()
    keeping.keep(runtime, "pay")
    insert(table, 1, 100, "2025-01-05")
    insert(table, 101, 110, "2025-02-05")
    table.drain_all()
    table.promote(make_detector(table.source.definition.feature_names, seed=3, threshold=0.5))
    for start in (job_control.rescore, lambda *to: job_control.reflag(*to, 0.25)):
        started = start(runtime, "pay")
        job_control.work(runtime, started.id)
        assert job_control.described(runtime, started.id).status == "succeeded"
    assert table.keys("SELECT count(*) FROM outlier.score_history_pay") >= [110]
    assert table.keys(
        "SELECT count(*) FROM pay p JOIN outlier.scores_pay s ON s.key_1 = p.id AND s.key_2 = p.paid_at"
        " AND s.reconstruction_error = p.reconstruction_error AND s.flagged = p.flagged"
    ) == [110]
    assert table.keys("SELECT count(*) FROM outlier.scored_pay") == [110]


@pytest.mark.postgres18
def test_somebody_is_told_of_what_is_flagged_in_partitions(pay: Table) -> None:
    webhook_control.set_webhook(pay.runtime, "pay", "https://alerts.example.com/flagged")
    pay.promote(make_detector(pay.source.definition.feature_names, threshold=-1.0))
    insert(pay, 1, 100, "2025-01-05")
    insert(pay, 101, 103, "2025-02-05")
    pay.drain_all()
    assert pay.keys("SELECT count(DISTINCT key) FROM outlier.notices") == [103]


@pytest.mark.postgres18
def test_the_program_of_before_gets_no_partitions(pay: Table) -> None:
    with pytest.raises(
        SchemaNotReady, match="Scores of pay are partitioned, which the version before does not know"
    ):
        migrate.downgrade(pay.runtime.engine, "0018")
    detach_table(pay)
    migrate.downgrade(pay.runtime.engine, "0018")
    migrate.upgrade(pay.runtime.engine)
    migrate.check(pay.runtime.engine)


def test_prune_drains_and_dropped_partitions_at_once_leave_one_score_a_row(
    pay: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgoutlier.worker.scoring.partitions._KNOWN_FOR_SECONDS", 0.0)
    months = [f"2025-{month:02}-03" for month in range(3, 9)]
    for number, month in enumerate(months):
        end = f"2025-{number + 4:02}-01"
        pay.user.execute(
            f"CREATE TABLE m{number} PARTITION OF pay FOR VALUES FROM ('{month[:8]}01') TO ('{end}')".encode()
        )
    stop = Event()

    def over_and_over(work: Callable[[], object]) -> int:
        n_times = 0
        while not stop.is_set():
            work()
            n_times += 1
        return n_times

    with ThreadPoolExecutor(3) as pool:
        at_work = [pool.submit(over_and_over, work) for work in (pay.drain, pay.drain, lambda: prune(pay))]
        for turn in range(12):
            for number, month in enumerate(months):
                insert(
                    pay, 1_000 * turn + 100 * number, 1_000 * turn + 100 * number + (5, 30)[turn % 2], month
                )
            if turn % 3 == 2:
                pay.user.execute(f"TRUNCATE m{turn // 3}".encode())
        stop.set()
        assert all(done.result() for done in at_work)
    pay.drain_all()
    for _ in range(2):
        prune(pay)
    assert not unscored(pay)
    assert (
        pay.rows(
            "SELECT key_1, key_2 FROM outlier.scores_pay s WHERE NOT EXISTS"
            " (SELECT FROM pay p WHERE p.id = s.key_1 AND p.paid_at = s.key_2)"
        )
        == []
    )


@pytest.mark.postgres18
def test_commands_say_what_scores_are_kept_in(user: Connection, run: Run) -> None:
    user.execute(BY_MONTH)
    asked = ["attach", "pay", "--key", "id,paid_at", "--features", "x,y", "--partition-scores", "week"]
    script = run(*asked, "--dry-run").output
    assert 'CREATE TABLE "outlier"."scores_pay$rest" PARTITION OF' in script
    assert "make_scores_pay" in script
    assert (
        "Scores are kept 30 days by paid_at, in partitions by week."
        in run(*asked, "--keep-scores", "30d").output
    )
    assert json.loads(run(*asked, "--json").output)["keep_scores_days"] == 30
    [source] = json.loads(run("sources", "--json").output)
    assert (source["score_partitions"], source["keep_scores_days"]) == ("week", 30)
    assert "by week" in " ".join(run("sources").output.split())
    [figures] = json.loads(run("status", "--json").output)["sources"]
    assert (figures["score_partitions"], figures["n_outside_partitions"]) == ("week", 0)
    found = {f["what"]: f for f in json.loads(run("doctor", "--json").output)}
    assert found["pay scores kept"]["detail"] == "30 days by paid_at, in 5 partitions by week, ~0 outside"


@pytest.mark.postgres18
def test_the_script_of_an_attach_can_be_run(user: Connection, runtime: Runtime, run: Run) -> None:
    user.execute(BY_MONTH)
    script = run(
        "attach", "pay", "--key", "id,paid_at", "--features", "x,y", "--partition-scores", "month", "--dry-run"
    ).output  # fmt: skip
    user.execute(script.encode())
    assert user.execute(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'outlier.scores_pay'::regclass"
    ).fetchone() == (4,)


def test_another_table_under_the_name_goes_on_in_partitions(pay: Table) -> None:
    insert(pay, 1, 100, "2025-01-05")
    pay.drain_all()
    pay.user.execute("DROP TABLE pay CASCADE; " + BY_MONTH.replace("id bigint", "id int"))
    insert(pay, 201, 300, "2025-02-05")
    job = attaching.adopt(pay.runtime, "pay").job
    assert job is not None
    job_control.work(pay.runtime, job.id)
    assert lying(pay) == {"20250201": 100}
    assert not unscored(pay)
    pay.user.execute(
        "DROP TABLE pay CASCADE; CREATE TABLE pay (id int, paid_at timestamp, x float8, y float8,"
        " PRIMARY KEY (id, paid_at))"
    )
    with pytest.raises(
        SourceError, match="are partitioned by paid_at \\(timestamptz\\), and its key is id,paid_at"
    ):
        attaching.adopt(pay.runtime, "pay")


def test_dump_and_restore_keep_partitions(pay: Table, postgres: Postgres) -> None:
    insert(pay, 1, 100, "2025-01-05")
    pay.drain_all()
    dump = postgres.run("pg_dump", pay.runtime.settings.database_url.get_secret_value())  # type: ignore[union-attr]
    with postgres.database(template="template0") as url:
        postgres.run("psql", url, "--quiet", "-v", "ON_ERROR_STOP=1", stdin=dump)
        with sessions_on(url) as (user, runtime):
            restored = Table(user, runtime, "pay")
            insert(restored, 101, 110, "2025-01-05")
            restored.drain_all()
            assert lying(restored) == {"20250101": 110}
            user.execute("DROP TABLE pay_1")
            assert prune(restored) == 1
            assert lying(restored) == {}


def test_partitions_belong_to_whoever_attached_and_workers_have_them_made(
    user: Connection, runtime: Runtime, role: str, database_url: str
) -> None:
    user.execute(
        BY_MONTH
        + f"; GRANT SELECT, TRIGGER ON pay TO {role}; GRANT USAGE, CREATE ON SCHEMA outlier TO {role};"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA outlier TO {role}; CREATE ROLE wrk LOGIN"
    )  # fmt: skip
    attacher = make_runtime(quick_settings(database_url.replace("postgres@", f"{role}@")))
    worker = make_runtime(quick_settings(database_url.replace("postgres@", "wrk@")))
    try:
        attach_table(user, attacher, **ASKED).promote()
        granting.grant(runtime, "wrk", "worker")
        pay = Table(user, worker, "pay")
        insert(pay, 1, 100, "2025-01-05")
        pay.drain_all()
        assert lying(pay) == {"20250101": 100}
        user.execute("DROP TABLE pay_1")
        assert prune(pay) == 1
        assert pay.keys(
            "SELECT DISTINCT pg_get_userbyid(relowner)::text FROM pg_class WHERE relname ~ '^(shadow_)?scores_pay'"
        ) == [role]
    finally:
        attacher.engine.dispose()
        worker.engine.dispose()
        user.execute("DROP OWNED BY wrk; DROP ROLE wrk")


@pytest.mark.postgres18
def test_a_worker_that_may_not_make_partitions_prunes_what_it_may(
    pay: Table, role: str, database_url: str
) -> None:
    granting.grant(pay.runtime, role, "worker")
    pay.user.execute(f"REVOKE ALL ON FUNCTION outlier.make_scores_pay(date) FROM {role}".encode())
    pay.user.execute(f"REVOKE ALL ON FUNCTION outlier.drop_scores_pay(date) FROM {role}".encode())
    worker = make_runtime(quick_settings(database_url.replace("postgres@", f"{role}@")))
    try:
        as_worker = Table(pay.user, worker, "pay")
        insert(pay, 1, 100, "2025-01-05")
        as_worker.drain_all()
        assert lying(pay) == {"rest": 100}
        pay.user.execute("DELETE FROM pay WHERE id > 40")
        assert prune(as_worker) == 60
        assert lying(pay) == {"rest": 40}
    finally:
        worker.engine.dispose()
