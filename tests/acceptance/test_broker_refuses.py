"""A broker that refuses for a while what it is asked: the processes go on."""

from __future__ import annotations

import pytest

from tests.acceptance.broker import REFUSALS, broker_of, kill, ring
from tests.acceptance.stack import Stack, Table
from tests.support import until


@pytest.mark.parametrize("what", REFUSALS)
def test_a_broker_that_refuses_for_a_while_ends_nobody(up: Stack, up_table: Table, what: str) -> None:
    refuse, serve = REFUSALS[what]
    table, (process,) = up_table, up.processes
    with broker_of(up) as broker:
        for _ in range(2):
            before, n_missed = _n_ticks(up), process.output().count("broker_unavailable")
            refuse(broker)
            table.insert(50)
            if refuse is not kill:
                until(
                    lambda n=n_missed: process.output().count("broker_unavailable") > n, "somebody is refused"
                )
            serve(broker)
            until(table.drained, "rows are scored again")
            until(lambda n=before: _n_ticks(up) > n, "beat sends")
    seen = process.output().count("no.such.source")
    ring(up, "models.train", "train", "no.such.source")
    until(lambda: process.output().count("no.such.source") > seen, "the train worker takes tasks")
    assert process.alive()
    assert "Ended by itself" not in process.output()
    assert "Traceback" not in process.output()
    table.assert_scored_once()


def _n_ticks(stack: Stack) -> int:
    return int(str(stack.one("SELECT n_runs FROM outlier.schedules WHERE name = 'drain'")))
