"""Any role may notify: what is no known source is dropped at once, delays no row, and fills no memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psutil
import psycopg

from tests.acceptance.stack import Stack, Table
from tests.support import until

N_NOTICES, N_FLOODS = 20_000, 3
# What the allocator may keep; the notices of one flood are 160 MB.
MOST_MORE_BYTES = 32 * 2**20


def flood(stack: Stack, role: str, channel: str) -> None:
    """Notices of 7.9 kB each, which no queue has asked for, in one transaction."""
    with psycopg.connect(stack.kit.postgres.url.replace("postgres@", f"{role}@"), autocommit=True) as session:
        session.execute(
            "SELECT count(pg_notify(%s, i || repeat('x', 7900))) FROM generate_series(1, %s) i",
            (channel, N_NOTICES),
        )


def heard_all(stack: Stack) -> bool:
    return stack.one("SELECT pg_notification_queue_usage()") == 0


def test_a_flood_of_notices_delays_no_row_and_stays_in_no_memory(stack: Stack, table: Table) -> None:
    listener = stack.listener()
    stack.score_worker()
    stack.until_ready()
    table.insert(1)
    until(table.drained, "a row is scored before")
    with stack.connect() as admin:
        admin.execute("CREATE ROLE nobody LOGIN")
    try:
        flood(stack, "nobody", "outlier_queue")
        until(lambda: heard_all(stack), "the first flood is over")
        process = psutil.Process(listener.pid)
        before = process.memory_info().rss
        with ThreadPoolExecutor(2) as pool:
            floods = [
                pool.submit(flood, stack, "nobody", channel)
                for _ in range(N_FLOODS)
                for channel in ("outlier_queue", "outlier_flagged")
            ]
            table.insert(1)
            until(table.drained, "a row is scored meanwhile")
            for each in floods:
                each.result()
        until(lambda: heard_all(stack), "all is heard")
        table.insert(1)
        until(table.drained, "a row is scored after")
        assert process.memory_info().rss - before < MOST_MORE_BYTES
    finally:
        with stack.connect() as admin:
            admin.execute("DROP ROLE nobody")
    assert listener.alive()
    table.assert_scored_once()
