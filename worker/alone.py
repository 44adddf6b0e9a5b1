"""One `pgoutlier up` on a machine, one demo in a folder, and nothing left of one that was killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil

from pgoutlier.db.embedded import lock_file
from pgoutlier.db.errors import PgoutlierError
from pgoutlier.db.settings import Settings

_LEFT_SECONDS = 10.0


class RunsAlready(PgoutlierError):
    """Another `pgoutlier up` runs on this machine, on the same servers."""


@dataclass(frozen=True)
class Place:
    """Held while `up` or `demo` runs. left: names of processes of an earlier one that were still there, and are ended.

    file: where it is written down what was started; None where that cannot be.
    """

    file: TextIO | None
    left: tuple[str, ...]

    def note(self, pids: dict[str, int]) -> None:
        """Write down what was started, for the next one to find."""
        if self.file is None:
            return
        started = {
            name: (pid, psutil.Process(pid).create_time())
            for name, pid in pids.items()
            if psutil.pid_exists(pid)
        }
        self.file.seek(0)
        self.file.truncate()
        json.dump({"up": os.getpid(), "started": started}, self.file)
        self.file.flush()


@contextmanager
def place(path: Path) -> Iterator[Place]:
    """Hold the place that this file stands for; what an earlier holder that was killed has left is ended first.

    Raises lock_file.HeldByAnother if somebody holds it.
    """
    with lock_file.held(path, wait=False) as file:
        left = _end_what_is_left(_json(file.read()).get("started", {}))
        try:
            yield Place(file, tuple(left))
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def only_up(settings: Settings, servers: tuple[str, str]) -> Iterator[Place]:
    """Hold the place of the one `up` on these servers (database URL, broker URL).

    What an earlier one that was killed left is ended first. Raises RunsAlready, naming its process.
    """
    mark = hashlib.sha256("\n".join(servers).encode()).hexdigest()[:12]
    path = settings.data_dir / f"up-{mark}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError:  # a folder that cannot be written holds no servers, and is no reason not to run
        yield Place(None, ())
        return
    try:
        with place(path) as held:
            yield held
    except lock_file.HeldByAnother:
        who = _json(path.read_text()).get("up", "unknown") if path.exists() else "unknown"
        raise RunsAlready(
            f"pgoutlier up runs on this machine already, on the same servers (process {who}); stop that first,"
            " or start more workers beside it with celery -A pgoutlier.worker worker, see docs/operations.md."
        ) from None


def _json(text: str) -> dict[str, object]:
    with suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    return {}


def _end_what_is_left(started: object) -> list[str]:
    """End the processes that were written down and are still the same ones. Returns their names."""
    found = {}
    for name, (pid, created) in dict(started).items():  # type: ignore[call-overload]
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == created:
                found[str(name)] = process
    for process in found.values():
        with suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _LEFT_SECONDS
    for process in found.values():
        with suppress(psutil.Error):
            process.wait(max(0.1, deadline - time.monotonic()))
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    return list(found)
