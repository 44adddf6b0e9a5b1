"""Fixtures of the acceptance tests: servers, stacks of processes on them, and attached tables."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import redis

from pgoutlier.db import embedded
from pgoutlier.detector import Detector, fit
from tests.acceptance.stack import (
    COLUMNS,
    KEYS,
    N_FEATURES,
    Servers,
    Stack,
    Table,
    assert_no_process_of,
    errors_of,
    quick_recipe,
)
from tests.support import until

# Where a shell runs the tests in the background they ignore Ctrl-C, and so would what they start and mean to end by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def detectors() -> tuple[Detector, Detector]:
    """Two small detectors that score differently."""
    rows = np.random.default_rng(7).normal(size=(500, N_FEATURES))
    first, second = (fit(quick_recipe(), rows, COLUMNS, seed=seed).detector for seed in (1, 2))
    return first, second


@pytest.fixture(scope="session")
def shared_servers(scratch: Path) -> Iterator[Servers]:
    """For tests that leave the servers up."""
    (scratch / "shared").mkdir(mode=0o711)
    servers = Servers.make(scratch / "shared")
    try:
        yield servers
    finally:
        servers.remove()


@pytest.fixture(scope="module")
def mortal_servers(scratch: Path) -> Iterator[Servers]:
    """For tests that restart the servers; started again for each of them."""
    with tempfile.TemporaryDirectory(prefix="m", dir=scratch, ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o711)
        servers = Servers.make(Path(path))
        try:
            yield servers
        finally:
            servers.remove()


def on_servers(servers: Servers) -> Iterator[Stack]:
    embedded.ensure_running(servers.kit.folder.path)
    stack = servers.stack()
    try:
        yield stack
    finally:
        stack.stop()
        embedded.ensure_running(servers.kit.folder.path)
        servers.detach_all()
        _flush(servers)
        assert_no_process_of(servers)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure, show the ends of the processes' logs."""
    report = yield
    if report.failed and report.when != "teardown":
        stacks = {id(v): v for v in getattr(item, "funcargs", {}).values() if isinstance(v, Stack)}
        report.sections += [("logs of the processes", stack.tails()) for stack in stacks.values()]
    return report


def _flush(servers: Servers) -> None:
    with redis.Redis(unix_socket_path=str(servers.kit.valkey.socket)) as client:
        client.flushall()


@pytest.fixture
def stack(shared_servers: Servers) -> Iterator[Stack]:
    """Processes of one test, on servers that stay up."""
    yield from on_servers(shared_servers)


@pytest.fixture
def table(shared_servers: Servers, stack: Stack, detectors: Sequence[Detector]) -> Table:
    """A table whose scores are audited, with a champion."""
    return scored_table(shared_servers, stack, detectors[0])


@pytest.fixture(scope="module")
def live(shared_servers: Servers) -> Iterator[Stack]:
    """Two score workers, two listeners and beat, which run through the tests of a module."""
    for stack in on_servers(shared_servers):
        for number in range(2):
            stack.score_worker(f"score{number}", batch_rows=1_000)
            stack.listener()
        stack.beat()
        stack.until_ready()
        yield stack


@pytest.fixture
def live_table(shared_servers: Servers, live: Stack, detectors: Sequence[Detector]) -> Iterator[Table]:
    """The same for processes that run already; none of them may end, or log an error, in the test."""
    made = scored_table(shared_servers, live, detectors[0])
    yield made
    assert all(process.alive() for process in live.processes)
    assert errors_of(live, made.name) == []
    shared_servers.detach_all()


@pytest.fixture(scope="module")
def up(shared_servers: Servers) -> Iterator[Stack]:
    """`pgoutlier up`, the one process of its stack, which runs through the tests of a module."""
    for stack in on_servers(shared_servers):
        stack.start("up", "pgoutlier.worker.cli", "up")
        yield stack


@pytest.fixture
def up_table(shared_servers: Servers, up: Stack, detectors: Sequence[Detector]) -> Iterator[Table]:
    """A table there, of which a row has been scored, once beat is ready and the others have said something."""
    made = scored_table(shared_servers, up, detectors[0])
    made.insert(1)
    until(made.drained, "a row is scored")
    said = up.processes[0].output
    until(lambda: all(word in said() for word in ("score | ", "train | ", "beat_ready")), "each has started")
    yield made
    shared_servers.detach_all()


@pytest.fixture(scope="module")
def mortal(mortal_servers: Servers) -> Iterator[Stack]:
    """A score worker, a listener and beat, on servers that the tests kill."""
    for stack in on_servers(mortal_servers):
        stack.score_worker(batch_rows=500)
        stack.listener()
        stack.beat()
        stack.until_ready()
        yield stack


@pytest.fixture
def alone(mortal_servers: Servers, detectors: Sequence[Detector]) -> Iterator[Table]:
    """A table on servers that the test kills, on which nothing runs but what the test starts."""
    for stack in on_servers(mortal_servers):
        yield scored_table(mortal_servers, stack, detectors[0])


@pytest.fixture
def mortal_table(mortal_servers: Servers, mortal: Stack, detectors: Sequence[Detector]) -> Iterator[Table]:
    """A table there; no process may end in the test."""
    yield scored_table(mortal_servers, mortal, detectors[0])
    mortal_servers.detach_all()
    assert all(process.alive() for process in mortal.processes)


@pytest.fixture(params=KEYS)
def keyed_table(
    request: pytest.FixtureRequest, shared_servers: Servers, stack: Stack, detectors: Sequence[Detector]
) -> Table:
    """The same with each kind of key."""
    return scored_table(shared_servers, stack, detectors[0], key=request.param)


def scored_table(servers: Servers, stack: Stack, detector: Detector, *, key: str = "id") -> Table:
    made = servers.table(stack, key=key)
    made.register(detector)
    made.audit()
    return made
