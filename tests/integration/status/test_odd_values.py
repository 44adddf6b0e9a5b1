"""Values of the user's that Python has no object for, or JSON no number: they are shown, and hide nothing else."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from pgoutlier.worker.explaining import explained
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.status import flagged_rows
from tests.integration.conftest import Run
from tests.support import Table, attach_table, make_detector

User = psycopg.Connection[Any]

# Column: type, a value of it, and what is shown of that. The types of the columns' neighbours, and not theirs alone.
ODD: dict[str, tuple[str, str, Any]] = {
    "until": ("timestamptz", "infinity", "infinity"),
    "since": ("timestamp", "-infinity", "-infinity"),
    "day": ("date", "infinity", "infinity"),
    "founded": ("timestamp", "0044-03-15 12:00:00 BC", "0044-03-15 12:00:00 BC"),
    "born": ("date", "0044-03-15 BC", "0044-03-15 BC"),
    "far": ("timestamp", "12026-01-01 00:00:00", "12026-01-01 00:00:00"),
    "closes": ("time", "24:00:00", "24:00:00"),
    "shuts": ("timetz", "24:00:00+00", "24:00:00+00"),
    "lasts": ("interval", "5000000 years", "5000000 years"),
    "ratio": ("numeric", "NaN", "NaN"),
    "limit_": ("numeric", "-Infinity", "-Infinity"),
    "huge": ("numeric", "1e400", "1" + 400 * "0"),
    "number": ("numeric", "12345678901234567890", 12345678901234567890),
    "exact": ("numeric", "1234567890123456.78", "1234567890123456.78"),
    "price": ("numeric(10,2)", "19.90", 19.9),
    "gap": ("float8", "NaN", "NaN"),
    "most": ("float4", "Infinity", "Infinity"),
    "valid": ("daterange", "[2026-01-01,infinity)", "[2026-01-01,infinity)"),
    "open": ("tstzrange", "[-infinity,infinity]", "[-infinity,infinity]"),
    "spans": ("datemultirange", "{[2026-01-01,infinity)}", "{[2026-01-01,infinity)}"),
    "days": ("date[]", "{2026-01-01,infinity}", "{2026-01-01,infinity}"),
    "rates": ("numeric[]", "{1.5,NaN,NULL}", [1.5, "NaN", None]),
    "doubles": ("float8[]", "{{1,Infinity},{2,3}}", [[1.0, "Infinity"], [2.0, 3.0]]),
    "facts": ("jsonb", '{"of": [1e400, 0.5]}', {"of": [10**400, 0.5]}),
    "half": ("json", '{"of": "\\ud800"}', {"of": "\ud800"}),
    "digits": ("json", "9" * 5_000, "9" * 5_000),
    "nothing": ("timestamptz", None, None),  # type: ignore[dict-item]
    "here": ("inet", "10.0.0.1", "10.0.0.1"),
}


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def as_json(text: str) -> Any:
    return json.loads(text, parse_constant=no_constant)


@pytest.fixture
def odd(user: User, runtime: Runtime) -> Table:
    """Two flagged rows, one of them with all the odd values."""
    columns = ", ".join(f"{name} {kind}" for name, (kind, _, _) in ODD.items())
    user.execute(f"CREATE TABLE t (id bigint PRIMARY KEY, x float8, {columns})")  # type: ignore[arg-type]
    table = attach_table(user, runtime, relation="t", key="id", features="x", time="until", entity="born")
    table.promote(make_detector(["x"], threshold=0.0))
    places = ", ".join(["%s"] * len(ODD))
    values = [value for _, value, _ in ODD.values()]
    user.execute(f"INSERT INTO t VALUES (1, 5, {places})", values)  # type: ignore[arg-type]
    user.execute("INSERT INTO t (id, x, until) VALUES (2, 6, '2026-01-01 UTC')")
    table.drain()
    assert table.scored() == [1, 2]
    return table


def test_flagged_shows_every_value_of_the_users_columns(odd: Table, run: Run) -> None:
    done = run("flagged", "t", "--json")
    assert done.exit_code == 0, done.output
    rows = {row["id"]: row for row in as_json(done.stdout)}
    assert {name: rows[1][name] for name in ODD} == {name: shown for name, (_, _, shown) in ODD.items()}
    assert rows[2]["until"].startswith("2026-01-01T00:00:00")


def test_a_table_of_flagged_rows_shows_them_too(odd: Table, run: Run) -> None:
    done = run("flagged", "t")
    assert done.exit_code == 0, done.output
    assert "infinity" in done.stdout
    assert "BC" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("status", "--json"),
        ("threshold", "t", "--what-if", "--json"),
        ("quarantine", "list", "t", "--json"),
        ("doctor",),
        ("report", "t", "--output", "{folder}/page.html"),
    ],
)
def test_other_commands_answer_for_a_table_of_odd_values(
    odd: Table, run: Run, words: tuple[str, ...], tmp_path: Any
) -> None:
    done = run(*(word.format(folder=tmp_path) for word in words))
    assert "cannot be reached: " not in done.output
    assert "Traceback" not in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    if "--json" in words:
        as_json(done.stdout)


def test_a_value_that_cannot_be_read_is_no_lost_server(user: User) -> None:
    with pytest.raises(psycopg.DataError) as raised:
        user.execute("SELECT timestamptz 'infinity'").fetchall()
    sentence, exit_code = explained(raised.value)
    assert sentence is not None
    assert sentence.startswith("A value cannot be sent to PostgreSQL, or read from it: timestamp too large")
    assert exit_code == 1


def test_a_server_that_is_gone_is_said_to_be(user: User) -> None:
    with pytest.raises(psycopg.OperationalError) as raised:
        psycopg.connect("postgresql://nobody@127.0.0.1:9/nowhere")
    sentence, _ = explained(raised.value)
    assert sentence is not None
    assert sentence.startswith("PostgreSQL cannot be reached: ")


def test_rows_are_as_before_where_python_knows_the_values(odd: Table, runtime: Runtime) -> None:
    row = next(row for row in flagged_rows.newest(runtime, "t", since=None, limit=10).rows if row["id"] == 2)
    assert row["until"].year == 2026
    assert isinstance(row["reconstruction_error"], float)
    assert isinstance(row["top_features"][0]["contribution"], float)
