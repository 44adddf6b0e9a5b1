"""Live inserts as a user's application would make them, and a stopwatch from commit to visible score."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from sqlalchemy import Engine

from pgoutlier.db.demo import demo_tables
from pgoutlier.db.source.definition import Source
from pgoutlier.worker.demo.dataset import Dataset

_STATEMENTS_PER_SECOND = 50
_POLL_SECONDS = 0.002
# A score that takes longer than this is waited for, but no longer timed.
_LOST_SECONDS = 60.0


@dataclass
class Stopwatch:
    """Times the last row of every statement. Accurate to about the polling interval of 2 ms."""

    engine: Engine
    source: Source
    latencies_ms: list[float] = field(default_factory=list)
    _waiting: dict[int, float] = field(default_factory=dict)
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def committed(self, key: int) -> None:
        self._waiting[key] = time.perf_counter()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for the scores still on their way, then end."""
        self._done.set()
        if self._thread is not None:
            self._thread.join(_LOST_SECONDS)

    def _watch(self) -> None:
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            last_seen = time.perf_counter()
            while not (
                self._done.is_set() and (not self._waiting or time.perf_counter() - last_seen > _LOST_SECONDS)
            ):
                keys = list(self._waiting)
                seen = demo_tables.visible(connection, self.source.definition, keys) if keys else []
                now = time.perf_counter()
                for key in seen:
                    self.latencies_ms.append(1_000 * (now - self._waiting.pop(key)))
                    last_seen = now
                time.sleep(_POLL_SECONDS)

    def percentiles(self) -> dict[str, float | None]:
        """p50, p95 and p99 in milliseconds."""
        if not self.latencies_ms:
            return {"p50": None, "p95": None, "p99": None}
        values = np.percentile(self.latencies_ms, [50, 95, 99])
        return {name: round(float(v), 1) for name, v in zip(("p50", "p95", "p99"), values, strict=True)}


def insert_live(
    engine: Engine,
    dataset: Dataset,
    lines: list[bytes],
    stopwatch: Stopwatch,
    *,
    seconds: float,
    first_key: int,
    on_inserted: Callable[[int], None],
) -> None:
    """Insert all lines over about this many seconds, a few rows a transaction at a steady pace."""
    columns = [str(name) for name in dataset.rows.columns]
    n_statements = max(1, min(len(lines), round(seconds * _STATEMENTS_PER_SECOND)))
    bounds = np.linspace(0, len(lines), n_statements + 1).round().astype(int).tolist()
    started = time.perf_counter()
    for number, (begin, end) in enumerate(pairwise(bounds)):
        with engine.begin() as connection:
            demo_tables.insert_csv(connection, columns, lines[begin:end])
        stopwatch.committed(first_key + end - 1)
        on_inserted(end)
        ahead = started + (number + 1) * seconds / n_statements - time.perf_counter()
        if ahead > 0:
            time.sleep(ahead)
