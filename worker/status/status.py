"""What is going on: sources, queues, champions, workers. Read from Postgres and by asking the workers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kombu.exceptions import OperationalError as BrokerUnavailable

from pgoutlier.db.jobs import jobs
from pgoutlier.db.status import overview
from pgoutlier.worker.app import app
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.schedules import schedule_control

# How long to wait for one more answer. A worker answers within milliseconds, unless the machine is very busy.
_QUIET_SECONDS = 0.25
_PATIENT_SECONDS = 1.0


def alive_workers(*, quiet_seconds: float = _PATIENT_SECONDS) -> list[dict[str, Any]] | None:
    """Each worker that answers, the queues it takes from and the rows a second it has scored of each source of late
    (None where it cannot tell); None if the broker is away.

    quiet_seconds: to wait for one more answer.
    """
    try:
        answers = app.control.broadcast("at_work", reply=True, timeout=quiet_seconds) or []
    except (BrokerUnavailable, ConnectionError, TimeoutError, OSError):
        return None
    # A worker of another version may not know the question; it is alive all the same.
    found = {name: answer for given in answers for name, answer in given.items()}
    return [
        {
            "name": name,
            "queues": answer.get("queues", []),
            "rows_per_second": answer.get("rows_per_second"),
        }
        for name, answer in sorted(found.items())
    ]


def status(open_runtime: Callable[[], Runtime]) -> dict[str, Any]:
    """Everything `pgoutlier status` shows, as JSON-able data. Rates are those of the last seconds.

    open_runtime is called while the workers are being asked.
    """
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(_ask)
        with open_runtime().engine.begin() as connection:
            rows = overview.sources(connection)
            listeners = overview.listeners(connection)
            beats = schedule_control.beats_alive(connection)
            coming = schedule_control.coming(connection)
            at_work = jobs.listed(connection, running=True, limit=20)
        workers = asked.result()
    for row in rows:
        rates = [w["rows_per_second"].get(row["name"], 0.0) for w in workers or () if w["rows_per_second"]]
        row["rows_per_second"] = round(sum(rates), 1)
    return {
        "sources": rows,
        "workers": workers,
        "listeners": listeners,
        "beats": beats,
        "schedules": coming,
        "jobs": at_work,
    }


def _ask() -> list[dict[str, Any]] | None:
    """The workers that answer soon, or if none does, those that answer at all."""
    found = alive_workers(quiet_seconds=_QUIET_SECONDS)
    return alive_workers() if found == [] else found
