"""What a row costs the database in WAL and in bytes on disk: python -m benchmarks.footprint [--rows 50000]

Nothing but the measured statement runs meanwhile, so that the WAL written is its own. One key, 30 double columns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks.ground import COLUMNS, FEATURES, Ground, ground, insert_row
from pgoutlier.worker.console import console, print_table
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.upkeep import maintenance

N_SINGLE = 2_000


def measure(base: Ground, *, n_rows: int) -> dict[str, tuple[float, float]]:
    """By what is done: (bytes of WAL a row, the same without our triggers or 0)."""
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
        "scoring rows that came together": (_scored(base, lambda: _run(base, bulk), n_rows), 0.0),
        "scoring rows that came by themselves, 1 a batch": (
            _scored(base, lambda: None, n_single, singly=True),
            0.0,
        ),
        "scoring changed rows again": (_scored(base, lambda: _run(base, change), n_rows), 0.0),
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


def _pair(base: Ground, work: Callable[[], object], n_rows: int) -> tuple[float, float]:
    found = []
    for on in (True, False):
        base.connection.execute(f"ALTER TABLE transactions {'ENABLE' if on else 'DISABLE'} TRIGGER USER")
        work()  # the pages that are touched first after a checkpoint are written whole
        found.append(_wal(base, work) / n_rows)
    base.connection.execute("ALTER TABLE transactions ENABLE TRIGGER USER")
    return found[0], found[1]


def _scored(base: Ground, work: Callable[[], object], n_rows: int, *, singly: bool = False) -> float:
    draining.drain(base.runtime, "transactions")
    if singly:
        written = 0.0
        for _ in range(n_rows):
            _one_by_one(base, 1)
            written += _wal(base, lambda: draining.drain(base.runtime, "transactions"))
        return written / n_rows
    work()
    return _wal(base, lambda: draining.drain(base.runtime, "transactions")) / n_rows


def _wal(base: Ground, work: Callable[[], object]) -> float:
    before = base.connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
    work()
    found = base.connection.execute(
        "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::float8", before
    ).fetchone()
    assert found is not None
    return float(found[0])


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
        f"bytes of WAL a row, {len(FEATURES)} double columns",
        ["what", "with", "without"],
        [(what, f"{a:,.0f}", f"{b:,.0f}" if b else None) for what, (a, b) in written.items()],
    )
    print_table(
        "bytes on disk a row", ["what", "bytes"], [(what, f"{n:,.0f}") for what, n in on_disk.items()]
    )
    console.file.flush()


if __name__ == "__main__":
    main()
