"""What many small sources cost: python -m benchmarks.sources [--sources 500] [--rows 200] [--json]

Each is a table of three doubles with a champion, all of whose rows are scored. One is measured against that many:
looks of the tasks that beat sends (seconds and statements), `status` and `doctor` (seconds and lines), from the start
of a score worker to its first score, connections by process, one more `attach`, and a migration down and up again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from pydantic import SecretStr
from sqlalchemy import event

from pgoutlier import detector
from pgoutlier.db import embedded, migrate
from pgoutlier.db.scoring import bell
from pgoutlier.db.settings import Settings
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import TrainingWindow
from pgoutlier.worker.console import console, new_bar, print_table
from pgoutlier.worker.drift import measuring
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.notices import delivering
from pgoutlier.worker.processes import Supervisor, plans
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.sources import attaching
from pgoutlier.worker.training import training
from pgoutlier.worker.upkeep import maintenance

FEATURES = ["amount", "hour", "distance"]
_PROGRAM = str(Path(sys.executable).parent / "pgoutlier")
_LONGEST_SECONDS = 300.0
# How long all processes are watched for their connections, while every source gets rows.
_WATCHED_SECONDS = 20.0


class _Counting(psycopg.Cursor[Any]):
    """Counts what is sent."""

    n_statements = 0

    def execute(self, *arguments: Any, **named: Any) -> Any:
        _Counting.n_statements += 1
        return super().execute(*arguments, **named)


@dataclass(frozen=True)
class Place:
    """Where to measure. connection is a user's own, in autocommit."""

    runtime: Runtime
    connection: psycopg.Connection
    environment: dict[str, str]
    fitted: detector.FitResult

    def run(self, statement: str) -> Any:
        return self.connection.execute(statement.encode())

    def one(self, statement: str) -> Any:
        row = self.run(statement).fetchone()
        return None if row is None else row[0]


@contextmanager
def ground() -> Iterator[Place]:
    """Fresh servers; leaves nothing behind."""
    home = Path(tempfile.mkdtemp(prefix="pgo-bench-", dir="/var/tmp"))
    home.chmod(0o755)  # the servers' own account has to reach its folder when this runs as root
    data_dir = home / "data"
    servers = embedded.ensure_running(data_dir)
    try:
        settings = Settings(
            data_dir=data_dir,
            database_url=SecretStr(servers.database_url),
            broker_url=SecretStr(servers.broker_url),
            drain_budget_seconds=3_600,
            training_reports=False,
        )
        runtime = make_runtime(settings, application_name="bench")
        event.listen(runtime.engine, "connect", _count)
        migrate.upgrade(runtime.engine)
        environment = {
            "PGOUTLIER_DATABASE_URL": servers.database_url,
            "PGOUTLIER_BROKER_URL": servers.broker_url,
            "PGOUTLIER_DATA_DIR": str(data_dir),
        }
        rows = np.random.default_rng(0).normal(size=(5_000, len(FEATURES)))
        fitted = detector.fit(detector.recipe_named("default"), rows, FEATURES)
        with psycopg.connect(servers.database_url, autocommit=True) as connection:
            yield Place(runtime, connection, environment, fitted)
        runtime.engine.dispose()
    finally:
        embedded.purge(data_dir)
        home.rmdir()


def _count(driver: psycopg.Connection[Any], _: object) -> None:
    driver.cursor_factory = _Counting


def attach(place: Place, number: int, *, n_rows: int) -> float:
    """Make a table of so many rows, attach it and give it a champion. Returns the seconds that the attach took."""
    name = f"payments_{number:03}"
    place.run(
        f"CREATE TABLE {name} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, amount double precision NOT NULL,"
        " hour double precision NOT NULL, distance double precision NOT NULL)"
    )
    _insert(place, name, n_rows)
    request = AttachRequest(relation=name, key="id", features=",".join(FEATURES))
    recipe = detector.recipe_named("default")
    started = time.perf_counter()
    source = attaching.attach(place.runtime, request, recipe, old_rows="swept").source
    took = time.perf_counter() - started
    with place.runtime.engine.begin() as connection:
        version = registry.register(
            connection,
            source,
            place.fitted.detector,
            window=TrainingWindow(n_rows, None, None),
            metrics=place.fitted.metrics,
            seal=place.runtime.seal,
        )
        registry.promote(connection, source, version, reason="bench", seal=place.runtime.seal)
    return took


def _insert(place: Place, name: str, n_rows: int) -> None:
    place.run(
        f"INSERT INTO {name} (amount, hour, distance)"
        f" SELECT random(), i % 24, random() FROM generate_series(1, {n_rows}) i"
    )


def looks(place: Place) -> dict[str, tuple[float, int]]:
    """By task or look: (seconds, statements) of one that finds nothing to do."""
    runtime = place.runtime
    ids = bell.audible(place.connection)
    work: dict[str, Callable[[], object]] = {
        "score.drain_all": lambda: draining.sources_with_work(runtime),
        "jobs.work_all": lambda: job_control.work_all(runtime, lambda job: None),
        "webhook.deliver_all": lambda: delivering.sources_due(runtime),
        "models.train_due": lambda: training.sources_due(runtime),
        "score.sweep_all": lambda: maintenance.sweep_all(runtime),
        "maintenance.prune_all": lambda: maintenance.prune_all(runtime),
        "drift.measure_all": lambda: measuring.measure_all(runtime, train=lambda name, run: None),
        "a look of the listener": lambda: bell.newest(place.connection, ids),
    }
    found = {}
    for name, look in work.items():
        look()  # unmeasured: the catalogue's pages and the session's caches
        before = _Counting.n_statements
        started = time.perf_counter()
        look()
        found[name] = (time.perf_counter() - started, _Counting.n_statements - before)
    return found


def command(place: Place, *words: str) -> tuple[float, int]:
    """Seconds and lines of a command; the second of two runs."""
    for _ in range(2):
        started = time.perf_counter()
        said = _output(place, *words)
        took = time.perf_counter() - started
    return took, said.count(b"\n")


def _output(place: Place, *words: str) -> bytes:
    done = subprocess.run([_PROGRAM, *words], capture_output=True, env={**os.environ, **place.environment})
    if done.returncode not in (0, 1) or b"Traceback" in done.stderr:
        raise RuntimeError(done.stderr.decode())
    return done.stdout


@contextmanager
def running(place: Place, *names: str) -> Iterator[Supervisor]:
    """The processes that `up` starts, or those of these names."""
    chosen = [p for p in plans(score_threads=2, log_level="WARNING") if not names or p.name in names]
    supervisor = Supervisor(chosen, on_line=lambda name, line: None, environment=place.environment)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()


def start_seconds(place: Place, name: str) -> float:
    """From the start of a score worker, rows of this source waiting, to their scores."""
    _insert(place, name, 10)
    started = time.perf_counter()
    with running(place, "score"):
        _until(lambda: place.one(f"SELECT count(*) FROM outlier.queue_{name}") == 0)
        return time.perf_counter() - started


def connections(place: Place, names: list[str]) -> Counter[str]:
    """The most connections that each process has had at once, while every source gets rows again and again."""
    most: Counter[str] = Counter()
    with running(place):
        ends_at = time.monotonic() + _WATCHED_SECONDS
        while time.monotonic() < ends_at:
            for name in names[:: max(1, len(names) // 50)]:
                _insert(place, name, 20)
            found = place.run(
                "SELECT application_name, count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgoutlier%'"
                " GROUP BY 1"
            ).fetchall()
            for application, n in found:
                most[application] = max(most[application], n)
    return most


def migration(place: Place) -> dict[str, float]:
    """Seconds of one down and up again, and the most locks held meanwhile."""
    taken = {}
    for what, work in {
        "downgrade by one": lambda: migrate.downgrade(place.runtime.engine, "-1"),
        "upgrade by one": lambda: migrate.upgrade(place.runtime.engine),
    }.items():
        started = time.perf_counter()
        work()
        taken[what] = time.perf_counter() - started
    return taken


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LONGEST_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not done after {_LONGEST_SECONDS:.0f} s")
        time.sleep(0.01)


def _attached(place: Place, first: int, last: int, *, n_rows: int) -> tuple[list[str], float]:
    """(names, seconds that the last attach took) of these, all of whose rows are scored."""
    names = [f"payments_{number:03}" for number in range(first, last + 1)]
    took = 0.0
    with new_bar("{task.completed}/{task.total}") as bar:
        task = bar.add_task("attach", total=len(names))
        for number in range(first, last + 1):
            took = attach(place, number, n_rows=n_rows)
            bar.update(task, advance=1)
    maintenance.sweep_all(place.runtime)
    for name in names:
        draining.drain(place.runtime, name)
    place.run("ANALYZE")
    return names, took


def measure(place: Place, names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"looks": looks(place)}
    with running(place):
        _until(lambda: len(json.loads(_output(place, "status", "--json"))["workers"] or ()) == 2)
        for words in ("status", "status --json", "doctor"):
            found[words] = command(place, *words.split())
    return found | {
        "start": start_seconds(place, names[-1]),
        "connections": dict(connections(place, names)),
        "migration": migration(place),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=int, default=500)
    parser.add_argument("--rows", type=int, default=200, help="of each table")
    parser.add_argument("--json", action="store_true", help="print one line of JSON as well")
    arguments = parser.parse_args()
    configure_logs("console", level=50)
    with ground() as place:
        names, attach_one = _attached(place, 1, 1, n_rows=arguments.rows)
        single = {**measure(place, names), "attach": attach_one}
        more, _ = _attached(place, 2, arguments.sources, n_rows=arguments.rows)
        many = measure(place, [*names, *more])
        many["attach"] = attach(place, arguments.sources + 1, n_rows=arguments.rows)
    _show(single, many, n_sources=arguments.sources)
    if arguments.json:
        console.file.write(json.dumps({"one": single, "many": many}) + "\n")


def _show(single: dict[str, Any], many: dict[str, Any], *, n_sources: int) -> None:
    def lines(found: dict[str, Any]) -> dict[str, str]:
        shown = {
            f"{name}": f"{seconds:.2f} s, {n:,} statements" for name, (seconds, n) in found["looks"].items()
        }
        for name in ("status", "status --json", "doctor"):
            shown[name] = f"{found[name][0]:.1f} s, {found[name][1]:,} lines"
        shown["start of a score worker to scores"] = f"{found['start']:.1f} s"
        shown["attach of one more"] = f"{found['attach']:.2f} s"
        shown |= {name: f"{seconds:.2f} s" for name, seconds in found["migration"].items()}
        for application, n in found["connections"].items():
            kind = " ".join(word for word in application.split() if not word.isdigit())
            shown[f"connections of {kind}"] = str(n)
        return shown

    of_one, of_many = lines(single), lines(many)
    print_table(
        "many sources",
        ["what", "1", f"{n_sources:,}"],
        [(name, of_one.get(name), value) for name, value in of_many.items()],
    )
    console.file.flush()


if __name__ == "__main__":
    main()
