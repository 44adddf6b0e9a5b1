"""Says whether the process of this container works: exit code 0 or 1. Docker runs it, see Dockerfile.

A Celery worker has to answer a ping that goes through the broker, beat must have sent the broker something lately,
and the listener must hold its connection to PostgreSQL.

Usage: python health.py [process id, by default 1]
"""

from __future__ import annotations

import socket
import sys

import psutil

from db.settings import Settings, load_settings

# It runs every half minute beside the process itself, so each check imports only what it needs.

_ANSWER_SECONDS = 5
# Beat sends something every drain_every_seconds; a busy machine may make it late.
_LATE_SECONDS = 30


def main() -> int:
    process = psutil.Process(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    words = process.cmdline()
    kind = next((word for word in ("beat", "listener") if word in words), "worker")
    problem = {"worker": _worker, "beat": _beat, "listener": _listener}[kind](process, load_settings())
    sys.stdout.write(f"{kind}: {problem or 'works'}\n")
    return 1 if problem else 0


def _worker(process: psutil.Process, settings: Settings) -> str | None:
    from celery import Celery

    words = process.cmdline()
    name = words[words.index("-n") + 1].replace("%h", socket.gethostname())
    answers = Celery(broker=_broker_url(settings)).control.ping(destination=[name], timeout=_ANSWER_SECONDS)
    return None if answers else f"{name} did not answer within {_ANSWER_SECONDS} s"


def _beat(process: psutil.Process, settings: Settings) -> str | None:
    import redis

    client = redis.Redis.from_url(_broker_url(settings), socket_timeout=_ANSWER_SECONDS)
    own = {f"{c.laddr.ip}:{c.laddr.port}" for c in process.net_connections("tcp4")}
    silent_seconds = [int(entry["idle"]) for entry in client.client_list() if entry["addr"] in own]
    if not silent_seconds:
        return "it has no connection to the broker"
    if min(silent_seconds) > settings.drain_every_seconds + _LATE_SECONDS:
        return f"it has sent nothing for {min(silent_seconds)} s"
    return None


def _listener(process: psutil.Process, settings: Settings) -> str | None:
    from db import overview
    from db.engine import make_engine

    if not any(c.status == psutil.CONN_ESTABLISHED for c in process.net_connections("tcp")):
        return "it has no connection to PostgreSQL"
    if settings.database_url is None:
        return "PGOUTLIER_DATABASE_URL is not set"
    with make_engine(settings.database_url.get_secret_value(), pool_size=1).begin() as connection:
        return None if overview.listeners(connection) else "PostgreSQL has no listener connected"


def _broker_url(settings: Settings) -> str:
    if settings.broker_url is None:
        raise SystemExit("PGOUTLIER_BROKER_URL is not set")
    return settings.broker_url.get_secret_value()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}".splitlines()[0])
