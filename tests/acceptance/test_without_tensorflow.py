"""No command loads TensorFlow but those that train; and where it is not installed, those say so in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgoutlier.detector import Detector
from pgoutlier.worker.cli.on_demand import load
from tests.acceptance.stack import Stack, Table

# They fit networks.
TRAIN = {"demo", "train", "evaluate", "report"}
# They go on until they are ended, or become another program: in processes of their own below and in test_models.
LAST = {"up", "listener", "psql"}
# In an order in which each finds what it needs. T: the table; more than one line of a command is fine.
LINES = """
servers start
servers status
servers stop
servers purge --yes
db upgrade
db current
db grant nobody_at_all
attach T --key id --features f0,f1,f2,f3,f4,f5
sources
adopt T
sweep T
quarantine list T
quarantine retry T
status
doctor
flagged T
features T 1
label T 1 fraud
verdicts T
threshold T
drift T
history keep T
backfill T --here
rescore T --here
reflag T --threshold 5 --no-wait
jobs list
jobs cancel 1
jobs resume 1
jobs watch 1
history show T 1
history stop T
models policy T
models list T
models show T 1
models challenge T 2
models compare T
models promote T 2
models rollback T
models history T
models diff T 1 2
models tag T 1 kept
models untag T 1 kept
models prune T
models export T 1 version.zip
models import T version.zip
schedule list
schedule set nightly --task score.sweep_all --every 1h
schedule pause nightly
schedule resume nightly
schedule run-now nightly
schedule history
schedule delete nightly
webhook list
webhook set T http://127.0.0.1:1/hook
webhook pause T
webhook resume T
webhook test T
webhook dead T
webhook retry T
webhook history T
webhook remove T
train T --queue
detach T --yes
"""

# Runs the command lines one after the other, and says of each how it ended and what it imported.
RUN = """
import json, sys
from typer.testing import CliRunner

asked = []
class Watch:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("tensorflow", "keras"):
            asked.append(name)
            if hide:
                return None
        return self.finder.find_spec(name, *rest)
hide = sys.argv[1] == "hide"
sys.meta_path[:] = [Watch(finder) for finder in sys.meta_path]
from pgoutlier.db.errors import PgoutlierError
from pgoutlier.worker.cli import app
for line in json.load(sys.stdin):
    done = CliRunner().invoke(app, line)
    wrong = done.exception if isinstance(done.exception, Exception) else None
    code = wrong.exit_code if isinstance(wrong, PgoutlierError) else done.exit_code
    said = f"{done.output} {wrong or ''}"
    print(json.dumps({"line": line, "code": code, "said": said, "asked": asked[:]}), file=sys.__stdout__, flush=True)
    asked.clear()
"""


SECRET = "whsec_" + "A" * 32


def _leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    children = getattr(command, "commands", None)
    if children is None:
        yield " ".join(words)
        return
    for name, child in children.items():
        yield from _leaves(child, (*words, name))


def _command(line: list[str], known: set[str]) -> str:
    return next(words for n in (2, 1) if (words := " ".join(line[:n])) in known)


def _run(
    stack: Stack, lines: list[list[str]], *, hide: bool = False, **settings: object
) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, "hide" if hide else "watch"],
        input=json.dumps(lines),
        cwd=stack.logs,
        env=stack.environment_with(**settings),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_command_imports_tensorflow_but_those_that_train(
    stack: Stack, table: Table, detectors: tuple[Detector, Detector], scratch: Path
) -> None:
    table.register(detectors[1], promote=False)
    table.insert(100)
    lines = [
        [table.name if word == "T" else word for word in line.split()] for line in LINES.strip().split("\n")
    ]
    known = set(_leaves(load()))
    tried = {_command(line, known) for line in lines} - TRAIN
    assert tried == known - TRAIN - LAST, "a command is new: add a line of it, or say that it trains"
    for done in _run(stack, lines, data_dir=scratch / "own", webhook_secret=SECRET):
        assert done["asked"] == [], done
        assert done["code"] in (0, 1, 2), done
        assert "Traceback" not in done["said"], done


@pytest.mark.parametrize("words", ["status", "doctor", "flagged T", "jobs list", "psql -c", "--help"])
def test_nor_does_it_in_a_process_of_its_own(stack: Stack, table: Table, words: str) -> None:
    line = [table.name if word == "T" else word for word in words.split()]
    line += ["SELECT 1"] if words == "psql -c" else []
    done = stack.module("pgoutlier.worker.cli", *line, python_options=("-X", "importtime"))
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"pgoutlier", "typer"} <= imported
    assert not imported & {"tensorflow", "keras"}


def test_a_command_that_trains_says_what_to_do_where_tensorflow_is_not_installed(
    stack: Stack, table: Table
) -> None:
    table.insert(600)
    rows = np.random.default_rng(3).normal(size=(600, 3))
    file = stack.logs / "rows.csv"
    np.savetxt(file, rows, delimiter=",", header="a,b,c", comments="")
    lines = [["train", table.name], ["evaluate", "--data", str(file), "--recipe", "default"], ["demo"]]
    for done in _run(stack, lines, hide=True):
        assert "TensorFlow, which trains, is not installed here" in done["said"], done
        assert done["code"] == 2, done
    assert stack.one("SELECT count(*) FROM outlier.training_runs WHERE source_id = %s", table.source.id) == 0
