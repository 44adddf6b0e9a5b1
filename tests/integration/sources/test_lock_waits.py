"""Commands that change our objects wait for locks on the user's table only for moments, and say who is in the way."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import psycopg
import pytest

from pgoutlier.db.ddl import lock_waits
from pgoutlier.db.errors import SourceError
from pgoutlier.db.sql.statements import one
from pgoutlier.worker.history import keeping
from pgoutlier.worker.notices import webhook_control
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.sources import attaching
from tests.support import ASKED, Table, attach_table, detach_table, until

User = psycopg.Connection[Any]
Connect = Callable[..., User]


def attach_u(table: Table) -> None:
    table.user.execute("CREATE TABLE IF NOT EXISTS u (id int PRIMARY KEY, x float8)")
    attach_table(table.user, table.runtime, relation="u", key="id", features="x")


def with_columns(table: Table) -> None:
    attach_table(table.user, table.runtime, **ASKED, write_columns=True)


# What is done, the table that somebody holds, and how.
COMMANDS: dict[str, tuple[Callable[[Table], object], str, str]] = {
    "attach": (attach_u, "u", "INSERT INTO u VALUES (1, 1)"),
    "detach": (detach_table, "transactions", "INSERT INTO transactions VALUES (1, 1, 1, 1)"),
    "detach a table that is read": (detach_table, "transactions", "SELECT FROM transactions"),
    "write columns": (with_columns, "transactions", "SELECT FROM transactions"),
    "adopt": (
        lambda table: attaching.adopt(table.runtime, "transactions"),
        "transactions",
        "INSERT INTO transactions VALUES (1, 1, 1, 1)",
    ),
    "history": (
        lambda table: keeping.keep(table.runtime, "transactions"),
        "outlier.scores_transactions",
        "LOCK TABLE outlier.scores_transactions IN ROW EXCLUSIVE MODE",
    ),
    "webhook": (
        lambda table: webhook_control.set_webhook(table.runtime, "transactions", None),
        "outlier.scores_transactions",
        "LOCK TABLE outlier.scores_transactions IN ROW EXCLUSIVE MODE",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_long_transaction_is_named_and_nothing_is_changed(
    transactions: Table, connect: Connect, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(lock_waits, "PAUSES_SECONDS", (0.01, 0.01))
    transactions.user.execute("CREATE TABLE u (id int PRIMARY KEY, x float8)")
    work, held, statement = COMMANDS[command]
    other = connect(autocommit=False, application_name="the nightly import")
    other.execute(statement)  # type: ignore[arg-type]
    with pytest.raises(SourceError) as raised:
        work(transactions)
    sentence = raised.value.sentence
    assert "nothing was changed" in sentence
    assert re.search(
        rf"process {other.info.backend_pid} \(the nightly import, role postgres, idle in transaction, in a transaction"
        rf" for \d+ s\) holds (public\.)?{re.escape(held)}: end its transaction",
        sentence,
    )
    other.rollback()
    work(transactions)


def test_a_prepared_transaction_is_named_too(user: User) -> None:
    found = {"gid": "g1", "relation": "t", "pid": None}
    assert lock_waits._holder(found) == ("the prepared transaction 'g1' holds t: commit it or roll it back")


def test_writers_go_on_while_a_command_waits_behind_a_long_transaction(
    transactions: Table, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two tries whoever waits behind the command is let through."""
    monkeypatch.setattr(lock_waits, "PAUSES_SECONDS", (0.1,) * 200)
    other = connect(autocommit=False)
    other.execute("INSERT INTO transactions VALUES (-1, 1, 1, 1)")
    writer = connect()
    with ThreadPoolExecutor(1) as pool:
        detached = pool.submit(detach_table, transactions)
        n_tries = 0
        for key in range(20):
            writer.execute("INSERT INTO transactions VALUES (%s, 1, 1, 1)", (key,))
            n_tries += not detached.done()
        assert n_tries == 20
        other.rollback()
        detached.result()
    writer.execute("INSERT INTO transactions VALUES (100, 1, 1, 1)")
    assert writer.execute("SELECT count(*) FROM transactions").fetchone() == (21,)


@pytest.mark.parametrize("command", ["detach", "write columns", "adopt"])
def test_commands_get_their_locks_among_busy_writers_and_workers(
    transactions: Table, connect: Connect, command: str
) -> None:
    transactions.promote()
    done = Event()
    writers = [connect() for _ in range(4)]

    def write(number: int) -> int:
        key = number * 1_000_000
        while not done.is_set():
            writers[number].execute("INSERT INTO transactions VALUES (%s, 1, 1, 1)", (key,))
            writers[number].execute("UPDATE transactions SET amount = 2 WHERE id = %s", (key,))
            key += 1
        return key - number * 1_000_000

    def drain() -> None:
        while not done.is_set():
            try:
                transactions.drain()
            except SourceError:  # it was detached
                return

    with ThreadPoolExecutor(6) as pool:
        written = [pool.submit(write, number) for number in range(4)]
        workers = [pool.submit(drain) for _ in range(2)]
        try:
            until(lambda: len(transactions.scored()) > 20, "all are at work")
            COMMANDS[command][0](transactions)
        finally:
            done.set()
        n_written = sum(count.result() for count in written)
        for worker in workers:
            worker.result()
    assert transactions.user.execute("SELECT count(*) FROM transactions").fetchone() == (n_written,)


def test_a_waiting_attach_leaves_the_session_as_it_was(transactions: Table, runtime: Runtime) -> None:
    attach_u(transactions)
    with runtime.engine.begin() as connection:
        assert one(connection, "SELECT current_setting('lock_timeout')") == "0"
