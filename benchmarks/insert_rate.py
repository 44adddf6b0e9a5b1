"""What writers keep of their rate, by how many they are, while all processes of ours run and score what they write."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.ground import COLUMNS, FEATURES, Ground, ground, median
from benchmarks.processes import exists, running, until
from pgoutlier.db.embedded.postgres import postgres_binary

CLIENTS = (1, 4, 8, 16)
# Rows whose way to their score is timed, beside those of the clients.


def measure(base: Ground, *, n_rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """By the number of clients: `over_plain`, transactions a second over those without our triggers, median of pairs;
    `plain` and `scored` a second; `p50_ms` from commit to score meanwhile.
    """
    result = {}
    with running(base), tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "insert.sql"
        script.write_text(
            f"INSERT INTO transactions ({COLUMNS}) VALUES ({', '.join(['random()'] * len(FEATURES))});\n"
        )
        for n_clients in CLIENTS:
            rounds = [_pair(base, script, n_clients, seconds, number) for number in range(n_rounds)]
            result[str(n_clients)] = {
                "over_plain": round(median([scored / plain for plain, scored, _ in rounds]), 2),
                "plain": round(median([plain for plain, _, _ in rounds])),
                "scored": round(median([scored for _, scored, _ in rounds])),
                "p50_ms": round(median([p50 for _, _, p50 in rounds]), 1),
            }
    return result


def _pair(
    base: Ground, script: Path, n_clients: int, seconds: float, number: int
) -> tuple[float, float, float]:
    """(rate without triggers, rate with them, p50 in ms); the order changes, so that neither is always the second."""
    rates: dict[bool, float] = {}
    p50 = 0.0
    first = number % 2 == 0
    for on in (first, not first):
        base.connection.execute(f"ALTER TABLE transactions {'ENABLE' if on else 'DISABLE'} TRIGGER USER")
        base.connection.execute("CHECKPOINT")
        if on:
            (last,) = base.connection.execute("SELECT max(id) FROM transactions").fetchone() or (0,)
            rates[on] = _pgbench(base, script, n_clients, seconds)
            until(lambda: not exists(base, "outlier.queue_transactions"))
            p50 = _p50_ms(base, last)
        else:
            rates[on] = _pgbench(base, script, n_clients, seconds)
    return rates[False], rates[True], p50


def _p50_ms(base: Ground, after: int) -> float:
    """From the commit of a row with a larger key than that to the commit of its score, as the server noted both: of
    every row, and nobody looks meanwhile."""
    (found,) = base.connection.execute(
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM"
        " pg_xact_commit_timestamp(s.xmin) - pg_xact_commit_timestamp(t.xmin)))"
        " FROM transactions t JOIN outlier.scores_transactions s ON s.key = t.id WHERE t.id > %s",
        (after,),
    ).fetchone() or (None,)
    if found is None:
        raise RuntimeError("no row was scored")
    return float(found)


def _pgbench(base: Ground, script: Path, n_clients: int, seconds: float) -> float:
    command = [
        *(str(postgres_binary("pgbench")), "--no-vacuum", "--protocol=prepared", "-f", str(script)),
        *("-c", str(n_clients), "-j", "2", "-T", f"{seconds:g}", base.servers.database_url),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    if found is None:
        raise RuntimeError(f"pgbench said: {done.stdout}")
    return float(found[1])


if __name__ == "__main__":
    with ground(30_000) as made:
        for clients, figures in measure(made, n_rounds=int(sys.argv[1]), seconds=float(sys.argv[2])).items():
            print(clients, figures, flush=True)
