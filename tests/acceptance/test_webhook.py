"""A flagged row reaches a receiver by the real processes, and a webhook that hangs keeps none of them from scoring."""

from __future__ import annotations

from pgoutlier.worker.notices import webhook_control
from tests.acceptance.stack import Stack, Table
from tests.receiver import KEY, SECRET, receiving
from tests.support import until


def test_flagged_rows_are_sent_while_other_webhooks_hang(stack: Stack, table: Table) -> None:
    stack.score_worker(threads=1, webhook_secret=SECRET, webhook_timeout_seconds=60)
    stack.listener()
    stack.until_ready()
    with receiving() as receiver:
        receiver.answers += [receiver.hold]
        webhook_control.set_webhook(stack.runtime, table.name, receiver.url, per_minute=6_000)
        outliers = (
            f"INSERT INTO {table.name} (f0, f1, f2, f3, f4, f5) VALUES (1e4, -1e4, 1e4, 1e4, -1e4, 1e4)"
        )
        with stack.connect() as connection:
            connection.execute(outliers.encode())
            until(lambda: receiver.received, "the first notice is sent")
            connection.execute(outliers.encode())
            table.insert(100)
        until(lambda: table.n_scored == 102, "the only thread goes on scoring")
        assert len(receiver.received) == 1, "one request at a time"
        receiver.released.set()
        until(lambda: {"1", "2"} <= set(receiver.keys), "the second notice is sent")
        assert all(request.is_signed_by(KEY) for request in receiver.received)
        assert len({request.id for request in receiver.received}) == len(receiver.received)
        until(
            lambda: stack.one("SELECT count(*) FROM outlier.notices WHERE delivered_at IS NULL") == 0,
            "all are noted",
        )
    assert SECRET not in stack.tails()
    assert "hush" not in stack.tails()
