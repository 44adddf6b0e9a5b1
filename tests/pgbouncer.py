"""A PgBouncer between us and PostgreSQL, where it is installed, and what it shows to have been left in its sessions."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from tests.support import until

# Debian puts it where only root looks.
PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
# It gives a client up that has waited so long for a session: it would be one that waits for itself.
WAITS_SECONDS = 30
SETTINGS = """
[databases]
* = host={host} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {n_sessions}
max_client_conn = 200
query_wait_timeout = {waits}
server_reset_query = DISCARD ALL
{prepared}
logfile = {folder}/pgbouncer.log
pidfile = {folder}/pgbouncer.pid
"""
# Which PgBouncer keeps for each client, and sets for whom it gives the session to.
KEPT_BY_IT = (
    *("application_name", "client_encoding", "DateStyle", "IntervalStyle", "TimeZone"),
    "standard_conforming_strings",
)
LEFT = """
SELECT 'setting ' || name || ' = ' || setting FROM pg_settings WHERE source = 'session' AND name <> ALL (%(kept)s)
UNION ALL SELECT 'outlier.session' WHERE current_setting('outlier.session', true) <> ''
UNION ALL SELECT 'DateStyle ' || s FROM current_setting('DateStyle') s WHERE s <> 'ISO, MDY'
UNION ALL SELECT 'prepared ' || statement FROM pg_prepared_statements
UNION ALL SELECT 'cursor ' || name FROM pg_cursors WHERE is_holdable
UNION ALL SELECT 'advisory lock ' || objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
UNION ALL SELECT 'channel ' || c FROM pg_listening_channels() c
UNION ALL SELECT 'temporary ' || relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
UNION ALL SELECT 'role ' || current_user WHERE current_user <> session_user
"""


@dataclass(frozen=True)
class PgBouncer:
    """One that runs. n_sessions: that it has of the server's for all of its clients, in one database."""

    url: str
    n_sessions: int

    def left_in_sessions(self) -> set[str]:
        """What somebody has left in any of its sessions, all of which have to be free."""
        with ExitStack() as opened:
            left, pids = set(), set()
            # As each is in a transaction, the next one gets another session.
            for _ in range(self.n_sessions):
                session: psycopg.Connection[Any] = opened.enter_context(
                    psycopg.connect(self.url, prepare_threshold=None)
                )
                left |= {what for (what,) in session.execute(LEFT, {"kept": list(KEPT_BY_IT)})}
                pids |= set(session.execute("SELECT pg_backend_pid()").fetchall())
        assert len(pids) == self.n_sessions
        return left


@contextmanager
def running_pgbouncer(
    database_url: str, folder: Path, *, mode: str = "transaction", n_sessions: int = 2
) -> Iterator[PgBouncer]:
    """A PgBouncer to this database on a unix socket; folder: one that other accounts can pass through."""
    if PGBOUNCER is None:
        pytest.skip("PgBouncer is not installed")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = folder / f"pgbouncer-{port}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    url = make_url(database_url)
    settings = folder / "settings.ini"
    settings.write_text(
        SETTINGS.format(
            host=url.query["host"],
            port=port,
            mode=mode,
            n_sessions=n_sessions,
            folder=folder,
            waits=WAITS_SECONDS,
            # From 1.21 on it can keep prepared statements for its clients, and from 1.24 on it does.
            prepared="max_prepared_statements = 0" if _version() >= (1, 21) else "",
        )
    )
    # It refuses to run as root; the account of the servers may enter the folder of their socket.
    owner = pwd.getpwuid(Path(str(url.query["host"])).stat().st_uid).pw_name
    account = ["-u", owner] if os.getuid() == 0 else []
    process = subprocess.Popen([PGBOUNCER, "-q", *account, str(settings)])
    try:
        pooled = url.set(host="127.0.0.1", port=port, query={}, username="postgres")
        made = PgBouncer(pooled.render_as_string(hide_password=False), n_sessions)
        until(lambda: _answers(made.url), "PgBouncer answers")
        yield made
    finally:
        process.terminate()
        process.wait()


def _version() -> tuple[int, ...]:
    told = subprocess.run([str(PGBOUNCER), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", told)
    assert found, told
    return tuple(map(int, found.groups()))


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True
