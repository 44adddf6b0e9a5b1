"""A broker that others use too: an account that reaches only what begins with our prefix is enough."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.acceptance.stack import Servers, Stack, Table
from tests.support import until

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


@pytest.fixture
def account(shared_servers: Servers) -> Iterator[dict[str, str]]:
    """The settings of an account made by the line of the docs, with the Valkey on a port of its own meanwhile."""
    [line] = re.findall(r"^ACL SETUSER pgoutlier (.*)$", OPERATIONS, re.MULTILINE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with redis.Redis(unix_socket_path=str(shared_servers.kit.valkey.socket)) as admin:
        admin.config_set("port", port)
        admin.execute_command("ACL", "SETUSER", "pgoutlier", *line.replace("PASSWORD", "secret").split())
        admin.execute_command("ACL", "LOG", "RESET")
        try:
            yield {
                "broker_url": f"redis://pgoutlier:secret@127.0.0.1:{port}/0",
                "broker_key_prefix": "pgoutlier:",
            }
            assert admin.execute_command("ACL", "LOG") == []
            assert {key for key in admin.keys("*") if not key.startswith(b"pgoutlier:")} == set()
        finally:
            admin.execute_command("ACL", "DELUSER", "pgoutlier")
            admin.config_set("port", 0)


def test_everything_works_with_the_rights_that_the_docs_name(
    account: dict[str, str], stack: Stack, table: Table
) -> None:
    stack.score_worker(**account)
    stack.listener(**account)
    stack.beat(**account)
    stack.until_ready()
    table.insert(50)
    until(table.drained, "all rows are scored")
    done = stack.command("status", "--json", **account)
    assert done.returncode == 0, done.stderr
    assert '"score@' in done.stdout
    doctor = stack.command("doctor", "--json", **account)
    assert '"Valkey ' in doctor.stdout
