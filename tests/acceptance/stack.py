"""Real servers and real processes for the acceptance tests.

What is started here is killed here, whatever becomes of the test.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import psycopg
from psycopg import sql

from pgoutlier.db import embedded, migrate
from pgoutlier.db.embedded import ServerKit
from pgoutlier.db.scoring import features
from pgoutlier.db.settings import Settings
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.db.sql.statements import compose
from pgoutlier.detector import Detector, Recipe
from pgoutlier.detector.recipes import Layer, QuantileThreshold, Split
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import TrainingWindow
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.sources import attaching, listing
from pgoutlier.worker.versions import versions
from tests.support import HUNG_SECONDS, until

N_FEATURES = 6
COLUMNS = tuple(f"f{i}" for i in range(N_FEATURES))
SIGNING_KEY = "acceptance-signing-key-that-must-not-leak"


def quick_recipe(**changes: object) -> Recipe:
    """A recipe that fits in about a second."""
    fields: dict[str, object] = {
        "name": "quick",
        "layers": (Layer(units=8, activation="elu"), Layer(units=3, activation="tanh")),
        "batch_size": 128,
        "epochs": 2,
        "early_stopping": None,
        "split": Split(fit_fraction=0.7, order="random"),
        "threshold": QuantileThreshold(contamination=0.02),
    }
    return Recipe(**{**fields, **changes})


@dataclass
class Started:
    """A process of ours in a session of its own, with its output in a file."""

    name: str
    child: subprocess.Popen[bytes]
    log: Path
    ready_sign: str = ""

    @property
    def pid(self) -> int:
        return self.child.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def alive(self) -> bool:
        return self.child.poll() is None

    def ready(self) -> bool:
        assert self.alive(), f"{self.name} ended: {self.output()[-2000:]}"
        return self.ready_sign in self.output()

    def kill(self) -> None:
        """kill -9 of the process and of all its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


@dataclass
class Stack:
    """One pair of servers and the processes that a test starts on it."""

    kit: ServerKit
    logs: Path
    runtime: Runtime
    environment: dict[str, str]
    processes: list[Started] = field(default_factory=list)
    python: str = sys.executable

    # -- processes

    def start(self, name: str, *command: str, ready_sign: str = "", **settings: object) -> Started:
        """Start a command in the background; settings become PGOUTLIER_* variables."""
        log = self.logs / f"{len(list(self.logs.iterdir()))}-{name}.log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                [self.python, "-m", *command],
                cwd=self.logs,
                env=self._environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = Started(name, child, log, ready_sign)
        self.processes.append(started)
        return started

    def score_worker(self, name: str = "score", *, threads: int = 2, **settings: object) -> Started:
        return self.start(
            name,
            *("celery", "-A", "pgoutlier.worker", "worker", "-n", f"{name}@%h", "-Q", "score,admin"),
            *("-P", "threads", "-c", str(threads), "--without-gossip", "--without-mingle", "-l", "INFO"),
            ready_sign=" ready.",
            **settings,
        )

    def train_worker(self, **settings: object) -> Started:
        return self.start(
            "train",
            *("celery", "-A", "pgoutlier.worker", "worker", "-n", "train@%h", "-Q", "train", "-P", "prefork"),
            *("-c", "1", "--max-tasks-per-child", "1", "-l", "INFO"),
            ready_sign=" ready.",
            **settings,
        )

    def listener(self, **settings: object) -> Started:
        return self.start("listener", "pgoutlier.worker.cli", "listener", ready_sign="listening", **settings)

    def beat(self, **settings: object) -> Started:
        return self.start(
            "beat",
            *("celery", "-A", "pgoutlier.worker", "beat", "-l", "INFO"),
            ready_sign="beat_ready",
            **settings,
        )

    def command(self, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run `pgoutlier` to its end."""
        return self.module("pgoutlier.worker.cli", *arguments, **settings)

    def module(
        self, *arguments: str, python_options: Sequence[str] = (), **settings: object
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *python_options, "-m", *arguments],
            cwd=self.logs,
            env=self._environment(settings),
            capture_output=True,
            text=True,
            timeout=120,
            start_new_session=True,
        )

    def environment_with(self, **settings: object) -> dict[str, str]:
        """Of a process on these servers; settings become PGOUTLIER_* variables."""
        return self._environment(settings)

    def _environment(self, settings: dict[str, object]) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "CELERY", "COLUMNS"))}
        ours = {f"PGOUTLIER_{name.upper()}": str(value) for name, value in settings.items()}
        return {**inherited, **self.environment, **ours}

    def until_ready(self, *processes: Started) -> None:
        for process in processes or self.processes:
            until(process.ready, f"{process.name} is ready")

    def stop(self) -> None:
        for process in self.processes:
            process.kill()

    def kill_amid(self, workers: list[Started], relation: str, moments: random.Random) -> None:
        """kill -9 of a worker, which is taken off the list, at a random moment when it holds rows of a table locked."""
        worker = self.stop_amid(workers, relation, moments)
        worker.kill()
        workers.remove(worker)

    def stop_amid(self, workers: list[Started], relation: str, moments: random.Random) -> Started:
        """Stop a worker by a signal, so that it is amid a transaction that has rows of a table locked, and stays so."""
        stopped: list[Started] = []

        def amid() -> bool:
            time.sleep(moments.uniform(0, 0.1))
            for worker in moments.sample(workers, len(workers)):
                os.kill(worker.pid, signal.SIGSTOP)
                if self._holds_rows(worker, relation):
                    stopped.append(worker)
                    return True
                os.kill(worker.pid, signal.SIGCONT)
            return False

        until(amid, f"a worker is amid a transaction on {relation}")
        return stopped[0]

    def _holds_rows(self, worker: Started, relation: str) -> bool:
        """Of a stopped worker: whether a transaction with rows locked waits for it, or for a lock of another's."""
        return bool(
            self.one(
                "SELECT count(*) FROM pg_stat_activity a JOIN pg_locks l USING (pid) WHERE a.application_name = %s"
                " AND l.relation = to_regclass(%s) AND l.mode = 'RowShareLock'"
                " AND (a.state LIKE 'idle in transaction%%' OR a.wait_event_type = 'Lock')",
                f"pgoutlier worker {worker.pid}",
                relation,
            )
        )

    def tails(self) -> str:
        return "\n".join(f"--- {p.log.name}\n{p.output()[-3000:]}" for p in self.processes)

    # -- database

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.kit.postgres.url, autocommit=True)

    def one(self, statement: str, *parameters: object) -> object:
        with self.connect() as connection:
            row = connection.execute(statement.encode(), parameters or None).fetchone()
        assert row is not None
        return row[0]

    def status(self) -> dict[str, object]:
        done = self.command("status", "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@dataclass
class Table:
    """An attached table of random rows: id, f0 .. f5. id_in_ours: what holds the id in our tables."""

    stack: Stack
    name: str
    source: Source
    id_in_ours: str = "key"

    def insert(
        self, n_rows: int, *, connection: psycopg.Connection[tuple[object, ...]] | None = None
    ) -> None:
        """Insert rows by one statement."""
        statement = (
            f"INSERT INTO {self.name} ({', '.join(COLUMNS)})"
            f" SELECT {', '.join('random() * 4 - 2' for _ in COLUMNS)} FROM generate_series(1, {n_rows})"
        ).encode()
        if connection is not None:
            connection.execute(statement)
            return
        with self.stack.connect() as own:
            own.execute(statement)

    def insert_singly(self, n_rows: int) -> None:
        """Insert rows by one statement and one transaction each."""
        with self.stack.connect() as connection:
            for _ in range(n_rows):
                self.insert(1, connection=connection)

    def register(self, detector: Detector, *, promote: bool = True) -> int:
        runtime = self.stack.runtime
        with runtime.engine.begin() as connection:
            window = TrainingWindow(n_rows=500, first=None, last=None)
            version = registry.register(
                connection, self.source, detector, window=window, metrics={}, seal=runtime.seal
            )
            if promote:
                registry.promote(connection, self.source, version, reason="test", seal=runtime.seal)
        return version

    def challenge(self, detector: Detector) -> int:
        """Register a detector and make it the challenger."""
        version = self.register(detector, promote=False)
        versions.challenge(self.stack.runtime, self.name, version, reason="test")
        return version

    def audit(self) -> None:
        """From now on record each committed write of a score."""
        with self.stack.connect() as connection:
            connection.execute(
                f"""
                CREATE TABLE audit_{self.name} (key bigint, what text, backend integer);
                CREATE FUNCTION audit_{self.name}() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    INSERT INTO audit_{self.name} SELECT n.{self.id_in_ours}, TG_OP, pg_backend_pid() FROM new_rows n;
                    RETURN NULL;
                END $$;
                CREATE TRIGGER audit_insert AFTER INSERT ON outlier.scores_{self.name}
                    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION audit_{self.name}();
                CREATE TRIGGER audit_update AFTER UPDATE ON outlier.scores_{self.name}
                    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION audit_{self.name}();
                """.encode()
            )

    @property
    def n_rows(self) -> int:
        return int(str(self.stack.one(f"SELECT count(*) FROM {self.name}")))

    @property
    def n_scored(self) -> int:
        return int(str(self.stack.one(f"SELECT count(*) FROM outlier.scores_{self.name}")))

    @property
    def n_unscored(self) -> int:
        return int(
            str(
                self.stack.one(
                    f"SELECT count(*) FROM {self.name} t WHERE NOT EXISTS"
                    f" (SELECT FROM outlier.scores_{self.name} s WHERE s.{self.id_in_ours} = t.id)"
                )
            )
        )

    @property
    def n_queued(self) -> int:
        return int(str(self.stack.one(f"SELECT coalesce(sum(n_keys), 0) FROM outlier.queue_{self.name}")))

    def drained(self) -> bool:
        return self.n_queued == 0

    def assert_scored_once(self) -> None:
        """Every row has one score, which was written once (needs `audit` from the start)."""
        n_rows = self.n_rows
        with self.stack.connect() as connection:
            counts = connection.execute(
                f"SELECT count(*), count(DISTINCT {self.id_in_ours}) FROM outlier.scores_{self.name}".encode()
            ).fetchone()
            writes = connection.execute(
                f"SELECT key, count(*) FROM audit_{self.name} GROUP BY key HAVING count(*) <> 1".encode()
            ).fetchall()
            n_written = connection.execute(f"SELECT count(*) FROM audit_{self.name}".encode()).fetchone()
        assert writes == []
        assert counts == (n_rows, n_rows)
        assert n_written == (n_rows,)
        assert self.n_unscored == 0
        assert self.drained()
        assert self.stack.one("SELECT count(*) FROM outlier.quarantine") == 0

    def audit_matches(self) -> None:
        """No row scored so far was scored twice, and each is scored or still queued."""
        writes = f"SELECT count(*) = count(DISTINCT key) FROM audit_{self.name}"
        assert self.stack.one(writes) is True
        assert self.n_scored + self.n_queued == self.n_rows

    def errors_and_expected(self, detector: Detector) -> tuple[np.ndarray, np.ndarray]:
        """The stored reconstruction errors, and fresh ones of the features as they are now, by key."""
        definition = self.source.definition
        with self.stack.runtime.engine.begin() as connection:
            keys, rows = features.read(
                connection,
                definition,
                origin=compose(
                    "FROM {t} t JOIN {s} s ON s.key = t.id",
                    t=definition.relation.sql(),
                    s=sql.Identifier("outlier", f"scores_{self.name}"),
                ),
                params={},
                number=sql.SQL("t.id"),
                longest_key_bytes=0,
            )
        with self.stack.connect() as own:
            stored = own.execute(
                f"SELECT s.reconstruction_error FROM outlier.scores_{self.name} s"
                f" JOIN {self.name} t ON t.id = s.key ORDER BY t.id".encode()
            ).fetchall()
        return np.array(stored).ravel(), detector.score(rows.matrix[np.argsort(keys)]).reconstruction_error


# Keys of tables: further columns of them, and what follows the columns.
KEYS = {
    "id": ("", ""),
    "tenant,id": ("tenant integer NOT NULL DEFAULT (random() * 20)::integer,", ""),
    "id,at": (
        "at timestamptz NOT NULL DEFAULT timestamptz '2026-01-01 00:00+00' + random() * interval '360 days',",
        "PARTITION BY RANGE (at);"
        + ";".join(
            f" CREATE TABLE {{name}}_{month} PARTITION OF {{name}} FOR VALUES FROM"
            f" (timestamptz '2026-01-01 00:00+00' + interval '{30 * month} days')"
            f" TO (timestamptz '2026-01-01 00:00+00' + interval '{30 * month + 30} days')"
            for month in range(13)
        ),
    ),
}


@dataclass
class Servers:
    """A pair of servers with the schema in place."""

    kit: ServerKit
    runtime: Runtime
    environment: dict[str, str]
    scratch: Path
    n_tables: int = 0

    @classmethod
    def make(cls, scratch: Path) -> Servers:
        data_dir = scratch / "d"
        urls = embedded.ensure_running(data_dir)
        settings = Settings(
            _env_file=None,
            database_url=urls.database_url,
            broker_url=urls.broker_url,
            data_dir=data_dir,
            signing_key=SIGNING_KEY,
        )
        runtime = make_runtime(settings, application_name="acceptance test")
        migrate.upgrade(runtime.engine)
        environment = {
            "PGOUTLIER_DATABASE_URL": urls.database_url,
            "PGOUTLIER_BROKER_URL": urls.broker_url,
            "PGOUTLIER_DATA_DIR": str(data_dir),
            "PGOUTLIER_SIGNING_KEY": SIGNING_KEY,
            "PGOUTLIER_DRAIN_EVERY_SECONDS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        return cls(ServerKit.of(data_dir), runtime, environment, scratch)

    def stack(self) -> Stack:
        logs = Path(tempfile.mkdtemp(prefix="logs-", dir=self.scratch))
        return Stack(self.kit, logs, self.runtime, dict(self.environment))

    def table(self, stack: Stack, *, key: str = "id") -> Table:
        """A new attached table. key: one of KEYS."""
        self.n_tables += 1
        name = f"t{self.n_tables}"
        declared, after = KEYS[key]
        with stack.connect() as connection:
            columns = ", ".join(f"{column} double precision" for column in COLUMNS)
            connection.execute(
                f"CREATE TABLE {name} (id bigint GENERATED ALWAYS AS IDENTITY, {columns}, {declared}"
                f" PRIMARY KEY ({key})) {after.replace('{name}', name)}".encode()
            )
        request = AttachRequest(relation=name, key=key, features=",".join(COLUMNS))
        source = attaching.attach(self.runtime, request, quick_recipe()).source
        names = dict(zip(source.definition.key.columns, source.definition.key.names, strict=True))
        return Table(stack, name, source, names["id"])

    def detach_all(self) -> None:
        for source in listing.every(self.runtime):
            attaching.detach(self.runtime, source.name)

    def remove(self) -> None:
        self.runtime.engine.dispose()
        embedded.purge(self.kit.folder.path)


def assert_no_process_of(servers: Servers) -> None:
    """No worker, beat, listener or command that works with these servers is left."""
    psutil.wait_procs(processes_of(servers.environment), timeout=HUNG_SECONDS)
    assert [process.cmdline() for process in processes_of(servers.environment)] == []


def processes_of(environment: dict[str, str]) -> list[psutil.Process]:
    """Live processes other than this one that were started with this database."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            same = process.environ().get("PGOUTLIER_DATABASE_URL") == environment["PGOUTLIER_DATABASE_URL"]
            if same and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def errors_of(stack: Stack, source_name: str) -> list[str]:
    """Logged errors that name the source, and tracebacks."""
    lines = [line for process in stack.processes for line in process.output().splitlines()]
    return [
        line
        for line in lines
        if "Traceback" in line or ('"level": "error"' in line and f'"{source_name}"' in line)
    ]
