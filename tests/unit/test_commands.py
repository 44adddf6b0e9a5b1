"""The list of commands, which is written without importing them, and the rates that a worker tells of."""

from __future__ import annotations

import subprocess
import sys

from pgoutlier.worker.cli.on_demand import ENTRIES, load
from pgoutlier.worker.rates import WINDOW_SECONDS, Rates

HELP = "import sys; from pgoutlier.worker.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
# Each takes longer to import than the help of all commands to print.
HEAVY = {
    "alembic",
    "celery",
    "kombu",
    "matplotlib",
    "numpy",
    "onnx",
    "pandas",
    "psycopg",
    "pydantic",
    "pyarrow",
}
HEAVY |= {"redis", "scipy", "sklearn", "sqlalchemy", "tensorflow"}


def test_what_is_written_of_a_command_is_what_it_says_itself() -> None:
    commands = load().commands
    assert list(dict.fromkeys(entry.name for entry in ENTRIES)) == [entry.name for entry in ENTRIES]
    for entry in ENTRIES:
        assert (commands[entry.name].help or "").split("\n\n")[0] == entry.help, entry.name


def test_the_list_of_commands_is_printed_without_importing_what_they_need() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "pgoutlier" in imported
    assert not imported & HEAVY


def test_rates_are_those_of_each_source() -> None:
    rates = Rates()
    assert rates.per_second() == {}
    rates.add("payments", 600)
    rates.add("payments", 400)
    rates.add("logins", 5)
    assert rates.per_second() == {"payments": 1_000 / WINDOW_SECONDS, "logins": 5 / WINDOW_SECONDS}
