"""The data folder of the embedded servers: whose it is, its sockets, and the processes that belong to it.

.pgoutlier-data   marks the folder as ours      postgresql.conf  PostgreSQL's settings, yours to edit
lock              taken while starting          postgres/        the cluster
socket-folder     the sockets' folder, if not run/               valkey/, log/, run/
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psutil

from pgoutlier.db.embedded import lock_file
from pgoutlier.db.errors import PgoutlierError

MARKER, LOCK, SOCKET_FOLDER = ".pgoutlier-data", "lock", "socket-folder"
# A unix socket's path holds 103 bytes on macOS, 107 on Linux; the longest name beneath is 14 bytes.
LONGEST_RUN_DIR_BYTES = 85
# libpq takes a comma for the end of a host name; and these paths are copied into URLs and shells by people.
PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+-]+")
# Generous, because crash recovery may take minutes; a server that died is noticed at once.
START_SECONDS, STOP_SECONDS = 300.0, 60.0
LARGE_LOG_BYTES = 10 * 2**20
PASSED_ON = frozenset({"PATH", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"})


class EmbeddedServerError(PgoutlierError):
    """An embedded server cannot be made, started or stopped; names its log and quotes the last lines."""

    exit_code = 1


class ForeignFolderError(PgoutlierError, ValueError):
    """The data folder is not ours to use or delete."""


@dataclass(frozen=True)
class Account:
    """The unprivileged account that the servers run under when we are root."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class DataFolder:
    """One data folder, path resolved. on_event gets one sentence before each step that takes time."""

    path: Path
    on_event: Callable[[str], None] = field(default=lambda _: None, repr=False)

    @property
    def cluster(self) -> Path:
        return self.path / "postgres"

    @property
    def run_dir(self) -> Path:
        """Where the sockets are."""
        recorded = self.path / SOCKET_FOLDER
        return Path(recorded.read_text().rstrip("\n")) if recorded.exists() else self.path / "run"

    @property
    def tag(self) -> str:
        """Stands in the command line of every server process, and so tells it from others of the same id."""
        return "pgoutlier-" + hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]

    @cached_property
    def account(self) -> Account | None:
        """Whom the servers run as. None: ourselves. As root: the cluster's owner, else postgres or nobody."""
        if not is_root():
            return None
        import pwd  # there is none on Windows, where only external servers can be used

        if self.cluster.exists():
            owner = pwd.getpwuid(self.cluster.stat().st_uid)
            return Account(owner.pw_name, owner.pw_uid, owner.pw_gid)
        entries = {entry.pw_name: entry for entry in pwd.getpwall()}
        for name in ("postgres", "nobody"):
            if name in entries:
                return Account(name, entries[name].pw_uid, entries[name].pw_gid)
        raise EmbeddedServerError(
            "PostgreSQL refuses to run as root, and there is no account postgres or nobody."
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against other processes. Raises EmbeddedServerError for any OSError in the body."""
        try:
            with lock_file.held(self.path / LOCK, wait=True):
                yield
        except OSError as error:
            raise EmbeddedServerError(
                f"Cannot use the data folder {self.path}: {error}. "
                "Set PGOUTLIER_DATA_DIR to a folder of yours."
            ) from error

    def refuse_foreign(self) -> None:
        """Raises ForeignFolderError if the folder belongs to another account or holds what is not ours."""
        if not self.path.exists():
            return
        if not self.path.is_dir() or self.path.stat().st_uid != os.geteuid():
            raise ForeignFolderError(
                f"{self.path} is no folder of the account that runs this; set PGOUTLIER_DATA_DIR."
            )
        strangers = {entry.name for entry in self.path.iterdir()} - {LOCK}
        if strangers and not (self.path / MARKER).exists():
            raise ForeignFolderError(
                f"{self.path} is neither empty nor made by pgoutlier; set PGOUTLIER_DATA_DIR to a new folder."
            )

    def adopt(self) -> None:
        """Mark the folder and make what is always in it.

        Raises EmbeddedServerError if the servers' account cannot enter.
        """
        if not (self.path / MARKER).exists():
            # The servers' account has to pass through the folder, but need not list it.
            self.path.chmod(0o711 if self.account else 0o700)
            (self.path / MARKER).write_text("Data of pgoutlier. To remove it: pgoutlier servers purge\n")
        for name in ("log", "valkey"):
            self.own(self.path / name)
        if self.run(["/bin/sh", "-c", 'cd "$1"', "sh", str(self.path / "log")], cwd=Path("/")).returncode:
            raise EmbeddedServerError(
                f"The servers run as the account {self.account and self.account.name}, which cannot enter "
                f"{self.path}. Set PGOUTLIER_DATA_DIR to a folder it can reach, such as /var/lib/pgoutlier."
            )
        self._make_run_dir()

    def _make_run_dir(self) -> None:
        beneath = self.path / "run"
        if len(os.fsencode(beneath)) <= LONGEST_RUN_DIR_BYTES and PLAIN_PATH.fullmatch(str(beneath)):
            self.own(beneath)
            return
        owner = self.account.uid if self.account else os.geteuid()
        current = self.run_dir
        if current.is_dir() and not current.is_symlink() and current.stat().st_uid == owner:
            return
        # Not XDG_RUNTIME_DIR: it goes when the user logs out, and the servers outlive that.
        parent = min(tempfile.gettempdir(), "/tmp", key=len)  # noqa: S108 (mkdtemp makes a private folder in it)
        short = Path(tempfile.mkdtemp(prefix="pgoutlier-", dir=parent))
        if self.account:
            os.chown(short, self.account.uid, self.account.gid)
        (self.path / SOCKET_FOLDER).write_text(f"{short}\n")

    def own(self, path: Path) -> None:
        """Make a folder that only the servers' account can enter."""
        if not path.exists():
            path.mkdir(mode=0o700)
            if self.account:
                os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)

    # -- processes

    def run(
        self, command: Sequence[str], *, stdin: str = "", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the servers' account, away from the caller's terminal and its Ctrl-C."""
        account = self.account
        # Whoever has the servers' account reads their environment: no secret of the caller's goes into it. And PGPORT,
        # PGDATA and their like would reach into servers and tools that are not meant by them.
        environment = {name: value for name, value in os.environ.items() if name in PASSED_ON}
        return subprocess.run(  # noqa: S603 (the commands are ours)
            command,
            input=stdin,
            capture_output=True,
            text=True,
            cwd=cwd or self.path,
            env={**environment, "LC_ALL": "C"},
            umask=0o077,
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )

    def checked(self, command: Sequence[str], *, purpose: str, stdin: str = "") -> str:
        """Standard output of a command. Raises EmbeddedServerError quoting its last lines if it fails."""
        done = self.run(command, stdin=stdin)
        if done.returncode:
            raise EmbeddedServerError(f"Cannot {purpose}: {_last_lines(done.stderr or done.stdout)}")
        return done.stdout

    def can_execute(self, binary: Path) -> bool:
        """Whether the servers' account can reach and run the binary."""
        try:
            return self.run([str(binary), "--version"]).returncode == 0
        except PermissionError:
            return False

    def launch(self, command: Sequence[str], *, log: Path) -> int:
        """Start a daemon that outlives us; returns its process id.

        The shell in between ends at once, so that init is the daemon's parent: were it our child, it would
        stay behind as a zombie when killed, and PostgreSQL takes a zombie for a running server.
        """
        if log.exists() and log.stat().st_size > LARGE_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        script = 'log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'
        return int(
            self.checked(["/bin/sh", "-c", script, "sh", str(log), *command], purpose=f"start {command[0]}")
        )

    def wait_until(self, answers: Callable[[], bool], *, pid: int, server: str, log: Path) -> None:
        """Raises EmbeddedServerError if the process ends, or takes too long, before it answers."""
        until(lambda: answers() or not _alive(pid), seconds=START_SECONDS)
        if not answers():
            happened = "does not answer" if _alive(pid) else "ended as it started"
            tail = _last_lines(log.read_text(errors="replace")) if log.exists() else "nothing"
            raise EmbeddedServerError(f"{server} {happened}; the end of its log {log}: {tail}", log=log)

    def process(self, pid_file: Path, name: str) -> psutil.Process | None:
        """The live server of that name whose id is in the file, else None."""
        pid = first_number(pid_file)
        try:
            process = psutil.Process(pid) if pid else None
        except psutil.Error:
            return None
        return process if process and self.is_ours(process, name) else None

    def is_ours(self, process: psutil.Process, name: str) -> bool:
        """Whether it is alive, a server of that name, of this folder, and of the servers' account."""
        try:
            with process.oneshot():
                return (
                    process.status() != psutil.STATUS_ZOMBIE
                    and process.name() == name
                    and process.uids().effective == (self.account.uid if self.account else os.geteuid())
                    and self.tag in " ".join(process.cmdline())
                )
        except psutil.Error:
            return False

    def end(self, process: psutil.Process, sign: signal.Signals) -> None:
        """Send a signal and wait until the process is gone. Raises EmbeddedServerError if it stays."""
        name = process.name()
        send(process, sign)
        if not until(lambda: not self.is_ours(process, name), seconds=STOP_SECONDS):
            raise EmbeddedServerError(
                f"{name}, process {process.pid}, did not stop within {STOP_SECONDS:.0f} s."
            )


def is_root() -> bool:
    """Whether we are root; never on Windows."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def send(process: psutil.Process, sign: signal.Signals) -> None:
    """Send a signal, unless the process has ended or its id is another's by now."""
    try:
        process.send_signal(sign)
    except psutil.NoSuchProcess:
        return


def until(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Wait until the condition holds; False if it does not within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def package_file(package: str, pattern: str) -> Path | None:
    """The first match in an installed package, None if there is none. The package is not imported."""
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((match for folder in folders for match in sorted(Path(folder).glob(pattern))), None)


def first_number(path: Path) -> int | None:
    """The number on a pid file's first line, None if there is no such file or number."""
    try:
        return int(path.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _last_lines(text: str) -> str:
    return "\n  ".join(["", *text.strip().splitlines()[-5:]])
