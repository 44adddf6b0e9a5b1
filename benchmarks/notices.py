"""What notices cost: the same rows drained with notices on and without, at the share of flagged rows of the champion.

python -m benchmarks.notices --rows 300000
"""

from __future__ import annotations

import argparse
import json

from benchmarks import throughput
from benchmarks.ground import Ground, ground, median
from pgoutlier.worker.logs import configure_logs
from pgoutlier.worker.notices import webhook_control

SOURCE = "transactions"


def drain_seconds(base: Ground, *, on: bool) -> float:
    """From a full queue to an empty one; every flagged row has a notice where they are on."""
    if on:
        webhook_control.set_webhook(base.runtime, SOURCE, None)
    else:
        webhook_control.remove(base.runtime, SOURCE)
    base.connection.execute("TRUNCATE outlier.notices CASCADE")
    seconds = throughput.drain_seconds(base, len(base.rows))
    found = base.connection.execute(
        f"SELECT (SELECT count(*) FROM outlier.notices), count(*) FROM outlier.scores_{SOURCE} WHERE flagged"
    ).fetchone()
    if found is None or found[0] != (found[1] if on else 0):
        raise RuntimeError(f"(notices, flagged rows) are {found}")
    return seconds


def measure(base: Ground, *, n_rounds: int) -> dict[str, float]:
    """Medians; the ratio is of pairs measured one after the other, in turns which of them is first."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(n_rounds + 1):
        for on in (number % 2 == 0, number % 2 != 0):
            taken = drain_seconds(base, on=on)
            if number:  # the first pair compiles and fills caches
                seconds[on].append(taken)
    pairs = [on / off for off, on in zip(seconds[False], seconds[True], strict=True)]
    n_flagged = base.connection.execute(
        f"SELECT count(*) FROM outlier.scores_{SOURCE} WHERE flagged"
    ).fetchone()
    return {
        "flagged": n_flagged[0] if n_flagged else 0,
        "off_rows_per_second": round(len(base.rows) / median(seconds[False])),
        "on_rows_per_second": round(len(base.rows) / median(seconds[True])),
        "time_on_over_off": round(median(pairs), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    configure_logs("console", level=40)
    with ground(given.rows) as base:
        print(json.dumps(measure(base, n_rounds=given.rounds)))


if __name__ == "__main__":
    main()
