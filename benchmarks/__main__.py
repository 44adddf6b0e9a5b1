"""python -m benchmarks: prints what it does, a table, and ends with one line of JSON."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version

from rich.console import Console

from benchmarks import latency, overhead, rivals, throughput
from benchmarks.ground import Ground, ground
from pgoutlier.worker.console import new_table
from pgoutlier.worker.logs import configure_logs

console = Console(stderr=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000, help="rows of the table (default: 300,000)")
    parser.add_argument(
        "--large", type=int, default=3_000_000, help="rows for the flat-cost check; 0 leaves it out"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured pairs of each ratio")
    parser.add_argument("--seconds", type=float, default=20, help="how long latency is measured")
    return parser.parse_args()


def _measure(base: Ground, arguments: argparse.Namespace) -> dict[str, object]:
    _say("latency at 100 inserts/s, real processes")
    latency_ms, rss_mb = latency.measure(base, seconds=arguments.seconds, per_second=100)
    base.connection.execute("DELETE FROM transactions WHERE id > %s", (len(base.rows),))
    base.connection.execute("VACUUM FULL ANALYZE transactions")
    _say("floor and drain, one and two threads")
    speed = throughput.measure(base, n_rounds=arguments.rounds)
    _say("trigger overhead")
    bulk, single = overhead.measure(base, n_rounds=arguments.rounds, n_single=10_000)
    _say("the batch script")
    script = rivals.batch_script_rows_per_second(base)
    _say("the task per row")
    per_row = rivals.per_row_rows_per_second(base, n_rows=100)
    result: dict[str, object] = {
        "floor_rows_per_second": round(speed.floor),
        "drain_rows_per_second": round(speed.drain),
        "drain_over_floor": round(speed.over_floor, 3),
        "drain_over_batch_script": round(speed.drain / script, 1),
        "drain_over_per_row": round(speed.drain / per_row),
        "insert_overhead_bulk": round(bulk, 3),
        "insert_overhead_single": round(single, 3),
        "latency_ms": latency_ms,
        "rss_mb": round(rss_mb),
        "two_threads_over_floor": round(speed.two_threads_over_floor, 3),
        "drain_two_threads_rows_per_second": round(speed.drain_two_threads),
        "batch_script_rows_per_second": round(script),
        "per_row_rows_per_second": round(per_row, 1),
        "rss_growth_mb": round(speed.rss_growth_mb, 1),
    }
    if arguments.large:
        _say(f"flat cost with {arguments.large:,} rows queued")
        ratio, growth = throughput.flat_cost(base, n_large=arguments.large, n_rounds=3)
        result |= {"large_queue_over_small": round(ratio, 3), "large_queue_rss_growth_mb": round(growth, 1)}
    return result


TARGETS = {
    "drain_over_floor": ">= 0.70, aim 0.85",
    "two_threads_over_floor": "aim 1.2",
    "drain_over_batch_script": ">= 8",
    "drain_over_per_row": ">= 3000",
    "insert_overhead_bulk": "<= 1.7, aim 1.3",
    "insert_overhead_single": "<= 1.5, aim 1.2",
    "latency_ms": "p50 <= 25, p99 <= 100",
    "large_queue_over_small": "0.85 or more",
}


def _say(what: str) -> None:
    sys.stderr.write(f"measuring {what} ...\n")


def main() -> None:
    arguments = _arguments()
    configure_logs("console", level=40)
    with ground(arguments.rows) as base:
        server = base.connection.execute("SHOW server_version").fetchone()
        result = _measure(base, arguments)
    release = server[0] if server else "?"
    title = f"pgoutlier {version('pgoutlier')}, PostgreSQL {release}, {arguments.rows:,} rows of 30 doubles"
    table = new_table(title, ["figure", "measured", "target"])
    for name, value in result.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else f"{value:,}"
        table.add_row(name, shown, TARGETS.get(name, ""))
    console.print(table)
    sys.stdout.write(json.dumps(result) + "\n")


main()
