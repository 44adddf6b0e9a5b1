"""A worker that is asked to end does so, however often it is asked."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import pytest

from tests.acceptance.stack import Stack
from tests.support import until


@pytest.mark.parametrize("kind", ["score_worker", "train_worker"])
def test_a_worker_ends_that_is_asked_to_again_while_it_begins_to(stack: Stack, kind: str) -> None:
    """As the kernel and the supervisor may both do."""
    worker = getattr(stack, kind)()
    stack.until_ready(worker)

    def ended() -> bool:
        for _ in range(20):
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)
            time.sleep(0.001)  # so that the handler of the one before has begun
        return not worker.alive()

    until(ended, "it ends")
