"""A database host and two worker hosts: one that is cut off amid its work loses nothing, doubles nothing, and holds up
nobody for longer than the connections say."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from pgoutlier.db.engine import make_engine
from pgoutlier.detector import Detector
from tests.acceptance.conftest import on_servers, scored_table
from tests.acceptance.machines import HOST, WORKERS, Network, NoNetworks
from tests.acceptance.stack import Servers, Stack, Started, Table
from tests.support import until

# A peer that is silent is given up after 6 s; without this it is a minute.
SOON = "keepalives_idle=3&keepalives_interval=1&keepalives_count=3&tcp_user_timeout=6000"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    try:
        with Network.made() as made:
            yield made
    except NoNetworks as why:
        pytest.skip(f"no network namespaces can be made here: {why}")


@pytest.fixture(scope="module")
def far_servers(network: Network, scratch: Path) -> Iterator[Servers]:
    """Servers that listen on the database host's address alone, beside the sockets that the test itself uses."""
    with tempfile.TemporaryDirectory(prefix="far", dir=scratch, ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o711)
        with network.inside(HOST):
            servers = Servers.make(Path(path))
            try:
                _listen(servers, network.address(HOST))
                yield servers
            finally:
                servers.remove()


def _listen(servers: Servers, address: str) -> None:
    kit = servers.kit
    with servers.stack().connect() as connection:
        connection.execute(f"ALTER SYSTEM SET listen_addresses = '{address}'".encode())
    with (kit.folder.cluster / "pg_hba.conf").open("a") as rules:
        rules.write("host all all samenet trust\n")
    kit.postgres.stop()
    kit.postgres.start()
    with redis.Redis(unix_socket_path=str(kit.valkey.socket)) as client:
        client.config_set("protected-mode", "no")
        client.config_set("bind", address)
        client.config_set("port", 6379)


@dataclass
class Site:
    """The machines, and the processes that run on each of the two worker hosts."""

    network: Network
    table: Table
    workers: dict[str, Started]

    @property
    def stack(self) -> Stack:
        return self.table.stack

    def cut_off_amid(self, machine: str) -> None:
        """Cut a machine off while its worker holds claimed rows, which others write more of all the while."""
        worker, caught = self.workers[machine], threading.Event()

        def write() -> None:
            while not caught.is_set():
                self.table.insert(500)

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            try:
                self.stack.stop_amid([worker], f"outlier.queue_{self.table.name}", random.Random(0))
                self.network.cut_off(machine)
            finally:
                caught.set()
                os.kill(worker.pid, signal.SIGCONT)
            writing.result()

    def holds(self, machine: str) -> bool:
        """Whether the server has a transaction open for it."""
        address = self.network.address(machine)
        count = "SELECT count(*) FROM pg_stat_activity WHERE client_addr = %s AND xact_start IS NOT NULL"
        return self.stack.one(count, address) != 0

    def scores_new_rows(self) -> None:
        """Wait until rows that are written now are scored, whatever becomes of those from before."""
        last = self.stack.one(f"SELECT max(id) FROM {self.table.name}")
        self.table.insert(100)
        unscored = (
            f"SELECT count(*) FROM {self.table.name} t WHERE t.id > %s AND NOT EXISTS"
            f" (SELECT FROM outlier.scores_{self.table.name} s WHERE s.key = t.id)"
        )
        until(lambda: self.stack.one(unscored, last) == 0, "new rows are scored")


def start(network: Network, servers: Servers, table: Table, options: str) -> Site:
    """Worker, listener and beat on both hosts."""
    host = network.address(HOST)
    urls = {
        "database_url": f"postgresql://postgres@{host}/pgoutlier?{options}",
        "broker_url": f"redis://{host}:6379/0",
    }
    workers = {}
    for machine in WORKERS:
        with network.inside(machine):
            workers[machine] = table.stack.score_worker(machine, batch_rows=500, **urls)
            table.stack.listener(**urls)
            table.stack.beat(**urls)
    table.stack.until_ready()
    return Site(network, table, workers)


@pytest.fixture
def table(far_servers: Servers, network: Network, detectors: Sequence[Detector]) -> Iterator[Table]:
    for stack in on_servers(far_servers):
        yield scored_table(far_servers, stack, detectors[0])
        stack.stop()
        for machine in WORKERS:
            network.join(machine)


def test_rows_of_a_machine_that_stays_cut_off_are_scored_by_the_others(
    network: Network, far_servers: Servers, table: Table
) -> None:
    site = start(network, far_servers, table, SOON)
    site.cut_off_amid("a")
    assert site.holds("a")
    site.scores_new_rows()
    until(table.drained, "what it held is given up and scored")
    table.assert_scored_once()

    network.join("a")
    site.workers["b"].kill()
    site.scores_new_rows()
    assert all(process.alive() for process in table.stack.processes if process is not site.workers["b"])
    until(table.drained)
    table.assert_scored_once()


def test_a_machine_that_is_joined_again_soon_goes_on_where_it_was(
    network: Network, far_servers: Servers, table: Table
) -> None:
    site = start(network, far_servers, table, "")
    site.cut_off_amid("a")
    site.scores_new_rows()
    assert site.holds("a")
    assert not table.drained()
    network.join("a")
    until(table.drained, "it goes on")
    assert all(process.alive() for process in table.stack.processes)
    table.assert_scored_once()


@pytest.mark.parametrize(("options", "seconds"), [("", 30), (SOON, 3)])
def test_the_server_gives_up_a_lost_peer_as_soon_as_the_peer_would_give_it_up(
    network: Network, far_servers: Servers, options: str, seconds: int
) -> None:
    url = f"postgresql://postgres@{network.address(HOST)}/pgoutlier?{options}"
    with network.inside("a"):
        engine = make_engine(url)
        with engine.connect() as connection:
            found = [
                connection.exec_driver_sql(f"SELECT current_setting('{name}')::integer").scalar()
                for name in ("tcp_keepalives_idle", "tcp_user_timeout")
            ]
            assert found == [seconds, 2_000 * seconds]
        engine.dispose()
