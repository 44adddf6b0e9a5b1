"""Says whether the process of this container works: exit code 0 or 1. Docker runs it, see Dockerfile.

A Celery worker has to answer a ping that goes through the broker, beat must have looked at the schedules lately and
sent what was due, and the listener must hold its connection to PostgreSQL.

Usage: python health.py [process id, by default 1]
"""

from __future__ import annotations

import socket
import sys

import psutil

from pgoutlier.db.settings import Settings, load_settings

# It runs every half minute beside the process itself, so each check imports only what it needs.

_ANSWER_SECONDS = 5
# Beat notes every five seconds that it ticks; a busy machine, or a broker that comes back, may make it late.
_LATE_SECONDS = 40


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
    asking = Celery(broker=_broker_url(settings))
    asking.conf.broker_transport_options = {"global_keyprefix": settings.broker_key_prefix}
    answers = asking.control.ping(destination=[name], timeout=_ANSWER_SECONDS)
    return None if answers else f"{name} did not answer within {_ANSWER_SECONDS} s"


def _beat(process: psutil.Process, settings: Settings) -> str | None:
    from pgoutlier.db.engine import make_engine
    from pgoutlier.db.schedules import schedules

    if settings.database_url is None:
        return "PGOUTLIER_DATABASE_URL is not set"
    name = f"{socket.gethostname()}:{process.pid}"
    with make_engine(settings.database_url.get_secret_value(), pool_size=1).begin() as connection:
        ago = next((b.seconds_ago for b in schedules.beats(connection) if b.name == name), None)
    if ago is None:
        return "it has not ticked yet"
    return f"it has not ticked for {ago:.0f} s" if ago > _LATE_SECONDS else None


def _listener(process: psutil.Process, settings: Settings) -> str | None:
    from pgoutlier.db.engine import make_engine
    from pgoutlier.db.status import overview

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
