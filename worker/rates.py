"""How fast a process scores, of late: kept in memory, for `pgoutlier status` to ask for."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque

WINDOW_SECONDS = 5.0


class Rates:
    """Rows scored by this process in the last WINDOW_SECONDS, by source. Safe between threads."""

    def __init__(self) -> None:
        self._scored: deque[tuple[float, str, int]] = deque()
        self._lock = threading.Lock()

    def add(self, source: str, n_rows: int) -> None:
        """So many rows have just been scored."""
        with self._lock:
            self._scored.append((time.monotonic(), source, n_rows))
            self._forget()

    def per_second(self) -> dict[str, float]:
        """Rows a second of each source that had any."""
        sums: defaultdict[str, int] = defaultdict(int)
        with self._lock:
            self._forget()
            for _, source, n_rows in self._scored:
                sums[source] += n_rows
        return {source: n_rows / WINDOW_SECONDS for source, n_rows in sums.items()}

    def _forget(self) -> None:
        while self._scored and self._scored[0][0] < time.monotonic() - WINDOW_SECONDS:
            self._scored.popleft()
