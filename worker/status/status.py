"""What is going on: sources, queues, champions, workers. Read from Postgres and by asking the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kombu.exceptions import OperationalError as BrokerUnavailable

from pgoutlier.db.jobs import jobs
from pgoutlier.db.jobs.jobs import JobFigures
from pgoutlier.db.scoring import queue
from pgoutlier.db.sources import sources
from pgoutlier.db.status import overview
from pgoutlier.db.status.overview import SourceFigures
from pgoutlier.worker.app import app
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.schedules import schedule_control
from pgoutlier.worker.schedules.schedule_control import Coming

# How long to wait for one more answer. A worker answers within milliseconds, unless the machine is very busy.
_QUIET_SECONDS = 0.25
_PATIENT_SECONDS = 1.0


@dataclass(frozen=True)
class Worker:
    """A worker that answers. rows_per_second: scored of each source of late; None where it cannot tell."""

    name: str
    queues: list[str]
    rows_per_second: dict[str, float] | None


@dataclass(frozen=True)
class SourceAtWork(SourceFigures):
    """A source and how many of its rows all workers together scored in the last seconds."""

    rows_per_second: float


@dataclass(frozen=True)
class Status:
    """Everything `pgoutlier status` shows. workers: None if the broker is away; listeners: how many there are;
    beats: the names of those that tick."""

    sources: list[SourceAtWork]
    workers: list[Worker] | None
    listeners: int
    beats: list[str]
    schedules: list[Coming]
    jobs: list[JobFigures]


def alive_workers(*, quiet_seconds: float = _PATIENT_SECONDS) -> list[Worker] | None:
    """The workers that answer; None if the broker is away.

    quiet_seconds: to wait for one more answer.
    """
    try:
        answers = app.control.broadcast("at_work", reply=True, timeout=quiet_seconds) or []
    except (BrokerUnavailable, ConnectionError, TimeoutError, OSError):
        return None
    # A worker of another version may not know the question; it is alive all the same.
    found = {name: answer for given in answers for name, answer in given.items()}
    return [
        Worker(name, answer.get("queues", []), answer.get("rows_per_second"))
        for name, answer in sorted(found.items())
    ]


def status(open_runtime: Callable[[], Runtime]) -> Status:
    """What is going on. open_runtime is called while the workers are being asked."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(_ask)
        runtime = open_runtime()
        figures = _sources(runtime)
        with runtime.engine.begin() as connection:
            listeners = overview.listeners(connection)
            beats = schedule_control.beats_alive(connection)
            coming = schedule_control.coming(connection)
            at_work = jobs.listed(connection, running=True, limit=20)
        workers = asked.result()
    return Status(
        sources=[
            SourceAtWork(**vars(source), rows_per_second=_rate(workers or (), source.name))
            for source in figures
        ],
        workers=workers,
        listeners=listeners,
        beats=beats,
        schedules=coming,
        jobs=at_work,
    )


def _sources(runtime: Runtime) -> list[SourceFigures]:
    with runtime.engine.begin() as connection:
        every = sources.every(connection)
    found = []
    for first in range(0, len(every), queue.AT_ONCE):
        with runtime.engine.begin() as connection:
            found += overview.describe(connection, every[first : first + queue.AT_ONCE])
    return found


def _rate(workers: Sequence[Worker], source_name: str) -> float:
    rates = [w.rows_per_second.get(source_name, 0.0) for w in workers if w.rows_per_second]
    return round(sum(rates), 1)


def _ask() -> list[Worker] | None:
    """The workers that answer soon, or if none does, those that answer at all."""
    found = alive_workers(quiet_seconds=_QUIET_SECONDS)
    return alive_workers() if found == [] else found
