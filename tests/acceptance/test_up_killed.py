"""Whatever ends `up`, nothing of it lives on."""

from __future__ import annotations

import pytest

from tests.acceptance.stack import Stack, processes_of
from tests.support import until


@pytest.mark.parametrize("n_ready", [1, 2, 3])
def test_nothing_is_left_of_an_up_that_is_killed_while_its_processes_start(
    stack: Stack, n_ready: int
) -> None:
    """The kernel tells its processes once for each of its threads, all at once."""
    up = stack.start("up", "pgoutlier.worker.cli", "up")
    until(lambda: len(processes_of(stack.environment)) >= 5, "all have been started")
    for word in ("ready", "listening", "beat_ready")[:n_ready]:
        until(lambda word=word: word in up.output(), f"something is {word}")
    up.kill()
    until(lambda: not processes_of(stack.environment), "all have gone")
