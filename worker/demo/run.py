"""The demo: the main job from an empty server to flagged rows, on servers of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pgoutlier.db import embedded, migrate
from pgoutlier.db.demo import demo_tables
from pgoutlier.db.embedded import lock_file
from pgoutlier.db.settings import PREFIX, Settings
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.db.sql.identifiers import display
from pgoutlier.db.versions import aliases
from pgoutlier.worker import alone
from pgoutlier.worker.alone import Place
from pgoutlier.worker.console import epoch_bar, errors, seconds_text
from pgoutlier.worker.demo.dataset import Dataset, DatasetError, as_csv
from pgoutlier.worker.demo.figures import Outcome, measure_detection
from pgoutlier.worker.demo.stream import Stopwatch, insert_live
from pgoutlier.worker.processes import Supervisor, plans
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.sources import attaching, indexing
from pgoutlier.worker.status.status import alive_workers
from pgoutlier.worker.training import recipes, training
from pgoutlier.worker.upkeep import maintenance

SOURCE = "transactions"
_STARTUP_SECONDS = 90.0
# The backlog and the last live rows have this long before the demo gives up on them.
_DRAIN_SECONDS = 300.0
_PLAIN_SECONDS = 3.0


@dataclass(frozen=True)
class Plan:
    """live_share of the rows, the last ones, are inserted live over live_seconds; the others are there before."""

    live_share: float = 0.2
    live_seconds: float = 20.0


@dataclass(frozen=True)
class Stage:
    """Where a demo runs: settings with servers of its own, and where the processes that it starts are written down."""

    settings: Settings
    place: Place


@contextmanager
def servers_of_its_own(settings: Settings, data_dir: Path, *, keep: Callable[[], bool]) -> Iterator[Stage]:
    """Fresh embedded servers in data_dir; stopped and deleted at the end unless keep().

    The environment names them too, for Celery in this process and for the processes it starts.
    """
    with _only_demo(data_dir) as place:
        for name in place.left:
            errors.print(f"Ended the {name} process that an earlier demo had left.", highlight=False)
        if data_dir.exists():
            errors.print(f"Replacing the demo that was kept in {data_dir}.", highlight=False)
            embedded.purge(data_dir)
        with _servers(settings, data_dir, keep) as own:
            yield Stage(own, place)


@contextmanager
def _only_demo(data_dir: Path) -> Iterator[Place]:
    """One demo at a time in a data folder. Raises DatasetError if there is another."""
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    path = data_dir.with_name(data_dir.name + ".lock")
    try:
        with alone.place(path) as place:
            yield place
    except lock_file.HeldByAnother:
        raise DatasetError(
            "Another demo is running; wait for it, or set PGOUTLIER_DATA_DIR to another folder."
        ) from None


@contextmanager
def _servers(settings: Settings, data_dir: Path, keep: Callable[[], bool]) -> Iterator[Settings]:
    keeper = _purge_if_killed(data_dir)
    try:
        servers = embedded.ensure_running(data_dir)
        os.environ[f"{PREFIX}DATABASE_URL"] = servers.database_url
        os.environ[f"{PREFIX}DATABASE_DIRECT_URL"] = ""  # which leads to a database of the user's
        os.environ[f"{PREFIX}BROKER_URL"] = servers.broker_url
        os.environ[f"{PREFIX}DATA_DIR"] = str(data_dir)
        yield settings.model_copy(
            update={
                "data_dir": data_dir,
                "database_url": SecretStr(servers.database_url),
                "database_direct_url": None,
                "broker_url": SecretStr(servers.broker_url),
            }
        )
    finally:
        if not keep():
            embedded.purge(data_dir)
        keeper.communicate(b"done")


def _purge_if_killed(data_dir: Path) -> subprocess.Popen[bytes]:
    """A process that removes the servers when this one ends without having told it that all is done.

    The servers are daemons, so nothing else ends them where the demo is ended by kill -9.
    """
    script = (
        "import sys; from pathlib import Path\n"
        "if sys.stdin.read() != 'done':\n"
        "    from pgoutlier.db import embedded\n"
        "    embedded.purge(Path(sys.argv[1]))"
    )
    return subprocess.Popen(  # noqa: S603 - our own command line
        [sys.executable, "-c", script, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def run(console: Console, stage: Stage, dataset: Dataset, plan: Plan) -> Outcome:
    """The whole demo. Returns what it measured. Every process it starts ends with it."""
    runtime = make_runtime(stage.settings, application_name="pgoutlier demo")
    migrate.upgrade(runtime.engine)
    lines = as_csv(dataset.rows)
    n_history = len(lines) - int(len(lines) * plan.live_share)
    _say(console, f"Table public.transactions: {dataset.title}; {n_history:,} of them are history.")
    source = _prepare(console, runtime, dataset, lines[:n_history])
    with epoch_bar("training", SOURCE) as on_progress:
        trained = training.train(runtime, SOURCE, promote=True, on_progress=on_progress)
    for sentence in trained.sentences():
        console.print(sentence, highlight=False)
    supervisor = _supervisor(stage.settings)
    with _progress(console) as show, _running(supervisor, stage.place):
        _wait_for_workers(show, supervisor)
        started = time.perf_counter()
        maintenance.sweep(runtime, SOURCE, whole=True)
        _wait_until_scored(show, runtime, source, supervisor, n_history, inserted=n_history)
        rows_per_second = n_history / (time.perf_counter() - started)
        stopwatch = _live(show, runtime, source, supervisor, dataset, lines[n_history:], n_history, plan)
        dead = supervisor.dead()
    with runtime.engine.begin() as connection:
        totals = demo_tables.totals(connection, source)
        keys, row_errors, flagged = demo_tables.errors_by_key(connection, source.definition)
        champion = aliases.alias(connection, source.id)
        worst = demo_tables.worst_flagged(connection, source.definition, above_key=n_history, limit=12)
    outcome = Outcome(
        totals=totals,
        latency_ms=stopwatch.percentiles(),
        rows_per_second=rows_per_second,
        detection=measure_detection(keys, row_errors, flagged, dataset.fraud_kinds, after_key=n_history),
        model_version=champion.version if champion else trained.version,
        dead_processes=dead,
        worst=worst,
    )
    runtime.engine.dispose()
    return outcome


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _prepare(console: Console, runtime: Runtime, dataset: Dataset, history: list[bytes]) -> Source:
    started = time.perf_counter()
    columns = [str(name) for name in dataset.rows.columns]
    with runtime.engine.begin() as connection:
        demo_tables.create(connection, dataset.key, dataset.column_types)
        demo_tables.insert_csv(connection, columns, history)
        demo_tables.insert_truth(connection, dataset.fraud_kinds or [])
    _say(console, f"History written in {seconds_text(time.perf_counter() - started)}.")
    request = AttachRequest(
        relation="public.transactions",
        key=display(dataset.key),
        features=", ".join(dataset.features),
        time=dataset.time,
        entity=dataset.entity,
        label=dataset.label,
        name=SOURCE,
    )
    recipe = recipes.chosen_recipe("default", threshold=dataset.threshold)
    source = attaching.attach(runtime, request, recipe, old_rows="swept").source
    _say(console, f"Attached {source.definition.describe()}.")
    for statement in indexing.make(runtime, source.definition, recipe):
        _say(console, f"Made for that: {statement}")
    return source


def _supervisor(settings: Settings) -> Supervisor:
    log = settings.data_dir / "demo-processes.log"
    lock = threading.Lock()

    def write(name: str, line: str) -> None:
        with lock, log.open("a") as file:
            file.write(f"{name:>8} | {line}\n")

    return Supervisor(
        plans(score_threads=settings.score_threads),
        on_line=write,
        environment={"PGOUTLIER_LOG_FORMAT": "console"},
    )


@contextmanager
def _running(supervisor: Supervisor, place: Place) -> Iterator[None]:
    supervisor.start()
    try:
        place.note(supervisor.pids())
        yield
    finally:
        supervisor.stop()


@dataclass
class _Show:
    """One progress line: inserted / scored / flagged / lag."""

    bar: Progress
    task: Any
    _said_at: float = 0.0

    def step(self, what: str, *, total: int | None = None, done: int = 0, note: str = "") -> None:
        self.bar.update(self.task, description=what, total=total, completed=done, note=note)
        console = self.bar.console
        if not console.is_terminal and time.monotonic() - self._said_at > _PLAIN_SECONDS:
            # Where no bar can be drawn (a pipe, a log) a line now and then says the same.
            self._said_at = time.monotonic()
            console.print(f"{what}: {note}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _progress(console: Console) -> Iterator[_Show]:
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Show(bar, bar.add_task("", total=None, note=""))


def _wait_for_workers(show: _Show, supervisor: Supervisor) -> None:
    show.step("starting the processes", note="score, train, beat, listener")
    deadline = time.monotonic() + _STARTUP_SECONDS
    while time.monotonic() < deadline and not supervisor.dead():
        if len(alive_workers() or []) >= 2:
            return
        time.sleep(0.2)


def _wait_until_scored(
    show: _Show, runtime: Runtime, source: Source, supervisor: Supervisor, target: int, *, inserted: int
) -> None:
    deadline = time.monotonic() + _DRAIN_SECONDS
    while time.monotonic() < deadline and not supervisor.dead():
        done = _show_progress(show, runtime, source, "scoring history", inserted)
        if done >= target:
            return
        time.sleep(0.05)


def _show_progress(show: _Show, runtime: Runtime, source: Source, what: str, inserted: int) -> int:
    """Returns how many rows are settled: scored or in quarantine."""
    with runtime.engine.begin() as connection:
        scored, flagged, quarantined = demo_tables.progress(connection, source)
    settled = scored + quarantined
    note = (
        f"inserted {inserted:,}  scored {scored:,}  flagged {flagged:,}  lag {max(0, inserted - settled):,}"
    )
    show.step(what, total=inserted, done=settled, note=note)
    return settled


def _live(
    show: _Show,
    runtime: Runtime,
    source: Source,
    supervisor: Supervisor,
    dataset: Dataset,
    lines: list[bytes],
    n_history: int,
    plan: Plan,
) -> Stopwatch:
    stopwatch = Stopwatch(runtime.engine, source)
    stopwatch.start()
    inserted = n_history
    failure: list[BaseException] = []

    def count(n: int) -> None:
        nonlocal inserted
        inserted = n_history + n

    def insert() -> None:
        try:
            insert_live(
                runtime.engine,
                dataset,
                lines,
                stopwatch,
                seconds=plan.live_seconds,
                first_key=n_history + 1,
                on_inserted=count,
            )
        except BaseException as error:
            failure.append(error)

    writer = threading.Thread(target=insert, daemon=True)
    writer.start()
    while writer.is_alive() and not supervisor.dead():
        _show_progress(show, runtime, source, "live inserts", inserted)
        writer.join(0.25)
    if failure:
        raise failure[0]
    _wait_until_scored(show, runtime, source, supervisor, inserted, inserted=inserted)
    stopwatch.stop()
    return stopwatch
