"""With many sources a look is a few statements, and what is told of them fits a page: those in trouble first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from pgoutlier.db.errors import SourceError
from pgoutlier.db.scoring import bell, queue
from pgoutlier.db.upkeep import turns
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.status import status
from pgoutlier.worker.upkeep import maintenance
from tests.integration.conftest import Run
from tests.servers import Postgres
from tests.support import Table, attach_table, make_champion, sessions_on

User = psycopg.Connection[Any]

NAMES = [f"shop_{number:02}" for number in range(24)]
# Statements of a look at however many sources.
FEW = 20


@pytest.fixture
def template(postgres: Postgres) -> str:
    return postgres.template("many_sources", _attach_many)


def _attach_many(database_url: str) -> None:
    with sessions_on(database_url) as (user, runtime):
        for name in NAMES:
            user.execute(f"CREATE TABLE {name} (id bigint PRIMARY KEY, amount float8 NOT NULL)".encode())
            table = attach_table(user, runtime, relation=name, key="id", features="amount")
            make_champion(runtime, table.source)


@pytest.fixture
def tables(user: User, runtime: Runtime) -> dict[str, Table]:
    return {name: Table(user, runtime, name) for name in NAMES}


@pytest.fixture
def statements(runtime: Runtime) -> list[str]:
    """Every statement that the runtime sends from now on, but those of SQLAlchemy itself."""
    sent: list[str] = []

    class Noting(psycopg.Cursor[Any]):
        def execute(self, query: Any, *arguments: Any, **named: Any) -> Any:
            sent.append(query if isinstance(query, str) else query.as_string(None))
            return super().execute(query, *arguments, **named)

    def note(driver: User, *_: object) -> None:
        driver.cursor_factory = Noting

    event.listen(runtime.engine, "connect", note)
    return sent


@contextmanager
def locked(database_url: str, name: str) -> Iterator[None]:
    with psycopg.connect(database_url) as other:
        other.execute(f"LOCK TABLE {name}".encode())
        yield


def past_the_triggers(table: Table) -> None:
    name = table.source_name
    for statement in (
        f"ALTER TABLE {name} DISABLE TRIGGER USER",
        f"INSERT INTO {name} VALUES (1, 2.5)",
        f"ALTER TABLE {name} ENABLE TRIGGER USER",
    ):
        table.user.execute(statement.encode())


def swept(user: User) -> set[str]:
    return {name for (name,) in user.execute("SELECT name FROM outlier.sources WHERE swept_at IS NOT NULL")}


@pytest.mark.parametrize(
    "look",
    [
        draining.sources_with_work,
        maintenance.sweep_all,
        lambda runtime: status.status(lambda: runtime),
    ],
    ids=["drain", "sweep", "status"],
)
def test_a_look_at_all_sources_sends_few_statements(
    runtime: Runtime,
    statements: list[str],
    look: Callable[[Runtime], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(status, "_ask", lambda: None)
    look(runtime)
    assert 0 < len(statements) < FEW


def test_a_look_into_many_queues_is_made_of_several_of_a_few_each(
    tables: dict[str, Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "AT_ONCE", 5)
    monkeypatch.setattr(bell, "AT_ONCE", 5)
    busy = [NAMES[0], NAMES[7], NAMES[23]]
    for name in busy:
        tables[name].user.execute(f"INSERT INTO {name} VALUES (1, 2.5)".encode())
    assert draining.sources_with_work(tables[NAMES[0]].runtime) == busy
    found = bell.newest(tables[NAMES[0]].user, bell.audible(tables[NAMES[0]].user))
    assert [name for name, look in found.items() if look.ids] == busy


def test_a_queue_that_may_not_be_read_does_not_hide_the_others(tables: dict[str, Table]) -> None:
    user = tables[NAMES[0]].user
    user.execute(f"INSERT INTO {NAMES[3]} VALUES (1, 2.5)".encode())
    user.execute(f"DROP TABLE outlier.queue_{NAMES[2]} CASCADE".encode())
    assert draining.sources_with_work(tables[NAMES[0]].runtime) == [NAMES[3]]


def test_the_sweep_of_many_finds_the_one_row_that_was_missed(tables: dict[str, Table]) -> None:
    table = tables[NAMES[5]]
    past_the_triggers(table)
    found = maintenance.sweep_all(table.runtime)
    assert sorted(found) == NAMES
    assert {name for name, n_rows in found.items() if n_rows} == {NAMES[5]}
    assert table.queued() == [1]
    assert swept(table.user) == set(NAMES)


def test_a_locked_table_keeps_none_of_the_others_from_being_swept(
    tables: dict[str, Table], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tables[NAMES[5]]
    past_the_triggers(tables[NAMES[6]])
    monkeypatch.setattr(turns, "PATIENCE", "100ms")
    with locked(database_url, NAMES[5]):
        found = maintenance.sweep_all(table.runtime)
        pruned = maintenance.prune_all(table.runtime)
    assert {*NAMES} - {*found} == {*NAMES} - swept(table.user) == {*NAMES} - {*pruned} == {NAMES[5]}
    assert {name for name, n_rows in found.items() if n_rows} == {NAMES[6]}
    assert maintenance.sweep_all(table.runtime)[NAMES[5]] == 0


def test_those_that_were_looked_at_longest_ago_come_first(tables: dict[str, Table]) -> None:
    runtime = tables[NAMES[0]].runtime
    maintenance.sweep(runtime, NAMES[3])
    maintenance.sweep(runtime, NAMES[1])
    with runtime.engine.begin() as connection:
        swept_last = turns.longest_ago_first(connection, sweep=True)
        assert turns.longest_ago_first(connection, sweep=False) == NAMES
    assert swept_last == [*(name for name in NAMES if name not in (NAMES[1], NAMES[3])), NAMES[3], NAMES[1]]


def test_status_shows_those_in_trouble_first_and_all_of_them_when_asked(
    tables: dict[str, Table], run: Run
) -> None:
    user = tables[NAMES[0]].user
    user.execute(f"INSERT INTO {NAMES[20]} VALUES (1, 2.5), (2, 3.5)".encode())
    user.execute("UPDATE outlier.sources SET last_problem = 'nothing goes' WHERE name = %s", (NAMES[23],))
    said = run("status").output
    shown = [word for word in said.split() if word.startswith("shop_")]
    assert shown[:2] == [NAMES[23], NAMES[20]]
    assert len(shown) == 20
    assert "24 sources, 1 with a note, 2 queued in 1" in said
    assert "4 more sources: pgoutlier status --all" in said
    everything = run("status", "--all").output
    assert [word for word in everything.split() if word.startswith("shop_")] == NAMES
    assert [source["name"] for source in json.loads(run("status", "--json").output)["sources"]] == NAMES


def test_doctor_tells_once_what_is_the_same_of_many(tables: dict[str, Table], run: Run) -> None:
    user = tables[NAMES[0]].user
    for name in NAMES[:15]:
        user.execute(f"ALTER TABLE {name} DISABLE TRIGGER USER".encode())
    user.execute("UPDATE outlier.sources SET last_problem = 'nothing goes' WHERE name = %s", (NAMES[23],))
    page = run("doctor").output
    assert "8 of 24 sources: all is as it should be" in page
    assert f"triggers of 15 sources ({', '.join(NAMES[:3])} and 12 more)" in page
    assert f"{NAMES[23]} queue: 0 queued, 0 in quarantine; nothing goes" in page
    assert len(page.splitlines()) < 40
    each = run("doctor", "--all").output
    assert all(f"{name} champion: version 1" in each for name in NAMES)
    told = json.loads(run("doctor", "--json").output)
    assert {finding["source"] for finding in told} == {None, *NAMES}


def test_a_wrong_name_is_answered_with_those_that_are_near(tables: dict[str, Table], run: Run) -> None:
    refused = run("train", "shop_7")
    assert isinstance(refused.exception, SourceError)
    assert "Did you mean shop_" in refused.exception.sentence
    assert "There are 24" in refused.exception.sentence
