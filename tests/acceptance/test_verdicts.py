"""Verdicts by real processes: the command, and the task in a worker."""

from __future__ import annotations

import json

from tests.acceptance.stack import Stack, Table
from tests.support import until


def test_a_verdict_is_given_by_command_and_by_task_and_a_doubled_message_adds_nothing(
    stack: Stack, table: Table
) -> None:
    table.insert(2)
    given = f"SELECT count(*) FROM outlier.verdicts WHERE source = '{table.name}'"
    keys = stack.one(f"SELECT array_agg(id::text ORDER BY id) FROM {table.name}")
    assert isinstance(keys, list)
    refused = stack.command("label", table.name, keys[0], "no-such-key", "fraud")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert stack.one(given) == 0
    done = stack.command("label", table.name, keys[0], "fraud", "--note", "called", "--json")
    assert json.loads(done.stdout) == {"source": table.name, "n_given": 1, "n_unchanged": 0}
    worker = stack.score_worker()
    stack.until_ready()
    arguments = json.dumps([table.name, keys, "normal", "reviewed", "ana"])
    for n_messages in (1, 2):
        call = stack.module(
            "celery", "-A", "pgoutlier.worker", "call", "verdicts.label", f"--args={arguments}"
        )
        assert call.returncode == 0, call.stderr
        until(lambda n=n_messages: worker.output().count("verdicts_given") == n, "the worker has done it")
        assert stack.one(given) == 3
    by = "SELECT array_agg(DISTINCT created_by || ' ' || verdict) FROM outlier.current_verdicts WHERE source = "
    assert stack.one(f"{by}'{table.name}'") == ["ana normal"]
