"""What upkeep and the usual questions read where many rows are scored and ten thousand are new, in buffers and seconds:

python -m benchmarks.upkeep [--rows 1000000,10000000] [--json]

Buffers are those of the tables, indexes and TOAST of the user's and ours, found in memory or not, in a server that does
nothing else: pages of 8 kB, one for each time that one is looked at. About 230 MB of disk for a million rows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import psycopg
from pydantic import SecretStr

from pgoutlier import detector
from pgoutlier.db import embedded, migrate
from pgoutlier.db.report import report_rows
from pgoutlier.db.settings import Settings
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import sources
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.db.status import overview
from pgoutlier.db.training import training_rows
from pgoutlier.detector import FitResult, recipe_named
from pgoutlier.detector.drift import Reference
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import TrainingWindow
from pgoutlier.worker.console import console, new_bar, print_table
from pgoutlier.worker.drift import measuring
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.report import of_source
from pgoutlier.worker.report.build import drift_reference
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.sources import attaching
from pgoutlier.worker.thresholds import thresholds
from pgoutlier.worker.upkeep import maintenance

FEATURES = ["amount", "hour", "distance"]
N_NEW = 10_000
N_MISSED = 100
N_VERDICTS = 500
ROWS_A_DAY = 25_000
_ROWS_A_STEP = 500_000
_BUFFERS = """
SELECT sum(coalesce(heap_blks_read, 0) + coalesce(heap_blks_hit, 0) + coalesce(idx_blks_read, 0)
           + coalesce(idx_blks_hit, 0) + coalesce(toast_blks_read, 0) + coalesce(toast_blks_hit, 0)
           + coalesce(tidx_blks_read, 0) + coalesce(tidx_blks_hit, 0))::bigint
FROM pg_statio_user_tables
"""
# A row's features follow from its id, so that it is the same one in a table of every size.
_FEATURES_OF = "exp(sin(i * 12.9898) * 2), i % 24, abs(cos(i * 78.233)) * 100"
# Known of one in five hundred.
_LABEL = "CASE i % 1000 WHEN 0 THEN true WHEN 500 THEN false END"
_ROWS = f"""
INSERT INTO payments SELECT i, now() - ({{n}} - i) * interval '{86_400 / ROWS_A_DAY} s', {_FEATURES_OF}, {_LABEL}
FROM generate_series({{first}}, {{last}}) i
"""
# About one in five hundred is above the threshold.
_SCORES = """
INSERT INTO outlier.scores_payments
    (key, change_id, reconstruction_error, scored_at, model_version, flagged, top_features)
SELECT p.id, p.id, e, p.paid_at, 1, e > t.threshold,
       CASE WHEN e > t.threshold THEN '[{{"feature": "amount", "contribution": 1}}]'::jsonb END
FROM outlier.model_versions t, payments p,
     LATERAL (SELECT t.threshold / 6.2 * -ln(1e-9 + abs(x - floor(x))) FROM (SELECT sin(p.id) * 43758.5453) s (x)) r (e)
WHERE p.id BETWEEN {first} AND {last} ORDER BY p.id
"""


@dataclass(frozen=True)
class Cost:
    """What one use of something took. buffers: pages looked at."""

    buffers: int
    seconds: float


@dataclass(frozen=True)
class Place:
    """Where to measure. connection is a user's own, in autocommit."""

    runtime: Runtime
    connection: psycopg.Connection
    fitted: FitResult
    reference: Reference

    def run(self, statement: str) -> None:
        self.connection.execute(statement.encode())

    @property
    def source(self) -> Source:
        with self.runtime.engine.begin() as connection:
            return sources.find(connection, "payments")


def work(place: Place) -> dict[str, Callable[[], object]]:
    """What is measured, by what it is called."""
    runtime = place.runtime

    def window(name: str, length: timedelta | None) -> tuple[str, Callable[[], object]]:
        return f"what-if, {name}", lambda: thresholds.describe(runtime, "payments", window=length, others=[])

    return {
        "sweep": lambda: maintenance.sweep(runtime, "payments"),
        "prune": lambda: maintenance.prune_all(runtime),
        "drift": lambda: measuring.measure(runtime, "payments"),
        "training: its rows": lambda: _training_read(place),
        "report: its rows": lambda: _report_read(place),
        **dict(
            window(*w) for w in (("a day", timedelta(days=1)), ("a week", timedelta(days=7)), ("all", None))
        ),
        "newest scores": lambda: place.run(
            "SELECT * FROM outlier.scored_payments WHERE scored_at >= now() - interval '1 hour'"
            " ORDER BY scored_at DESC LIMIT 100"
        ),
        "highest errors of today": lambda: place.run(
            "SELECT * FROM outlier.scored_payments WHERE scored_at >= now() - interval '1 hour'"
            " ORDER BY reconstruction_error DESC LIMIT 100"
        ),
        "quality view": lambda: place.run("SELECT * FROM outlier.quality_payments"),
        "status": lambda: _overview(place),
    }


def _training_read(place: Place) -> None:
    newest = place.runtime.settings.training_rows
    with place.runtime.engine.begin() as connection:
        training_rows.read(connection, place.source, newest=newest)


def _report_read(place: Place) -> None:
    definition = place.source.definition
    with place.runtime.engine.begin() as connection:
        report_rows.scored_sample(
            connection, definition, version=1, newest=of_source.NEWEST_ROWS, imputes=False
        )
        report_rows.flagged_features(connection, definition, version=1, newest=1_000)


def _overview(place: Place) -> None:
    with place.runtime.engine.begin() as connection:
        overview.describe(connection, sources.every(connection))


def measure(place: Place, n_rows: int) -> dict[str, Cost]:
    """Each of `work` once, over a table of so many scored rows of which ten thousand are new."""
    _build(place, n_rows)
    maintenance.sweep(place.runtime, "payments", whole=True)
    maintenance.prune_all(place.runtime)
    _add_new(place, n_rows)
    found = {}
    for name, one in work(place).items():
        found[name] = _cost(place, one)
    attaching.detach(place.runtime, "payments")
    place.run("DROP TABLE payments")
    return found


def _cost(place: Place, one: Callable[[], object]) -> Cost:
    before = _buffers(place)
    started = time.perf_counter()
    one()
    seconds = time.perf_counter() - started
    return Cost(_buffers(place) - before, round(seconds, 3))


def _buffers(place: Place) -> int:
    """Of all sessions there have been: each hands in what it counted when it ends."""
    place.runtime.engine.dispose()
    place.run("SELECT pg_stat_force_next_flush()")
    others = "SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    while place.connection.execute(others).rowcount:
        time.sleep(0.01)
    row = place.connection.execute(_BUFFERS.encode()).fetchone()
    return int(row[0]) if row else 0


def _build(place: Place, n_rows: int) -> None:
    """The table, attached, its rows scored by statement, and what there are verdicts on."""
    place.run(
        "CREATE TABLE payments (id bigint PRIMARY KEY, paid_at timestamptz,"
        f" {', '.join(f'{name} double precision' for name in FEATURES)}, fraud boolean)"
    )
    place.run("CREATE INDEX ON payments (paid_at)")
    request = AttachRequest(
        relation="payments", key="id", features=",".join(FEATURES), time="paid_at", label="fraud"
    )
    source = attaching.attach(place.runtime, request, recipe_named("default"), old_rows="swept").source
    with place.runtime.engine.begin() as connection:
        number = registry.register(
            connection,
            source,
            place.fitted.detector,
            window=TrainingWindow(30_000, None, None),
            metrics=place.fitted.metrics,
            seal=place.runtime.seal,
            drift_reference=place.reference,
        )
        registry.promote(connection, source, number, reason="bench", seal=place.runtime.seal)
    place.run("ALTER TABLE payments DISABLE TRIGGER USER")
    with new_bar("{task.completed:,}/{task.total:,}") as bar:
        task = bar.add_task("rows, scored", total=n_rows)
        for first in range(1, n_rows + 1, _ROWS_A_STEP):
            last = min(first + _ROWS_A_STEP - 1, n_rows)
            place.run(_ROWS.format(n=n_rows, first=first, last=last))
            place.run(_SCORES.format(first=first, last=last))
            bar.update(task, completed=last)
    place.run("ALTER TABLE payments ENABLE TRIGGER USER")
    step = n_rows // N_VERDICTS
    place.run(
        "INSERT INTO outlier.verdicts (source, key, verdict) SELECT 'payments', i,"
        f" CASE WHEN i % 2 = 0 THEN 'fraud' ELSE 'normal' END FROM generate_series({step}, {n_rows}, {step}) i"
    )
    place.run("VACUUM ANALYZE payments, outlier.scores_payments, outlier.verdicts")


def _add_new(place: Place, n_rows: int) -> None:
    insert = (
        f"INSERT INTO payments SELECT i, now(), {_FEATURES_OF}, {_LABEL} FROM generate_series({{}}, {{}}) i"
    )
    place.run(insert.format(n_rows + 1, n_rows + N_NEW - N_MISSED))
    draining.drain(place.runtime, "payments")
    place.run("ALTER TABLE payments DISABLE TRIGGER USER")
    place.run(insert.format(n_rows + N_NEW - N_MISSED + 1, n_rows + N_NEW))
    place.run("ALTER TABLE payments ENABLE TRIGGER USER")
    # As long ago as beat lets pass between two looks.
    place.run(
        "UPDATE outlier.upkeep_places SET looked_at = now() - interval '1 s' * CASE task"
        f" WHEN 'sweep' THEN {place.runtime.settings.sweep_every_seconds}"
        f" ELSE {place.runtime.settings.prune_every_seconds} END"
    )


def _fitted() -> tuple[FitResult, Reference]:
    """One small fit, for tables of every size, and what drift is measured against."""
    rng = np.random.default_rng(0)
    rows = np.column_stack(
        [rng.lognormal(size=5_000), rng.integers(0, 24, 5_000), rng.uniform(0, 100, 5_000)]
    )
    fitted = detector.fit(recipe_named("default"), rows, FEATURES)
    return fitted, drift_reference(fitted, rows)


@contextmanager
def _place() -> Iterator[Place]:
    home = Path(tempfile.mkdtemp(prefix="pgo-bench-", dir="/var/tmp"))
    home.chmod(0o755)  # the servers' own account has to reach its folder when this runs as root
    data_dir = home / "data"
    servers = embedded.ensure_running(data_dir)
    try:
        with psycopg.connect(servers.database_url, autocommit=True) as connection:
            for setting in ("autovacuum = off", "max_wal_size = '4GB'"):
                connection.execute(f"ALTER SYSTEM SET {setting}".encode())
            connection.execute("SELECT pg_reload_conf()")
            settings = Settings(
                _env_file=None,
                data_dir=data_dir,
                database_url=SecretStr(servers.database_url),
                broker_url=SecretStr(servers.broker_url),
            )
            runtime = make_runtime(settings, application_name="bench")
            migrate.upgrade(runtime.engine)
            yield Place(runtime, connection, *_fitted())
            runtime.engine.dispose()
    finally:
        embedded.purge(data_dir)
        home.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="1000000,10000000", help="scored rows, one table after the other")
    parser.add_argument("--json", action="store_true", help="one line of JSON in place of the table")
    given = parser.parse_args()
    sizes = [int(size) for size in given.rows.split(",")]
    configure_logs("console", level=40)
    with _place() as place:
        found = {size: measure(place, size) for size in sizes}
    if given.json:
        print(json.dumps({size: {n: vars(c) for n, c in costs.items()} for size, costs in found.items()}))
        return
    columns = [f"{size:,}: {what}" for size in sizes for what in ("buffers", "seconds")]
    rows = [
        [name, *(shown for s in sizes for shown in (f"{found[s][name].buffers:,}", found[s][name].seconds))]
        for name in found[sizes[0]]
    ]
    print_table(f"upkeep with {N_NEW:,} new rows", ["what", *columns], rows)
    console.print("buffers: pages of 8 kB, one each time that one is looked at", highlight=False)


if __name__ == "__main__":
    main()
