"""Says whether the process of this container works: exit code 0 or 1. Docker runs it, see Dockerfile.

A Celery worker has to answer a ping that goes through the broker, beat must have sent the broker something lately,
and the listener must hold its connection to PostgreSQL.
"""

from __future__ import annotations

import socket
import sys

import psutil
import redis
from celery import Celery

from db import overview
from db.engine import make_engine
from db.settings import load_settings
from worker.runtime import server_urls

_ANSWER_SECONDS = 5
# Beat sends something every drain_every_seconds; a busy machine may make it late.
_LATE_SECONDS = 30


def main() -> int:
    process = psutil.Process(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    command = process.cmdline()
    kind = next((word for word in ("beat", "listener") if word in command), "worker")
    check = {"worker": _worker, "beat": _beat, "listener": _listener}[kind]
    problem = check(process, command)
    sys.stdout.write(f"{kind}: {problem or 'works'}\n")
    return 1 if problem else 0


def _worker(_: psutil.Process, command: list[str]) -> str | None:
    name = command[command.index("-n") + 1].replace("%h", socket.gethostname())
    app = Celery(broker=server_urls(load_settings())[1])
    answers = app.control.ping(destination=[name], timeout=_ANSWER_SECONDS)
    return None if answers else f"{name} did not answer within {_ANSWER_SECONDS} s"


def _beat(process: psutil.Process, _: list[str]) -> str | None:
    settings = load_settings()
    limit = settings.drain_every_seconds + _LATE_SECONDS
    client = redis.Redis.from_url(server_urls(settings)[1], socket_timeout=_ANSWER_SECONDS)
    own = {f"{c.laddr.ip}:{c.laddr.port}" for c in process.net_connections("tcp4")}
    silent = [int(entry["idle"]) for entry in client.client_list() if entry["addr"] in own]
    if not silent:
        return "it has no connection to the broker"
    return None if min(silent) <= limit else f"it has sent nothing for {min(silent)} s"


def _listener(process: psutil.Process, _: list[str]) -> str | None:
    if not any(c.status == psutil.CONN_ESTABLISHED for c in process.net_connections("tcp")):
        return "it has no connection to PostgreSQL"
    with make_engine(server_urls(load_settings())[0], pool_size=1).begin() as connection:
        return None if overview.listeners(connection) else "PostgreSQL has no listener connected"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
