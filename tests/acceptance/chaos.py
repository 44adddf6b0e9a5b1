"""Kill whatever there is, at random moments, while many rows come in; then see that every row has one score.

python -m tests.acceptance.chaos --rows 200000 --key id,at

It is too long for the suite, which kills each of them by itself. The moments are drawn anew each time, unless --seed.
"""

from __future__ import annotations

import argparse
import random
import threading
import time

import numpy as np
import psycopg

from pgoutlier.detector import fit
from tests.acceptance.stack import COLUMNS, KEYS, N_FEATURES, Servers, Stack, Started, Table, quick_recipe
from tests.servers import scratch_folder
from tests.support import until


def write(table: Table, n_rows: int, done: threading.Event) -> None:
    """Rows in statements of 1 to 3,000, by a client that tries again when PostgreSQL is away."""
    sizes = random.Random(0)
    while (left := n_rows - _count(table)) > 0:
        try:
            with table.stack.connect() as connection:
                table.insert(min(left, sizes.choice((1, 1, 1, 50, 1_000, 3_000))), connection=connection)
            time.sleep(0.2)
        except psycopg.Error:
            time.sleep(0.1)
    done.set()


def _count(table: Table) -> int:
    while True:
        try:
            return table.n_rows
        except psycopg.Error:
            time.sleep(0.1)


class Chaos:
    """What may be killed, and how it comes back."""

    def __init__(self, stack: Stack, moments: random.Random) -> None:
        self._stack, self._moments = stack, moments
        self._workers: list[Started] = []
        self.n = dict.fromkeys(("worker", "backend", "postgres", "broker"), 0)
        self._start_workers()

    def _start_workers(self) -> None:
        self._workers = [worker for worker in self._workers if worker.alive()]
        while len(self._workers) < 2:
            number = len(self._stack.processes)
            self._workers.append(self._stack.score_worker(f"score{number}", batch_rows=2_000))

    def strike(self) -> None:
        kind = self._moments.choices(tuple(self.n), weights=(4, 4, 1, 1))[0]
        self.n[kind] += 1
        if kind == "worker":
            self._moments.choice(self._workers).kill()
        elif kind == "backend":
            with self._stack.connect() as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgoutlier%'"
                    " ORDER BY random() LIMIT 1"
                )
        elif kind == "postgres":
            server = self._stack.kit.postgres
            server.stop(mode=self._moments.choice(("immediate", "fast")))
            server.start()
        else:
            broker = self._stack.kit.valkey.process()
            if broker is not None:
                broker.kill()
                broker.wait()
            self._stack.kit.valkey.start()
        self._start_workers()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--key", choices=KEYS, default="id,at")
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    with scratch_folder() as scratch:
        servers = Servers.make(scratch)
        stack = servers.stack()
        try:
            table = servers.table(stack, key=arguments.key)
            table.register(
                fit(quick_recipe(), np.random.default_rng(7).normal(size=(500, N_FEATURES)), COLUMNS).detector
            )
            table.audit()
            stack.listener()
            stack.beat()
            chaos, written = Chaos(stack, random.Random(arguments.seed)), threading.Event()
            threading.Thread(target=write, args=(table, arguments.rows, written), daemon=True).start()
            moments = random.Random(arguments.seed)
            while not written.wait(moments.uniform(0.5, 4)):
                chaos.strike()
            for _ in range(5):
                time.sleep(moments.uniform(0.5, 4))
                chaos.strike()
            until(
                lambda: table.n_rows >= arguments.rows and table.drained(),
                "the queue is drained",
                seconds=600,
            )
            table.assert_scored_once()
            print(f"{table.n_rows:,} rows with the key {arguments.key}: one score each; killed: {chaos.n}")
        finally:
            stack.stop()
            servers.remove()


if __name__ == "__main__":
    main()
