"""A pooler between us and PostgreSQL: one that keeps sessions apart is as good as none, another is refused at once."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url, text

from pgoutlier.db.engine import make_engine
from pgoutlier.db.errors import SettingsError
from tests.integration.conftest import Run
from tests.support import until

pytestmark = pytest.mark.postgres18

# Debian puts it where only root looks.
PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
SETTINGS = """
[databases]
* = host={host} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 10
ignore_startup_parameters = extra_float_digits
logfile = {folder}/pgbouncer.log
pidfile = {folder}/pgbouncer.pid
"""
Pooled = Callable[[str], str]


@pytest.fixture
def pooled(scratch: Path, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooled]:
    """Gives the URL of the test's database through a PgBouncer in this mode."""
    if PGBOUNCER is None:
        pytest.skip("PgBouncer is not installed")
    started = []

    def start(mode: str) -> str:
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = scratch / f"pgbouncer-{port}"
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
        url = make_url(database_url)
        (folder / "settings.ini").write_text(
            SETTINGS.format(host=url.query["host"], port=port, mode=mode, folder=folder)
        )
        # It refuses to run as root; the account of the servers may enter the folder of their socket.
        owner = pwd.getpwuid(Path(str(url.query["host"])).stat().st_uid).pw_name
        account = ["-u", owner] if os.getuid() == 0 else []
        started.append(subprocess.Popen([str(PGBOUNCER), "-q", *account, str(folder / "settings.ini")]))
        pooled = url.set(host="127.0.0.1", port=port, query={}, username="postgres")

        def answers() -> bool:
            try:
                psycopg.connect(host="127.0.0.1", port=port, dbname=url.database, user="postgres").close()
            except psycopg.OperationalError:
                return False
            return True

        until(answers, "PgBouncer answers")
        return pooled.render_as_string(hide_password=False)

    yield start
    for process in started:
        process.terminate()
        process.wait()


def test_a_pool_of_transactions_is_refused_in_one_sentence(pooled: Pooled) -> None:
    engine = make_engine(pooled("transaction"))
    with pytest.raises(SettingsError, match=r"PgBouncer with pool_mode = transaction.*pool_mode = session"):
        engine.connect()


def test_doctor_and_up_find_out(pooled: Pooled, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOUTLIER_DATABASE_URL", pooled("transaction"))
    told = run("doctor")
    assert told.exit_code == 1
    assert "gives each transaction another session" in " ".join(told.output.split())
    refused = run("up")
    assert isinstance(refused.exception, SettingsError)
    assert refused.exception.exit_code == 2


def test_a_pool_of_sessions_is_as_good_as_none(pooled: Pooled) -> None:
    engine = make_engine(pooled("session"))
    with engine.begin() as connection, engine.begin() as other:
        for each in (connection, other):
            assert each.execute(text("SHOW search_path")).scalar() == "pg_catalog, pg_temp"
    engine.dispose()


def test_others_that_take_sessions_of_the_pool_do_not_hide_it(pooled: Pooled) -> None:
    url = pooled("transaction")
    others: list[psycopg.Connection[Any]] = [psycopg.connect(url) for _ in range(3)]
    for other in others:
        other.execute("SELECT 1")  # each in a transaction
    with pytest.raises(SettingsError):
        make_engine(url).connect()
    for other in others:
        other.close()
