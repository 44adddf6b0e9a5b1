"""Every query of docs/sql.md is run as it is written, by a role with the rights the page names."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.notices import webhook_control
from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.versions import versions
from tests import cookbook
from tests.cookbook import ANALYSTS, OPERATORS, PAGE, SHOP, SHOWN, Rows
from tests.servers import Postgres
from tests.support import Table, attach_table, make_detector, register, sessions_on

ROWS = """
INSERT INTO shop.payments (id, customer, amount, items, online, is_fraud) VALUES
    (20001, 7, 34.90, 3, true, false),
    (20002, 7, 990.00, 1, true, true),
    (20003, 9, 12.00, NULL, false, NULL),
    (20004, 9, 800.00, 2, false, NULL),
    (20006, 9, 15.00, 1, false, NULL),
    (20007, 9, 760.00, 2, false, NULL)
"""
# Of the user's own table beside the one that is watched.
GRANTED_BY_THE_SHOP = "GRANT USAGE ON SCHEMA shop TO writer; GRANT SELECT ON shop.customers TO writer"
VERDICTS = """
INSERT INTO outlier.verdicts (source, key, verdict, created_by) VALUES
    ('payments', 20004, 'normal', 'ana'),
    ('payments', 20006, 'fraud', 'bob'),
    ('payments', 20006, 'normal', 'ana'),
    ('payments', 20005, 'fraud', 'bob')
"""


def watch_the_shop(database_url: str) -> None:
    """Attach the payments, with a champion and a challenger, and somebody who is told of what is flagged."""
    with sessions_on(database_url) as (user, runtime):
        user.execute(SHOP)
        table = attach_table(
            user,
            runtime,
            relation="shop.payments",
            key="id",
            features="amount,items,online,hour(paid_at)",
            time="paid_at",
            entity="customer",
            label="is_fraud",
        )
        # Standardised and bounded as its detector is, only an amount of hundreds gives such an error.
        names = table.source.definition.feature_names
        table.promote(make_detector(names, threshold=5_000.0))
        challenger = register(runtime, table.source, make_detector(names, threshold=-1.0))
        versions.challenge(runtime, "payments", challenger, reason="test")
        versions.tag(runtime, "payments", challenger, "eager")
        webhook_control.set_webhook(runtime, "payments", "https://alerts.example.com/flagged")


@pytest.fixture
def template(postgres: Postgres) -> str:
    return postgres.template("shop", watch_the_shop)


@pytest.fixture
def payments(user: psycopg.Connection[Any], runtime: Runtime) -> Table:
    """Five scored rows, three of them flagged, one in quarantine, and one that waits in the queue; four verdicts."""
    table = Table(user, runtime, "payments")
    user.execute(ROWS)
    table.drain()
    user.execute(
        "INSERT INTO shop.payments (id, customer, amount, items, online) VALUES (20005, 9, 15, 1, false)"
    )
    user.execute(VERDICTS)
    job_control.backfill(runtime, "payments")
    return table


@pytest.fixture
def as_analyst(payments: Table, role: str) -> psycopg.Connection[Any]:
    return granted(payments, role, analyst=True)


@pytest.fixture
def as_worker(payments: Table, role: str) -> psycopg.Connection[Any]:
    return granted(payments, role, analyst=False)


def granted(table: Table, role: str, *, analyst: bool) -> psycopg.Connection[Any]:
    table.user.execute(GRANTED_BY_THE_SHOP)
    granting.grant(table.runtime, role, "analyst" if analyst else "worker")
    table.user.execute("SET ROLE writer")
    return table.user


def answer(user: psycopg.Connection[Any], query: str) -> Rows:
    """Of a role that is set for this query alone."""
    rows = cookbook.answer(user, query)
    user.execute("RESET ROLE")
    return rows


def test_the_page_is_read_whole() -> None:
    assert len(ANALYSTS) + len(OPERATORS) == PAGE.count("```sql") == PAGE.count("\n### ")


def test_an_answer_that_is_shown_has_the_columns_of_its_query(payments: Table) -> None:
    assert len(SHOWN) == PAGE.count("\n```\n\n```\n") > 5
    for title, shown in SHOWN.items():
        found = payments.user.execute({**ANALYSTS, **OPERATORS}[title].encode())
        assert found.description is not None
        assert [c.name for c in found.description] == [c.strip() for c in shown.splitlines()[0].split("|")], (
            title
        )


@pytest.mark.parametrize("title", ANALYSTS)
def test_analysts_may_run_it_and_see_something(title: str, as_analyst: psycopg.Connection[Any]) -> None:
    assert answer(as_analyst, ANALYSTS[title])


@pytest.mark.parametrize("title", OPERATORS)
def test_operators_may_run_it(title: str, as_worker: psycopg.Connection[Any]) -> None:
    rows = answer(as_worker, OPERATORS[title])
    quiet = {
        "What keeps failing",
        "Does scoring stand still, and why",
        "What keeps a challenger from scoring",
        "Is this row queued",
        "Trainings",
        "Drift, the last report of each source",
        "Deliveries that failed, and those that were given up",
        "When was which notice delivered",
        "What runs when",
        "Who changed a schedule",
        "Does beat tick",
    }
    assert bool(rows) == (title not in quiet)


def test_flagged_rows_are_the_large_ones(as_analyst: psycopg.Connection[Any]) -> None:
    rows = answer(as_analyst, ANALYSTS["Flagged today, over an amount"])
    assert [row["id"] for row in rows] == [20002, 20004, 20007]


def test_the_challenger_is_held_against_the_champion(as_analyst: psycopg.Connection[Any]) -> None:
    title = "What the challenger would have flagged"
    assert {row["id"] for row in answer(as_analyst, ANALYSTS[title])} == {20001, 20006}
    as_analyst.execute("SET ROLE writer")
    (row,) = answer(as_analyst, ANALYSTS["Champion against challenger"])
    figures = ("champion_version", "challenger_version", "rows", "flagged_by_both", "only_challenger")
    assert [row[name] for name in figures] == [1, 2, 5, 3, 2]
    assert row["agreement"] == 0.6


def test_notices_are_of_the_flagged_rows(as_analyst: psycopg.Connection[Any]) -> None:
    rows = answer(as_analyst, ANALYSTS["Who was told, and of what"])
    assert {row["key"] for row in rows} == {"20002", "20004", "20007"}
    assert all(row["threshold"] == 5_000 and row["top_features"] for row in rows)


def test_contributions_say_why(as_analyst: psycopg.Connection[Any]) -> None:
    rows = answer(as_analyst, ANALYSTS["Why was this row flagged"])
    assert rows[0]["feature"] == "amount"
    assert sum(row["share"] for row in rows) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("title", ["Precision and recall by week", "Precision and recall by model version"])
def test_precision_and_recall_are_of_labelled_rows(title: str, as_analyst: psycopg.Connection[Any]) -> None:
    (row,) = answer(as_analyst, ANALYSTS[title])
    assert row["labelled"] == 4
    assert (row["precision"], row["recall"]) == (0.5, 1)


def test_a_flagged_row_waits_until_its_verdict_is_given(as_analyst: psycopg.Connection[Any]) -> None:
    waiting = ANALYSTS["Rows waiting for a verdict"]
    assert [row["id"] for row in answer(as_analyst, waiting)] == [20007]
    as_analyst.execute("SET ROLE writer")
    given = answer(as_analyst, ANALYSTS["Give verdicts"])
    assert {row["key"] for row in given} == {"20004", "20007"}
    assert {row["created_by"] for row in given} == {"postgres"}, "the user of the session, whatever its role"
    as_analyst.execute("SET ROLE writer")
    assert answer(as_analyst, waiting) == []


def test_verdicts_are_counted_by_analyst(as_analyst: psycopg.Connection[Any]) -> None:
    rows = answer(as_analyst, ANALYSTS["Verdicts by analyst"])
    assert [(row["analyst"], row["verdicts"], row["fraud"]) for row in rows] == [("ana", 2, 0), ("bob", 1, 1)]


def test_analysts_who_did_not_agree_are_shown(as_analyst: psycopg.Connection[Any]) -> None:
    assert answer(as_analyst, ANALYSTS["Where analysts did not agree"]) == [
        {"key": "20006", "said": ["bob: fraud", "ana: normal"]}
    ]


def test_a_verdict_on_a_row_without_a_score_is_found(as_analyst: psycopg.Connection[Any]) -> None:
    (row,) = answer(as_analyst, ANALYSTS["Verdicts on rows without a score"])
    assert row["key"] == "20005"


def test_the_queue_lag_counts_rows(as_worker: psycopg.Connection[Any]) -> None:
    (row,) = answer(as_worker, OPERATORS["Queue lag"])
    assert (row["rows_queued"], row["put_off"]) == (1, 0)
    assert row["lag"] > timedelta(0)


def test_the_quarantine_shows_the_row(as_worker: psycopg.Connection[Any]) -> None:
    (row,) = answer(as_worker, OPERATORS["Quarantine, with the rows"])
    assert (row["id"], row["reason"], row["column_name"]) == (20003, "null", "items")


def test_a_queued_row_is_found(as_worker: psycopg.Connection[Any]) -> None:
    (row,) = answer(as_worker, OPERATORS["Is this row queued"].replace("20003", "20005"))
    assert row["attempts"] == 0


def test_the_last_flagged_and_one_score_are_index_reads(payments: Table) -> None:
    payments.user.execute("SET enable_seqscan = off")
    for title, index in (
        ("The last flagged rows", "scores_payments_flagged_idx"),
        ("The score of one row", "scores_payments_pkey"),
    ):
        plan = payments.user.execute(f"EXPLAIN {ANALYSTS[title]}".encode()).fetchall()
        assert index in " ".join(row[0] for row in plan)
