"""Schedules in Postgres: claimed once, changed by command and by SQL, audited, and one bad row alone stands still."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from click.testing import Result
from kombu.exceptions import OperationalError as BrokerUnavailable
from psycopg.rows import dict_row
from typer.testing import CliRunner

from pgoutlier.db.errors import ScheduleError, SourceError
from pgoutlier.db.schedules import schedules
from pgoutlier.worker import cli
from pgoutlier.worker.app import app
from pgoutlier.worker.cli import context
from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.schedules import schedule_control, scheduling
from pgoutlier.worker.schedules.schedule_control import Change
from pgoutlier.worker.schedules.scheduling import Call
from pgoutlier.worker.training import training
from tests.conftest import Connect
from tests.support import Table

# The statements are plain; the tables are made by migrations, which run on each server.
pytestmark = pytest.mark.postgres18

QUEUES = ("admin", "score", "train")
# But args and kwargs, which a bad row may hold in a form that cannot be read.
COLUMNS = (
    "name, task, every_seconds, crontab, time_zone, enabled, settings_seconds, next_run_at, last_run_at, last_due_at,"
    " last_run_by, n_runs, problem, created_at, created_by, changed_at, changed_by"
)


@pytest.fixture(scope="module")
def sender(broker_url: str) -> Iterator[redis.Redis]:
    """The application with a real broker, and that broker. Celery reads its configuration once in a process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PGOUTLIER_DATABASE_URL", "postgresql://no.server.invalid/db")
        patched.setenv("PGOUTLIER_BROKER_URL", broker_url)
        assert set(app.conf.beat_schedule) >= {"drain", "sweep", "retrain", "prune"}
        with redis.Redis(unix_socket_path=urlsplit(broker_url).path) as client:
            yield client


@dataclass
class Beats:
    """Schedules of one test: rows as they are, ticks in this process, and what the broker holds."""

    runtime: Runtime
    user: psycopg.Connection[Any]
    broker: redis.Redis

    def sql(self, statement: str, *params: Any) -> None:
        self.user.execute(statement.encode(), params or None)

    def row(self, name: str) -> dict[str, Any]:
        with self.user.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(
                f"SELECT {COLUMNS} FROM outlier.schedules WHERE name = %s", (name,)
            ).fetchone()
        assert found is not None
        return dict(found)

    def make(self, name: str, **columns: Any) -> None:
        """By SQL, as a user does; an interval of an hour and the pruning task unless told otherwise."""
        values = {"task": "maintenance.prune_all", **columns}
        if not {"every_seconds", "crontab"} & values.keys():
            values["every_seconds"] = 3_600
        names = ", ".join(values)
        places = ", ".join(["%s"] * len(values))
        self.sql(
            f"INSERT INTO outlier.schedules (name, {names}) VALUES (%s, {places})", name, *values.values()
        )

    def make_due(self, name: str, ago: str = "1 second") -> None:
        self.sql("UPDATE outlier.schedules SET next_run_at = now() - %s::interval WHERE name = %s", ago, name)

    def tick(self, beat: str = "a:1") -> float | None:
        return scheduling.tick(self.runtime, beat)

    def sent(self, name: str) -> list[dict[str, Any]]:
        """Headers and arguments of the messages for one schedule, the oldest first."""
        raw = [json.loads(text) for queue in QUEUES for text in self.broker.lrange(queue, 0, -1)]
        return [m["headers"] for m in reversed(raw) if m["headers"]["id"].startswith(f"{name}@")]

    def events(self, name: str) -> list[tuple[Any, ...]]:
        return self.user.execute(
            "SELECT action, created_by FROM outlier.schedule_events WHERE schedule = %s ORDER BY id", (name,)
        ).fetchall()


@pytest.fixture
def beats(runtime: Runtime, user: psycopg.Connection[Any], sender: redis.Redis) -> Iterator[Beats]:
    for queue in QUEUES:
        sender.delete(queue)
    yield Beats(runtime, user, sender)
    for queue in QUEUES:
        sender.delete(queue)


def built_in() -> set[str]:
    """Names of the schedules that beat makes by itself."""
    return set(app.conf.beat_schedule)


# -- ticks


def test_a_tick_is_sent_once_and_noted(beats: Beats) -> None:
    beats.make("mine", kwargs=json.dumps({"older_than_seconds": 5}), task="models.train_due")
    beats.tick()
    row = beats.row("mine")
    assert (row["n_runs"], row["problem"]) == (0, None)
    assert timedelta(minutes=59) < row["next_run_at"] - datetime.now(UTC) <= timedelta(hours=1)
    beats.make_due("mine")
    due = beats.row("mine")["next_run_at"]
    for _ in range(3):
        beats.tick()
    (message,) = beats.sent("mine")
    assert message["task"] == "models.train_due"
    assert "older_than_seconds" in message["kwargsrepr"]
    assert message["expires"] is not None
    row = beats.row("mine")
    assert (row["n_runs"], row["last_due_at"], row["last_run_by"]) == (1, due, "a:1")
    assert row["next_run_at"] > row["last_run_at"]


def test_many_beats_at_once_send_each_tick_once(beats: Beats) -> None:
    for n in range(20):
        beats.make(f"mine{n}")
    beats.tick()
    for n in range(20):
        beats.make_due(f"mine{n}")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(beats.tick, ["a:1", "a:2", "a:3", "a:4"]))
    beats.tick()
    assert [len(beats.sent(f"mine{n}")) for n in range(20)] == [1] * 20


def half_an_hour_away() -> str:
    """A crontab of one run an hour, of which none comes while a test is under way."""
    return f"{(datetime.now(UTC).minute + 30) % 60} * * * *"


@pytest.mark.parametrize("when", ["every_seconds", "crontab"])
def test_a_tick_that_was_missed_many_times_is_run_once(beats: Beats, when: str) -> None:
    beats.make("mine", **{when: 3_600 if when == "every_seconds" else half_an_hour_away()})
    beats.make_due("mine", "10 hours")
    beats.tick()
    beats.tick()
    assert len(beats.sent("mine")) == 1
    assert beats.row("mine")["next_run_at"] > datetime.now(UTC)


def test_what_another_session_holds_is_left_to_it_and_keeps_nobody_waiting(
    beats: Beats, connect: Connect
) -> None:
    beats.make("held")
    beats.make("free")
    beats.make_due("held")
    beats.make_due("free")
    holder = connect(autocommit=False)
    holder.execute("SELECT FROM outlier.schedules WHERE name = 'held' FOR UPDATE")
    wait = beats.tick()
    assert (len(beats.sent("held")), len(beats.sent("free"))) == (0, 1)
    assert wait is not None
    assert wait < 0
    holder.rollback()
    beats.tick()
    assert len(beats.sent("held")) == 1


def test_a_broker_that_is_away_leaves_the_tick_due(beats: Beats) -> None:
    def nobody_there(*_: object) -> None:
        raise BrokerUnavailable("away")

    beats.make("mine")
    beats.make_due("mine")
    before = beats.row("mine")
    with pytest.raises(BrokerUnavailable):
        scheduling.tick(beats.runtime, "a:1", send=nobody_there)
    assert beats.row("mine") == before
    beats.tick()
    assert len(beats.sent("mine")) == 1


def test_a_beat_that_dies_before_it_could_note_a_tick_leaves_it_to_the_next(beats: Beats) -> None:
    class Killed(BaseException):
        pass

    def die(call: Call, task_id: str, expires_seconds: float | None) -> None:
        raise Killed

    beats.make("mine")
    beats.make_due("mine")
    with pytest.raises(Killed):
        scheduling.tick(beats.runtime, "a:1", send=die)
    beats.tick("a:2")
    assert beats.row("mine")["last_run_by"] == "a:2"


def test_a_paused_schedule_is_not_sent_and_makes_up_nothing_when_it_is_resumed(beats: Beats) -> None:
    beats.make("mine", crontab=half_an_hour_away())
    beats.sql("UPDATE outlier.schedules SET enabled = false")
    beats.make_due("mine", "3 days")
    beats.tick()
    entry, changed = schedule_control.set_enabled(beats.runtime, "mine", True)
    beats.tick()
    assert changed
    assert beats.sent("mine") == []
    assert entry.schedule.next_run_at > datetime.now(UTC)


# -- bad rows


BAD = [
    ({"task": "nope"}, "There is no task 'nope'"),
    ({"task": "models.trian"}, "Did you mean models.train"),
    ({"task": "celery.backend_cleanup"}, "There is no task"),
    ({"task": "models.train"}, "missing a required argument: 'source'"),
    ({"task": "models.train", "args": '["nothing"]'}, "There is no source nothing"),
    (
        {"task": "models.train", "args": "[5]"},
        "The argument source of models.train should be a valid string",
    ),
    ({"args": "[1]"}, "too many positional arguments"),
    ({"kwargs": '{"older": 1}'}, "unexpected keyword argument 'older'"),
    ({"args": f"[{'9' * 5_000}]"}, "It cannot be read (ValueError"),
    ({"crontab": "0 0 31 2 *"}, "a day has to be one of its month"),
    ({"crontab": "5-3 * * * *"}, "from the smaller to the larger"),
    ({"crontab": "0 3 * * *", "time_zone": "europe/berlin"}, "Did you mean Europe/Berlin?"),
]


def test_bad_rows_say_why_and_do_not_stop_the_others(beats: Beats) -> None:
    for number, (columns, _) in enumerate(BAD):
        beats.make(f"bad{number}", **columns)
        beats.make_due(f"bad{number}", "2 hours")
    beats.make("good")
    beats.make_due("good")
    beats.tick()
    assert len(beats.sent("good")) == 1
    shown = {entry.schedule.name: entry.problem for entry in schedule_control.listing(beats.runtime)}
    for number, (_, says) in enumerate(BAD):
        name = f"bad{number}"
        assert says in beats.row(name)["problem"]
        assert says in shown.pop(name)
        assert beats.row(name)["next_run_at"] is None
        with pytest.raises(ScheduleError, match=f"{name} cannot run: "):
            schedule_control.run_now(beats.runtime, name)
        assert beats.sent(name) == []
        assert schedule_control.history(beats.runtime, name, limit=1)[0].action == "created"
    assert set(shown.values()) == {None}


def test_a_bad_row_that_is_mended_runs_again(beats: Beats) -> None:
    beats.make("mine", task="nope")
    beats.tick()
    assert beats.row("mine")["problem"]
    beats.sql("UPDATE outlier.schedules SET task = 'maintenance.prune_all' WHERE name = 'mine'")
    assert beats.row("mine")["problem"] is None
    beats.tick()
    assert beats.row("mine")["next_run_at"] > datetime.now(UTC)


IMPOSSIBLE: list[dict[str, Any]] = [
    {"crontab": "0 3 * *"},
    {"crontab": "0 25 * * *"},
    {"crontab": "0 3 * * * *"},
    {"crontab": "@daily"},
    {"crontab": "0 3 * * *\n"},
    {"every_seconds": 0},
    {"every_seconds": -1},
    {"every_seconds": "NaN"},
    {"every_seconds": "infinity"},
    {"every_seconds": None},
    {"every_seconds": 60, "crontab": "0 3 * * *"},
    {"time_zone": "Mars/Olympus"},
    {"args": "{}"},
    {"kwargs": "[]"},
    {"task": ""},
    {"next_run_at": "infinity"},
    {"next_run_at": "100000-01-01"},
    {"last_run_at": "-infinity"},
]


def test_postgres_refuses_what_no_schedule_can_mean(beats: Beats) -> None:
    beats.make("mine")
    for columns in IMPOSSIBLE:
        with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.InvalidParameterValue)):
            beats.make("wrong", **columns)


# -- built-in ones and the settings


def test_built_in_schedules_keep_to_the_settings_until_somebody_edits_them(
    beats: Beats, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seed(**seconds: float) -> None:
        entries = {name: dict(entry) for name, entry in app.conf.beat_schedule.items()}
        for name, value in seconds.items():
            entries[name]["schedule"] = value
        with monkeypatch.context() as patched:
            patched.setitem(app.conf, "beat_schedule", entries)
            with beats.runtime.engine.begin() as connection:
                scheduling.seed(connection, follow=True)

    seed(drain=5.0, sweep=300.0)
    seed(drain=1.0, sweep=300.0)
    assert beats.row("drain")["every_seconds"] == 1
    schedule_control.change(beats.runtime, "drain", Change(every_seconds=20))
    schedule_control.change(beats.runtime, "sweep", Change(crontab="*/5 * * * *"))
    seed(drain=2.0, sweep=60.0)
    assert (beats.row("drain")["every_seconds"], beats.row("drain")["settings_seconds"]) == (20, 2)
    assert (beats.row("sweep")["every_seconds"], beats.row("sweep")["crontab"]) == (None, "*/5 * * * *")
    entry, _ = schedule_control.change(beats.runtime, "drain", Change(from_settings=True))
    assert entry.schedule.every_seconds == 2
    with pytest.raises(ScheduleError, match="pgoutlier schedule pause drain"):
        schedule_control.delete(beats.runtime, "drain")


def test_seeding_again_keeps_the_next_run_and_writes_nothing(beats: Beats) -> None:
    for _ in range(2):
        with beats.runtime.engine.begin() as connection:
            scheduling.seed(connection, follow=True)
        beats.tick()
    rows = [beats.row(name) for name in built_in()]
    assert {len(beats.events(name)) for name in built_in()} == {1}
    with beats.runtime.engine.begin() as connection:
        scheduling.seed(connection, follow=True)
    assert [beats.row(name) for name in built_in()] == rows


# -- changes


def test_a_change_is_in_effect_with_the_next_look(beats: Beats) -> None:
    beats.make("mine", every_seconds=86_400)
    beats.tick()
    beats.sql("UPDATE outlier.schedules SET every_seconds = 60 WHERE name = 'mine'")
    assert beats.row("mine")["next_run_at"] is None
    beats.tick()
    assert beats.row("mine")["next_run_at"] - datetime.now(UTC) <= timedelta(seconds=60)
    beats.sql("UPDATE outlier.schedules SET next_run_at = now() WHERE name = 'mine'")
    beats.tick()
    assert len(beats.sent("mine")) == 1


def test_every_change_is_kept_with_who_and_what_and_cannot_be_forged(
    beats: Beats, role: str, connect: Connect
) -> None:
    granting.grant(beats.runtime, role, "operator")
    operator = connect(user=role)
    operator.execute(
        "INSERT INTO outlier.schedules (name, task, every_seconds, changed_by) VALUES ('mine', 'score.sweep_all', 60,"
        " 'somebody')"
    )
    operator.execute(
        "UPDATE outlier.schedules SET every_seconds = 90, changed_by = 'else' WHERE name = 'mine'"
    )
    operator.execute("UPDATE outlier.schedules SET changed_by = 'else' WHERE name = 'mine'")
    schedule_control.set_enabled(beats.runtime, "mine", False)
    schedule_control.set_enabled(beats.runtime, "mine", False)
    schedule_control.set_enabled(beats.runtime, "mine", True)
    schedule_control.run_now(beats.runtime, "mine")
    beats.make_due("mine")
    beats.tick()
    operator.execute("DELETE FROM outlier.schedules WHERE name = 'mine'")
    ours = str(beats.user.info.user)
    assert beats.events("mine") == [
        ("created", role),
        ("changed", role),
        ("paused", ours),
        ("resumed", ours),
        ("run_now", ours),
        ("deleted", role),
    ]
    for statement in ("DELETE FROM outlier.schedule_events", "UPDATE outlier.beats SET ticked_at = now()"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            operator.execute(statement.encode())
    changed = schedule_control.history(beats.runtime, "mine", limit=5)[-1]
    assert (changed.before["every_seconds"], changed.after["every_seconds"]) == (60, 90)


def test_an_operator_and_a_worker_may_do_what_they_have_to(
    beats: Beats, role: str, connect: Connect, runtime: Runtime
) -> None:
    from dataclasses import replace

    from pgoutlier.db.engine import make_engine

    url = runtime.engine.url.set(username=role).render_as_string(hide_password=False)
    granting.grant(runtime, role, "operator")
    engine = make_engine(url)
    own = replace(runtime, engine=engine)
    try:
        schedule_control.change(own, "mine", Change(task="score.sweep_all", every_seconds=60))
        schedule_control.set_enabled(own, "mine", False)
        schedule_control.run_now(own, "mine")
        assert {entry.schedule.name for entry in schedule_control.listing(own)} == {*built_in(), "mine"}
        schedule_control.delete(own, "mine")
        granting.grant(runtime, role, "worker")
        beats.make("mine")
        beats.make_due("mine")
        scheduling.tick(own, "a:1")
        assert len(beats.sent("mine")) == 2
        with engine.begin() as connection:
            schedules.tick(connection, "a:1")
            schedules.forget_old_beats(connection)
    finally:
        engine.dispose()


def test_run_now_sends_at_once_also_what_is_paused_and_leaves_the_next_run(beats: Beats) -> None:
    beats.make("mine", enabled=False, next_run_at="2100-01-01")
    before = beats.row("mine")
    entry = schedule_control.run_now(beats.runtime, "mine")
    assert len(beats.sent("mine")) == 1
    assert entry.schedule.last_run_at is not None
    assert entry.schedule.last_run_by == beats.user.info.user
    assert (entry.schedule.next_run_at, entry.schedule.enabled) == (before["next_run_at"], False)


def test_a_run_now_that_reaches_no_broker_is_not_noted(beats: Beats) -> None:
    def nobody_there(*_: object) -> None:
        raise BrokerUnavailable("away")

    beats.make("mine")
    before = beats.row("mine")
    with pytest.raises(BrokerUnavailable):
        schedule_control.run_now(beats.runtime, "mine", send=nobody_there)
    assert beats.row("mine") == before
    assert [action for action, _ in beats.events("mine")] == ["created"]


def test_a_source_with_a_schedule_of_its_own_is_left_to_it(beats: Beats, transactions: Table) -> None:
    transactions.promote()
    assert list(training.sources_due(beats.runtime)) == ["transactions"]
    name = transactions.source_name
    wanted = Change(task="models.train", args=[name], crontab="0 3 * * *", time_zone="Europe/Berlin")
    entry, changed = schedule_control.change(beats.runtime, "nightly", wanted)
    assert changed
    assert entry.schedule.next_run_at.astimezone(UTC).hour in {1, 2}
    assert schedule_control.change(beats.runtime, "nightly", wanted)[1] is False
    assert training.sources_due(beats.runtime) == {}
    schedule_control.set_enabled(beats.runtime, "nightly", False)
    assert list(training.sources_due(beats.runtime)) == ["transactions"]


def test_nothing_is_written_of_a_change_that_cannot_be_kept(beats: Beats) -> None:
    schedule_control.listing(beats.runtime)
    before = [beats.row(name) for name in built_in()]
    refused = [
        ("new", Change(task="nope", every_seconds=5)),
        ("new", Change(task="score.sweep_all")),
        ("new", Change(every_seconds=5)),
        ("new", Change(task="score.sweep_all", from_settings=True)),
        ("new", Change(task="score.sweep_all", every_seconds=5, crontab="* * * * *")),
        ("new", Change(task="score.sweep_all", every_seconds=5, time_zone="UTC")),
        ("New!", Change(task="score.sweep_all", every_seconds=5)),
        ("drain", Change(args=[1])),
        ("drain", Change(every_seconds=float("nan"))),
        ("drain", Change(time_zone="Europe/Berlin")),
        ("drain", Change(crontab="0 3 * * *", time_zone="Europe/Nowhere")),
    ]
    for name, wanted in refused:
        with pytest.raises((ScheduleError, SourceError)):
            schedule_control.change(beats.runtime, name, wanted)
    assert {entry.schedule.name for entry in schedule_control.listing(beats.runtime)} == built_in()
    assert [beats.row(name) for name in built_in()] == before


# -- the command line


@pytest.fixture
def pgoutlier(
    environment: dict[str, str], runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs `pgoutlier schedule` in this process, on the connections of this test."""
    for name, value in {**environment, "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(context, "make_runtime", lambda *_, **__: runtime)
    return lambda *words: CliRunner().invoke(cli.app, ["schedule", *words])


def test_the_commands_say_what_they_did_in_words_and_in_json(
    beats: Beats, pgoutlier: Callable[..., Result]
) -> None:
    made = pgoutlier(
        *("set", "nightly", "--task", "models.train_due", "--kwargs", '{"older_than_seconds": 3600}'),
        *("--crontab", "0  3 * * mon-fri", "--time-zone", "Europe/Berlin"),
    )
    assert made.exit_code == 0, made.output
    assert (
        "models.train_due(older_than_seconds=3600), 0 3 * * mon-fri Europe/Berlin; set; next run"
        in made.output
    )
    for words, changed in (("pause", True), ("pause", False), ("resume", True), ("run-now", True)):
        done = pgoutlier(words, "nightly", "--json")
        assert json.loads(done.stdout)["changed"] is changed
    beats.make("bad", task="nope")
    listed = pgoutlier("list")
    assert "bad cannot run: There is no task 'nope'" in listed.stdout
    assert "(settings)" in listed.stdout
    entries = {entry["name"]: entry for entry in json.loads(pgoutlier("list", "--json").stdout)}
    assert set(entries) == {*built_in(), "nightly", "bad"}
    assert entries["nightly"]["kwargs"] == {"older_than_seconds": 3600}
    assert "enabled: true -> false" in pgoutlier("history", "nightly").stdout
    actions = [event["action"] for event in json.loads(pgoutlier("history", "nightly", "--json").stdout)]
    assert actions == ["run_now", "resumed", "paused", "created"]
    assert "Deleted nightly." in pgoutlier("delete", "nightly").stdout
    for words in (
        ["set", "x", "--every", "1y"],
        ["set", "x", "--args", "{}"],
        ["set", "x", "--kwargs", "[NaN"],
    ):
        assert isinstance(pgoutlier(*words).exception, ScheduleError)


# -- beats


def test_the_last_tick_is_stored_and_old_beats_are_forgotten(beats: Beats) -> None:
    with beats.runtime.engine.begin() as connection:
        schedules.tick(connection, "a:1")
        schedules.tick(connection, "a:2")
        assert set(schedule_control.beats_alive(connection)) == {"a:1", "a:2"}
    beats.sql("UPDATE outlier.beats SET ticked_at = now() - interval '2 days' WHERE name = 'a:1'")
    with beats.runtime.engine.begin() as connection:
        assert schedule_control.beats_alive(connection) == ["a:2"]
        schedules.forget_old_beats(connection)
    beats.sql("UPDATE outlier.beats SET ticked_at = now() - interval '2 days'")
    with beats.runtime.engine.begin() as connection:
        schedules.forget_old_beats(connection)
        (last,) = schedules.beats(connection)
    assert last.name == "a:2"
    assert last.seconds_ago > 86_400
