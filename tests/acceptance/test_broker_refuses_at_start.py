"""A broker that refuses what it is asked while the processes start: they wait for it."""

from __future__ import annotations

import pytest

from tests.acceptance.broker import REFUSALS, broker_of
from tests.acceptance.stack import Stack, Table
from tests.support import until


@pytest.mark.parametrize("what", ["replica", "no memory", "no right"])
def test_processes_that_start_while_the_broker_refuses_wait_for_it(
    stack: Stack, table: Table, what: str
) -> None:
    refuse, serve = REFUSALS[what]
    with broker_of(stack) as broker:
        refuse(broker)
        try:
            up = stack.start("up", "pgoutlier.worker.cli", "up")
            table.insert(5)
            until(lambda: "broker_unavailable" in up.output(), "somebody is refused")
        finally:
            serve(broker)
    until(table.drained, "rows are scored")
    assert "Ended by itself" not in up.output()
    assert "Traceback" not in up.output()
    assert up.alive()
