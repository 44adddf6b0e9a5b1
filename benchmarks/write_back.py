"""What it costs to keep the scores in the user's own table: the same rows drained with the two columns and without.

python -m benchmarks.write_back --rows 200000

Every drain finds the table as one COPY has left it. Sizes are those after the drain over those before.
"""

from __future__ import annotations

import argparse
import json

from benchmarks.ground import FEATURES, Ground, copy_in, ground, median, seconds_of
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.detector import recipe_named
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.sources import attaching

FILLFACTORS = (100, 90, 50)
BATCHES_OF_A_TRICKLE, ROWS_OF_A_BATCH = 200, 50


def switch(base: Ground, *, on: bool) -> None:
    """Attach the table again, with or without its two columns."""
    request = AttachRequest(relation="transactions", key="id", features=",".join(FEATURES), write_columns=on)
    attaching.attach(base.runtime, request, recipe_named("default"))


def empty(base: Ground, *, fillfactor: int) -> None:
    for table in ("transactions", "outlier.scores_transactions", "outlier.queue_transactions"):
        base.connection.execute(f"TRUNCATE {table}")
    base.connection.execute(f"ALTER TABLE transactions SET (fillfactor = {fillfactor})")
    base.connection.execute("SELECT pg_stat_reset()")


def sizes(base: Ground) -> tuple[int, int]:
    """Bytes of the table and of its indexes."""
    found = base.connection.execute(
        "SELECT pg_table_size('transactions'), pg_indexes_size('transactions')"
    ).fetchone()
    if found is None:
        raise RuntimeError("a query without FROM returned no row")
    return int(found[0]), int(found[1])


def hot_share(base: Ground) -> float:
    """Share of the updates that left the indexes alone."""
    base.connection.execute("SELECT pg_stat_clear_snapshot()")
    found = base.connection.execute(
        "SELECT n_tup_hot_upd::float8 / nullif(n_tup_upd, 0) FROM pg_stat_user_tables WHERE relname = 'transactions'"
    ).fetchone()
    return 0.0 if found is None or found[0] is None else float(found[0])


def check(base: Ground, *, on: bool, n_rows: int) -> None:
    written = base.connection.execute(
        f"SELECT count(*) FROM outlier.scores_transactions s{' JOIN transactions t ON t.id = s.key' if on else ''}"
        f"{' AND t.flagged = s.flagged' if on else ''}"
    ).fetchone()
    if written != (n_rows,):
        raise RuntimeError(f"{written} of {n_rows} rows were written")


def bulk(base: Ground, *, on: bool, fillfactor: int = 100) -> dict[str, float]:
    """From a full queue to an empty one."""
    switch(base, on=on)
    empty(base, fillfactor=fillfactor)
    copy_in(base.connection, "transactions", base.copy_body)
    base.connection.execute("VACUUM ANALYZE transactions")
    base.connection.execute("CHECKPOINT")
    before = sizes(base)
    seconds = seconds_of(lambda: draining.drain(base.runtime, "transactions"))
    check(base, on=on, n_rows=len(base.rows))
    after = sizes(base)
    return {
        "seconds": seconds,
        "table": after[0] / before[0],
        "indexes": after[1] / before[1],
        "hot": hot_share(base),
        "bytes": before[0],
    }


def trickle(base: Ground, *, fillfactor: int) -> dict[str, float]:
    """Small inserts, each scored before the next: bytes of table and indexes, and the share of HOT updates."""
    switch(base, on=True)
    empty(base, fillfactor=fillfactor)
    names, places = ", ".join(FEATURES), ", ".join(["%s"] * len(FEATURES))
    for number in range(BATCHES_OF_A_TRICKLE):
        rows = base.rows[number * ROWS_OF_A_BATCH : (number + 1) * ROWS_OF_A_BATCH].tolist()
        with base.connection.transaction(), base.connection.cursor() as cursor:
            cursor.executemany(f"INSERT INTO transactions ({names}) VALUES ({places})", rows)
        draining.drain(base.runtime, "transactions")
    check(base, on=True, n_rows=BATCHES_OF_A_TRICKLE * ROWS_OF_A_BATCH)
    table, indexes = sizes(base)
    return {
        "table_mb": round(table / 2**20, 1),
        "indexes_kb": indexes // 1024,
        "hot": round(hot_share(base), 2),
    }


def measure(base: Ground, *, n_rounds: int) -> dict[str, object]:
    """Medians; the ratio is of pairs measured one after the other, in turns which of them is first."""
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for number in range(n_rounds + 1):
        for on in (number % 2 == 0, number % 2 != 0):
            taken = bulk(base, on=on)
            if number:  # the first pair compiles and fills caches
                found[on].append(taken)
    pairs = [on["seconds"] / off["seconds"] for off, on in zip(found[False], found[True], strict=True)]
    figures: dict[str, object] = {
        f"{name}_rows_per_second": round(len(base.rows) / median([taken["seconds"] for taken in found[on]]))
        for name, on in (("off", False), ("on", True))
    }
    figures["time_on_over_off"] = round(median(pairs), 2)
    for fillfactor in FILLFACTORS:
        taken = bulk(base, on=True, fillfactor=fillfactor)
        figures[f"bulk_fillfactor_{fillfactor}"] = {name: round(value, 2) for name, value in taken.items()}
        figures[f"trickle_fillfactor_{fillfactor}"] = trickle(base, fillfactor=fillfactor)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    configure_logs("console", level=30)
    with ground(given.rows) as base:
        base.connection.execute(
            "ALTER SYSTEM SET autovacuum = off"
        )  # whenever it comes, it would be one side's luck
        base.connection.execute("SELECT pg_reload_conf()")
        figures = measure(base, n_rounds=given.rounds)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
