"""Whatever ends `pgoutlier demo`: no server and no worker of its own is left, nor a file."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pgoutlier.db import embedded
from tests.acceptance.stack import Stack, Started
from tests.support import until

ROWS = ("--rows", "3000", "--seconds", "600")
# What it says when it gets there.
TRAINS, RUNS = "Attached", "live inserts"


def of_the_demo(folder: Path) -> list[str]:
    """Command lines of live processes that belong to the demo in this data folder, but for the demo itself."""
    found, tag = [], embedded.ServerKit.of(folder).folder.tag
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            own = process.environ().get("PGOUTLIER_DATA_DIR") == str(folder)
            if process.status() != psutil.STATUS_ZOMBIE and (own or tag in command):
                found.append(command)
    return found


@pytest.fixture
def home(scratch: Path) -> Iterator[Path]:
    """Where its data folder is made, which the servers' account can enter."""
    path = scratch / "demo"
    path.mkdir(mode=0o711)
    yield path / "d"
    embedded.purge(path / "d-demo")
    for left in path.iterdir():
        left.unlink()
    path.rmdir()


def started(stack: Stack, home: Path, *, until_said: str) -> Started:
    demo = stack.start("demo", "pgoutlier.worker.cli", "demo", *ROWS, data_dir=home)
    until(lambda: until_said in demo.output() or not demo.alive(), f"it says {until_said}")
    assert demo.alive(), demo.output()
    return demo


def nothing_is_left(home: Path) -> bool:
    folder = home.with_name("d-demo")
    return not folder.exists() and of_the_demo(folder) == []


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGKILL, RUNS), (signal.SIGKILL, TRAINS), (signal.SIGHUP, RUNS), (signal.SIGINT, TRAINS)],
    ids=["killed while it runs", "killed while it trains", "its terminal is closed", "Ctrl-C"],
)
def test_whatever_ends_the_demo_nothing_of_it_is_left(
    stack: Stack, home: Path, number: signal.Signals, moment: str
) -> None:
    demo = started(stack, home, until_said=moment)
    assert len(of_the_demo(home.with_name("d-demo"))) >= 2
    os.kill(demo.pid, number)
    until(lambda: not demo.alive(), "it ends")
    until(lambda: nothing_is_left(home), "no server, worker or folder is left")


def test_what_a_demo_has_left_is_ended_by_the_next(stack: Stack, home: Path) -> None:
    """Where neither the kernel nor the process that watches it could: both were killed, and a worker lives on."""
    folder = home.with_name("d-demo")
    embedded.ensure_running(folder)
    left = stack.listener()
    stack.until_ready(left)
    created = psutil.Process(left.pid).create_time()
    home.with_name("d-demo.lock").write_text(json.dumps({"started": {"listener": [left.pid, created]}}))
    assert len(of_the_demo(folder)) >= 2
    demo = started(stack, home, until_said=TRAINS)
    assert not left.alive()
    assert "Ended the listener process that an earlier demo had left" in " ".join(demo.output().split())
    os.kill(demo.pid, signal.SIGTERM)
    until(lambda: nothing_is_left(home), "no server, worker or folder is left")


def test_a_second_demo_says_that_one_runs(stack: Stack, home: Path) -> None:
    demo = started(stack, home, until_said=TRAINS)
    second = stack.command("demo", *ROWS, data_dir=home)
    assert second.returncode == 2
    assert "Another demo is running" in second.stderr
    assert demo.alive()
    os.kill(demo.pid, signal.SIGTERM)
    until(lambda: nothing_is_left(home), "no server, worker or folder is left")
