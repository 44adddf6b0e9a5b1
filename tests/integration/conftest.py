"""Running command lines in the process of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pgoutlier.worker.cli import app, context
from pgoutlier.worker.runtime import Runtime, make_runtime

Run = Callable[..., Result]


@pytest.fixture
def run(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command line in this process, and closes its connections, as the end of a process would."""
    for name, value in {**environment, "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    opened: list[Runtime] = []

    def make_and_keep(*args: Any, **options: Any) -> Runtime:
        opened.append(make_runtime(*args, **options))
        return opened[-1]

    monkeypatch.setattr(context, "make_runtime", make_and_keep)
    yield lambda *words, **options: CliRunner().invoke(app, words, **options)
    for runtime in opened:
        runtime.engine.dispose()
