"""`pgoutlier up`: all processes in one terminal, and none of them left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
import redis

from pgoutlier.worker import alone
from pgoutlier.worker.runtime import server_urls
from tests.acceptance.stack import SIGNING_KEY, Servers, Stack, Started, Table, processes_of
from tests.support import until

PASSWORD = "broker-password-that-must-not-leak"
DATABASE_PASSWORD = "database-password-that-must-not-leak"


def stop(stack: Stack, up: Started, number: signal.Signals) -> int:
    """Ask it to end; returns its exit code. Nothing may be left."""
    os.kill(up.pid, number)
    return ended(stack, up)


def ended(stack: Stack, up: Started) -> int:
    until(lambda: not up.alive(), "pgoutlier up ends")
    # The last ones may be dying still: they were killed, and are no children of anybody who waits for them.
    until(lambda: processes_of(stack.environment) == [], "no process is left")
    return int(up.child.wait())


def started_all(output: str) -> bool:
    """Whether each of the processes that say something at their start has."""
    return all(f"{name} | " in output for name in ("score", "train", "listener"))


def commands_of(stack: Stack) -> list[list[str]]:
    """Command lines of the live processes, but of those that end meanwhile."""
    found = []
    for process in processes_of(stack.environment):
        with suppress(psutil.Error):
            found.append(process.cmdline())
    return found


def listen_on_a_free_port(broker: redis.Redis) -> int:
    """Somebody else may take a port that was free a moment ago; then it is another one."""
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        with suppress(redis.ResponseError):
            broker.config_set("port", port)
            return port


@pytest.fixture
def secrets(stack: Stack) -> Iterator[None]:
    """Servers whose URLs hold passwords, as those of other machines do."""
    with redis.Redis(unix_socket_path=str(stack.kit.valkey.socket)) as broker:
        port = listen_on_a_free_port(broker)
        broker.execute_command("ACL", "SETUSER", "worker", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        stack.environment["PGOUTLIER_BROKER_URL"] = f"redis://worker:{PASSWORD}@127.0.0.1:{port}/0"
        url = stack.environment["PGOUTLIER_DATABASE_URL"].replace(
            "postgres@", f"postgres:{DATABASE_PASSWORD}@"
        )
        stack.environment["PGOUTLIER_DATABASE_URL"] = url
        yield
        broker.config_set("port", 0)
        broker.acl_deluser("worker")


def test_up_scores_and_stops_at_once_in_the_middle_of_a_deep_queue_and_tells_no_secret(
    secrets: None, stack: Stack, table: Table
) -> None:
    up = stack.start("up", "pgoutlier.worker.cli", "up", batch_rows=100, prune_every_seconds=1)
    until(lambda: started_all(up.output()), "each process has said something")
    # In small statements: the keys of one are a batch, however many they are.
    with stack.connect() as connection, connection.transaction():
        for _ in range(2_000):
            table.insert(100, connection=connection)
    until(lambda: table.n_scored > 0, "rows are scored")
    commands = [" ".join(command) for command in commands_of(stack)]
    assert stop(stack, up, signal.SIGINT) == 0
    assert table.n_queued > 0
    table.audit_matches()
    words = "\n".join([up.output(), *commands])
    assert "All processes have stopped." in words
    for secret in (PASSWORD, DATABASE_PASSWORD, SIGNING_KEY):
        assert secret not in words


def test_up_ends_with_an_error_and_names_the_process_that_was_killed(stack: Stack, table: Table) -> None:
    up = stack.start("up", "pgoutlier.worker.cli", "up")

    until(lambda: any("beat" in command for command in commands_of(stack)), "beat runs")
    next(process for process in processes_of(stack.environment) if "beat" in process.cmdline()).kill()
    assert ended(stack, up) == 1
    assert "Ended by itself: beat (exit code -9)" in up.output()


def test_up_that_is_asked_to_end_while_it_starts_leaves_nothing(stack: Stack) -> None:
    up = stack.start("up", "pgoutlier.worker.cli", "up")
    until(lambda: "Starting score worker" in up.output(), "it starts")
    assert stop(stack, up, signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM], ids=lambda n: n.name)
def test_whatever_ends_up_all_its_processes_end(stack: Stack, number: signal.Signals) -> None:
    """kill -9 of it alone, and the end of its terminal."""
    up = stack.start("up", "pgoutlier.worker.cli", "up")
    until(lambda: started_all(up.output()), "each process has said something")
    os.kill(up.pid, number)
    ended(stack, up)


def test_up_whose_output_nobody_takes_any_more_ends_with_all_its_processes(stack: Stack) -> None:
    """As in `pgoutlier up | tee log`, where Ctrl-C ends tee as well."""
    reading, writing = os.pipe()
    up = subprocess.Popen(
        [stack.python, "-m", "pgoutlier.worker.cli", "up"],
        cwd=stack.logs,
        env={**os.environ, **stack.environment},
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as output:
        said = b""
        while not started_all(said.decode(errors="replace")):
            said += output.read(65_536)
    os.kill(up.pid, signal.SIGINT)
    until(lambda: up.poll() is not None, "pgoutlier up ends")
    until(lambda: processes_of(stack.environment) == [], "no process is left")


def test_a_second_up_on_the_same_servers_says_that_one_runs(stack: Stack) -> None:
    up = stack.start("up", "pgoutlier.worker.cli", "up")
    until(lambda: started_all(up.output()), "each process has said something")
    second = stack.command("up")
    assert second.returncode == 2
    assert f"runs on this machine already, on the same servers (process {up.pid})" in " ".join(
        second.stderr.split()
    )
    assert stop(stack, up, signal.SIGTERM) == 0


def test_what_a_killed_up_has_left_is_ended_by_the_next(stack: Stack, shared_servers: Servers) -> None:
    """Where the kernel does not end it."""
    left = stack.listener()
    stack.until_ready(left)
    settings = shared_servers.runtime.settings
    with alone.only_up(settings, server_urls(settings)) as place:
        place.note({"listener": left.pid})
        held = next(settings.data_dir.glob("up-*.lock")).read_text()
    with alone.only_up(settings, server_urls(settings)):
        path = next(settings.data_dir.glob("up-*.lock"))
    path.write_text(held)
    up = stack.start("up", "pgoutlier.worker.cli", "up")
    until(lambda: not left.alive(), "it is ended")
    until(lambda: "Ended the listener process" in " ".join(up.output().split()), "and named")
    assert stop(stack, up, signal.SIGTERM) == 0


def test_ctrl_c_at_a_pipeline_ends_all_of_it(stack: Stack) -> None:
    """In a terminal it goes to every process of `pgoutlier up | tee log`."""
    log = stack.logs / "tee.log"
    pipeline = subprocess.Popen(
        ["/bin/sh", "-c", '"$0" -m pgoutlier.worker.cli up 2>&1 | tee "$1"', stack.python, str(log)],
        cwd=stack.logs,
        env={**os.environ, **stack.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: log.exists() and started_all(log.read_text()), "each process has said something")
        os.killpg(pipeline.pid, signal.SIGINT)
        until(lambda: pipeline.poll() is not None, "the pipeline ends")
        until(lambda: processes_of(stack.environment) == [], "no process is left")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pipeline.pid, signal.SIGKILL)
