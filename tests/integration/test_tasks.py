"""What administrators do, as tasks: messages of another program, done by a real worker with a worker's rights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery
from sqlalchemy import make_url

from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import Runtime
from tests.support import Table, make_detector, register, until

# A worker process is started for it; the statements behind the tasks are tested on both.
pytestmark = pytest.mark.postgres18

User = psycopg.Connection[Any]


@pytest.fixture
def program(broker_url: str) -> Celery:
    """Another program: it knows the broker and the names of the tasks, nothing else."""
    return Celery(broker=broker_url, set_as_current=False)


@pytest.fixture
def worker_log(
    environment: dict[str, str], transactions: Table, role: str, runtime: Runtime, tmp_path: Path
) -> Iterator[Path]:
    """The log of a worker of one thread, whose role has what `pgoutlier db grant --as worker` gives."""
    granting.grant(runtime, role, "worker")
    url = make_url(environment["PGOUTLIER_DATABASE_URL"]).set(username=role)
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "celery",
                "-A",
                "pgoutlier.worker",
                "worker",
                "-Q",
                "admin",
                "-P",
                "solo",
                "-l",
                "INFO",
            ],
            env={
                **os.environ,
                **environment,
                "PGOUTLIER_DATABASE_URL": url.render_as_string(hide_password=False),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    yield log
    worker.kill()
    worker.wait()


def test_administrators_work_by_messages_and_each_leaves_its_trace(
    program: Celery, worker_log: Path, transactions: Table, user: User, role: str
) -> None:
    name = transactions.source_name
    transactions.promote()
    register(
        transactions.runtime, transactions.source, make_detector(transactions.source.definition.feature_names)
    )
    nightly = {"task": "models.tag", "args": [name, 2, "by-night"], "crontab": "0 3 * * *"}
    calls: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("models.set_promotion", [name, "if_better"], {}),
        ("models.challenge", [name, 2], {"reason": "asked for by ana"}),
        ("models.clear_challenger", [name], {}),
        ("schedules.set", ["nightly"], nightly),
        ("schedules.set", ["nightly"], nightly),
        ("schedules.set", ["wrong"], {**nightly, "args": ["nothing", 2, "by-night"]}),
        ("schedules.pause", ["nightly"], {}),
        ("schedules.resume", ["nightly"], {}),
        ("schedules.set", ["nightly"], {"time_zone": "Europe/Berlin"}),
        ("schedules.run_now", ["nightly"], {}),
        ("schedules.delete", ["drift"], {}),
        ("schedules.delete", ["nightly"], {}),
    ]
    for task, args, kwargs in calls:
        program.send_task(task, args, kwargs, queue="admin")
    tagged = "SELECT tag, created_by FROM outlier.model_tags"
    until(lambda: user.execute(tagged.encode()).fetchall() == [("by-night", role)])

    events = "SELECT action FROM outlier.schedule_events WHERE schedule = 'nightly' AND created_by = %s ORDER BY id"
    assert [action for (action,) in user.execute(events.encode(), (role,)).fetchall()] == [
        *("created", "paused", "resumed", "changed", "run_now", "deleted")
    ]
    moves = (
        "SELECT action, reason, created_by FROM outlier.alias_events WHERE alias = 'challenger' ORDER BY id"
    )
    assert user.execute(moves.encode()).fetchall() == [
        ("challenge", "asked for by ana", role),
        ("clear", "task", role),
    ]
    promotion = "SELECT promotion, promotion_set_by FROM outlier.sources"
    assert user.execute(promotion.encode()).fetchall() == [("if_better", role)]
    log = worker_log.read_text()
    assert "There is no source nothing" in log
    assert "drift is built in and would come back" in log
    assert "Traceback" not in log
