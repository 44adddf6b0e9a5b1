"""A broker that holds what is no message of ours: it is dropped, and nothing that it holds is told."""

from __future__ import annotations

import json
from typing import Any

from tests.acceptance.broker import SECRET, broker_of, message, ring, waiting
from tests.acceptance.stack import Stack, Table
from tests.support import until


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in message([["nobody"], {}, {}]).items() if key != name}


NO_JSON = [
    b"garbage " + SECRET.encode(),
    b"",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"body":',
    b"x" * 30_000_000,
]
NO_MESSAGE: list[object] = [
    *(5, None, "garbage", [], [1, 2], {}, {"properties": 5}, {"properties": {}, "body": SECRET}),
    {"properties": {"delivery_tag": SECRET}},
    *(without(name) for name in ("body", "headers", "properties", "content-type", "content-encoding")),
    message(body=SECRET),
    message(body=5),
    message(body=[[SECRET], {}, {}], headers={"task": "no.such.task"}),
    message(body=[[SECRET], {}, {}], headers={"task": ["score.drain"]}),
    message(body=[[SECRET], {}, {}], headers={"eta": "when it suits"}),
    message(body=[[SECRET], {}, {}], headers={"expires": {"never": 1}}),
    message(body=[[SECRET], {}, {}], headers={"timelimit": 5}),
    message(headers={"id": None}),
    message(headers={"task": "score.drain", "lang": None, "retries": "many"}),
    {**message(), "headers": SECRET},
    {**message(), "body": "no base64 %"},
    {**message(), "body": 5},
    {**message(), "content-type": "application/x-python-serialize"},
    {**message(), "content-type": "application/x-yaml"},
    {**message(), "content-encoding": "no-such-encoding"},
    message([[], {}, {}]),
    message([["x" * 5_000_000], {}, {}]),
    message([["a", "b", "c", SECRET], {"nothing": SECRET}, {}]),
    message([[], {"source": "no such source"}, {}]),
    message([5, 6, 7]),
]
POISON = [*NO_JSON, *(json.dumps(item).encode() for item in NO_MESSAGE)]


def test_what_is_no_message_is_dropped_and_its_content_is_not_logged(stack: Stack, table: Table) -> None:
    """More of it than there are threads: no place may be lost to it."""
    worker = stack.score_worker(threads=1)
    stack.until_ready(worker)
    for item in POISON:
        with broker_of(stack) as broker:
            broker.lpush("score", item)
        until(lambda: waiting(stack, "score") == 0, "it is taken")
    table.insert(5)
    ring(stack, "score.drain", "score", table.name)
    until(table.drained, "rows are scored after it")
    assert worker.alive()
    assert "message_dropped" in worker.output()
    assert SECRET not in worker.output()
    assert max(map(len, worker.output().splitlines())) < 20_000
    table.assert_scored_once()


def test_a_train_worker_drops_it_as_well(stack: Stack) -> None:
    worker = stack.train_worker()
    stack.until_ready(worker)
    for item in POISON:
        with broker_of(stack) as broker:
            broker.lpush("train", item)
        until(lambda: waiting(stack, "train") == 0, "it is taken")
    before = worker.output().count("no.such.source")
    ring(stack, "models.train", "train", "no.such.source")
    until(lambda: worker.output().count("no.such.source") > before, "a task is worked on after it")
    assert worker.alive()
    assert SECRET not in worker.output()


def test_what_is_no_remote_command_is_dropped(stack: Stack, table: Table) -> None:
    worker = stack.score_worker(threads=1)
    stack.until_ready(worker)
    with broker_of(stack) as broker:
        for item in POISON:
            broker.publish("/0.celery.pidbox", item)
    table.insert(5)
    ring(stack, "score.drain", "score", table.name)
    until(table.drained, "rows are scored after it")
    done = stack.module("celery", "-A", "pgoutlier.worker", "inspect", "ping")
    assert "pong" in done.stdout
    assert worker.alive()
