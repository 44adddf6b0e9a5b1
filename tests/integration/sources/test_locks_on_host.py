"""Which locks on the user's table each of our doings takes, as docs/operations.md says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from pgoutlier.db.errors import ModelError
from pgoutlier.worker.drift import measuring
from pgoutlier.worker.history import keeping
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.notices import webhook_control
from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.sources import attaching
from pgoutlier.worker.training import training
from pgoutlier.worker.upkeep import maintenance
from tests.support import Table, attach_table, plain_recipe

User = psycopg.Connection[Any]

LOCKS = (
    "SELECT DISTINCT mode FROM pg_locks WHERE locktype = 'relation' AND relation = to_regclass('public.payments')"
    " AND pid = pg_backend_pid()"
)
READS, WRITES = {"AccessShareLock"}, {"AccessShareLock", "RowShareLock", "RowExclusiveLock"}
TRIGGERS, ALTERS = {"ShareRowExclusiveLock"}, {"ShareUpdateExclusiveLock", "AccessExclusiveLock"}


@pytest.fixture
def locks(runtime: Runtime) -> set[str]:
    """Modes of the locks on the table that transactions of ours held when they ended."""
    seen: set[str] = set()

    def look(connection: Any) -> None:
        cursor = connection.connection.dbapi_connection.cursor()
        seen.update(mode for (mode,) in cursor.execute(LOCKS).fetchall())

    event.listen(runtime.engine, "commit", look)
    return seen


@pytest.fixture
def payments(user: User, runtime: Runtime) -> Table:
    """A table of 400 rows, attached and scored."""
    user.execute("CREATE TABLE payments (id int PRIMARY KEY, x float8, y float8)")
    table = attach(user, runtime)
    table.promote()
    user.execute("INSERT INTO payments SELECT i, sin(i), i % 7 FROM generate_series(1, 400) i")
    table.drain()
    return table


def attach(user: User, runtime: Runtime, **request: Any) -> Table:
    recipe = plain_recipe(epochs=1, early_stopping=None)
    return attach_table(
        user, runtime, relation="payments", key="id", features="x,y", recipe=recipe, **request
    )


def detach(table: Table) -> object:
    return attaching.detach(table.runtime, table.source_name)


def score(table: Table) -> object:
    table.user.execute("UPDATE payments SET x = x + 1")
    return table.drain()


def backfill(table: Table) -> object:
    table.user.execute("DELETE FROM outlier.scores_payments")
    return job_control.work(table.runtime, job_control.backfill(table.runtime, "payments").id)


def drift(table: Table) -> None:
    with pytest.raises(ModelError):
        measuring.measure(table.runtime, "payments")


DOINGS: dict[str, tuple[Callable[[Table], object], set[str]]] = {
    "attach again": (lambda t: attach(t.user, t.runtime), READS | TRIGGERS),
    "write columns": (lambda t: attach(t.user, t.runtime, write_columns=True), READS | TRIGGERS | ALTERS),
    "detach": (detach, READS | ALTERS),
    "scoring": (score, READS),
    "backfill": (backfill, READS),
    "sweep": (lambda t: maintenance.sweep(t.runtime, "payments"), READS),
    "prune": (lambda t: maintenance.prune_all(t.runtime), READS),
    "training": (lambda t: training.train(t.runtime, "payments"), READS),
    "drift": (drift, READS),
    "history": (lambda t: keeping.keep(t.runtime, "payments"), set()),
    "notices": (lambda t: webhook_control.set_webhook(t.runtime, "payments", None), set()),
    "grants": (lambda t: granting.grant(t.runtime, "pg_monitor", "analyst"), READS),
}


@pytest.mark.parametrize("doing", DOINGS)
def test_no_stronger_lock_is_taken_on_the_table_than_is_told(
    payments: Table, locks: set[str], doing: str
) -> None:
    work, allowed = DOINGS[doing]
    work(payments)
    assert locks <= allowed


def test_written_columns_lock_the_table_as_an_update_does(
    payments: Table, locks: set[str], user: User, runtime: Runtime
) -> None:
    attach(user, runtime, write_columns=True)
    locks.clear()
    score(payments)
    assert locks <= WRITES


def test_a_writer_takes_no_lock_on_its_table_but_its_own(payments: Table, user: User) -> None:
    with user.transaction():
        user.execute("UPDATE payments SET x = 5 WHERE id = 1")
        held = {mode for (mode,) in user.execute(LOCKS).fetchall()}
        on_queue = user.execute(LOCKS.replace("public.payments", "outlier.queue_payments")).fetchall()
    assert held <= WRITES
    assert on_queue == [("RowExclusiveLock",)]
