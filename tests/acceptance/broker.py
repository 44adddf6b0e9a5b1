"""What tests do to the broker: messages as anybody may send them, and refusals of all that it is asked."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from tests.acceptance.stack import Stack

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


def ring(stack: Stack, task: str, queue: str, *arguments: object) -> None:
    """Send a task as anybody may."""
    with broker_of(stack) as broker:
        item = message([arguments, {}, {}], headers={"task": task, "id": "2", "root_id": "2"})
        item["properties"]["delivery_info"]["routing_key"] = queue
        broker.lpush(queue, json.dumps(item))


def waiting(stack: Stack, queue: str) -> int:
    with broker_of(stack) as broker:
        return int(str(broker.llen(queue)))


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
