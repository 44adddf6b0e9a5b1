"""python -m benchmarks: prints what it does, a table, and ends with one line of JSON."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version

from rich.console import Console

from benchmarks import insert_rate, latency, overhead, processes, rivals, throughput
from benchmarks.ground import Ground, ground, median
from pgoutlier.worker.console import new_table
from pgoutlier.worker.logs import configure_logs

console = Console(stderr=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000, help="rows of the table (default: 300,000)")
    parser.add_argument(
        "--large",
        type=int,
        default=3_000_000,
        help="rows for speed and memory with a long queue, a multiple of --rows; 0 leaves it out",
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured pairs of each ratio")
    parser.add_argument("--seconds", type=float, default=20, help="how long latency is measured")
    return parser.parse_args()


def _measure(base: Ground, arguments: argparse.Namespace) -> dict[str, object]:
    _say("start: commands, and from the start of a score worker to its first score")
    result: dict[str, object] = {
        "cli_help_seconds": round(processes.pgoutlier_seconds(base, "--help"), 2),
        "start_to_first_score_seconds": round(processes.start_to_first_score_seconds(base, n_rounds=3), 2),
    }
    _say("latency, real processes, at 100 inserts/s and at 1,000 from eight writers")
    result["latency_ms"] = latency.measure(base, seconds=arguments.seconds, per_second=100)
    result["latency_1000_ms"] = latency.measure(
        base, seconds=arguments.seconds, per_second=1_000, n_writers=8
    )
    with processes.running(base):
        processes.until_answered(base)
        result["cli_status_seconds"] = round(processes.pgoutlier_seconds(base, "status"), 2)
    _say("what 1, 4, 8 and 16 writers keep of their rate while all they write is scored")
    result["insert_rate_by_clients"] = insert_rate.measure(base, n_rounds=3, seconds=arguments.seconds / 4)
    throughput.remove_rows(base)
    _say("floor and drain, one and two threads")
    speed = throughput.measure(base, n_rounds=arguments.rounds)
    _say("trigger overhead")
    bulk, single = overhead.measure(base, n_rounds=arguments.rounds, n_single=10_000)
    _say("the batch script")
    script = rivals.batch_script_rows_per_second(base)
    _say("the task per row")
    per_row = rivals.per_row_rows_per_second(base, n_rows=100)
    result |= {
        "drain_over_floor": round(speed.over_floor, 3),
        "two_threads_over_floor": round(speed.two_threads_over_floor, 3),
        "floor_rows_per_second": round(speed.floor),
        "drain_rows_per_second": round(speed.drain),
        "drain_two_threads_rows_per_second": round(speed.drain_two_threads),
        "drain_over_batch_script": round(speed.drain / script, 1),
        "drain_over_per_row": round(speed.drain / per_row),
        "insert_overhead_bulk": round(bulk, 3),
        "insert_overhead_single": round(single, 3),
        "batch_script_rows_per_second": round(script),
        "per_row_rows_per_second": round(per_row, 1),
    }
    return result | (_measure_large(base, arguments.large) if arguments.large else {})


def _measure_large(base: Ground, n_rows: int) -> dict[str, object]:
    """What changes when the queue is long: nothing should."""
    _say(f"speed and memory with {n_rows:,} rows queued")
    n_small = len(base.rows)
    small = n_small / median([throughput.drain_seconds(base, n_small) for _ in range(3)])
    throughput.add_rows(base, n_rows)
    large = n_rows / median([throughput.drain_seconds(base, n_rows) for _ in range(3)])
    peak, growth = processes.draining_memory_mb(base, n_before=n_small)
    return {
        "large_queue_over_small": round(large / small, 3),
        "rss_mb": round(peak),
        "rss_growth_mb": round(growth, 1),
    }


TARGETS = {
    "drain_over_floor": ">= 0.92",
    "two_threads_over_floor": ">= 1.1",
    "drain_over_batch_script": ">= 8",
    "drain_over_per_row": ">= 3000",
    "insert_overhead_bulk": "<= 1.7, aim 1.3",
    "insert_overhead_single": "<= 1.5, aim 1.2",
    "insert_rate_by_clients": "each over_plain >= 0.75, p50_ms <= 15",
    "latency_ms": "p50 <= 4, p99 <= 12",
    "latency_1000_ms": "p50 <= 10",
    "start_to_first_score_seconds": "<= 2.5",
    "cli_help_seconds": "<= 0.4",
    "cli_status_seconds": "<= 1.0",
    "large_queue_over_small": ">= 0.85",
    "rss_mb": "<= 250",
    "rss_growth_mb": "<= 40",
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
