"""What a challenger costs: the same rows drained without one and with one, both versions of the recipe default.

python -m benchmarks.challenger --rows 300000
"""

from __future__ import annotations

import argparse
import json

from benchmarks import throughput
from benchmarks.ground import FEATURES, Ground, ground, median
from pgoutlier import detector
from pgoutlier.db.sources import sources
from pgoutlier.models_store import registry
from pgoutlier.models_store.registry import TrainingWindow
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.versions import versions


def second_version(base: Ground) -> int:
    """A second version, fitted on other rows than the champion. Returns its number."""
    fitted = detector.fit(detector.recipe_named("default"), base.rows[30_000:60_000], FEATURES)
    with base.runtime.engine.begin() as connection:
        return registry.register(
            connection,
            sources.find(connection, "transactions"),
            fitted.detector,
            window=TrainingWindow(30_000, None, None),
            metrics=fitted.metrics,
            seal=base.runtime.seal,
        )


def drain_seconds(base: Ground, version: int, *, challenged: bool, n_threads: int = 1) -> float:
    """From a full queue to an empty one, with this challenger or with none."""
    if challenged:
        versions.challenge(base.runtime, "transactions", version, reason="bench")
    else:
        versions.clear_challenger(base.runtime, "transactions", reason="bench")
    base.connection.execute("TRUNCATE outlier.shadow_scores_transactions")
    seconds = throughput.drain_seconds(base, len(base.rows), n_threads=n_threads)
    written = base.connection.execute("SELECT count(*) FROM outlier.shadow_scores_transactions").fetchone()
    if written != (len(base.rows) if challenged else 0,):
        raise RuntimeError(f"{written} scores of the challenger were written")
    return seconds


def measure(base: Ground, *, n_rounds: int) -> dict[str, float]:
    """Medians; the ratios are of pairs measured one after the other, in turns which of them is first."""
    version = second_version(base)
    figures: dict[str, float] = {}
    for n_threads, name in ((1, "one_thread"), (2, "two_threads")):
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for number in range(n_rounds + 1):
            for challenged in (number % 2 == 0, number % 2 != 0):
                taken = drain_seconds(base, version, challenged=challenged, n_threads=n_threads)
                if number:  # the first pair compiles and fills caches
                    seconds[challenged].append(taken)
        pairs = [on / off for off, on in zip(seconds[False], seconds[True], strict=True)]
        figures |= {
            f"{name}_off_rows_per_second": round(len(base.rows) / median(seconds[False])),
            f"{name}_on_rows_per_second": round(len(base.rows) / median(seconds[True])),
            f"{name}_time_on_over_off": round(median(pairs), 3),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    configure_logs("console", level=30)
    with ground(given.rows) as base:
        figures = measure(base, n_rounds=given.rounds)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
