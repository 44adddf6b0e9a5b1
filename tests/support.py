"""What tests say in one line: make and attach a table, give it a champion, drain, look at scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from pgoutlier.db.errors import SourceError
from pgoutlier.db.settings import Settings
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import attach, sources
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.detector import Detector, Recipe, expected_arrays, recipe_named
from pgoutlier.detector.recipes import FixedThreshold, Layer, Standardise
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import TrainingWindow
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.scoring.draining import DrainResult
from pgoutlier.worker.sources import attaching

Connection = psycopg.Connection[Any]

TRANSACTIONS = """
CREATE TABLE transactions (
    id bigint PRIMARY KEY, amount double precision, hour double precision, distance double precision,
    note text
)
"""
FEATURES = ("amount", "hour", "distance")
# How that table is attached.
ASKED: dict[str, Any] = {"relation": "transactions", "key": "id", "features": ",".join(FEATURES)}
# Ends a test that hangs, and is no measure of anything: far longer than a busy machine takes.
HUNG_SECONDS = 120.0


@dataclass(frozen=True)
class Table:
    """A table of the user's that is attached, and the session of its owner."""

    user: Connection
    runtime: Runtime
    source_name: str

    @property
    def source(self) -> Source:
        with self.runtime.engine.begin() as connection:
            return sources.find(connection, self.source_name)

    def rows(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        return self.user.execute(statement.replace("{source}", self.source_name), params).fetchall()  # type: ignore[arg-type]

    def keys(self, statement: str, *params: Any) -> list[Any]:
        return [row[0] for row in self.rows(statement, *params)]

    def queued(self) -> list[Any]:
        """Every queued key, once for each time it is queued."""
        return self.keys("SELECT unnest(keys) AS key FROM outlier.queue_{source} ORDER BY 1")

    def scored(self) -> list[Any]:
        return self.keys("SELECT key FROM outlier.scores_{source} ORDER BY 1")

    def errors(self) -> dict[Any, float]:
        """Reconstruction error by key."""
        return dict(self.rows("SELECT key, reconstruction_error FROM outlier.scores_{source}"))

    def quarantined(self) -> dict[str, tuple[str, str | None]]:
        """(reason, column) by key."""
        with self.user.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute("SELECT * FROM outlier.quarantine ORDER BY key").fetchall()
        return {row["key"]: (row["reason"], row["column_name"]) for row in found}

    def drain(self) -> DrainResult:
        return draining.drain(self.runtime, self.source_name)

    def make_due(self) -> None:
        """Put off no more what was put off."""
        self.user.execute(f"UPDATE outlier.queue_{self.source_name} SET not_before = NULL")  # type: ignore[arg-type]

    def drain_all(self) -> None:
        """Drain until nothing is queued, waiting for what was put off."""

        def drained() -> bool:
            if self.rows("SELECT FROM outlier.queue_{source} LIMIT 1"):
                self.drain()
            return not self.rows("SELECT FROM outlier.queue_{source} LIMIT 1")

        until(drained, "the queue gets empty")

    def insert(self, first: int, last: int | None = None) -> None:
        """Rows with the keys first to last, of features that follow from the key."""
        self.user.execute(
            "INSERT INTO transactions SELECT i, i * 0.5, i %% 24, sqrt(i), 'shop ' || i"
            " FROM generate_series(%s::bigint, %s::bigint) i",
            (first, first if last is None else last),
        )

    def with_settings(self, **changes: Any) -> Table:
        """The same table, worked on with other settings."""
        settings = self.runtime.settings.model_copy(update=changes)
        return replace(self, runtime=replace(self.runtime, settings=settings))

    def promote(self, detector: Detector | None = None) -> int:
        return make_champion(self.runtime, self.source, detector)


def quick_settings(database_url: str) -> Settings:
    """Small delays, no pictures. No broker: nothing that uses these settings sends messages."""
    return Settings(
        _env_file=None,
        database_url=database_url,
        broker_url="redis://no.broker.invalid:1/0",
        retry_base_seconds=0.05,
        drain_budget_seconds=60,
        training_reports=False,
    )


@contextmanager
def sessions_on(database_url: str) -> Iterator[tuple[Connection, Runtime]]:
    """A session of the user's and a runtime, both closed at the end, as a template needs."""
    runtime = make_runtime(quick_settings(database_url), application_name="tests")
    with psycopg.connect(database_url, autocommit=True) as user:
        yield user, runtime
    runtime.engine.dispose()


def make_table(user: Connection, runtime: Runtime) -> Table:
    user.execute(TRANSACTIONS)
    return attach_table(user, runtime, **ASKED)


def attach_table(
    user: Connection,
    runtime: Runtime,
    *,
    backfill: bool = False,
    recipe: Recipe | None = None,
    **request: Any,
) -> Table:
    """Attach as the command line does."""
    done = attaching.attach(
        runtime,
        AttachRequest(**request),
        recipe or recipe_named("default"),
        old_rows="swept" if backfill else "left",
    )
    return Table(user, runtime, done.source.name)


def detach_table(table: Table) -> None:
    attaching.detach(table.runtime, table.source_name)


def make_detector(
    names: Sequence[str], *, threshold: float = 1e12, seed: int = 0, recipe: Recipe | None = None
) -> Detector:
    """A detector of random weights, made without fitting: enough to score with, and quick."""
    recipe = recipe or plain_recipe()
    random = np.random.default_rng(seed)
    arrays = {
        name: (np.full(shape, 2.0) if name.endswith("scale") else random.normal(size=shape)).astype(dtype)
        for name, (shape, dtype) in expected_arrays(recipe, len(names), feature_names=names).items()
    }
    return Detector(recipe, names, arrays, threshold)


def plain_recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "plain",
        "preprocessing": (Standardise(),),
        "layers": (Layer(units=3, activation="tanh"),),
        "threshold": FixedThreshold(value=1.0),
    }
    return Recipe(**{**fields, **changes})


def make_champion(runtime: Runtime, source: Source, detector: Detector | None = None) -> int:
    """Register a detector and make it the champion. Returns its version."""
    version = register(runtime, source, detector)
    with runtime.engine.begin() as connection:
        registry.promote(
            connection,
            source,
            version,
            reason="test",
            seal=runtime.seal,
        )
    return version


def register(runtime: Runtime, source: Source, detector: Detector | None = None) -> int:
    with runtime.engine.begin() as connection:
        return registry.register(
            connection,
            source,
            detector or make_detector(source.definition.feature_names),
            window=TrainingWindow(n_rows=500, first=None, last=None),
            metrics={},
            seal=runtime.seal,
        )


def waits(user: Connection, *, n_sessions: int = 1) -> bool:
    """Whether as many sessions of this database wait for another's lock."""
    waiting = user.execute(
        "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return waiting.rowcount >= n_sessions


def until(
    condition: Callable[[], object], what: str = "it happens", *, seconds: float = HUNG_SECONDS
) -> None:
    """Wait for a condition; fail, saying what did not come to hold, once nothing but a hang explains it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def heard(listener: Connection, channel: str, user: Connection) -> list[str]:
    """Payloads of all notices up to now that a session which listens has not been asked for yet."""
    user.execute("SELECT pg_notify(%s, 'the last one')", (channel,))
    found: list[str] = []
    for notice in listener.notifies(timeout=HUNG_SECONDS):
        if notice.payload == "the last one":
            return found
        found.append(notice.payload)
    raise AssertionError("no notice is heard")


def quote(*parts: str) -> str:
    """A quoted identifier for statements of the tests."""
    return sql.Identifier(*parts).as_string(None)


def refusal(runtime: Runtime, **request: Any) -> str:
    """The sentence with which an attach is refused."""
    with runtime.engine.begin() as connection, pytest.raises(SourceError) as raised:
        attach.resolve(connection, AttachRequest(**request))
    return raised.value.sentence


def objects(user: Connection) -> list[tuple[Any, ...]]:
    """Every relation, column, index, constraint, function, trigger and privilege in the database, as text."""
    return user.execute(
        """
        SELECT 'relation', n.nspname || '.' || c.relname, c.relkind::text || coalesce(c.relacl::text, '')
               || c.reloptions::text || c.relhastriggers || c.relrowsecurity FROM pg_class c
            JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname IN ('public', 'outlier')
        UNION ALL SELECT 'column', a.attrelid::regclass::text || '.' || a.attname,
               format_type(a.atttypid, a.atttypmod) || a.attnotnull || a.attstorage::text
               || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
            LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname IN ('public', 'outlier') AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
            JOIN pg_class c ON c.oid = indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname IN ('public', 'outlier')
        UNION ALL SELECT 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid) || p.proacl::text
            FROM pg_proc p WHERE p.pronamespace IN ('public'::regnamespace, 'outlier'::regnamespace)
        UNION ALL SELECT 'trigger', tgname, pg_get_triggerdef(oid) || tgenabled::text FROM pg_trigger
            WHERE NOT tgisinternal
        UNION ALL SELECT 'view', c.oid::regclass::text, pg_get_viewdef(c.oid) FROM pg_class c
            WHERE c.relkind = 'v' AND c.relnamespace IN ('public'::regnamespace, 'outlier'::regnamespace)
        ORDER BY 1, 2, 3
        """
    ).fetchall()
