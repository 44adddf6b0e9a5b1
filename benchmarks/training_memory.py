"""The memory that a training takes, over a window of many rows: peak resident size of the process that trains.

python -m benchmarks.training_memory --rows 10000000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from pgoutlier.db import embedded, migrate
from pgoutlier.db.settings import Settings
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.detector import recipe_named
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.runtime import make_runtime
from pgoutlier.worker.sources import attaching

FEATURES = tuple(f"f{i}" for i in range(10))


def trained(settings: Settings) -> dict[str, Any]:
    """Train in this process; seconds, rows and its peak resident size in MB."""
    from pgoutlier.worker.training import training

    configure_logs("json", level=40)
    started = time.perf_counter()
    made = training.train(make_runtime(settings), "events")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "n_rows": made.n_rows,
        "left_out": made.left_out,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def measure(n_rows: int) -> dict[str, Any]:
    """A table of n_rows rows of ten features, attached and trained over all of them."""
    home = Path(tempfile.mkdtemp(prefix="pgo-bench-", dir="/var/tmp"))
    home.chmod(0o755)  # the servers' own account has to reach its folder when this runs as root
    try:
        return _measured(embedded.ensure_running(home / "data").database_url, n_rows)
    finally:
        embedded.purge(home / "data")
        home.rmdir()


def _measured(url: str, n_rows: int) -> dict[str, Any]:
    settings = Settings(
        _env_file=None,
        database_url=url,
        broker_url="redis://no.broker.invalid:1/0",
        training_rows=n_rows,
        training_reports=False,
    )
    runtime = make_runtime(settings)
    migrate.upgrade(runtime.engine)
    with psycopg.connect(url, autocommit=True) as connection:
        columns = ", ".join(f"{name} float8" for name in FEATURES)
        connection.execute(f"CREATE TABLE events (id bigint PRIMARY KEY, {columns})".encode())
        values = ", ".join("random() + random()" for _ in FEATURES)
        connection.execute(
            f"INSERT INTO events SELECT i, {values} FROM generate_series(1, {n_rows}) i".encode()
        )
    request = AttachRequest(relation="events", key="id", features=",".join(FEATURES))
    attaching.attach(runtime, request, recipe_named("default"))
    runtime.engine.dispose()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return {"window_rows": n_rows, **pool.apply(trained, (settings,))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the training window")
    found = measure(parser.parse_args().rows)
    print(
        f"A training over {found['window_rows']:,} rows read {found['n_rows']:,} in {found['seconds']} s and took"
        f" {found['peak_mb']:,} MB at most."
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
