"""What the sweep counts of the errors tells of a large table what reading all of it does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgoutlier.db.thresholds import error_counts
from pgoutlier.db.thresholds.error_counts import Bin
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.thresholds import thresholds
from pgoutlier.worker.thresholds.thresholds import ChampionThreshold
from pgoutlier.worker.upkeep import maintenance
from tests.support import FEATURES, Table, attach_table, make_detector

User = psycopg.Connection[Any]

THRESHOLD = 100.0
N_DAYS = 20
QUALITY = (
    "SELECT day, model_version, labelled, fraud, flagged, hits, precision, recall FROM outlier.quality_payments"
    " ORDER BY 1, 2"
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches of 300 keys, and tables of so few rows are counted."""
    monkeypatch.setattr("pgoutlier.db.upkeep.turns.KEYS_PER_STRETCH", 300)
    monkeypatch.setattr("pgoutlier.db.thresholds.error_counts.FEWEST_ROWS", 1_000)


@pytest.fixture
def payments(user: User, runtime: Runtime) -> Table:
    """2,000 scored rows, a hundred a day up to now, and one without a time; one in five has a label."""
    user.execute("SET timezone = 'UTC'")
    user.execute(
        "CREATE TABLE payments (id bigint PRIMARY KEY, amount float8, hour float8, distance float8, at timestamptz,"
        " fraud boolean)"
    )
    user.execute("CREATE INDEX ON payments (at)")
    table = attach_table(
        user, runtime, relation="payments", key="id", features=",".join(FEATURES), time="at", label="fraud"
    )
    table.promote(make_detector(FEATURES, threshold=THRESHOLD))
    user.execute(
        "INSERT INTO payments SELECT i, 1, 1, 1, now() - (2000 - i) * interval '14.4 min',"
        " CASE WHEN i % 5 = 0 THEN i % 40 = 0 END FROM generate_series(1, 2000) i"
    )
    user.execute("INSERT INTO payments VALUES (2001, 1, 1, 1, NULL, true)")
    user.execute("TRUNCATE outlier.queue_payments")
    score(table)
    user.execute("ANALYZE payments")
    return table


def score(table: Table, condition: str = "true", version: int = 1) -> None:
    table.user.execute(
        "INSERT INTO outlier.scores_payments (key, change_id, reconstruction_error, model_version, flagged)"
        f" SELECT id, id, e, {version}, e > {THRESHOLD}"
        f" FROM (SELECT id, -20 * ln((1 + id * 7919 % 2003) / 2004.0) AS e FROM payments WHERE {condition}) r"
        " ON CONFLICT (key) DO UPDATE SET model_version = excluded.model_version,"
        " reconstruction_error = excluded.reconstruction_error, flagged = excluded.flagged".encode()
    )


def count(table: Table) -> None:
    maintenance.sweep(table.runtime, table.source_name, whole=True)


def describe(
    table: Table, days: int | None = None, at: tuple[float, ...] = (30.0, 50.5)
) -> ChampionThreshold:
    window = None if days is None else timedelta(days=days)
    return thresholds.describe(table.runtime, table.source_name, window=window, others=list(at))


def told(found: ChampionThreshold) -> dict[str, Any]:
    return {name: value for name, value in vars(found).items() if name not in {"counted_at", "what_if"}}


@pytest.mark.parametrize("days", [None, 3, 10, 15])
@pytest.mark.parametrize("judged", [False, True])
def test_what_was_counted_is_what_is_there(payments: Table, days: int | None, judged: bool) -> None:
    if judged:
        payments.user.execute(
            "INSERT INTO outlier.verdicts (source, key, verdict) SELECT 'payments', i, 'fraud'"
            " FROM generate_series(1, 2001, 7) i"
        )
    read = describe(payments, days)
    assert read.counted_at is None
    count(payments)
    counted = describe(payments, days)
    assert (counted.counted_at is not None) == (days in {None, 10, 15})
    assert told(counted) == told(read)
    for was, now in zip(read.what_if or (), counted.what_if or (), strict=True):
        assert now.flags == pytest.approx(was.flags, abs=0.02 * read.n_scores)
    assert payments.rows(QUALITY)


def test_edges_of_bins_are_told_exactly_and_thresholds_are_of_them(payments: Table) -> None:
    count(payments)
    found = thresholds.describe(payments.runtime, "payments", window=None, others=[])
    assert len(found.what_if or ()) > 5
    for cut in found.what_if or ():
        [(n,)] = payments.rows(
            "SELECT count(*) FROM outlier.scores_payments WHERE reconstruction_error > %s", cut.threshold
        )
        assert cut.flags == n


def test_rows_that_came_since_are_counted(payments: Table) -> None:
    count(payments)
    before = describe(payments)
    payments.user.execute(
        "INSERT INTO payments SELECT i, 1, 1, 1, now(), true FROM generate_series(3000, 3099) i"
    )
    score(payments, "id >= 3000")
    now = describe(payments)
    assert (now.n_scores, now.n_fraud) == (before.n_scores + 100, before.n_fraud + 100)
    assert now.counted_at is not None


def test_scores_made_anew_labels_given_and_rows_gone_are_told_after_the_next_turn(payments: Table) -> None:
    count(payments)
    payments.user.execute("UPDATE payments SET fraud = true WHERE id <= 200")
    payments.user.execute("DELETE FROM payments WHERE id BETWEEN 300 AND 400")
    payments.user.execute(
        "UPDATE outlier.scores_payments SET reconstruction_error = 1, flagged = false WHERE key < 100"
    )
    maintenance.prune_all(payments.runtime)
    count(payments)
    counted, quality = describe(payments), payments.rows(QUALITY)
    assert counted.counted_at is not None
    payments.user.execute("DELETE FROM outlier.error_turns")
    assert told(describe(payments)) == told(counted)
    assert payments.rows(QUALITY) == quality


def test_the_quality_of_a_large_table_is_that_of_all_its_rows(payments: Table) -> None:
    payments.user.execute(
        "INSERT INTO outlier.verdicts (source, key, verdict) SELECT 'payments', i, 'fraud'"
        " FROM generate_series(1, 2001, 7) i"
    )
    read = payments.rows(QUALITY)
    count(payments)
    assert payments.rows(QUALITY) == read
    [plan] = payments.rows(
        "EXPLAIN (FORMAT JSON, ANALYZE, TIMING OFF) SELECT * FROM outlier.quality_payments"
    )
    assert n_read(plan[0][0]["Plan"], "payments") <= 400, "of the table itself those that have a verdict"


def n_read(plan: dict[str, Any], relation: str) -> int:
    """Rows of a relation that a plan has read."""
    own = plan["Actual Rows"] * plan["Actual Loops"] if plan.get("Relation Name") == relation else 0
    return int(own) + sum(n_read(child, relation) for child in plan.get("Plans", ()))


def test_a_version_that_is_newer_and_all_that_was_scored_anew_are_read(payments: Table) -> None:
    count(payments)
    payments.promote(make_detector(FEATURES, threshold=THRESHOLD))
    score(payments, "id > 500", version=2)
    assert (describe(payments).n_scores, describe(payments).counted_at) == (1_501, None)
    count(payments)
    assert describe(payments).counted_at is not None
    job = job_control.reflag(payments.runtime, "payments", 50.0)
    job_control.work(payments.runtime, job.id)
    assert describe(payments).counted_at is None


def test_a_turn_that_is_broken_off_leaves_what_the_last_one_counted(
    payments: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgoutlier.db.upkeep.turns._LEAST_KEYS_PER_SECOND", 1e-6)
    count(payments)
    before = told(describe(payments))
    maintenance.sweep(payments.runtime, "payments")
    assert payments.keys("SELECT count(*) FROM outlier.error_turns") == [2]
    assert told(describe(payments)) == before
    # Another one begins in the middle of it, and counts from the first key on.
    count(payments)
    assert payments.keys("SELECT count(*) FROM outlier.error_turns") == [1]
    assert payments.keys("SELECT sum(n_rows)::int FROM outlier.error_counts") == [2_001]
    assert told(describe(payments)) == before


def test_few_rows_are_not_counted(payments: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    count(payments)
    monkeypatch.setattr("pgoutlier.db.thresholds.error_counts.FEWEST_ROWS", 10_000)
    count(payments)
    assert payments.keys("SELECT count(*) FROM outlier.error_turns") == [0]


def test_days_of_scoring_where_there_is_no_time(user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE payments (id uuid PRIMARY KEY, amount float8, hour float8, distance float8)")
    table = attach_table(user, runtime, relation="payments", key="id", features=",".join(FEATURES))
    table.promote(make_detector(FEATURES, threshold=THRESHOLD))
    user.execute("INSERT INTO payments SELECT md5(i::text)::uuid, 1, 1, 1 FROM generate_series(1, 2000) i")
    user.execute("TRUNCATE outlier.queue_payments")
    user.execute(
        "INSERT INTO outlier.scores_payments (key, change_id, reconstruction_error, scored_at, model_version, flagged)"
        " SELECT id, 1, e, now() - e * interval '1 h', 1, e > 100 FROM (SELECT id, hashtext(id::text) & 511 AS e"
        " FROM payments) r"
    )
    user.execute("ANALYZE payments")
    read = [told(describe(table, days)) for days in (None, 2, 12)]
    count(table)
    assert [told(describe(table, days)) for days in (None, 2, 12)] == read
    assert describe(table).counted_at is not None


@pytest.mark.parametrize("error", [0.0, -1.0, 1e-310, 1e-300, 1.0, 2.0, 3.7, 1e299, 1e301, float("inf")])
def test_every_error_has_a_bin(user: User, error: float) -> None:
    statement = error_counts._BIN.as_string(None).replace("s.reconstruction_error", "e")
    [(number,)] = user.execute(
        f"SELECT {statement} FROM (SELECT %s::float8) s (e)".encode(), (error,)
    ).fetchall()
    found = Bin(number, False, 10, 0, 0)
    assert found.above < error <= error_counts.edge(number + 1) or number == -(2**15)
    assert found.share_above(found.above) == 1.0


def test_thresholds_leave_no_more_than_their_shares_above() -> None:
    bins = [Bin(n, n > 5, 100, 0, 0) for n in range(9, -1, -1)]
    edges = error_counts.thresholds(bins, [0.35, 0.1, 0.05, 0.31])
    assert edges == [error_counts.edge(7), error_counts.edge(9)]
    assert error_counts.thresholds([], [0.1]) == []


def test_what_is_settled_is_older_than_a_day(payments: Table) -> None:
    count(payments)
    [(until,)] = payments.rows("SELECT max(day) FROM outlier.error_counts")
    assert until >= datetime.now(UTC) - timedelta(days=2)
