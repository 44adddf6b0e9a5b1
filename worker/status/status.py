"""What is going on: sources, queues, champions, workers. Read from Postgres and by asking the workers."""

from __future__ import annotations

import time
from typing import Any

from kombu.exceptions import OperationalError as BrokerUnavailable

from pgoutlier.db.jobs import jobs
from pgoutlier.db.status import overview
from pgoutlier.worker.app import app
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.schedules import schedule_control

_PING_SECONDS = 1.0


def alive_workers() -> list[dict[str, Any]] | None:
    """Each worker that answers within a second and the queues it takes from; None if the broker is away."""
    try:
        queues = app.control.inspect(timeout=_PING_SECONDS).active_queues() or {}
    except (BrokerUnavailable, ConnectionError, TimeoutError, OSError):
        return None
    return [
        {"name": name, "queues": sorted(queue["name"] for queue in taken)}
        for name, taken in sorted(queues.items())
    ]


def status(runtime: Runtime, *, sample_seconds: float = 1.0) -> dict[str, Any]:
    """Everything `pgoutlier status` shows, as JSON-able data. Rates are measured over sample_seconds or more."""
    started = time.monotonic()
    with runtime.engine.begin() as connection:
        before = overview.scored_so_far(connection)
    workers = alive_workers()
    time.sleep(max(0.0, sample_seconds - (time.monotonic() - started)))
    with runtime.engine.begin() as connection:
        after = overview.scored_so_far(connection)
        rows = overview.sources(connection)
        listeners = overview.listeners(connection)
        beats = schedule_control.beats_alive(connection)
        coming = schedule_control.coming(connection)
        at_work = jobs.listed(connection, running=True, limit=20)
    elapsed = time.monotonic() - started
    for row in rows:
        scored = max(0, after.get(row["name"], 0) - before.get(row["name"], 0))
        row["rows_per_second"] = round(scored / elapsed, 1)
    return {
        "sources": rows,
        "workers": workers,
        "listeners": listeners,
        "beats": beats,
        "schedules": coming,
        "jobs": at_work,
    }
