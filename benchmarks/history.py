"""What features over the rows before cost: the same table drained without them and with six of two kinds of entity.

python -m benchmarks.history --rows 2000000

Payments of half a year by 50,000 customers at 10,000 terminals, in order of time; the plain source has 30 columns, the
other these and the six. Ratios are medians of rounds, each of the one after the other.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from functools import partial

from benchmarks.ground import COLUMNS, DECLARED, FEATURES, Ground, ground, median, seconds_of
from benchmarks.processes import exists, running, until
from pgoutlier import detector
from pgoutlier.db.scoring.queue import KEYS_PER_QUEUE_ROW
from pgoutlier.db.sources import sources
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.db.training import training_rows
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import TrainingWindow
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.scoring import draining
from pgoutlier.worker.sources import attaching

N_CUSTOMERS, N_TERMINALS, DAYS = 50_000, 10_000, 180
PAST = (
    "count(24h) by customer_id",
    "sum(f1, 7d) by customer_id",
    "z(f1, 30d) by customer_id",
    "is_new(terminal_id, 30d) by customer_id",
    "count(24h) by terminal_id",
    "mean(f1, 30d) by terminal_id",
)
SOURCES = ("plain", "past")
_TRAINED_ON = 30_000


def make(base: Ground, n_rows: int) -> None:
    """The same rows as two tables, with a source and a champion each."""
    user = base.connection
    for name in SOURCES:
        user.execute(
            f"CREATE TABLE {name} (id bigint PRIMARY KEY, at timestamptz NOT NULL, customer_id integer NOT NULL,"
            f" terminal_id integer NOT NULL, {DECLARED})"
        )
        user.execute(
            f"INSERT INTO {name} SELECT i, timestamptz '2026-01-01' + i * interval '{DAYS} days' / %s,"
            f" (hashint8(i)::bigint + 2147483648) %% {N_CUSTOMERS},"
            f" (hashint8(-i)::bigint + 2147483648) %% {N_TERMINALS}, {COLUMNS}"
            " FROM (SELECT i, t.* FROM generate_series(1, %s::bigint) i JOIN transactions t"
            " ON t.id = i %% (SELECT max(id) FROM transactions) + 1) r ORDER BY i",
            (n_rows, n_rows),
        )
        if name == "past":
            user.execute("CREATE INDEX ON past (customer_id, at, id) INCLUDE (f1, terminal_id)")
            user.execute("CREATE INDEX ON past (terminal_id, at, id) INCLUDE (f1)")
        user.execute(f"VACUUM ANALYZE {name}")
        features = ", ".join((*FEATURES, *(PAST if name == "past" else ())))
        request = AttachRequest(relation=name, key="id", features=features, time="at", name=name)
        source = attaching.attach(
            base.runtime, request, detector.recipe_named("default"), old_rows="swept"
        ).source
        with base.runtime.engine.begin() as connection:
            rows = training_rows.read(connection, source, newest=_TRAINED_ON)
        fitted = detector.fit(detector.recipe_named("default"), rows.matrix, source.definition.feature_names)
        with base.runtime.engine.begin() as connection:
            number = registry.register(
                connection,
                source,
                fitted.detector,
                window=TrainingWindow(_TRAINED_ON, None, None),
                metrics=fitted.metrics,
                seal=base.runtime.seal,
            )
            registry.promote(connection, source, number, reason="bench", seal=base.runtime.seal)


def drain_seconds(base: Ground, name: str, n_rows: int, *, n_threads: int) -> float:
    """From a queue of the newest rows to an empty one."""
    base.connection.execute(f"TRUNCATE outlier.scores_{name}, outlier.queue_{name}")
    base.connection.execute(
        f"INSERT INTO outlier.queue_{name} (keys, n_keys) SELECT array_agg(id ORDER BY id), count(*) FROM {name}"
        f" WHERE id > (SELECT max(id) FROM {name}) - %s GROUP BY (id - 1) / {KEYS_PER_QUEUE_ROW}"
        f" ORDER BY (id - 1) / {KEYS_PER_QUEUE_ROW}",
        (n_rows,),
    )
    base.connection.execute(f"VACUUM ANALYZE outlier.queue_{name}")
    base.connection.execute("CHECKPOINT")
    results: list[draining.DrainResult] = []

    def work() -> None:
        threads = [
            threading.Thread(target=lambda: results.append(draining.drain(base.runtime, name)))
            for _ in range(n_threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    seconds = seconds_of(work)
    if sum(result.n_scored for result in results) != n_rows:
        raise RuntimeError(f"{[r.n_scored for r in results]} rows of {name} were scored instead of {n_rows}")
    return seconds


def training_seconds(base: Ground, n_rows: int) -> dict[str, float]:
    """Of reading so many rows to train on."""
    found = {}
    for name in SOURCES:
        with base.runtime.engine.begin() as connection:
            source = sources.find(connection, name)
            found[name] = seconds_of(partial(training_rows.read, connection, source, newest=n_rows))
    return found


def backfill_seconds(base: Ground, name: str) -> float:
    """Of a job that scores every row of the table, by this process alone."""
    base.connection.execute(f"TRUNCATE outlier.scores_{name}, outlier.queue_{name}")

    def work() -> None:
        job = job_control.backfill(base.runtime, name)
        job_control.work(base.runtime, job.id, budget_seconds=3_600.0)
        done = job_control.described(base.runtime, job.id)
        if done.status != "succeeded":
            raise RuntimeError(f"the backfill of {name} {done.status}: {done.problem}")

    return seconds_of(work)


def hot_entity(base: Ground, *, n_rounds: int = 30) -> dict[str, float]:
    """Milliseconds to score one row of a customer with 1,000,000 rows in the window, and of one with 100."""
    n_rows = {-1: 1_000_000, -2: 100}
    (last,) = base.connection.execute("SELECT max(id) FROM past").fetchone() or (0,)
    for customer, n in n_rows.items():
        base.connection.execute(
            f"INSERT INTO past SELECT %s::bigint + i, t.at - i * interval '1 ms', %s, 0, {COLUMNS}"
            " FROM generate_series(1, %s::bigint) i, (SELECT * FROM past ORDER BY id DESC LIMIT 1) t",
            (last, customer, n),
        )
        last += n
    base.connection.execute("VACUUM ANALYZE past")
    found = {}
    for customer, n in n_rows.items():
        taken = []
        for _ in range(n_rounds):
            base.connection.execute("TRUNCATE outlier.queue_past")
            last += 1
            base.connection.execute(
                f"INSERT INTO past SELECT %s, t.at, %s, 0, {COLUMNS} FROM past t WHERE t.id = 1",
                (last, customer),
            )
            base.connection.execute(
                "UPDATE past p SET at = m.at FROM (SELECT max(at) AS at FROM past WHERE customer_id = %s) m"
                " WHERE p.id = %s",
                (customer, last),
            )
            taken.append(1_000 * seconds_of(partial(draining.drain, base.runtime, "past")))
        found[f"one_row_of_{n}_ms"] = round(median(taken), 1)
    return found


def live(base: Ground, *, seconds: float, per_second: int) -> dict[str, float]:
    """Median ms from commit to score of single inserts, and what one takes its writer, over that of the plain table."""
    found: dict[str, float] = {}
    took: dict[str, list[float]] = {name: [] for name in SOURCES}
    with running(base):
        for name in SOURCES:
            base.connection.execute(f"TRUNCATE outlier.queue_{name}")
        (last,) = base.connection.execute("SELECT max(id) FROM past").fetchone() or (0,)
        started = time.perf_counter()
        for number in range(int(seconds * per_second)):
            for name in SOURCES:  # in turns, so that both meet the same machine
                insert = (
                    f"INSERT INTO {name} SELECT %s, now(), t.customer_id, t.terminal_id, {COLUMNS} FROM {name} t"
                    " WHERE t.id = %s"
                )
                took[name].append(
                    seconds_of(partial(base.connection.execute, insert, (last + number + 1, 1 + number * 37)))
                )
            ahead = started + (number + 1) / per_second - time.perf_counter()
            if ahead > 0:
                time.sleep(ahead)
        until(lambda: not exists(base, "outlier.queue_past") and not exists(base, "outlier.queue_plain"))
    for name in SOURCES:
        (p50,) = base.connection.execute(
            "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM"
            " pg_xact_commit_timestamp(s.xmin) - pg_xact_commit_timestamp(t.xmin)))"
            f" FROM {name} t JOIN outlier.scores_{name} s ON s.key = t.id WHERE t.id > %s",
            (last,),
        ).fetchone() or (0.0,)
        found[f"live_{name}_p50_ms"] = round(float(p50), 1)
    found["insert_over_plain"] = round(median(took["past"]) / median(took["plain"]), 2)
    return found


def measure(base: Ground, *, n_rows: int, n_rounds: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for n_threads in (1, 2):
        drain_seconds(base, "past", n_rows, n_threads=n_threads)  # unmeasured
        rounds = [
            {name: drain_seconds(base, name, n_rows, n_threads=n_threads) for name in SOURCES}
            for _ in range(n_rounds)
        ]
        which = "one_thread" if n_threads == 1 else "two_threads"
        figures[f"{which}_rows_per_second"] = round(n_rows / median([r["past"] for r in rounds]))
        figures[f"{which}_plain_rows_per_second"] = round(n_rows / median([r["plain"] for r in rounds]))
        figures[f"{which}_over_plain"] = round(median([r["plain"] / r["past"] for r in rounds]), 3)
    seconds = training_seconds(base, 200_000)
    figures |= {f"training_read_{name}_seconds": round(value, 1) for name, value in seconds.items()}
    (n_all,) = base.connection.execute("SELECT count(*) FROM past").fetchone() or (0,)
    figures["backfill_rows_per_second"] = round(n_all / backfill_seconds(base, "past"))
    figures |= live(base, seconds=20, per_second=100)
    return figures | hot_entity(base)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--drained", type=int, default=200_000, help="the newest rows, which are drained")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    configure_logs("WARNING")
    with ground(100_000) as base:
        make(base, arguments.rows)
        print(json.dumps(measure(base, n_rows=arguments.drained, n_rounds=arguments.rounds)))


if __name__ == "__main__":
    main()
