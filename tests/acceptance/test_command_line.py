"""The commands as users meet them: help, refusals in one sentence, and no secret in any output."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import click
import pytest
from typer.testing import CliRunner

from pgoutlier.detector import Detector
from pgoutlier.worker.cli import app
from pgoutlier.worker.cli.on_demand import load
from tests.acceptance.stack import SIGNING_KEY, Servers, Stack, Table

PASSWORD = "a-password-that-must-not-leak"
NOWHERE_DATABASE = f"postgresql://somebody:{PASSWORD}@127.0.0.1:1/nowhere"
NOWHERE_BROKER = f"redis://somebody:{PASSWORD}@127.0.0.1:1/0"


def _paths(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from _paths(child, (*path, name))


@pytest.mark.parametrize("path", list(_paths(load())), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*path, "--help"])
    assert done.exit_code == 0, done.output
    assert "Usage:" in done.output


@dataclass(frozen=True)
class Refused:
    """A command line that is refused, and words of the sentence that says why."""

    command: str
    says: str
    exit_code: int = 2
    settings: tuple[tuple[str, object], ...] = ()


REFUSED = [
    Refused("attach public.nothing --key id --features f0", "nothing"),
    Refused("attach TABLE --key missing --features f0", "missing"),
    Refused("train nothing", "There is no source nothing"),
    Refused("train TABLE --recipe nothing", "nothing"),
    Refused("models promote TABLE 99", "no model version 99"),
    Refused("models challenge TABLE 1", "Version 1 is the champion of"),
    Refused("models compare TABLE", "has no challenger"),
    Refused("models import TABLE pyproject", "cannot be read"),
    Refused("flagged TABLE --since yesterday", "'yesterday' is not a time"),
    Refused("db grant nobody_at_all", "There is no role nobody_at_all"),
    Refused("status", "PGOUTLIER_BATCH_ROWS", settings=(("batch_rows", 0),)),
    Refused("sources", "PGOUTLIER_DATABASE_URL", settings=(("database_url", f"mysql://u:{PASSWORD}@h/d"),)),
    Refused("models list TABLE", "PostgreSQL cannot be reached: ", 1, (("database_url", NOWHERE_DATABASE),)),
    Refused("train TABLE --queue", "The broker cannot be reached", 1, (("broker_url", NOWHERE_BROKER),)),
]


@pytest.fixture(scope="module")
def outcomes(
    shared_servers: Servers, detectors: tuple[Detector, Detector]
) -> dict[Refused, subprocess.CompletedProcess[str]]:
    """What came of each command; a process takes a second or two to start, so two run at a time."""
    stack = shared_servers.stack()
    table = shared_servers.table(stack)
    table.register(detectors[0])

    def run(refused: Refused) -> subprocess.CompletedProcess[str]:
        return stack.command(*refused.command.replace("TABLE", table.name).split(), **dict(refused.settings))

    with ThreadPoolExecutor(2) as pool:
        done = dict(zip(REFUSED, pool.map(run, REFUSED), strict=True))
    shared_servers.detach_all()
    return done


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.command)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    outcomes: dict[Refused, subprocess.CompletedProcess[str]], refused: Refused
) -> None:
    done = outcomes[refused]
    assert done.returncode == refused.exit_code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("pgoutlier: ")
    assert refused.says in done.stderr
    assert PASSWORD not in done.stderr
    assert SIGNING_KEY not in done.stderr


def test_processes_that_cannot_reach_their_servers_tell_no_secret(stack: Stack, table: Table) -> None:
    doctor = stack.command("doctor", database_url=NOWHERE_DATABASE, broker_url=NOWHERE_BROKER)
    assert doctor.returncode == 1
    call = stack.module(
        *("celery", "-A", "pgoutlier.worker", "call", "score.drain", f'--args=["{table.name}"]'),
        broker_url=NOWHERE_BROKER,
        database_url=NOWHERE_DATABASE,
    )
    assert call.returncode != 0
    text = "".join([doctor.stdout, doctor.stderr, call.stdout, call.stderr])
    assert PASSWORD not in text
    assert SIGNING_KEY not in text
