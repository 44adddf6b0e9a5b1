"""Real beats on one table of schedules, with a real broker and no worker: what they sent is there to count."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest
import redis
from sqlalchemy import make_url

from pgoutlier.db import migrate
from pgoutlier.db.engine import make_engine
from tests.acceptance.stack import Stack, Started
from tests.support import until


def sent(stack: Stack, schedule: str) -> list[str]:
    """Ids of the messages for a schedule that the broker holds; each tick has one id."""
    with redis.Redis(unix_socket_path=str(stack.kit.valkey.socket)) as client:
        messages = [json.loads(str(m, "utf-8")) for m in client.lrange("admin", 0, -1)]
    return [m["headers"]["id"] for m in messages if m["headers"]["id"].startswith(f"{schedule}@")]


def n_runs(stack: Stack, schedule: str) -> int:
    return int(str(stack.one("SELECT n_runs FROM outlier.schedules WHERE name = %s", schedule)))


def execute(stack: Stack, statement: str) -> None:
    with stack.connect() as connection:
        connection.execute(statement.encode())


@pytest.fixture
def often(stack: Stack) -> Iterator[str]:
    """A schedule that was due for hours while no beat ran, and from then on is due three times a second."""
    execute(
        stack,
        "INSERT INTO outlier.schedules (name, task, every_seconds, next_run_at)"
        " VALUES ('often', 'maintenance.prune_all', 86400, now() - interval '10 hours')",
    )
    yield "often"
    execute(stack, "DELETE FROM outlier.schedules WHERE name = 'often'")


def test_two_beats_send_each_tick_once_and_one_goes_on_alone_when_the_other_is_killed(
    stack: Stack, often: str
) -> None:
    beats = {beat.pid: beat for beat in (stack.beat(), stack.beat())}
    until(lambda: all("beat_ready" in beat.output() for beat in beats.values()), "both beats tick")

    until(lambda: n_runs(stack, often) == 1, "the missed tick is sent")
    assert stack.one("SELECT next_run_at > now() FROM outlier.schedules WHERE name = 'often'") is True
    assert len(sent(stack, often)) == 1

    execute(stack, "UPDATE outlier.schedules SET every_seconds = 0.3 WHERE name = 'often'")
    until(lambda: n_runs(stack, often) >= 10, "a change by SQL takes effect")

    killed = kill_the_last_to_send(stack, often, beats)
    before = n_runs(stack, often)
    until(lambda: n_runs(stack, often) >= before + 10, "the other beat goes on")
    assert sender(stack, often) != killed.pid

    paused = stack.command("schedule", "pause", often, "--json")
    assert json.loads(paused.stdout)["changed"] is True
    counted = Counter(sent(stack, often))
    assert set(counted.values()) == {1}
    assert len(counted) == n_runs(stack, often)
    shown = {s["name"]: s for s in list(stack.status()["schedules"])}  # type: ignore[call-overload]
    assert shown["drain"]["next_run_in_seconds"] < 60
    assert shown[often]["next_run_at"] is None

    last = beats[sender(stack, often)]
    last.kill()
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    until(lambda: stack.one(sessions, f"pgoutlier beat {last.pid}") == 0, "its sessions have ended")
    execute(stack, "UPDATE outlier.beats SET ticked_at = ticked_at - interval '10 minutes'")
    found = json.loads(stack.command("doctor", "--json").stdout)
    beat = next(finding for finding in found if finding["what"] == "beat")
    assert beat["ok"] is False
    assert "the last tick was at" in beat["detail"]


def kill_the_last_to_send(stack: Stack, schedule: str, beats: dict[int, Started]) -> Started:
    """kill -9, between two ticks: one that is killed after it sent a tick and before it notes that sends it twice."""
    killed: list[Started] = []

    def killed_one() -> bool:
        beat = beats[sender(stack, schedule)]
        os.kill(beat.pid, signal.SIGSTOP)
        state = stack.one(
            "SELECT coalesce(string_agg(state, ','), '') FROM pg_stat_activity WHERE application_name = %s",
            f"pgoutlier beat {beat.pid}",
        )
        if state != "idle":
            os.kill(beat.pid, signal.SIGCONT)
            return False
        beat.kill()
        killed.append(beat)
        return True

    until(killed_one, "a beat is between two ticks")
    return killed[0]


def sender(stack: Stack, schedule: str) -> int:
    """Process id of the beat that sent the last tick."""
    name = str(stack.one("SELECT last_run_by FROM outlier.schedules WHERE name = %s", schedule))
    return int(name.rpartition(":")[2])


def test_a_beat_that_waits_for_the_schema_begins_when_it_is_there(stack: Stack) -> None:
    url = make_url(stack.environment["PGOUTLIER_DATABASE_URL"]).set(database="not_migrated_yet")
    execute(stack, "CREATE DATABASE not_migrated_yet")
    try:
        beat = stack.beat(database_url=url.render_as_string(hide_password=False))
        until(lambda: "run: pgoutlier db upgrade" in beat.output(), "it says what is missing")
        assert "Traceback" not in beat.output()
        engine = make_engine(url.render_as_string(hide_password=False))
        migrate.upgrade(engine)
        engine.dispose()
        until(lambda: "beat_ready" in beat.output(), "it begins")
        beat.kill()
        with psycopg.connect(url.set(drivername="postgresql").render_as_string(False)) as connection:
            names = connection.execute("SELECT name FROM outlier.schedules").fetchall()
        assert {name for (name,) in names} >= {"drain", "prune", "retrain", "sweep"}
    finally:
        execute(stack, "DROP DATABASE not_migrated_yet WITH (FORCE)")
