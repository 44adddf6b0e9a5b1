"""Backfill, rescore and reflag: what they write, beside live scoring, and after whatever happens to them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql
from psycopg.types.json import Jsonb

from pgoutlier.db.errors import JobError, ModelError, SourceError
from pgoutlier.db.jobs import jobs
from pgoutlier.db.jobs.jobs import JobFigures
from pgoutlier.db.sql import key_ranges
from pgoutlier.db.sql.keys import Key
from pgoutlier.detector import exceeds
from pgoutlier.worker.jobs import job_control, job_work
from pgoutlier.worker.jobs.job_control import Started
from pgoutlier.worker.notices import webhook_control
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.upkeep import maintenance
from pgoutlier.worker.versions import comparing, versions
from tests.conftest import Connect
from tests.integration.conftest import Run
from tests.readings import READINGS, SEQUENCE_RECIPE, attach_readings, insert, insert_readings, offline
from tests.servers import Postgres
from tests.support import (
    FEATURES,
    TRANSACTIONS,
    Table,
    attach_table,
    detach_table,
    make_detector,
    register,
    until,
    waits,
)

# Nothing here differs between versions of PostgreSQL.
pytestmark = pytest.mark.postgres18

User = psycopg.Connection[Any]


@pytest.fixture
def old_rows(user: User, runtime: Runtime) -> Table:
    """A table with 25 rows from before attach, and ranges of 10."""
    user.execute(TRANSACTIONS)
    user.execute(
        "INSERT INTO transactions SELECT i, i * 0.5, i %% 24, sqrt(i) FROM generate_series(1, 25) i", ()
    )
    table = attach_table(user, runtime, relation="transactions", key="id", features=",".join(FEATURES))
    return table.with_settings(job_range_rows=10)


def work(table: Table, job: Started) -> str:
    """Work a job as far as it goes now. Returns its status."""
    job_control.work(table.runtime, job.id)
    return status(table, job)


def status(table: Table, job: Started) -> str:
    return described(table, job).status


def described(table: Table, job: Started) -> JobFigures:
    return job_control.described(table.runtime, job.id)


def ranges(table: Table, job: Started) -> list[tuple[Any, ...]]:
    return table.rows(
        "SELECT first_key, last_key, n_keys, n_done FROM outlier.job_ranges WHERE job_id = %s ORDER BY number",
        job.id,
    )


def by_version(table: Table) -> dict[int, int]:
    return dict(
        table.rows("SELECT model_version, count(*) FROM outlier.scores_{source} GROUP BY 1 ORDER BY 1")
    )


def expected(table: Table, *, seed: int = 0) -> dict[Any, float]:
    rows = table.rows("SELECT id, amount, hour, distance FROM transactions")
    errors = make_detector(FEATURES, seed=seed).numpy_score([row[1:] for row in rows]).reconstruction_error
    return dict(zip([row[0] for row in rows], errors.tolist(), strict=True))


# -- backfill


def test_backfill_scores_rows_from_before_attach_in_ranges_of_keys(old_rows: Table) -> None:
    old_rows.promote()
    job = job_control.backfill(old_rows.runtime, old_rows.source_name)
    assert job.made
    assert [row[:3] for row in ranges(old_rows, job)] == [("1", "10", 10), ("11", "20", 10), ("21", "25", 5)]
    assert work(old_rows, job) == "succeeded"
    assert old_rows.errors() == pytest.approx(expected(old_rows), rel=1e-6)
    assert [row[3] for row in ranges(old_rows, job)] == [10, 10, 5]
    assert old_rows.queued() == []
    assert old_rows.rows(
        "SELECT action, created_by <> '' FROM outlier.job_events WHERE job_id = %s", job.id
    ) == [("start", True)]


def test_a_second_backfill_finds_nothing_to_do(old_rows: Table) -> None:
    old_rows.promote()
    work(old_rows, job_control.backfill(old_rows.runtime, old_rows.source_name))
    before = old_rows.rows("SELECT * FROM outlier.scores_{source} ORDER BY key")
    again = job_control.backfill(old_rows.runtime, old_rows.source_name)
    assert ranges(old_rows, again) == []
    assert work(old_rows, again) == "succeeded"
    assert old_rows.rows("SELECT * FROM outlier.scores_{source} ORDER BY key") == before


def test_while_a_backfill_runs_another_one_is_the_same(old_rows: Table) -> None:
    first, second = (job_control.backfill(old_rows.runtime, old_rows.source_name) for _ in range(2))
    assert (first.made, second.made, second.id) == (True, False, first.id)


def test_two_backfills_started_at_once_are_one_job(old_rows: Table) -> None:
    with ThreadPoolExecutor(4) as pool:
        started = list(
            pool.map(lambda _: job_control.backfill(old_rows.runtime, old_rows.source_name), range(4))
        )
    assert len({job.id for job in started}) == 1
    assert sum(job.made for job in started) == 1


def test_without_a_champion_a_backfill_waits_and_says_so(old_rows: Table) -> None:
    job = job_control.backfill(old_rows.runtime, old_rows.source_name)
    assert work(old_rows, job) == "running"
    assert "no champion yet" in described(old_rows, job).problem
    old_rows.promote()
    job_control.work(old_rows.runtime, job.id, budget_seconds=1e-9)
    assert (status(old_rows, job), described(old_rows, job).problem) == ("running", None)
    assert work(old_rows, job) == "succeeded"


def test_rows_that_cannot_be_scored_go_into_quarantine_and_hold_up_no_others(old_rows: Table) -> None:
    old_rows.promote()
    old_rows.user.execute("ALTER TABLE transactions DISABLE TRIGGER USER")
    old_rows.user.execute("UPDATE transactions SET amount = NULL WHERE id = 13")
    job = job_control.backfill(old_rows.runtime, old_rows.source_name)
    assert work(old_rows, job) == "succeeded"
    assert old_rows.quarantined() == {"13": ("null", "amount")}
    assert len(old_rows.scored()) == 24
    assert described(old_rows, job).n_quarantined == 1
    assert work(old_rows, job_control.backfill(old_rows.runtime, old_rows.source_name)) == "succeeded"
    assert old_rows.quarantined() == {"13": ("null", "amount")}


def test_a_row_that_makes_its_whole_range_fail_is_found_by_the_queue(user: User, runtime: Runtime) -> None:
    user.execute(TRANSACTIONS)
    user.execute("INSERT INTO transactions SELECT i, 1, 2, 3 FROM generate_series(1, 25) i")
    user.execute("UPDATE transactions SET distance = 0 WHERE id = 7")
    user.execute("CREATE VIEW features AS SELECT id, amount / distance AS ratio, hour FROM transactions")
    table = attach_table(user, runtime, relation="transactions", key="id", feature_view="features")
    table = table.with_settings(job_range_rows=10, max_attempts=1)
    table.promote()
    job = job_control.backfill(table.runtime, table.source_name)
    assert work(table, job) == "succeeded"
    table.drain_all()
    assert table.quarantined().keys() == {"7"}
    assert len(table.scored()) == 24


def test_after_a_backfill_the_sweep_finds_old_rows_that_were_missed(old_rows: Table) -> None:
    old_rows.promote()
    assert maintenance.sweep(old_rows.runtime, old_rows.source_name) == 0
    work(old_rows, job_control.backfill(old_rows.runtime, old_rows.source_name))
    old_rows.user.execute("DELETE FROM outlier.scores_transactions WHERE key = 4")
    assert maintenance.sweep(old_rows.runtime, old_rows.source_name) == 1


@pytest.mark.parametrize(
    ("key_type", "keys"),
    [
        ("smallint", [-32768, -1, 0, 32767]),
        ("bigint", [-(2**63), 2**53 + 1, 2**63 - 1]),
        ("uuid", [uuid.UUID(int=i) for i in (0, 1, 2**64, 2**128 - 1)]),
        ("text", ["", "a", "A", "b ", "größe 😀", "x" * 2000, "\\N", '"{,}', "'; --", "%s", "Z", "z"]),
        ("varchar(10)", ["a", "b ", "B"]),
    ],
)
def test_keys_of_every_type_are_done_once(
    user: User, runtime: Runtime, key_type: str, keys: list[Any]
) -> None:
    user.execute(f"CREATE TABLE odd (k {key_type} PRIMARY KEY, a float8)")  # type: ignore[arg-type]
    for key in keys:
        user.execute("INSERT INTO odd VALUES (%s, 1)", (key,))
    table = attach_table(user, runtime, relation="odd", key="k", features="a").with_settings(job_range_rows=2)
    table.promote()
    job = job_control.backfill(table.runtime, table.source_name)
    assert work(table, job) == "succeeded"
    assert sorted(map(str, table.scored())) == sorted(map(str, keys))
    assert sum(row[3] for row in ranges(table, job)) == len(keys)
    second = register(table.runtime, table.source)
    job = job_control.rescore(table.runtime, table.source_name, second)
    assert work(table, job) == "succeeded"
    assert by_version(table) == {second: len(keys)}
    assert sum(row[3] for row in ranges(table, job)) == len(keys)


# -- rescore


@pytest.fixture
def scored(old_rows: Table) -> Table:
    """25 rows scored by version 1."""
    old_rows.promote()
    work(old_rows, job_control.backfill(old_rows.runtime, old_rows.source_name))
    return old_rows


def test_rescore_scores_by_the_version_what_others_have_scored(scored: Table) -> None:
    second = register(scored.runtime, scored.source, make_detector(FEATURES, seed=1))
    assert work(scored, job_control.rescore(scored.runtime, scored.source_name, second)) == "succeeded"
    assert by_version(scored) == {second: 25}
    assert scored.errors() == pytest.approx(expected(scored, seed=1), rel=1e-6)
    again = job_control.rescore(scored.runtime, scored.source_name, second)
    assert described(scored, again).n_rows == 0


def test_rescore_without_a_version_means_the_champion(scored: Table) -> None:
    second = scored.promote(make_detector(FEATURES, seed=1))
    assert job_control.rescore(scored.runtime, scored.source_name).version == second


def test_a_score_of_a_later_change_outlasts_a_rescore_that_read_the_row_before_it(
    scored: Table, connect: Connect
) -> None:
    """The rescore has read the row and waits for its score, which live scoring writes meanwhile."""
    second = register(scored.runtime, scored.source, make_detector(FEATURES, seed=1))
    job = job_control.rescore(scored.runtime, scored.source_name, second)
    other = connect(autocommit=False)
    other.execute("SELECT FROM outlier.scores_transactions WHERE key = 3 FOR UPDATE")
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work, scored, job)
        until(lambda: waits(scored.user))
        change = other.execute(
            "UPDATE outlier.scores_transactions SET change_id = change_id + 1000, reconstruction_error = 77"
            " WHERE key = 3 RETURNING change_id"
        ).fetchone()
        other.commit()
        assert working.result() == "succeeded"
    assert scored.rows(
        "SELECT change_id, reconstruction_error FROM outlier.scores_{source} WHERE key = 3"
    ) == [(change and change[0], 77)]
    assert by_version(scored) == {1: 1, second: 24}


def test_a_change_that_commits_after_the_rescore_read_its_row_is_scored_after_it(
    scored: Table, connect: Connect
) -> None:
    """The writer has drawn its change id before the rescore, and commits after: its score must win."""
    second = register(scored.runtime, scored.source, make_detector(FEATURES, seed=1))
    writer = connect(autocommit=False)
    writer.execute("UPDATE transactions SET amount = 1000 WHERE id = 3")
    assert work(scored, job_control.rescore(scored.runtime, scored.source_name, second)) == "succeeded"
    writer.commit()
    scored.drain_all()
    assert scored.errors()[3] == pytest.approx(expected(scored)[3], rel=1e-6)


def test_what_the_champion_scores_again_the_challenger_scores_too(scored: Table) -> None:
    challenger = register(scored.runtime, scored.source, make_detector(FEATURES, seed=2))
    versions.challenge(scored.runtime, scored.source_name, challenger, reason="test")
    scored.promote(make_detector(FEATURES, seed=1))
    assert work(scored, job_control.rescore(scored.runtime, scored.source_name)) == "succeeded"
    found = comparing.compare(scored.runtime, scored.source_name)
    assert (found.rows, found.n_missing, found.problem) == (25, 0, None)
    assert dict(
        scored.rows("SELECT key, reconstruction_error FROM outlier.shadow_scores_{source}")
    ) == pytest.approx(expected(scored, seed=2), rel=1e-6)


def test_new_rows_are_scored_before_the_next_range(scored: Table) -> None:
    """A job asks first what is queued: with a drain that fails on purpose no range is done."""
    second = register(scored.runtime, scored.source, make_detector(FEATURES, seed=1))
    job = job_control.rescore(scored.runtime, scored.source_name, second)
    scored.insert(100, 140)
    job_control.work(scored.runtime, job.id, budget_seconds=1e-9)
    assert scored.queued() == []
    assert by_version(scored) == {1: 56, second: 10}
    assert described(scored, job).n_ranges_finished == 1
    assert work(scored, job) == "succeeded"


def test_a_job_by_another_version_has_to_wait_for_the_one_that_runs(scored: Table) -> None:
    second, third = (register(scored.runtime, scored.source) for _ in range(2))
    job = job_control.rescore(scored.runtime, scored.source_name, second)
    with pytest.raises(JobError, match=f"pgoutlier jobs cancel {job.id}"):
        job_control.rescore(scored.runtime, scored.source_name, third)


def test_a_version_that_cannot_be_used_starts_no_job(scored: Table) -> None:
    with pytest.raises(ModelError, match="no model version 9"):
        job_control.rescore(scored.runtime, scored.source_name, 9)
    with pytest.raises(SourceError, match="no source"):
        job_control.rescore(scored.runtime, "nowhere")
    assert scored.rows("SELECT FROM outlier.jobs WHERE kind = 'rescore'") == []


def test_a_job_whose_version_is_gone_fails_and_says_why_and_goes_on_when_resumed(scored: Table) -> None:
    second = register(scored.runtime, scored.source)
    scored = scored.with_settings(max_attempts=2, retry_base_seconds=0.001)
    job = job_control.rescore(scored.runtime, scored.source_name, second)
    scored.user.execute("UPDATE outlier.model_versions SET version = 99 WHERE version = %s", (second,))
    until(lambda: work(scored, job) == "failed")
    assert "has no model version 2 any more" in described(scored, job).problem
    assert by_version(scored) == {1: 25}
    scored.user.execute("UPDATE outlier.model_versions SET version = %s WHERE version = 99", (second,))
    assert job_control.resume(scored.runtime, job.id)
    assert work(scored, job) == "succeeded"
    assert by_version(scored) == {second: 25}


def test_a_version_that_a_job_scored_with_is_not_pruned(scored: Table) -> None:
    second, third, newest = (register(scored.runtime, scored.source) for _ in range(3))
    job = job_control.rescore(scored.runtime, scored.source_name, second)
    job_control.work(scored.runtime, job.id, budget_seconds=1e-9)
    assert versions.prune(scored.runtime, scored.source_name, keep=1) == [third]
    assert work(scored, job) == "succeeded"
    assert versions.prune(scored.runtime, scored.source_name, keep=1) == []
    assert by_version(scored) == {second: 25}
    assert newest in scored.keys("SELECT version FROM outlier.model_versions")


def test_rows_of_a_sequence_source_are_scored_with_the_rows_before_them(user: User, runtime: Runtime) -> None:
    user.execute(READINGS)
    insert_readings(user, *((i, f"m{i % 3}", (i * 37) % 100) for i in range(60)))
    table = attach_readings(user, runtime).with_settings(job_range_rows=7)
    assert work(table, job_control.backfill(table.runtime, table.source_name)) == "succeeded"
    assert table.queued() == []
    assert table.errors() == pytest.approx(offline(table), rel=1e-6)
    other = make_detector(("a", "b"), recipe=SEQUENCE_RECIPE, seed=3)
    second = register(table.runtime, table.source, other)
    assert work(table, job_control.rescore(table.runtime, table.source_name, second)) == "succeeded"
    assert table.queued() == []
    assert table.errors() == pytest.approx(offline(table, detector=other), rel=1e-6)
    insert(table, (100, "m1", 200))
    table.drain_all()
    assert len(table.scored()) == 61


# -- reflag


def flags(table: Table) -> set[Any]:
    return set(table.keys("SELECT key FROM outlier.scores_{source} WHERE flagged"))


def middle(table: Table) -> float:
    """A threshold that is one of the errors, so that > and >= tell."""
    return sorted(table.errors().values())[12]


def test_reflag_makes_the_threshold_that_of_a_new_champion_and_flags_as_the_detector_does(
    scored: Table,
) -> None:
    errors, threshold = scored.errors(), middle(scored)
    job = job_control.reflag(scored.runtime, scored.source_name, threshold)
    assert work(scored, job) == "succeeded"
    assert flags(scored) == {key for key, error in errors.items() if exceeds([error], threshold=threshold)[0]}
    assert len(flags(scored)) == 12
    assert by_version(scored) == {2: 25}
    assert scored.errors() == errors
    assert scored.rows("SELECT version, threshold, errors_of FROM outlier.model_versions ORDER BY version")[
        1
    ] == (
        2,
        threshold,
        1,
    )
    assert versions.history(scored.runtime, scored.source_name, alias="champion")[0].version == 2
    scored.insert(26)
    scored.drain()
    assert by_version(scored) == {2: 26}


def test_a_version_with_another_threshold_does_not_say_how_much_the_first_one_flagged(scored: Table) -> None:
    about_it = {"threshold": 4.0, "calibration_flag_rate": 0.2, "gate": {"reason": "first version"}}
    scored.user.execute(
        "UPDATE outlier.model_versions SET metrics = %s", (Jsonb({"loss": 0.5, "n_fit": 10, **about_it}),)
    )
    work(scored, job_control.reflag(scored.runtime, scored.source_name, middle(scored)))
    assert scored.rows("SELECT metrics FROM outlier.model_versions WHERE version = 2") == [
        ({"loss": 0.5, "n_fit": 10},)
    ]


def test_the_same_threshold_again_makes_no_other_version(scored: Table) -> None:
    threshold = middle(scored)
    work(scored, job_control.reflag(scored.runtime, scored.source_name, threshold))
    work(scored, job_control.reflag(scored.runtime, scored.source_name, threshold))
    work(scored, job_control.reflag(scored.runtime, scored.source_name, threshold / 2))
    job = job_control.reflag(scored.runtime, scored.source_name, threshold)
    assert job.version == 2
    assert work(scored, job) == "succeeded"
    assert len(flags(scored)) == 12
    assert scored.keys("SELECT version FROM outlier.model_versions ORDER BY 1") == [1, 2, 3]


def test_after_a_rollback_reflag_takes_the_flags_back(scored: Table) -> None:
    work(scored, job_control.reflag(scored.runtime, scored.source_name, middle(scored)))
    versions.rollback(scored.runtime, scored.source_name, reason="test")
    assert work(scored, job_control.reflag(scored.runtime, scored.source_name)) == "succeeded"
    assert flags(scored) == set()
    assert by_version(scored) == {1: 25}


def test_reflag_leaves_alone_the_scores_of_versions_with_other_errors(scored: Table) -> None:
    second = scored.promote(make_detector(FEATURES, seed=1))
    scored.insert(100, 104)
    scored.drain()
    assert work(scored, job_control.reflag(scored.runtime, scored.source_name, 1e-9)) == "succeeded"
    assert flags(scored) == set(range(100, 105))
    assert by_version(scored) == {1: 25, second + 1: 5}


@pytest.mark.parametrize("threshold", [-1.0, 1e13, float("nan"), float("inf")])
def test_what_cannot_be_a_threshold_changes_nothing(scored: Table, threshold: float) -> None:
    with pytest.raises(ModelError, match="cannot be a threshold"):
        job_control.reflag(scored.runtime, scored.source_name, threshold)
    assert scored.keys("SELECT version FROM outlier.model_versions") == [1]


@pytest.mark.parametrize("start", [job_control.rescore, job_control.reflag])
def test_when_another_version_becomes_the_champion_the_job_of_the_old_one_ends(
    scored: Table, start: Callable[[Runtime, str], Started]
) -> None:
    """Else it would go on over the scores of the new one."""
    work(scored, job_control.reflag(scored.runtime, scored.source_name, middle(scored)))
    versions.promote(scored.runtime, scored.source_name, 1, reason="test")
    job = start(scored.runtime, scored.source_name)
    job_control.work(scored.runtime, job.id, budget_seconds=1e-9)
    versions.promote(scored.runtime, scored.source_name, 2, reason="test")
    assert work(scored, job) == "failed"
    assert by_version(scored) == {1: 10, 2: 15}
    assert "version 2 is the champion by now" in described(scored, job).problem
    with pytest.raises(JobError, match="another one by now; start again: pgoutlier re"):
        job_control.resume(scored.runtime, job.id)


def test_nobody_is_told_of_rows_that_a_job_flags(scored: Table) -> None:
    webhook_control.set_webhook(scored.runtime, scored.source_name, None)
    assert work(scored, job_control.reflag(scored.runtime, scored.source_name, 1e-9)) == "succeeded"
    assert len(flags(scored)) == 25
    assert scored.rows("SELECT FROM outlier.notices") == []
    scored.insert(26)
    scored.drain()
    assert scored.keys("SELECT key FROM outlier.notices") == ["26"]


@pytest.mark.parametrize("start", [job_control.backfill, job_control.rescore])
def test_of_a_row_that_changes_meanwhile_somebody_is_told_though_a_job_comes_upon_it_first(
    scored: Table, start: Callable[[Runtime, str], Started]
) -> None:
    webhook_control.set_webhook(scored.runtime, scored.source_name, None)
    scored.promote(make_detector(FEATURES, threshold=100))
    scored.user.execute("DELETE FROM transactions WHERE id = 3")
    scored.user.execute("DELETE FROM outlier.scores_transactions WHERE key IN (1, 3, 6)")
    job = start(scored.runtime, scored.source_name)
    scored.user.execute("INSERT INTO transactions VALUES (3, 1000, 3, 3)")
    scored.user.execute("UPDATE transactions SET amount = 1000 WHERE id = 4")
    with scored.runtime.engine.begin() as connection:
        found = jobs.find(connection, job.id)
    assert job_work.work_one(scored.runtime, found)
    scored.drain_all()
    assert flags(scored) == {3, 4}
    assert scored.keys("SELECT key FROM outlier.notices ORDER BY 1") == ["3", "4"]


# -- cancelled, resumed, worked by several


def test_a_cancelled_job_stops_and_goes_on_where_it_stopped(scored: Table) -> None:
    second = register(scored.runtime, scored.source)
    job = job_control.rescore(scored.runtime, scored.source_name, second)
    job_control.work(scored.runtime, job.id, budget_seconds=1e-9)
    assert job_control.cancel(scored.runtime, job.id)
    assert not job_control.cancel(scored.runtime, job.id)
    assert work(scored, job) == "cancelled"
    assert by_version(scored) == {1: 15, second: 10}
    assert job_control.resume(scored.runtime, job.id)
    assert not job_control.resume(scored.runtime, job.id)
    assert work(scored, job) == "succeeded"
    assert by_version(scored) == {second: 25}
    assert scored.keys("SELECT action FROM outlier.job_events WHERE job_id = %s ORDER BY id", job.id) == [
        "start",
        "cancel",
        "resume",
    ]
    with pytest.raises(JobError, match="has succeeded"):
        job_control.resume(scored.runtime, job.id)


def test_a_job_is_not_resumed_beside_another_one_of_its_kind(scored: Table) -> None:
    second, third = (register(scored.runtime, scored.source) for _ in range(2))
    first = job_control.rescore(scored.runtime, scored.source_name, second)
    job_control.cancel(scored.runtime, first.id)
    other = job_control.rescore(scored.runtime, scored.source_name, third)
    with pytest.raises(JobError, match=f"Job {other.id} is at work"):
        job_control.resume(scored.runtime, first.id)


def test_several_workers_share_the_ranges_and_do_each_once(scored: Table) -> None:
    small = scored.with_settings(job_range_rows=1)
    small = replace(small, runtime=replace(small.runtime, places_beside_scoring=threading.Semaphore(4)))
    second = register(small.runtime, small.source)
    job = job_control.rescore(small.runtime, small.source_name, second)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: job_control.work(small.runtime, job.id), range(4)))
    assert status(small, job) == "succeeded"
    assert by_version(small) == {second: 25}
    assert [row[3] for row in ranges(small, job)] == [1] * 25


def test_no_more_ranges_at_a_time_than_the_process_has_places_for(scored: Table) -> None:
    job = job_control.rescore(scored.runtime, scored.source_name, register(scored.runtime, scored.source))
    with scored.runtime.places_beside_scoring:
        assert work(scored, job) == "running"
        assert by_version(scored) == {1: 25}


def test_a_job_of_a_source_that_is_detached_goes_with_it(scored: Table) -> None:
    job = job_control.rescore(scored.runtime, scored.source_name, register(scored.runtime, scored.source))
    detach_table(scored)
    with pytest.raises(JobError, match=f"no job {job.id}"):
        job_control.work(scored.runtime, job.id)
    assert scored.keys("SELECT action FROM outlier.source_events ORDER BY id") == ["attach", "detach"]


def test_prune_forgets_jobs_that_ended_but_the_newest(scored: Table) -> None:
    for _ in range(3):
        work(scored, job_control.backfill(scored.runtime, scored.source_name))
    running = job_control.rescore(scored.runtime, scored.source_name, register(scored.runtime, scored.source))
    ended = scored.keys("SELECT id FROM outlier.jobs WHERE status = 'succeeded' ORDER BY id")
    maintenance.prune_all(scored.with_settings(keep_jobs=2).runtime)
    assert scored.keys("SELECT id FROM outlier.jobs ORDER BY id") == [ended[-1], running.id]
    maintenance.prune_all(scored.with_settings(keep_jobs=1).runtime)
    assert scored.keys("SELECT id FROM outlier.jobs ORDER BY id") == [running.id]


def test_a_detach_waits_for_a_range_without_keeping_it_from_its_tables(
    scored: Table, connect: Connect
) -> None:
    job = job_control.rescore(scored.runtime, scored.source_name, register(scored.runtime, scored.source))
    worker = connect(autocommit=False)
    worker.execute("SELECT FROM outlier.job_ranges WHERE job_id = %s AND number = 1 FOR UPDATE", (job.id,))
    with ThreadPoolExecutor(1) as pool:
        detached = pool.submit(detach_table, scored)
        until(lambda: waits(scored.user))
        worker.execute("SELECT FROM outlier.scores_transactions FOR UPDATE")
        worker.commit()
        detached.result()
    assert scored.keys("SELECT id FROM outlier.jobs") == []


# -- ranges


@given(
    keys=st.lists(
        st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8), unique=True
    ),
    size=st.integers(1, 4),
)
def test_every_text_key_is_in_one_range_and_no_other(
    postgres: Postgres, text_keys: User, keys: list[str], size: int
) -> None:
    text_keys.execute("TRUNCATE outlier.jobs CASCADE")
    text_keys.execute("TRUNCATE k")
    text_keys.cursor().executemany("INSERT INTO k VALUES (%s)", [(key,) for key in keys])
    (job,) = text_keys.execute(
        "INSERT INTO outlier.jobs (source_id, kind) SELECT id, 'backfill' FROM outlier.sources RETURNING id"
    ).fetchone() or (0,)
    key = Key(("k",), ("text",))
    planned = key_ranges.plan(key, key.in_theirs("k"), sql.SQL("k WHERE true"))
    text_keys.execute(planned, {"job": job, "size": size})
    within = key_ranges.within(key.in_theirs("k"))
    found = []
    for row in text_keys.execute("SELECT first_key, last_key, n_keys FROM outlier.job_ranges").fetchall():
        part = text_keys.execute(
            sql.SQL("SELECT k.k FROM k WHERE {}").format(within), {"first_key": row[0], "last_key": row[1]}
        ).fetchall()
        assert len(part) == row[2] <= size
        found += [key for (key,) in part]
    assert sorted(found) == sorted(keys)


@pytest.fixture(scope="module")
def text_keys(postgres18: Postgres) -> Any:
    with postgres18.database() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE k (k text PRIMARY KEY)")
        connection.execute("INSERT INTO outlier.sources (name, definition, recipe) VALUES ('k', '{}', '{}')")
        yield connection


# -- commands


def test_the_command_works_here_and_says_what_came_of_it(old_rows: Table, run: Run) -> None:
    old_rows.promote()
    done = run("backfill", "transactions", "--here")
    assert done.exit_code == 0, done.output
    assert "25 rows scored, 0 of them are flagged." in done.output
    listed = run("jobs", "list")
    assert "succeeded" in listed.output
    again = run("backfill", "transactions", "--here", "--json")
    assert '"n_rows": 0' in again.stdout


def test_a_job_started_without_waiting_is_watched_cancelled_and_resumed_by_command(
    old_rows: Table, run: Run
) -> None:
    old_rows.promote()
    started = run("backfill", "transactions", "--no-wait", "--json")
    assert started.exit_code == 0, started.output
    assert '"status": "running"' in started.stdout
    assert "backfill of transactions, 0% of 25 rows" in run("status").output
    job = str(old_rows.keys("SELECT id FROM outlier.jobs")[0])
    assert "is cancelled" in run("jobs", "cancel", job).output
    assert "been cancelled" in run("jobs", "cancel", job).output
    assert "25 rows scored" in run("jobs", "resume", job, "--here").output
    assert len(old_rows.scored()) == 25


def test_rescore_by_command_is_by_the_champion_as_that(scored: Table, run: Run) -> None:
    scored.promote(make_detector(FEATURES, seed=1))
    assert run("rescore", "transactions", "--no-wait").exit_code == 0
    assert scored.rows("SELECT version, as_champion FROM outlier.jobs WHERE kind = 'rescore'") == [(2, True)]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("backfill", "nowhere"), "There is no source nowhere"),
        (("rescore", "transactions"), "has no champion"),
        (("rescore", "transactions", "--version", "x"), "is not a version"),
        (("reflag", "transactions", "--threshold", "nan"), "finite number"),
        (("jobs", "watch", "77"), "There is no job 77"),
        (("jobs", "cancel", "77"), "There is no job 77"),
        (("history", "show", "transactions", "1"), "pgoutlier history keep transactions"),
    ],
)
def test_bad_input_is_one_sentence(old_rows: Table, run: Run, words: tuple[str, ...], sentence: str) -> None:
    result = run(*words)
    assert isinstance(result.exception, Exception)
    assert sentence in str(result.exception)
    assert getattr(result.exception, "exit_code", None) == 2
    assert jobs.BACKFILL not in [row[0] for row in old_rows.rows("SELECT kind FROM outlier.jobs")]


def test_attach_with_backfill_starts_the_job_and_says_so(user: User, runtime: Runtime, run: Run) -> None:
    user.execute(TRANSACTIONS)
    user.execute("INSERT INTO transactions SELECT i, 1, 2, 3 FROM generate_series(1, 5) i")
    asked = ("attach", "transactions", "--key", "id", "--features", "amount,hour", "--backfill")
    said = run(*asked)
    assert said.exit_code == 0, said.output
    assert "Job 1 scores the 5 rows that were there already, once there is a champion" in said.output
    assert '"backfill_job": 1' in run(*asked, "--json").stdout
