"""What analysts and workers ask for often is read through an index, never by going through a whole table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgoutlier.db.ddl import installation
from pgoutlier.db.engine import driver_connection
from pgoutlier.db.scoring import queue
from pgoutlier.db.settings import Settings
from pgoutlier.worker.runtime import make_runtime
from tests.servers import Postgres
from tests.support import FEATURES, Table, attach_table, make_detector

N_ROWS = 20_000
FLAGGED, KEY = "scores_transactions_flagged_idx", "scores_transactions_pkey"
VERDICTS = "verdicts_source_key_id_idx"
SCANS = {"Index Scan", "Index Only Scan", "Bitmap Index Scan"}


@pytest.fixture(scope="module")
def scored(postgres: Postgres) -> Iterator[Table]:
    """20,000 scored rows of two days, of which 1 in 100 is flagged, with statistics."""
    with postgres.database() as url, psycopg.connect(url, autocommit=True) as user:
        settings = Settings(_env_file=None, database_url=url, broker_url="redis://no.broker.invalid:1/0")
        runtime = make_runtime(settings)
        user.execute(
            "CREATE TABLE transactions (id bigint PRIMARY KEY, amount float8, hour float8, distance float8, note text)"
        )
        table = attach_table(user, runtime, relation="transactions", key="id", features=",".join(FEATURES))
        table.promote(make_detector(FEATURES, threshold=1e6))
        user.execute(
            "INSERT INTO transactions SELECT i, CASE WHEN i %% 100 = 0 THEN 1e6 + i ELSE i %% 900 END, 1, 1,"
            " repeat('x', 100) FROM generate_series(1, %s::int) i",
            (N_ROWS,),
        )
        table.drain()
        user.execute(
            "UPDATE outlier.scores_transactions SET scored_at = scored_at - interval '1 day'"
            " WHERE key % 2 = 0 AND key % 400 <> 0"
        )
        # Many of another source, so that the plans have to look for those of this one.
        user.execute("CREATE TABLE other (id bigint PRIMARY KEY, x float8)")
        attach_table(user, runtime, relation="other", key="id", features="x")
        user.execute(
            "INSERT INTO outlier.verdicts (source, key, verdict) SELECT 'other', i, 'normal'"
            " FROM generate_series(1, 20000) i UNION ALL SELECT 'transactions', i, 'fraud'"
            " FROM generate_series(100, 20000, 1000) i"
        )
        user.execute("VACUUM ANALYZE transactions, outlier.scores_transactions, outlier.verdicts")
        assert table.rows(
            "SELECT count(*), count(*) FILTER (WHERE flagged) FROM outlier.scores_{source}"
        ) == [(N_ROWS, N_ROWS // 100)]
        yield table
        runtime.engine.dispose()


def nodes(table: Table, query: str) -> list[dict[str, Any]]:
    """Every node of the query's plan that reads a relation."""
    [(plans,)] = table.rows(f"EXPLAIN (FORMAT JSON) {query}")
    found, open_nodes = [], [plans[0]["Plan"]]
    while open_nodes:
        node = open_nodes.pop()
        open_nodes += node.get("Plans", [])
        if "Scan" in node["Node Type"]:
            found.append(node)
    return found


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT * FROM outlier.flagged_transactions ORDER BY scored_at DESC LIMIT 100", FLAGGED),
        (
            "SELECT * FROM outlier.flagged_transactions WHERE scored_at >= current_date AND amount > 500",
            FLAGGED,
        ),
        (
            "SELECT * FROM outlier.flagged_transactions WHERE scored_at >= current_date AND reconstruction_error > 500",
            FLAGGED,
        ),
        (
            "SELECT * FROM outlier.flagged_transactions WHERE reconstruction_error > 1e9",
            FLAGGED,
        ),
        (
            "SELECT count(*) FROM outlier.flagged_transactions WHERE scored_at > now() - interval '1 hour'",
            FLAGGED,
        ),
        ("SELECT * FROM outlier.scored_transactions WHERE id = 4711", KEY),
        ("SELECT * FROM outlier.scored_transactions WHERE id IN (1, 2, 3)", KEY),
        ("SELECT * FROM outlier.flagged_transactions WHERE id = 4711", KEY),
        ("SELECT * FROM outlier.flagged_transactions ORDER BY scored_at DESC LIMIT 100", VERDICTS),
        (
            "SELECT * FROM outlier.flagged_transactions WHERE verdict IS NULL ORDER BY scored_at DESC LIMIT 100",
            FLAGGED,
        ),
        ("SELECT * FROM outlier.quality_transactions", KEY),
        ("SELECT * FROM outlier.current_verdicts WHERE source = 'transactions' AND key = '7'", VERDICTS),
    ],
)  # fmt: skip
def test_the_usual_questions_are_index_reads(scored: Table, query: str, index: str) -> None:
    read = nodes(scored, query)
    assert {node["Node Type"] for node in read} <= SCANS | {"Bitmap Heap Scan", "Subquery Scan"}
    assert index in {node.get("Index Name") for node in read}


def test_the_last_flagged_rows_are_read_in_the_order_of_the_index(scored: Table) -> None:
    plan = scored.keys("EXPLAIN SELECT * FROM outlier.flagged_transactions ORDER BY scored_at DESC LIMIT 100")
    assert not any("Sort" in line for line in plan)


def test_scores_of_a_time_are_found_by_an_index_that_the_same_attach_makes_again(scored: Table) -> None:
    index = "outlier.scores_transactions_time_idx"
    scored.user.execute(f"DROP INDEX {index}".encode())
    with scored.runtime.engine.begin() as connection:
        assert installation.lacks(connection, scored.source.definition) == ["scores_transactions_time_idx"]
    attach_table(scored.user, scored.runtime, relation="transactions", key="id", features=",".join(FEATURES))
    with scored.runtime.engine.begin() as connection:
        assert installation.lacks(connection, scored.source.definition) == []
    method = "SELECT amname FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE c.oid = %s::regclass"
    assert scored.keys(method, index) == ["brin"]
    scored.user.execute("SET enable_seqscan = off")
    read = nodes(
        scored,
        "SELECT * FROM outlier.scores_transactions WHERE scored_at >= now() ORDER BY scored_at DESC LIMIT 9",
    )
    scored.user.execute("RESET enable_seqscan")
    assert "scores_transactions_time_idx" in {node.get("Index Name") for node in read}


def test_a_claim_and_the_question_whether_there_is_work_read_the_queue_by_index(scored: Table) -> None:
    scored.user.execute(
        "INSERT INTO outlier.queue_transactions (keys, n_keys) SELECT ARRAY[i], 1 FROM generate_series(1, 20000) i"
    )
    scored.user.execute("ANALYZE outlier.queue_transactions")
    plans: list[str] = []
    with scored.runtime.engine.begin() as connection:
        connection.exec_driver_sql("LOAD 'auto_explain'")
        connection.exec_driver_sql("SET LOCAL auto_explain.log_min_duration = 0")
        connection.exec_driver_sql("SET LOCAL client_min_messages = log")
        driver_connection(connection).add_notice_handler(
            lambda note: plans.append(note.message_primary or "")
        )
        claim = queue.claim(connection, scored.source.definition, at_most=500, whole_batch_attempts=3)
        assert queue.has_due(connection, scored.source.definition)
    assert len(claim.queue_ids) == 500
    claiming, asking = [plan for plan in plans if "queue_transactions" in plan]
    for plan in (claiming, asking):
        assert "Seq Scan on queue_transactions" not in plan
        assert "queue_transactions_pkey on queue_transactions" in plan


def test_verdicts_are_not_looked_up_where_nobody_asks_for_them(scored: Table) -> None:
    read = nodes(scored, "SELECT count(*), avg(reconstruction_error) FROM outlier.scored_transactions")
    assert {node["Relation Name"] for node in read} == {"transactions", "scores_transactions"}
