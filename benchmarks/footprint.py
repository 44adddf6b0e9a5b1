"""What a row costs in processor time, in WAL and in bytes on disk: python -m benchmarks.footprint [--rows 50000]

Nothing but the measured statement runs meanwhile, so that the WAL written is its own, and the time of all of the
server's processes. One key, 30 double columns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import psutil

from benchmarks.ground import COLUMNS, FEATURES, Ground, ground, insert_row
from pgoutlier.db.embedded import ServerKit
from pgoutlier.worker.console import console, print_table
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.upkeep import maintenance

N_SINGLE = 2_000


@dataclass(frozen=True)
class Cost:
    """Of one row: bytes of WAL, and microseconds of processor time, the server's and this process's."""

    wal: float
    server: float
    own: float


def measure(base: Ground, *, n_rows: int) -> dict[str, tuple[Cost, Cost | None]]:
    """By what is done: (what a row costs, the same without our triggers where it is a writer's)."""
    n_single = min(N_SINGLE, n_rows)
    bulk = f"INSERT INTO transactions ({COLUMNS}) SELECT {COLUMNS} FROM transactions LIMIT {n_rows}"
    change = f"UPDATE transactions SET f1 = f1 + 1 WHERE id <= {n_rows}"
    note = "UPDATE transactions SET note = 'x' WHERE id <= {n_rows}"
    base.connection.execute("ALTER TABLE transactions ADD COLUMN note text")
    return {
        "one INSERT of many rows": _pair(base, lambda: _run(base, bulk), n_rows),
        "INSERTs of one row each": _pair(base, lambda: _one_by_one(base, n_single), n_single),
        "one UPDATE of a feature of many rows": _pair(base, lambda: _run(base, change), n_rows),
        "one UPDATE of another column of many rows": _pair(
            base, lambda: _run(base, note.format(n_rows=n_rows)), n_rows
        ),
        "scoring rows that came together": (_scored(base, lambda: _run(base, bulk), n_rows), None),
        "scoring rows that came by themselves, 100 a batch": (_scored_in_batches(base, n_single, 100), None),
        "scoring rows that came by themselves, 1 a batch": (_scored_in_batches(base, n_single, 1), None),
        "scoring changed rows again": (_scored(base, lambda: _run(base, change), n_rows), None),
    }


def sizes(base: Ground) -> dict[str, float]:
    """Bytes on disk for each row scored, indexes included, after the rows came in bulk and were scored once."""
    base.connection.execute("TRUNCATE outlier.scores_transactions, outlier.queue_transactions")
    maintenance.sweep(base.runtime, "transactions", whole=True)
    queued = _size(base, "outlier.queue_transactions")
    n_rows = _count(base, "transactions")
    draining.drain(base.runtime, "transactions")
    return {
        "the table of the rows themselves": _size(base, "transactions") / n_rows,
        "scores": _size(base, "outlier.scores_transactions") / n_rows,
        "queue, while they wait": queued / n_rows,
    }


def _pair(base: Ground, work: Callable[[], object], n_rows: int) -> tuple[Cost, Cost]:
    found = []
    for on in (True, False):
        base.connection.execute(f"ALTER TABLE transactions {'ENABLE' if on else 'DISABLE'} TRIGGER USER")
        work()  # the pages that are touched first after a checkpoint are written whole
        found.append(_cost(base, work, n_rows))
    base.connection.execute("ALTER TABLE transactions ENABLE TRIGGER USER")
    return found[0], found[1]


def _scored(base: Ground, work: Callable[[], object], n_rows: int) -> Cost:
    draining.drain(base.runtime, "transactions")
    work()
    return _cost(base, lambda: draining.drain(base.runtime, "transactions"), n_rows)


def _scored_in_batches(base: Ground, n_rows: int, batch: int) -> Cost:
    """Rows that are inserted one by one, and drained whenever there are so many."""
    draining.drain(base.runtime, "transactions")
    found = []
    for _ in range(n_rows // batch):
        _one_by_one(base, batch)
        found.append(_cost(base, lambda: draining.drain(base.runtime, "transactions"), batch))
    return Cost(*(sum(each) / len(found) for each in zip(*map(astuple, found), strict=True)))


def _cost(base: Ground, work: Callable[[], object], n_rows: int) -> Cost:
    """The server's processes are looked at for their time, which they note a hundred times a second or oftener."""
    before = base.connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
    server, own = _server_seconds(base), time.process_time()
    work()
    own, server = time.process_time() - own, _server_seconds(base) - server
    found = base.connection.execute(
        "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::float8", before
    ).fetchone()
    assert found is not None
    return Cost(float(found[0]) / n_rows, 1e6 * server / n_rows, 1e6 * own / n_rows)


def _server_seconds(base: Ground) -> float:
    """Processor time of the server's processes, also of those that have ended."""
    postmaster = ServerKit.of(base.data_dir).postgres.process()
    assert postmaster is not None
    own = postmaster.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in postmaster.children():
        # Nanoseconds that it has run, finer than the hundredths of a second of /proc/PID/stat.
        with suppress(OSError, psutil.Error):
            total += int(Path(f"/proc/{child.pid}/schedstat").read_text().split()[0]) / 1e9
    return total


def _run(base: Ground, statement: str) -> None:
    base.connection.execute(statement.encode())


def _one_by_one(base: Ground, n_rows: int) -> None:
    for row in base.rows[:n_rows].tolist():
        base.connection.execute(insert_row("transactions").encode(), row)


def _size(base: Ground, table: str) -> float:
    found = base.connection.execute("SELECT pg_total_relation_size(%s::regclass)", (table,)).fetchone()
    assert found is not None
    return float(found[0])


def _count(base: Ground, table: str) -> int:
    found = base.connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert found is not None
    return int(found[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    n_rows = parser.parse_args().rows
    configure_logs("console", level=40)
    with ground(n_rows) as base:
        base.connection.execute("ALTER SYSTEM SET autovacuum = off")
        base.connection.execute("SELECT pg_reload_conf()")
        on_disk = sizes(base)
        written = measure(base, n_rows=n_rows)
    print_table(
        f"what a row costs, {len(FEATURES)} double columns; without: the same where our triggers are off",
        ["what", "WAL bytes", "without", "server µs", "without", "worker µs"],
        [
            (
                what,
                f"{a.wal:,.0f}",
                f"{b.wal:,.0f}" if b else None,
                f"{a.server:,.1f}",
                f"{b.server:,.1f}" if b else None,
                None if b else f"{a.own:,.1f}",
            )
            for what, (a, b) in written.items()
        ],
    )
    print_table(
        "bytes on disk a row", ["what", "bytes"], [(what, f"{n:,.0f}") for what, n in on_disk.items()]
    )
    console.file.flush()


if __name__ == "__main__":
    main()
