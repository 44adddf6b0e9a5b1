"""How soon a drain looks for more while many writers write few rows each.

Scoring what came within some milliseconds costs little more than scoring one row of it, and the writers may need the
processors. So a drain that finds rows of several statements rests between two batches, and says so by a lock: who
rings the bell for these rows may save that, see db.scoring.bell.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import TracebackType

from pgoutlier.db.scoring.queue import Claim
from pgoutlier.db.sql import locks, long_locks
from pgoutlier.worker.runtime import Runtime

# As many queue rows in a claim say that writers are at it.
_SEVERAL = 8
# From the start of one batch to that of the next: so many times what the batch took, at most so long.
_TIMES_THE_BATCH = 3
_LONGEST_SECONDS = 0.015


class Pace:
    """The pace of one drain. Entered and left around it."""

    def __init__(self, runtime: Runtime, source_id: int) -> None:
        self._runtime = runtime
        self._source_id = source_id
        self._held = ExitStack()
        self._rests = False

    def rest(self, claim: Claim, started: float) -> None:
        """Wait, if it is worth it, after a batch of these queue rows that was begun then (time.perf_counter)."""
        if len(claim.queue_ids) < _SEVERAL:
            return
        if not self._rests:
            self._rests = True
            # Of a process one at a time has a session for that. Of others a bell more is rung, and heard for nothing.
            if self._runtime.pacing.acquire(blocking=False):
                self._held.callback(self._runtime.pacing.release)
                self._held.enter_context(
                    long_locks.shared(self._runtime.sessions, locks.PACED, self._source_id)
                )
        took = time.perf_counter() - started
        seconds = min(_LONGEST_SECONDS - took, (_TIMES_THE_BATCH - 1) * took)
        if seconds > 0:
            self._runtime.stopping.wait(seconds)

    def __enter__(self) -> Pace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.__exit__(kind, error, trace)
