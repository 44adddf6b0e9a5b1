"""A broker that holds what is no message of ours, or refuses for a while what it is asked: the processes go on."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from tests.acceptance.stack import Stack, Started, Table
from tests.support import until

SECRET = "a-secret-in-a-message"


@contextmanager
def broker_of(stack: Stack) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(stack.kit.valkey.socket)) as client:
        yield client


def message(body: object = ((), {}, {}), **changes: Any) -> dict[str, Any]:
    """A message as Celery sends it, but for the changes; headers are changed one by one."""
    headers = {
        "lang": "py",
        "task": "score.drain",
        "id": "1",
        "root_id": "1",
        "parent_id": None,
        "group": None,
        "argsrepr": "()",
        "kwargsrepr": "{}",
    }
    return {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {**headers, **changes.pop("headers", {})},
        "properties": {
            "correlation_id": "1",
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "score"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": SECRET,
        },
        **changes,
    }


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


def ring(stack: Stack, task: str, queue: str, *arguments: object) -> None:
    """Send a task as anybody may."""
    with broker_of(stack) as broker:
        item = message([arguments, {}, {}], headers={"task": task, "id": "2", "root_id": "2"})
        item["properties"]["delivery_info"]["routing_key"] = queue
        broker.lpush(queue, json.dumps(item))


def waiting(stack: Stack, queue: str) -> int:
    with broker_of(stack) as broker:
        return int(str(broker.llen(queue)))


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


# -- a broker that refuses


def replica(broker: redis.Redis) -> None:
    broker.execute_command("REPLICAOF", "127.0.0.1", "1")


def no_replica(broker: redis.Redis) -> None:
    broker.execute_command("REPLICAOF", "NO", "ONE")


def no_memory(broker: redis.Redis) -> None:
    broker.config_set("maxmemory", "1")


def memory(broker: redis.Redis) -> None:
    broker.config_set("maxmemory", "0")


def no_rights(broker: redis.Redis) -> None:
    broker.execute_command("ACL", "SETUSER", "default", "-brpop", "-lpush")


def rights(broker: redis.Redis) -> None:
    broker.execute_command("ACL", "SETUSER", "default", "+@all")


def kill(broker: redis.Redis) -> None:
    broker.execute_command("CLIENT", "KILL", "SKIPME", "yes")


def nothing(broker: redis.Redis) -> None:
    pass


Change = Callable[[redis.Redis], None]
REFUSALS = {
    "replica": (replica, no_replica),
    "no memory": (no_memory, memory),
    "no right": (no_rights, rights),
    "connections killed": (kill, nothing),
}


@pytest.fixture
def up(stack: Stack, table: Table) -> Started:
    """All processes, which have scored a row."""
    started = stack.start("up", "pgoutlier.worker.cli", "up", drain_every_seconds=1)
    table.insert(1)
    until(table.drained, "a row is scored")
    until(lambda: all(f"{name} | " in started.output() for name in ("score", "train")), "each has started")
    return started


@pytest.mark.parametrize("what", REFUSALS)
def test_a_broker_that_refuses_for_a_while_ends_nobody(
    stack: Stack, table: Table, up: Started, what: str
) -> None:
    refuse, serve = REFUSALS[what]
    with broker_of(stack) as broker:
        for _ in range(2):
            before, n_missed = _n_ticks(stack), up.output().count("broker_unavailable")
            refuse(broker)
            table.insert(50)
            if refuse is not kill:
                until(lambda n=n_missed: up.output().count("broker_unavailable") > n, "somebody is refused")
            serve(broker)
            until(table.drained, "rows are scored again")
            until(lambda n=before: _n_ticks(stack) > n, "beat sends")
    seen = up.output().count("no.such.source")
    ring(stack, "models.train", "train", "no.such.source")
    until(lambda: up.output().count("no.such.source") > seen, "the train worker takes tasks")
    assert up.alive()
    assert "Ended by itself" not in up.output()
    assert "Traceback" not in up.output()
    table.assert_scored_once()


def _n_ticks(stack: Stack) -> int:
    return int(str(stack.one("SELECT n_runs FROM outlier.schedules WHERE name = 'drain'")))
