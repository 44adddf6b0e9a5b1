"""What attach suggests for a table can be used as it is."""

from __future__ import annotations

import json
import shlex

import pytest

from pgoutlier.worker.runtime import Runtime
from tests.integration.conftest import Run
from tests.support import Connection

TABLES = {
    "payments": (
        "CREATE TABLE payments (transaction_id bigint PRIMARY KEY, at timestamptz, customer_id integer,"
        " terminal_id integer, amount float8, fraud smallint, note text);"
        " INSERT INTO payments SELECT i, timestamptz '2026-01-01' + i * interval '1 minute', i % 41, i % 29,"
        " 5 + i % 7, (i % 151 = 0)::integer, 'n' || i FROM generate_series(1, 2000) i",
        "amount, ratio(amount, 90d) by customer_id, distinct(terminal_id, 24h) by customer_id,"
        " is_new(terminal_id, 90d) by customer_id, risk(terminal_id, 7d, delay 7d)",
        ["--time", "at", "--label", "fraud", "--recipe", "tails", "--make-indexes"],
        ["note"],
    ),
    "sensor": (
        'CREATE TABLE sensor (id bigint PRIMARY KEY, measured_at timestamp, "Value" real);'
        " INSERT INTO sensor SELECT i, timestamp '2026-01-01' + i * interval '1 minute', i % 60"
        " FROM generate_series(1, 2000) i",
        '"Value", diff("Value", 1), z("Value", 1d), std("Value", 1h)',
        ["--time", "measured_at"],
        [],
    ),
    "claims": (
        "CREATE TABLE claims (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), age integer, sum_claimed numeric,"
        " region text, photo bytea);"
        " INSERT INTO claims (age, sum_claimed, region) SELECT i % 80, i % 977, 'r' || i % 9"
        " FROM generate_series(1, 2000) i",
        "age, sum_claimed, rarity(region)",
        [],
        ["photo"],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_suggestion_is_a_command_that_attaches_the_table_so(
    user: Connection, runtime: Runtime, run: Run, name: str
) -> None:
    made, features, options, left_out = TABLES[name]
    user.execute(made)  # type: ignore[arg-type]
    found = json.loads(run("attach", name, "--suggest", "--json").output)
    words = shlex.split(found["command"])
    assert found["features"] == features
    assert words[5:] == options
    assert found["left_out"] == left_out
    assert "To attach it so: pgoutlier attach" in " ".join(run("attach", name, "--suggest").output.split())
    assert user.execute("SELECT count(*) FROM outlier.sources").fetchone() == (0,)
    attached = run(*words[1:], "--json")
    assert json.loads(attached.output)["attached"]
