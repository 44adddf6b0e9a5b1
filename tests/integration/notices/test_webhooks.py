"""Webhooks: deliveries are signed, sent at least once, sent again, given up; the commands around them."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy.exc import OperationalError

from pgoutlier.db.errors import DeliveryFailed, MissingPrivilege, SourceError, WebhookError
from pgoutlier.db.notices import deliveries
from pgoutlier.db.notices.deliveries import Retried
from pgoutlier.db.sources import sources
from pgoutlier.db.sql import statements
from pgoutlier.worker.notices import delivering, webhook_control
from pgoutlier.worker.notices.delivering import DeliveryResult
from pgoutlier.worker.notices.webhook_control import ListedWebhook
from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import make_runtime
from tests.integration.conftest import Run
from tests.receiver import KEY, SECRET, Receiver, kill_sender, receiving, status
from tests.support import HUNG_SECONDS, Table, attach_table, until

# Nothing here differs between the versions of PostgreSQL.
pytestmark = pytest.mark.postgres18


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def hooked(transactions: Table, receiver: Receiver) -> Table:
    """A source whose notices go to the receiver, two in a request."""
    table = transactions.with_settings(
        webhook_secret=SecretStr(SECRET), webhook_batch_notices=2, webhook_max_attempts=3
    )
    webhook_control.set_webhook(table.runtime, "transactions", receiver.url, per_minute=6_000)
    return table


def flag(table: Table, *keys: int, source: str = "transactions") -> None:
    table.user.execute(
        sql.SQL(
            "INSERT INTO outlier.{} (key, change_id, reconstruction_error, model_version, flagged)"
            " SELECT unnest(%s::bigint[]), 1, 7.5, 1, true"
        ).format(sql.Identifier(f"scores_{source}")),
        (list(keys),),
    )


def deliver(table: Table) -> DeliveryResult:
    """What is due by now; what is put off by more than the limit's pause is left."""
    return delivering.deliver(table.runtime, "transactions", longest_wait_seconds=0.1)


def make_due(table: Table) -> None:
    table.user.execute("UPDATE outlier.deliveries SET not_before = NULL")
    table.user.execute("UPDATE outlier.webhooks SET not_before = NULL")


def webhook(table: Table) -> ListedWebhook:
    (found,) = webhook_control.listing(table.runtime)
    return found


@dataclass
class Pause:
    """For how long nothing is to be sent, as far as an onlooker can tell: it began at some time within the look."""

    least_seconds: float = 0.0
    most_seconds: float = 0.0

    def may_be(self, least: float, most: float) -> bool:
        return self.least_seconds <= most and least <= self.most_seconds


@contextmanager
def pause_of(table: Table) -> Iterator[Pause]:
    """The pause that what is done meanwhile leads to."""
    pause = Pause()
    (before,) = table.keys("SELECT clock_timestamp()")
    yield pause
    ((pause.least_seconds, pause.most_seconds),) = table.rows(
        "SELECT extract(epoch FROM not_before - clock_timestamp())::float8,"
        " extract(epoch FROM not_before - %s)::float8 FROM outlier.webhooks",
        before,
    )


def test_notices_arrive_signed_in_order_and_once(hooked: Table, receiver: Receiver) -> None:
    flag(hooked, 5, 3, 4)
    assert deliver(hooked) == DeliveryResult(n_delivered=3)
    assert receiver.keys == ["5", "3", "4"]
    first, second = receiver.received
    assert first.path == "/hook?token=hush"
    assert first.is_signed_by(KEY)
    assert second.is_signed_by(KEY)
    assert not first.is_signed_by(KEY[::-1])
    assert first.id != second.id
    assert abs(int(first.headers["webhook-timestamp"]) - time.time()) < 60
    assert json.loads(first.body)["type"] == "outlier.flagged"
    assert set(first.notices[0]) == {
        *("id", "key", "reconstruction_error", "threshold", "model_version", "scored_at", "top_features")
    }
    assert deliver(hooked) == DeliveryResult()
    assert hooked.keys("SELECT count(*) FROM outlier.notices WHERE delivered_at IS NULL") == [0]


def test_what_failed_is_sent_again_as_it_was(hooked: Table, receiver: Receiver) -> None:
    # Longer than the test takes.
    hooked = hooked.with_settings(webhook_retry_base_seconds=50.0)
    receiver.answers += [status(503, text="later\x00"), status(500)]
    flag(hooked, 1, 2, 3)
    with pause_of(hooked) as pause:
        assert deliver(hooked).n_failed == 1
    assert pause.may_be(25, 50)
    assert "answered 503 Service Unavailable: later?" in webhook(hooked).problem
    assert deliver(hooked) == DeliveryResult(), "it is put off"
    make_due(hooked)
    with pause_of(hooked) as pause:
        assert deliver(hooked).n_failed == 1
    assert pause.may_be(50, 100)
    make_due(hooked)
    assert deliver(hooked) == DeliveryResult(n_delivered=3)
    tries = receiver.received[:3]
    assert len({(r.id, r.body) for r in tries}) == 1
    assert all(r.is_signed_by(KEY) for r in tries)
    assert webhook(hooked).problem is None


def test_after_the_last_attempt_it_is_a_dead_letter_until_it_is_retried(
    hooked: Table, receiver: Receiver
) -> None:
    receiver.answers += [status(500)] * 3
    flag(hooked, 1, 2)
    for _ in range(3):
        deliver(hooked)
        make_due(hooked)
    (letter,) = webhook_control.dead_letters(hooked.runtime, "transactions", limit=9)
    assert (letter.n_notices, letter.attempts) == (2, 3)
    assert "500" in letter.last_error
    assert (webhook(hooked).n_pending, webhook(hooked).n_dead) == (0, 2)
    flag(hooked, 3)
    assert deliver(hooked).n_delivered == 1, "the next one goes its way"
    assert webhook_control.retry(hooked.runtime, "transactions") == Retried(n_deliveries=1, n_notices=2)
    assert webhook_control.retry(hooked.runtime, "transactions") == Retried(n_deliveries=0, n_notices=0)
    assert deliver(hooked).n_delivered == 2
    assert receiver.received[-1].id == str(letter.id) == receiver.received[0].id
    assert webhook(hooked).n_dead == 0


def test_what_ends_its_worker_each_time_is_given_up_too(hooked: Table, receiver: Receiver) -> None:
    flag(hooked, 1)
    receiver.answers += [status(500)]
    deliver(hooked)
    hooked.user.execute("UPDATE outlier.deliveries SET attempts = 3")
    make_due(hooked)
    assert deliver(hooked).n_dead == 1
    assert len(receiver.received) == 1


def test_what_the_receiver_refuses_does_not_hold_up_the_others(hooked: Table, receiver: Receiver) -> None:
    receiver.answers += [status(422)]
    flag(hooked, 1, 2, 3, 4)
    result = deliver(hooked)
    assert (result.n_failed, result.n_delivered) == (1, 2)
    assert receiver.received[-1].keys == ["3", "4"]
    assert webhook(hooked).n_pending == 2


def test_gone_means_gone(hooked: Table, receiver: Receiver) -> None:
    receiver.answers += [status(410)]
    flag(hooked, 1, 2, 3)
    assert deliver(hooked).n_dead == 2
    assert deliver(hooked) == DeliveryResult()
    found = webhook(hooked)
    assert (found.enabled, found.n_pending, found.n_dead) == (False, 1, 2)
    assert "410" in found.problem
    webhook_control.set_webhook(hooked.runtime, "transactions", receiver.url + "2")
    assert webhook(hooked).enabled, "it was the old one that had gone"
    assert deliver(hooked).n_delivered == 1


def test_a_redirect_is_not_followed(hooked: Table, receiver: Receiver) -> None:
    receiver.answers += [status(307, Location=receiver.url + "elsewhere")]
    flag(hooked, 1)
    assert deliver(hooked).n_failed == 1
    assert len(receiver.received) == 1
    assert "redirects are not followed" in webhook(hooked).problem


@pytest.mark.parametrize("how", ["hang", "trickle"])
def test_a_receiver_that_does_not_come_to_an_end_is_given_up_in_time(
    how: str, hooked: Table, receiver: Receiver
) -> None:
    receiver.answers += [getattr(receiver, how)]
    table = hooked.with_settings(webhook_timeout_seconds=0.3)
    flag(table, 1)
    assert deliver(table).n_failed == 1
    assert "no answer within 0.3 s" in webhook(table).problem


def test_no_transaction_is_open_while_a_request_is_under_way(hooked: Table, receiver: Receiver) -> None:
    receiver.answers += [receiver.hang]
    flag(hooked, 1)
    with ThreadPoolExecutor() as threads:
        threads.submit(deliver, hooked)
        until(lambda: receiver.received)
        open_transactions = hooked.rows(
            "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        receiver.ended.set()
    assert open_transactions == []


def test_nobody_there_is_a_failure_like_others(hooked: Table, receiver: Receiver) -> None:
    webhook_control.set_webhook(hooked.runtime, "transactions", "http://localhost:1/hook")
    flag(hooked, 1)
    assert deliver(hooked).n_failed == 1
    assert webhook(hooked).problem == "http://localhost:1/...: Connection refused"
    webhook_control.set_webhook(hooked.runtime, "transactions", receiver.url)
    assert deliver(hooked).n_delivered == 1, "what was put off need not wait for the new URL"


def test_what_is_not_http_and_what_is_not_tls_are_failures(hooked: Table, receiver: Receiver) -> None:
    receiver.answers += [lambda handler: handler.wfile.write(b"\x00\xff" * 40_000)]
    flag(hooked, 1)
    assert deliver(hooked).n_failed == 1
    webhook_control.set_webhook(hooked.runtime, "transactions", receiver.url.replace("http:", "https:"))
    make_due(hooked)
    assert deliver(hooked).n_failed == 1
    assert len(receiver.received) == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of localhost, which nobody trusts yet."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"),
            *("-keyout", str(path), "-out", f"{path}.crt"),
        ],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def test_https_is_used_where_the_certificate_is_trusted_and_names_the_host(
    hooked: Table, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag(hooked, 1)
    with receiving(certificate) as receiver:
        url = receiver.url.replace("http://127.0.0.1", "https://localhost")
        webhook_control.set_webhook(hooked.runtime, "transactions", url)
        assert deliver(hooked).n_failed == 1
        assert "certificate cannot be trusted: self" in webhook(hooked).problem
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
        webhook_control.set_webhook(hooked.runtime, "transactions", url.replace("localhost", "127.0.0.1"))
        make_due(hooked)
        assert deliver(hooked).n_failed == 1
        assert "certificate cannot be trusted: IP" in webhook(hooked).problem
        assert receiver.received == []
        webhook_control.set_webhook(hooked.runtime, "transactions", url)
        make_due(hooked)
        assert deliver(hooked).n_delivered == 1
        receiver.answers += [receiver.trickle]
        flag(hooked, 2)
        assert deliver(hooked.with_settings(webhook_timeout_seconds=0.3)).n_failed == 1
        assert "no answer within 0.3 s" in webhook(hooked).problem


def test_the_receiver_may_ask_for_more_time(hooked: Table, receiver: Receiver) -> None:
    receiver.answers += [status(429, Retry_After="120"), status(503, Retry_After="999999")]
    flag(hooked, 1)
    with pause_of(hooked) as pause:
        deliver(hooked)
    assert pause.may_be(120, 120)
    make_due(hooked)
    with pause_of(hooked) as pause:
        deliver(hooked)
    assert pause.may_be(3_600, 3_600), "within bounds"
    webhook_control.retry(hooked.runtime, "transactions")
    assert deliver(hooked).n_delivered == 1, "an operator need not wait"


def test_the_limit_is_kept_by_all_workers_together(hooked: Table, receiver: Receiver) -> None:
    webhook_control.set_webhook(hooked.runtime, "transactions", receiver.url, per_minute=1)
    flag(hooked, 1, 2, 3)
    other = make_runtime(hooked.runtime.settings)
    with pause_of(hooked) as pause:
        assert deliver(hooked).n_delivered == 2
    assert pause.may_be(60, 60)
    assert delivering.deliver(other, "transactions", longest_wait_seconds=1) == DeliveryResult()
    assert delivering.sources_due(other) == []
    make_due(hooked)
    assert delivering.sources_due(other) == ["transactions"]
    assert delivering.deliver(other, "transactions", longest_wait_seconds=1).n_delivered == 1
    other.engine.dispose()


def test_two_deliverers_at_once_send_nothing_twice(hooked: Table, receiver: Receiver) -> None:
    flag(hooked, *range(40))
    with ExitStack() as stack:
        runtimes = [make_runtime(hooked.runtime.settings) for _ in range(3)]
        for runtime in runtimes:
            stack.callback(runtime.engine.dispose)
        threads = stack.enter_context(ThreadPoolExecutor())
        done = [threads.submit(delivering.deliver, r, "transactions") for r in runtimes for _ in range(2)]
        results = [future.result() for future in done]
    assert sum(result.n_delivered for result in results) == 40
    assert sorted(receiver.keys, key=int) == [str(key) for key in range(40)]


def test_one_that_takes_its_time_keeps_a_second_away_and_looks_again_when_it_is_done(
    hooked: Table, receiver: Receiver
) -> None:
    receiver.answers += [receiver.hold]
    runtime = hooked.runtime
    flag(hooked, 1)
    assert delivering.ring(runtime, "transactions")
    until(lambda: receiver.received)
    flag(hooked, 2)
    assert not delivering.ring(runtime, "transactions")
    assert deliver(hooked) == DeliveryResult(busy=True)
    receiver.released.set()
    until(lambda: not runtime.delivering)
    assert receiver.keys == ["1", "2"]


def test_a_webhook_that_hangs_does_not_hold_up_those_of_other_sources(
    hooked: Table, receiver: Receiver, user: psycopg.Connection[Any]
) -> None:
    user.execute("CREATE TABLE other (id bigint PRIMARY KEY, x float8)")
    attach_table(user, hooked.runtime, relation="other", key="id", features="x")
    receiver.answers += [receiver.hold]
    flag(hooked, 1)
    delivering.ring(hooked.runtime, "transactions")
    until(lambda: receiver.received)
    with receiving() as second:
        webhook_control.set_webhook(hooked.runtime, "other", second.url)
        flag(hooked, 7, source="other")
        delivering.ring(hooked.runtime, "other")
        until(lambda: second.keys == ["7"])
    receiver.released.set()
    until(lambda: not hooked.runtime.delivering)


SENDER = """
import sys
from pgoutlier.db.settings import load_settings
from pgoutlier.worker.notices import delivering
from pgoutlier.worker.runtime import make_runtime
delivering.deliver(make_runtime(load_settings()), "transactions")
"""


def test_a_sender_killed_before_it_could_note_the_answer_sends_the_same_again(
    hooked: Table, receiver: Receiver, environment: dict[str, str]
) -> None:
    senders: list[subprocess.Popen[bytes]] = []
    receiver.answers += [kill_sender(lambda: senders[0].pid)]
    flag(hooked, 1, 2)
    senders.append(
        subprocess.Popen(
            [sys.executable, "-c", SENDER],
            env={**environment, "PGOUTLIER_WEBHOOK_SECRET": SECRET, "PYTHONPATH": ":".join(sys.path)},
        )
    )
    assert senders[0].wait(HUNG_SECONDS) == -9
    flag(hooked, 3)
    until(lambda: not deliver(hooked).busy)
    first, again, last = receiver.received
    assert (first.id, first.body) == (again.id, again.body)
    assert again.keys == ["1", "2"]
    assert last.keys == ["3"]
    assert webhook(hooked).n_pending == 0


def test_a_session_that_is_lost_leads_to_a_second_sending_and_no_loss(
    hooked: Table, receiver: Receiver
) -> None:
    receiver.answers += [receiver.hang]
    flag(hooked, 1)
    with ThreadPoolExecutor() as threads:
        lost = threads.submit(deliver, hooked)
        until(lambda: receiver.received)
        hooked.user.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        make_due(hooked)
        until(lambda: deliver(hooked).n_delivered)
        receiver.ended.set()
        with pytest.raises(OperationalError):
            lost.result()
    assert len({(r.id, r.body) for r in receiver.received}) == 1
    assert webhook(hooked).n_pending == 0


def test_without_a_secret_nothing_is_sent_and_it_says_why(hooked: Table, receiver: Receiver) -> None:
    table = hooked.with_settings(webhook_secret=None)
    flag(table, 1)
    assert deliver(table) == DeliveryResult()
    assert "PGOUTLIER_WEBHOOK_SECRET" in webhook(table).problem
    assert receiver.received == []
    assert deliver(hooked).n_delivered == 1
    assert webhook(hooked).problem is None


def test_while_secrets_are_changed_both_sign(hooked: Table, receiver: Receiver) -> None:
    newer = "whsec_" + "QUJD" * 10
    table = hooked.with_settings(webhook_secret=SecretStr(f"{newer} {SECRET}"))
    flag(table, 1)
    deliver(table)
    assert receiver.received[0].is_signed_by(b"ABC" * 10)
    assert receiver.received[0].is_signed_by(KEY)


def test_paused_notices_wait_and_those_of_before_are_not_sent(hooked: Table, receiver: Receiver) -> None:
    assert webhook_control.set_enabled(hooked.runtime, "transactions", False)
    assert not webhook_control.set_enabled(hooked.runtime, "transactions", False)
    flag(hooked, 1)
    assert deliver(hooked) == DeliveryResult()
    assert webhook_control.set_enabled(hooked.runtime, "transactions", True)
    assert deliver(hooked).n_delivered == 1
    webhook_control.set_webhook(hooked.runtime, "transactions", None)
    flag(hooked, 2)
    webhook_control.set_webhook(hooked.runtime, "transactions", receiver.url)
    flag(hooked, 3)
    assert deliver(hooked).n_delivered == 1
    assert receiver.keys == ["1", "3"]


def test_neither_log_nor_history_nor_lists_show_secret_parts(
    hooked: Table,
    receiver: Receiver,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PGOUTLIER_WEBHOOK_SECRET", SECRET)
    caplog.set_level(logging.DEBUG)
    receiver.answers += [status(500), status(200)]
    flag(hooked, 1)
    deliver(hooked)
    said = [run("webhook", *words).output for words in (("list", "--json"), ("test", "transactions"))]
    said += [run("webhook", *w, "transactions").output for w in (("history",), ("dead",), ("pause",))]
    said += [caplog.text]
    stored = hooked.rows("SELECT to_jsonb(e)::text FROM outlier.source_events e")
    said += [row[0] for row in stored]
    assert any("127.0.0.1" in text for text in said)
    assert not any(part in text for text in said for part in ("hush", SECRET, SECRET[6:]))
    assert SECRET[6:] not in str(hooked.rows("SELECT to_jsonb(w)::text FROM outlier.webhooks w"))


def test_commands_do_what_they_say(
    transactions: Table, receiver: Receiver, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*words: str, code: int = 0) -> Any:
        done = run("webhook", *words, "--json")
        assert done.exit_code == code, done.output
        return json.loads(done.output)

    assert "Notices are off" in run("webhook", "list").output
    set_it = ("set", "transactions", receiver.url)
    assert said(*set_it) == {"source": "transactions", "changed": True, "secret_is_set": False}
    assert said(*set_it)["changed"] is False
    assert isinstance(run("webhook", "test", "transactions").exception, WebhookError)
    monkeypatch.setenv("PGOUTLIER_WEBHOOK_SECRET", SECRET)
    assert said(*set_it, "--per-minute", "5")["changed"] is True
    assert said("test", "transactions")["status"] == 204
    assert receiver.received[0].is_signed_by(KEY)
    receiver.answers += [status(404, text="no such hook")]
    refused = run("webhook", "test", "transactions").exception
    assert isinstance(refused, DeliveryFailed)
    assert "no such hook" in refused.sentence
    assert said("pause", "transactions")["changed"] is True
    (listed,) = said("list")
    assert (listed["per_minute"], listed["enabled"]) == (5, False)
    assert "paused" in run("webhook", "list").output
    assert said("resume", "transactions")["changed"] is True
    assert said("dead", "transactions") == []
    assert said("retry", "transactions")["n_notices"] == 0
    assert [event["action"] for event in said("history", "transactions")] == [
        *("resume", "pause", "test", "test", "set", "set")
    ]
    assert said("set", "transactions", "--notify-only")["changed"] is True
    assert isinstance(run("webhook", "test", "transactions").exception, WebhookError)
    assert said("remove", "transactions")["changed"] is True
    assert said("list") == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("transactions",), "a URL, or --notify-only"),
        (("transactions", "https://a.example", "--notify-only"), "a URL, or --notify-only"),
        (("transactions", "ftp://a.example/x"), "begin with https://"),
        (("transactions", "http://a.example/x"), "--insecure-http"),
        (("transactions", "https://me:hush@a.example/x"), "user or password"),
        (("transactions", "https://a.example", "--per-minute", "0"), "1 to 6,000"),
        (("payments", "https://a.example/x"), "no source payments"),
    ],
)
def test_what_cannot_be_set_is_said_and_nothing_is_changed(
    words: tuple[str, ...], sentence: str, transactions: Table, run: Run
) -> None:
    refused = run("webhook", "set", *words).exception
    assert isinstance(refused, WebhookError | SourceError)
    assert sentence in refused.sentence
    assert "hush" not in refused.sentence
    assert refused.exit_code == 2
    assert webhook_control.listing(transactions.runtime) == []


def test_a_url_written_by_sql_is_checked_before_it_is_used(hooked: Table, receiver: Receiver) -> None:
    flag(hooked, 1)
    for url in ("file:///etc/passwd", "https://a@b/", "http://"):
        with pytest.raises(psycopg.errors.CheckViolation):
            hooked.user.execute("UPDATE outlier.webhooks SET url = %s", (url,))
    hooked.user.execute("UPDATE outlier.webhooks SET url = 'http://192.0.2.1/x'")
    assert deliver(hooked) == DeliveryResult()
    assert "--insecure-http" in webhook(hooked).problem


def test_status_and_doctor_say_what_waits(hooked: Table, receiver: Receiver, run: Run) -> None:
    receiver.answers += [status(500)] * 3
    flag(hooked, 1, 2, 3)
    for _ in range(3):
        deliver(hooked)
        make_due(hooked)
    (found,) = json.loads(run("status", "--json").output)["sources"]
    assert (found["notices"]["n_pending"], found["notices"]["n_dead"]) == (1, 2)
    assert "hush" not in str(found)
    checks = {f["what"]: f for f in json.loads(run("doctor", "--json").output)}
    assert "PGOUTLIER_WEBHOOK_SECRET" in checks["transactions notices"]["mend"]


@pytest.fixture
def as_worker(hooked: Table, role: str) -> Iterator[Table]:
    granting.grant(hooked.runtime, role, "worker")
    own = make_runtime(
        hooked.runtime.settings.model_copy(
            update={
                "database_url": SecretStr(
                    hooked.runtime.engine.url.set(username=role).render_as_string(hide_password=False)
                )
            }
        )
    )
    yield Table(hooked.user, own, "transactions")
    own.engine.dispose()


def test_a_workers_role_delivers_and_may_change_all_but_the_triggers(
    as_worker: Table, receiver: Receiver
) -> None:
    flag(as_worker, 1)
    assert deliver(as_worker).n_delivered == 1
    assert webhook_control.set_webhook(as_worker.runtime, "transactions", receiver.url + "2")
    assert webhook_control.set_enabled(as_worker.runtime, "transactions", False)
    with pytest.raises(MissingPrivilege, match="the role that attached it"):
        webhook_control.remove(as_worker.runtime, "transactions")


def test_a_role_that_got_its_rights_before_there_were_notices_is_told_what_to_run(as_worker: Table) -> None:
    as_worker.user.execute("REVOKE ALL ON outlier.webhooks FROM writer")
    with pytest.raises(MissingPrivilege, match="pgoutlier db grant writer --as worker"):
        delivering.sources_due(as_worker.runtime)


def test_an_analyst_reads_notices_and_no_url(hooked: Table, role: str) -> None:
    flag(hooked, 1)
    granting.grant(hooked.runtime, role, "analyst")
    hooked.user.execute(f"SET ROLE {role}")
    assert hooked.keys("SELECT key FROM outlier.flagged_notices") == ["1"]
    for table in ("webhooks", "notices", "deliveries", "dead_letters", "source_events"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            hooked.user.execute(f"SELECT * FROM outlier.{table}")
    hooked.user.execute("RESET ROLE")


def test_what_is_due_is_found_by_index(hooked: Table) -> None:
    flag(hooked, *range(2_000))
    hooked.user.execute("UPDATE outlier.notices SET waits = false WHERE id % 100 <> 0")
    hooked.user.execute("VACUUM ANALYZE outlier.notices")
    with hooked.runtime.engine.begin() as connection:
        statements.run(connection, "SET LOCAL enable_seqscan = off")
        assert deliveries.due(connection) == ["transactions"]
    plan = hooked.keys(
        "EXPLAIN SELECT id FROM outlier.notices WHERE source = 'transactions' AND waits ORDER BY id LIMIT 2"
    )
    assert "notices_source_id_idx" in " ".join(plan)


def test_unknown_sources_are_named(hooked: Table) -> None:
    for call in (
        lambda: delivering.deliver(hooked.runtime, "payments"),
        lambda: webhook_control.remove(hooked.runtime, "payments"),
        lambda: webhook_control.retry(hooked.runtime, "payments"),
    ):
        with pytest.raises(SourceError, match="no source payments"):
            call()
    with hooked.runtime.engine.begin() as connection:
        assert sources.find(connection, "transactions")
