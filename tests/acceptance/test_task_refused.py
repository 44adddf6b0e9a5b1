"""A task that a worker's role has no right to is logged in a sentence, and without its arguments."""

from __future__ import annotations

import json

from tests.acceptance.stack import Stack, Table
from tests.support import until

SECRET = "https://alerts.example.com/hush-hush"


def test_a_task_without_a_right_tells_no_argument(stack: Stack, table: Table) -> None:
    with stack.connect() as admin:
        admin.execute("CREATE ROLE lame LOGIN; GRANT USAGE ON SCHEMA outlier TO lame")
        admin.execute("GRANT SELECT ON outlier.sources, outlier.alembic_version TO lame")
    try:
        url = stack.environment["PGOUTLIER_DATABASE_URL"].replace("postgres@", "lame@")
        worker = stack.score_worker(database_url=url)
        stack.until_ready()
        arguments = json.dumps([table.name, SECRET])
        call = stack.module("celery", "-A", "pgoutlier.worker", "call", "webhook.set", f"--args={arguments}")
        assert call.returncode == 0, call.stderr
        until(lambda: "webhook.set" in worker.output() and "denied" in worker.output(), "the task is refused")
        assert "hush" not in worker.output()
        assert worker.alive()
    finally:
        stack.stop()
        with stack.connect() as admin:
            admin.execute("DROP OWNED BY lame; DROP ROLE lame")
