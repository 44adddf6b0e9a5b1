"""Real servers for tests: data folders short enough for sockets, and databases made from a migrated template."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from pgoutlier.db import embedded, migrate
from pgoutlier.db.embedded import ServerKit
from pgoutlier.db.engine import make_engine

POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")
TEMPLATE = "migrated"
MEMORY, DISK = Path("/dev/shm"), Path("/tmp")
# What the servers of all test processes may come to hold there at once.
ROOM_BYTES = 8 * 2**30


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that other accounts can pass through, as pytest's own is not: servers of root need that.

    In memory where there is room: servers there are made and flushed in no time, and survive kill -9 all the same.
    """
    parent = MEMORY if _has_room(MEMORY) else DISK
    with tempfile.TemporaryDirectory(prefix="pgo-", dir=parent, ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o711)
        yield Path(path)


def _has_room(folder: Path) -> bool:
    """Whether servers can be put and programs be run there."""
    if not os.access(folder, os.W_OK):
        return False
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize >= ROOM_BYTES and not found.f_flag & os.ST_NOEXEC


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL with a migrated template database, and others made from it."""

    kit: ServerKit
    bin_dir: Path
    # Makes the next test's database, and drops the last one's, while a test runs.
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    # By template.
    _ready: dict[str, Future[str]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def version(self) -> int:
        return int((self.kit.folder.cluster / "PG_VERSION").read_text())

    def url(self, database: str) -> str:
        return make_url(self.kit.postgres.url).set(database=database).render_as_string(hide_password=False)

    def template(self, name: str, make: Callable[[str], None]) -> str:
        """The name of a database to copy: one that is migrated, and in which make(its URL) has been called once."""
        if name not in self._ready:
            self._copy(TEMPLATE, name)
            make(self.url(name))
            self._prepare(name)
        return name

    @contextmanager
    def database(self, *, template: str = TEMPLATE) -> Iterator[str]:
        """The URL of a fresh copy of the template."""
        if template not in self._ready:
            self._prepare(template)
        name = self._ready[template].result()
        self._prepare(template)
        try:
            yield self.url(name)
        finally:
            self._worker.submit(self.administer, "DROP DATABASE {} WITH (FORCE)", name)

    def _prepare(self, template: str) -> None:
        name = f"test_{next(self._numbers)}"
        self._ready[template] = self._worker.submit(self._copy, template, name)

    def _copy(self, template: str, name: str) -> str:
        """File by file, which costs half of what it costs to write all of it into the WAL."""
        self.administer("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", name, template)
        return name

    def close(self) -> None:
        """Wait for what is under way in the background."""
        self._worker.shutdown()

    def administer(self, statement: str, *names: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def run(self, program: str, url: str, *arguments: str, stdin: str = "") -> str:
        """Standard output of psql or pg_dump on a database."""
        done = subprocess.run(
            [str(self.bin_dir / program), *arguments, "--dbname", url],
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def running_postgres(folder: Path, bin_dir: Path | None, **settings: int | str) -> Iterator[Postgres]:
    """A PostgreSQL without Valkey, tuned for tests: it may lose data if the machine fails, and nothing else.

    settings: others of its settings that take effect when it starts.
    """
    kit = ServerKit.of(folder, postgres_bin_dir=bin_dir)
    folder.mkdir()
    kit.folder.adopt()
    kit.postgres.start()
    try:
        postgres = Postgres(kit, bin_dir or embedded.postgres_binary("psql").parent)
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("ALTER SYSTEM SET full_page_writes = off")
            connection.execute("SELECT pg_reload_conf()")
            for name, value in settings.items():
                connection.execute(
                    sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
                )
        if settings:
            kit.postgres.stop("fast")
            kit.postgres.start()
        postgres.administer("CREATE DATABASE {}", TEMPLATE)
        engine = make_engine(postgres.url(TEMPLATE))
        migrate.upgrade(engine)
        engine.dispose()
        yield postgres
        postgres.close()
    finally:
        kit.postgres.stop("immediate")
        with suppress(OSError):
            shutil.rmtree(folder)
