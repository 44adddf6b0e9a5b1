"""No listener, two beats, disabled triggers: Postgres still knows what is to be done."""

from __future__ import annotations

from tests.acceptance.stack import Stack, Table, errors_of
from tests.support import until


def test_without_a_listener_and_with_two_beats_every_row_is_scored_once(stack: Stack, table: Table) -> None:
    for _ in range(2):
        stack.beat(drain_every_seconds=0.5, sweep_every_seconds=0.5)
    stack.score_worker("score0", batch_rows=500)
    stack.score_worker("score1", batch_rows=500)
    stack.until_ready()
    table.insert(10_000)
    with stack.connect() as connection:
        connection.execute(f"ALTER TABLE {table.name} DISABLE TRIGGER USER".encode())
    table.insert(10_000)
    with stack.connect() as connection:
        connection.execute(f"ALTER TABLE {table.name} ENABLE TRIGGER USER".encode())
    table.insert_singly(100)
    until(lambda: table.n_scored == 20_100, "the sweep and the safety net have found every row")
    until(table.drained, "the queue is drained")
    table.assert_scored_once()
    assert errors_of(stack, table.name) == []
