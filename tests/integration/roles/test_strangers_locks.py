"""Any session may take any advisory lock: no row waits for one, and who holds one of ours without a right is named."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgoutlier.db.errors import LockTaken
from pgoutlier.db.scoring import bell
from pgoutlier.db.sql import locks
from pgoutlier.worker import listener
from pgoutlier.worker.doctor import checks
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.notices import delivering
from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import libpq_url
from pgoutlier.worker.training import training
from pgoutlier.worker.upkeep import maintenance
from pgoutlier.worker.versions import versions
from tests.support import ASKED, Table, attach_table, until, waits

User = psycopg.Connection[Any]
Connect = Callable[..., User]


@pytest.fixture
def stranger(transactions: Table, role: str, connect: Connect) -> User:
    """A session of a role that may log in and nothing else; there is a champion."""
    transactions.promote()
    return connect(user=role)


def take(session: User, lock: str, source_id: int | None = None, *, shared: bool = False) -> None:
    """Take a lock of ours, as its name's number is plain to see in pg_locks while one of ours has it."""
    of_source = "" if source_id is None else f", {source_id}"
    how = "_shared" if shared else ""
    session.execute(f"SELECT pg_advisory_lock{how}(hashtext('outlier.{lock}'){of_source})".encode())


WORK: dict[str, Callable[[Table], object]] = {
    "sweep": lambda table: maintenance.sweep(table.runtime, "transactions"),
    "jobs": lambda table: job_control.backfill(table.runtime, "transactions"),
    "training": lambda table: training.train(table.runtime, "transactions"),
    "webhook": lambda table: delivering.deliver(table.runtime, "transactions"),
    "versions": lambda table: table.promote(),
    "aliases": lambda table: versions.promote(table.runtime, "transactions", 1, reason="test"),
    "attach": lambda table: attach_table(table.user, table.runtime, **ASKED),
}


@pytest.mark.parametrize("lock", WORK)
def test_whoever_holds_a_lock_of_ours_without_a_right_is_named(
    transactions: Table, stranger: User, lock: str
) -> None:
    take(stranger, lock, None if lock == "attach" else transactions.source.id)
    with pytest.raises(LockTaken) as raised:
        WORK[lock](transactions)
    process = stranger.info.backend_pid
    assert str(raised.value) == (
        f"The session of process {process} (role writer), which has no right to it, holds the lock {lock!r} of"
        f" pgoutlier; end it: SELECT pg_terminate_backend({process});"
    )
    found = {finding.what: finding for finding in checks.examine(transactions.runtime)}["locks"]
    assert (found.ok, found.mend) == (False, f"SELECT pg_terminate_backend({process});")
    transactions.user.execute(found.mend.encode())
    until(lambda: no_strangers(transactions), "the lock is free")


def no_strangers(table: Table) -> bool:
    with table.runtime.engine.begin() as connection:
        return locks.strangers(connection) == []


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("lock", ["paced", "listener sleeps", "sweep", "aliases", "versions", "attach"])
def test_no_lock_of_a_stranger_holds_up_a_score_or_a_writer(
    transactions: Table, stranger: User, lock: str, *, shared: bool
) -> None:
    if lock == "listener sleeps":
        how = "_shared" if shared else ""
        stranger.execute(
            f"SELECT pg_advisory_lock{how}(hashtext('outlier.{lock}'), hashtext('outlier.transactions'))".encode()
        )
    else:
        take(stranger, lock, None if lock == "attach" else transactions.source.id, shared=shared)
    for key in range(1, 21):
        transactions.insert(key)
    assert transactions.drain().n_scored == 20
    assert not no_strangers(transactions)


def test_one_of_ours_is_waited_for(transactions: Table, stranger: User, role: str, connect: Connect) -> None:
    granting.grant(transactions.runtime, role, "worker")
    take(stranger, "aliases", transactions.source.id)
    done: list[object] = []
    waiting = threading.Thread(target=lambda: done.append(WORK["aliases"](transactions)))
    waiting.start()
    until(lambda: waits(transactions.user), "it waits for the lock")
    assert no_strangers(transactions)
    stranger.close()
    waiting.join()
    assert len(done) == 1


@pytest.fixture
def listening(transactions: Table, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], list[str]]]:
    """A listener of a source: (the sources that it has rung for, those that it has fallen asleep for)."""
    rung: list[str] = []
    slept: list[str] = []
    fall_asleep = bell.fall_asleep

    def falls_asleep(session: User, sources: Any) -> set[str]:
        slept.extend(fallen := fall_asleep(session, sources))
        return fallen

    monkeypatch.setattr(bell, "fall_asleep", falls_asleep)
    stop = threading.Event()
    url = libpq_url(transactions.runtime.settings).render_as_string(hide_password=False)
    thread = threading.Thread(
        target=listener.listen,
        args=(url, rung.append, stop),
        kwargs={"ring_flagged": lambda _: None, "on_ready": lambda: None},
    )
    thread.start()
    until(lambda: slept, "the listener sleeps")
    yield rung, slept
    stop.set()
    thread.join()


def test_a_flood_of_notifications_of_a_source_rings_once_for_each_time_that_the_listener_slept(
    transactions: Table, stranger: User, listening: tuple[list[str], list[str]]
) -> None:
    rung, slept = listening
    for _ in range(3_000):
        stranger.execute("SELECT pg_notify('outlier_queue', 'transactions')")
    until(lambda: rung, "it is rung for")
    # The second notification wakes it: by then it may have been rung for twice.
    assert len(rung) <= 2 * len(slept)
    transactions.insert(1)
    n_rung = len(rung)
    until(lambda: len(rung) > n_rung, "a row is rung for")
