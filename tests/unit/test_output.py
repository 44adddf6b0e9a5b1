"""What commands print."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pgoutlier.worker.cli import status
from pgoutlier.worker.console import print_table
from pgoutlier.worker.schedules.schedule_control import Coming
from pgoutlier.worker.status.status import Status


def test_text_of_others_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", ["note"], [["a\x1b[31m[red]b\x9b\x07"]])
    said = capsys.readouterr().out
    assert r"a\x1b[31m[red]b\x9b\x07" in said
    assert not set(said) & {"\x1b", "\x9b", "\x07"}


def test_status_says_what_comes_next_but_not_what_comes_every_few_seconds() -> None:
    names = ["drain", "deliver", "jobs", "sweep"]
    schedules = [
        Coming(
            name=name,
            task="score.drain_all",
            enabled=True,
            next_run_at=datetime.now(UTC),
            next_run_in_seconds=3.0,
            last_run_at=None,
            problem=None,
        )
        for name in names
    ]
    figures = Status(sources=[], workers=[], listeners=1, beats=["one"], schedules=schedules, jobs=[])
    assert status._schedules_text(figures) == "1 beat; next: sweep in 3.0 s"
