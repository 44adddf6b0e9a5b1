"""The processes that make pgoutlier run, and a supervisor that keeps them in one terminal."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

# A worker finishes the batch at hand when it is asked to end; a training is given up.
STOP_SECONDS = 10.0
# linux/prctl.h
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ProcessPlan:
    """One process: a short name for its logs, and its command line."""

    name: str
    command: list[str]


def _celery(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", "pgoutlier.worker", *arguments]


def plans(*, score_threads: int, log_level: str = "INFO") -> list[ProcessPlan]:
    """The four kinds of processes with the same command lines that run them on several machines."""
    quiet = ["--without-gossip", "--without-mingle", "-l", log_level]
    return [
        ProcessPlan(
            "score",
            _celery(
                "worker",
                "-n",
                "score@%h",
                "-Q",
                "score,admin",
                "-P",
                "threads",
                "-c",
                str(score_threads),
                *quiet,
            ),
        ),
        ProcessPlan(
            "train",
            _celery(
                "worker",
                "-n",
                "train@%h",
                "-Q",
                "train",
                "-P",
                "prefork",
                "-c",
                "1",
                "--max-tasks-per-child",
                "1",
                *quiet,
            ),
        ),
        ProcessPlan("beat", _celery("beat", "-l", log_level)),
        ProcessPlan("listener", [sys.executable, "-m", "pgoutlier.worker.cli", "listener"]),
    ]


@dataclass
class Supervisor:
    """Starts processes, hands on their output line by line, and stops them all.

    on_line(process name, line) is called from a thread of each process.
    """

    plans: list[ProcessPlan]
    on_line: Callable[[str, str], None]
    environment: dict[str, str] = field(default_factory=dict)
    _children: dict[str, subprocess.Popen[str]] = field(default_factory=dict, init=False)

    def start(self) -> None:
        """Start every process in a session of its own, so that Ctrl-C reaches only the supervisor.

        Call it from the main thread: on Linux the kernel ends the processes when the thread that started them ends.
        """
        for plan in self.plans:
            child = subprocess.Popen(  # noqa: S603 - our own command lines
                plan.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, **self.environment},
                start_new_session=True,
                preexec_fn=ending_with(os.getpid()),
            )
            self._children[plan.name] = child
            threading.Thread(target=self._relay, args=(plan.name, child.stdout), daemon=True).start()

    def _relay(self, name: str, stream: IO[str]) -> None:
        """Reads on whatever becomes of the lines: a process whose output nobody takes would stand still."""
        for line in stream:
            with suppress(OSError):
                self.on_line(name, line.rstrip("\n"))

    def dead(self) -> dict[str, int]:
        """Exit codes of processes that have ended."""
        codes = {name: child.poll() for name, child in self._children.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self._children.items()}

    def stop(self) -> None:
        """Ask all to end, then end those (and their children) that have not after STOP_SECONDS."""
        for child in self._children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for child in self._children.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.1, deadline - time.monotonic()))
            _kill_group(child)


def ending_with(parent: int) -> Callable[[], None] | None:
    """What a child does to be killed when its parent ends, even by kill -9; None where the kernel cannot see to that.

    Killed, for nothing is lost by it. Of a parent with threads each hands the child on to the next as it ends, and the
    kernel signals every time: asked to end so often at once, Celery may wait for itself for ever.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # found here: a child of a process with threads may not load anything

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before it could be asked
            os._exit(1)

    return ask


def heeded_once(handler: Callable[..., object]) -> Callable[..., None]:
    """A handler of signals that lets all but the first go by.

    Handlers that take locks, as those of Celery and Event.set do, wait for themselves where the next one interrupts
    them.
    """
    heeded = False

    def handle(*arguments: object) -> None:
        nonlocal heeded
        if not heeded:
            heeded = True
            handler(*arguments)

    return handle


def _kill_group(child: subprocess.Popen[str]) -> None:
    """Kill what is left of the child's session: a pool process must not outlive its parent."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
