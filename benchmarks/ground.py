"""The ground every measurement stands on: fresh embedded servers, one table of 30 double columns, one champion."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
from pydantic import SecretStr

from pgoutlier import detector
from pgoutlier.db import embedded, migrate
from pgoutlier.db.settings import Settings
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.db.sql.wire import COPY_HEADER, COPY_TRAILER
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import TrainingWindow
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.sources import attaching

N_FEATURES = 30
FEATURES = [f"f{i}" for i in range(1, N_FEATURES + 1)]
COLUMNS = ", ".join(FEATURES)
DECLARED = ", ".join(f"{name} double precision NOT NULL" for name in FEATURES)


def insert_row(table: str) -> str:
    """The INSERT of one row, whose features are its parameters."""
    return f"INSERT INTO {table} ({COLUMNS}) VALUES ({', '.join(['%s'] * N_FEATURES)})"


@dataclass(frozen=True)
class Ground:
    """Where to measure. connection is a user's own, in autocommit."""

    runtime: Runtime
    connection: psycopg.Connection
    servers: embedded.Servers
    data_dir: Path
    rows: np.ndarray  # (n, 30) float64, correlated, what the table holds
    copy_body: bytes  # the rows as a binary COPY of the feature columns


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median(values: list[float]) -> float:
    return statistics.median(values)


def make_rows(n_rows: int, seed: int = 0) -> np.ndarray:
    """Rows of ten hidden causes and some noise, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    causes = rng.normal(size=(n_rows, 10))
    return causes @ rng.normal(size=(10, N_FEATURES)) + 0.3 * rng.normal(size=(n_rows, N_FEATURES))


def binary_copy(rows: np.ndarray) -> bytes:
    """A binary COPY of double columns."""
    wire = np.empty(
        len(rows), dtype=[("n", ">i2"), ("fields", [("length", ">i4"), ("value", ">f8")], (rows.shape[1],))]
    )
    wire["n"] = rows.shape[1]
    wire["fields"]["length"] = 8
    wire["fields"]["value"] = rows
    return COPY_HEADER + wire.tobytes() + COPY_TRAILER


def copy_in(connection: psycopg.Connection, table: str, body: bytes, columns: str = COLUMNS) -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY {table} ({columns}) FROM STDIN (FORMAT binary)") as copy,
    ):
        copy.write(body)


@contextmanager
def ground(n_rows: int) -> Iterator[Ground]:
    """Set up, and leave nothing behind."""
    home = Path(tempfile.mkdtemp(prefix="pgo-bench-", dir="/var/tmp"))
    home.chmod(0o755)  # the servers' own account has to reach its folder when this runs as root
    data_dir = home / "data"
    servers = embedded.ensure_running(data_dir)
    try:
        _note_commits(servers.database_url)
        embedded.stop(data_dir)
        servers = embedded.ensure_running(data_dir)
        settings = Settings(
            data_dir=data_dir,
            database_url=SecretStr(servers.database_url),
            database_direct_url=None,
            broker_url=SecretStr(servers.broker_url),
            drain_budget_seconds=3_600,
        )
        runtime = make_runtime(settings, application_name="bench")
        migrate.upgrade(runtime.engine)
        with psycopg.connect(servers.database_url, autocommit=True) as connection:
            rows = make_rows(n_rows)
            connection.execute(
                f"CREATE TABLE transactions (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {DECLARED})"
            )
            body = binary_copy(rows)
            copy_in(connection, "transactions", body)
            connection.execute("VACUUM ANALYZE transactions")
            _attach_and_train(runtime, rows)
            yield Ground(runtime, connection, servers, data_dir, rows, body)
        runtime.engine.dispose()
    finally:
        embedded.purge(data_dir)
        home.rmdir()


def _note_commits(database_url: str) -> None:
    """Have the server note when each transaction commits, from its next start on."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")


def _attach_and_train(runtime: Runtime, rows: np.ndarray) -> None:
    recipe = detector.recipe_named("default")
    request = AttachRequest(relation="transactions", key="id", features=",".join(FEATURES))
    source = attaching.attach(runtime, request, recipe, old_rows="swept").source
    fitted = detector.fit(recipe, rows[:30_000], FEATURES)
    with runtime.engine.begin() as connection:
        number = registry.register(
            connection,
            source,
            fitted.detector,
            window=TrainingWindow(30_000, None, None),
            metrics=fitted.metrics,
            seal=runtime.seal,
        )
        registry.promote(connection, source, number, reason="bench", seal=runtime.seal)
