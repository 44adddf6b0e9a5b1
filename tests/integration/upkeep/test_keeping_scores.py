"""Scores that are kept for some days: what is older goes, and nothing brings it back."""

from __future__ import annotations

from typing import Any

import pytest

from pgoutlier.db import migrate
from pgoutlier.db.errors import SchemaNotReady
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.upkeep import maintenance
from tests.support import Connection, Table, attach_table, refusal

KEPT_DAYS = 400
# How a table of rows that have a time is made and asked for.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "the time column": (
        "CREATE TABLE pay (id bigint PRIMARY KEY, at timestamptz, x float8, y float8)",
        {"key": "id", "time": "at"},
    ),
    "a text key of another collation, and days": (
        'CREATE TABLE pay (id text COLLATE "C" PRIMARY KEY, at date, x float8, y float8)',
        {"key": "id", "time": "at"},
    ),
    "keys in no order, new by an index on the time": (
        "CREATE TABLE pay (id uuid PRIMARY KEY, at timestamp, x float8, y float8); CREATE INDEX ON pay (at)",
        {"key": "id", "time": "at"},
    ),
    "the time in the key, in partitions": (
        "CREATE TABLE pay (id bigint, at timestamptz, x float8, y float8, PRIMARY KEY (id, at))"
        " PARTITION BY RANGE (at); CREATE TABLE pay_old PARTITION OF pay FOR VALUES FROM (MINVALUE) TO ('2025-01-01');"
        " CREATE TABLE pay_new PARTITION OF pay DEFAULT",
        {"key": "id,at", "partition_scores": "month"},
    ),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgoutlier.db.scoring.score_partitions.WORTH_A_PARTITION", 20)
    monkeypatch.setattr("pgoutlier.worker.scoring.partitions._known", {})
    monkeypatch.setattr("pgoutlier.db.upkeep.turns.KEYS_PER_STRETCH", 250)
    monkeypatch.setattr("pgoutlier.db.upkeep.sweeping._OVERLAP", 300)


@pytest.fixture(params=KINDS)
def pay(request: pytest.FixtureRequest, user: Connection, runtime: Runtime) -> Table:
    """200 rows of now, 200 rows of 500 days ago, and some without an age; all scored."""
    table, asked = KINDS[request.param]
    user.execute(table.encode())
    attached = attach_table(user, runtime, relation="pay", features="x,y", **asked)
    attached.promote()
    insert(attached, 1, 200, "now()")
    insert(attached, 201, 400, "now() - interval '500 days'")
    insert(attached, 401, 402, "'infinity'")
    insert(attached, 403, 404, "'-infinity'")
    if asked["key"] == "id":
        insert(attached, 405, 406, "NULL")
    attached.drain_all()
    return attached


def insert(table: Table, first: int, last: int, at: str) -> None:
    key = "md5(i::text)::uuid" if table.source.definition.key.types == ("uuid",) else "i"
    table.user.execute(
        f"INSERT INTO pay SELECT {key}, {at}, i, sqrt(i) FROM generate_series({first}, {last}) i".encode()
    )


def keep(table: Table, days: str | None) -> None:
    """Attach the same again, and say how long scores are kept."""
    definition = table.source.definition
    attach_table(
        table.user,
        table.runtime,
        relation="pay",
        key=",".join(definition.key.columns),
        features="x,y",
        time=definition.time_column,
        keep_scores=days,
    )


def n_scores(table: Table) -> int:
    [n] = table.keys("SELECT count(*) FROM outlier.scores_pay")
    return int(n)


def prune(table: Table) -> int:
    return sum(maintenance.prune_all(table.runtime).get("pay", -1) for _ in range(3))


def sweep(table: Table) -> int:
    table.user.execute("UPDATE outlier.sources SET attached_xid = NULL")
    return maintenance.sweep(table.runtime, "pay", whole=True) + maintenance.sweep(table.runtime, "pay")


def test_what_is_older_goes_and_sweep_and_backfill_leave_it_alone(pay: Table) -> None:
    n_rows = n_scores(pay)
    assert prune(pay) == 0
    keep(pay, f"{KEPT_DAYS}d")
    assert prune(pay) > 0
    left = n_rows - 200 - 2
    assert n_scores(pay) == left
    assert [sweep(pay), prune(pay), sweep(pay)] == [0, 0, 0]
    started = job_control.backfill(pay.runtime, "pay")
    assert started.n_left_out == 202
    assert job_control.described(pay.runtime, started.id).status == "succeeded"
    assert (n_scores(pay), pay.keys("SELECT count(*) FROM outlier.queue_pay")) == (left, [0])
    # What was lost of the others is found.
    pay.user.execute("DELETE FROM outlier.scores_pay WHERE reconstruction_error >= 0")
    assert sweep(pay) == left
    pay.drain_all()
    assert n_scores(pay) == left
    # Kept longer again, the old ones are rows like any others.
    keep(pay, "forever")
    assert sweep(pay) == 202
    pay.drain_all()
    assert n_scores(pay) == n_rows


def test_an_old_row_that_changes_is_scored_once_and_goes_again(pay: Table) -> None:
    keep(pay, f"{KEPT_DAYS}d")
    prune(pay)
    left = n_scores(pay)
    pay.user.execute("UPDATE pay SET x = x + 1 WHERE x BETWEEN 201 AND 240")
    pay.drain_all()
    assert n_scores(pay) == left + 40
    assert prune(pay) > 0
    assert n_scores(pay) == left
    assert [sweep(pay), prune(pay)] == [0, 0]


def test_quarantine_entries_of_old_rows_go_as_well(pay: Table) -> None:
    pay.user.execute("UPDATE pay SET x = NULL WHERE x IN (1, 201)")
    pay.drain_all()
    assert len(pay.quarantined()) == 2
    keep(pay, f"{KEPT_DAYS}d")
    prune(pay)
    assert len(pay.quarantined()) == 1
    assert sweep(pay) == 0


def test_partitions_that_are_older_go_as_a_whole(user: Connection, runtime: Runtime) -> None:
    table, asked = KINDS["the time in the key, in partitions"]
    user.execute(table.encode())
    # So many days ago was the 28th of a month; its first days are older.
    [days] = user.execute(
        "SELECT now()::date - (date_trunc('month', now() - interval '500 days')::date + 27)"
    ).fetchone() or (0,)
    pay = attach_table(user, runtime, relation="pay", features="x,y", **asked, keep_scores=f"{days}d")
    pay.promote()
    insert(pay, 1, 200, "date_trunc('month', now() - interval '500 days') + interval '3 days'")
    insert(pay, 201, 400, "now()")
    pay.drain_all()
    old = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'outlier.scores_pay'::regclass"
    [n] = pay.keys(old)
    assert prune(pay) == 0  # some of its time is young enough
    keep(pay, "400d")
    assert maintenance.prune_all(runtime)["pay"] == 1  # a partition, and no score of it by itself
    assert pay.keys(old) == [n - 1]
    assert n_scores(pay) == 200
    assert sweep(pay) == 0


@pytest.mark.postgres18
@pytest.mark.parametrize("period", [None, "month"])
def test_columns_in_the_table_say_no_more_what_has_gone(
    user: Connection, runtime: Runtime, period: str | None
) -> None:
    user.execute(KINDS["the time in the key, in partitions"][0].encode())
    pay = attach_table(
        user, runtime, relation="pay", features="x,y", key="id,at", write_columns=True, keep_scores="400d",
        partition_scores=period,
    )  # fmt: skip
    pay.promote()
    insert(pay, 1, 200, "now() - interval '500 days'")
    insert(pay, 201, 400, "now()")
    pay.drain_all()
    assert pay.keys("SELECT count(reconstruction_error) FROM pay") == [400]
    prune(pay)
    assert n_scores(pay) == 200
    assert pay.keys("SELECT x FROM pay WHERE (reconstruction_error IS NULL) <> (x <= 200)") == []
    assert sweep(pay) == 0


@pytest.mark.postgres18
def test_verdicts_stay_when_scores_go(user: Connection, runtime: Runtime) -> None:
    table, asked = KINDS["the time column"]
    user.execute(table.encode())
    pay = attach_table(user, runtime, relation="pay", features="x,y", **asked)
    pay.promote()
    insert(pay, 1, 10, "now() - interval '500 days'")
    pay.drain_all()
    user.execute("INSERT INTO outlier.verdicts (source, key, verdict) VALUES ('pay', '3', 'fraud')")
    keep(pay, "400d")
    prune(pay)
    assert n_scores(pay) == 0
    assert pay.keys("SELECT key FROM outlier.current_verdicts") == ["3"]


@pytest.mark.postgres18
def test_how_long_is_kept_until_somebody_says_otherwise(user: Connection, runtime: Runtime) -> None:
    table, asked = KINDS["the time column"]
    user.execute(table.encode())
    pay = attach_table(user, runtime, relation="pay", features="x,y", **asked, keep_scores="30d")
    keep(pay, None)
    assert pay.source.definition.keep_scores_days == 30
    keep(pay, "31d")
    assert pay.source.definition.keep_scores_days == 31
    keep(pay, "forever")
    assert pay.source.definition.keep_scores_days is None
    assert pay.keys("SELECT detail FROM outlier.source_events WHERE action = 'keep_scores' ORDER BY id") == [
        "31 days",
        "forever",
    ]


@pytest.mark.parametrize("asked", ["400", "0d", "-3d", "1y", "36526d", "", "٣d", "999999999d"])
@pytest.mark.postgres18
def test_lengths_of_time_that_are_none_are_refused(user: Connection, runtime: Runtime, asked: str) -> None:
    user.execute(KINDS["the time column"][0].encode())
    said = refusal(runtime, relation="pay", features="x,y", time="at", keep_scores=asked)
    assert said == (
        f"Scores cannot be kept for {asked!r}; write days, from 1d to 36525d, such as 400d, or forever."
    )


@pytest.mark.postgres18
def test_rows_without_an_age_cannot_be_kept_by_it(user: Connection, runtime: Runtime) -> None:
    user.execute("CREATE TABLE pay (id bigint PRIMARY KEY, second float8, x float8, y float8)")
    asked = {"relation": "pay", "features": "x,y", "keep_scores": "400d"}
    sentence = (
        "Nothing says how old a row of public.pay is, so its score cannot be kept for 400 days; name a column of type"
        " timestamptz, timestamp or date with --time, or keep it until the row is gone (--keep-scores forever)."
    )
    assert refusal(runtime, **asked) == sentence
    assert refusal(runtime, **asked, time="second") == sentence


@pytest.mark.postgres18
def test_the_program_of_before_gets_no_source_whose_scores_go(user: Connection, runtime: Runtime) -> None:
    table, asked = KINDS["the time column"]
    user.execute(table.encode())
    pay = attach_table(user, runtime, relation="pay", features="x,y", **asked, keep_scores="30d")
    with pytest.raises(SchemaNotReady, match="attach each again with --keep-scores forever first"):
        migrate.downgrade(runtime.engine, "0018")
    keep(pay, "forever")
    migrate.downgrade(runtime.engine, "0018")
    assert pay.keys("SELECT definition ? 'keep_scores_days' FROM outlier.sources") == [False]
    migrate.upgrade(runtime.engine)
    assert pay.source.definition.keep_scores_days is None
