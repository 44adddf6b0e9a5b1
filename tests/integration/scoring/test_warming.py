"""Champions loaded on first use and beside scoring: no row waits for that of another source, and memory is bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection

from pgoutlier.db.source.definition import Source
from pgoutlier.db.versions import aliases
from pgoutlier.db.versions.aliases import Pointed
from pgoutlier.detector import Detector
from pgoutlier.models_store.registry import DetectorCache
from pgoutlier.worker import warming
from pgoutlier.worker.runtime import Runtime
from tests.support import Table, attach_table, until

# Nothing here differs between versions of PostgreSQL.
pytestmark = pytest.mark.postgres18

User = psycopg.Connection[Any]


class Held(DetectorCache):
    """Loads the detector of one source only when it is let to."""

    def __init__(self, *args: Any, source: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.source, self.begun, self.may_load, self.n_loads = source, threading.Event(), threading.Event(), 0

    def _load(self, connection: Connection, source: Source, version: int) -> Detector | str:
        self.n_loads += 1
        if source.name == self.source:
            self.begun.set()
            assert self.may_load.wait(120)
        return super()._load(connection, source, version)


@pytest.fixture
def many(user: User, runtime: Runtime) -> list[Table]:
    """Six sources with champions."""
    tables = []
    for number in range(6):
        user.execute(f"CREATE TABLE t{number} (id int PRIMARY KEY, x float8, y float8)")
        tables.append(attach_table(user, runtime, relation=f"t{number}", key="id", features="x,y"))
        tables[-1].promote()
    return tables


@pytest.fixture
def held(many: list[Table], runtime: Runtime) -> Iterator[Held]:
    """The first source that is warmed up is not loaded for now."""
    cache = Held(runtime.seal, source="t0")
    yield cache
    cache.may_load.set()


def test_a_row_is_scored_while_the_champions_of_other_sources_are_still_loaded(
    many: list[Table], runtime: Runtime, held: Held
) -> None:
    here = replace(runtime, cache=held)
    with ThreadPoolExecutor(2) as pool:
        warmed = pool.submit(warming.warm_up, here)
        assert held.begun.wait(120)
        table = replace(many[5], runtime=here)
        table.user.execute("INSERT INTO t5 VALUES (1, 1, 1)")
        table.drain()
        assert table.scored() == [1]
        assert not warmed.done()
        held.may_load.set()
        warmed.result()
    assert all(pointed_at(here, table) in held._entries for table in many)
    assert held.n_loads == 6


def test_two_who_want_the_same_detector_load_it_once(many: list[Table], runtime: Runtime, held: Held) -> None:
    here = replace(runtime, cache=held)
    many[0].user.execute("INSERT INTO t0 VALUES (1, 1, 1)")
    wanted = pointed_at(here, many[0])
    with ThreadPoolExecutor(2) as pool:
        warmed = pool.submit(warming.warm_up, here)
        assert held.begun.wait(120)
        drained = pool.submit(replace(many[0], runtime=here).drain)
        until(held._loading[wanted].locked, "it is being loaded")
        held.may_load.set()
        assert drained.result().n_scored == 1
        warmed.result()
    assert held.n_loads == 6


@pytest.mark.parametrize("bound", [{"capacity": 2}, {"max_bytes": 5 * 2**20}])
def test_a_process_keeps_no_more_detectors_than_it_may(
    many: list[Table], runtime: Runtime, bound: dict[str, int]
) -> None:
    here = replace(runtime, cache=DetectorCache(runtime.seal, **bound))
    warming.warm_up(here)
    assert len(here.cache._entries) == 2, "the warm-up pushes none out"
    assert list(here.cache._entries) == [pointed_at(here, table) for table in many[:2]]
    for table in many[2:]:
        table.user.execute(f"INSERT INTO {table.source_name} VALUES (1, 1, 1)")
        replace(table, runtime=here).drain()
        assert table.scored() == [1]
    assert list(here.cache._entries) == [pointed_at(here, table) for table in many[4:]]


def test_a_detector_larger_than_all_that_may_be_kept_scores_all_the_same(
    many: list[Table], runtime: Runtime
) -> None:
    table = replace(many[0], runtime=replace(runtime, cache=DetectorCache(runtime.seal, max_bytes=1)))
    table.user.execute("INSERT INTO t0 VALUES (1, 1, 1)")
    table.drain()
    assert table.scored() == [1]


def pointed_at(runtime: Runtime, table: Table) -> int:
    with runtime.engine.begin() as connection:
        found = aliases.alias(connection, table.source.id)
    assert isinstance(found, Pointed)
    return found.version_id
