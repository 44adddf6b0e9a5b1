"""Every command that only looks works for a role, or says in one sentence which right it lacks and what gives that."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from pgoutlier.worker.explaining import explained
from pgoutlier.worker.roles import granting
from pgoutlier.worker.status import status
from pgoutlier.worker.versions import versions
from tests.integration.conftest import Run
from tests.support import FEATURES, Table, attach_table, make_detector, register

# Each command that looks, and the kinds of roles for which it works; what gives a right that is missing makes it work.
LOOKS = {
    "status --json": {"monitor", "worker"},
    "sources": {"monitor", "worker", "analyst", "operator"},
    "models list transactions": {"monitor", "worker"},
    "models show transactions 1": {"worker"},
    "models compare transactions": {"worker"},
    "models history transactions": {"worker"},
    "jobs list": {"monitor", "worker"},
    "drift transactions": {"monitor", "worker"},
    "quarantine list transactions": {"worker"},
    "report transactions --output FILE": {"worker"},
    "flagged transactions": {"analyst", "worker"},
    "verdicts transactions": {"analyst", "worker"},
    "threshold transactions": {"worker"},
    "schedule list": {"operator", "worker"},
    "schedule history": {"operator", "worker"},
    "webhook list": {"worker"},
    "webhook dead transactions": {"worker"},
}
KINDS = ("analyst", "worker", "operator", "monitor", None)


@pytest.fixture
def as_writer(
    transactions: Table, role: str, run: Run, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Runs command lines as a role that has no rights yet, on a source with a champion, a challenger and scores."""
    transactions.promote(make_detector(FEATURES, threshold=1e6))
    challenger = register(transactions.runtime, transactions.source, make_detector(FEATURES, threshold=-1.0))
    versions.challenge(transactions.runtime, "transactions", challenger, reason="test")
    transactions.insert(1, 20)
    transactions.drain()
    url = environment["PGOUTLIER_DATABASE_URL"].replace("postgres@", f"{role}@")
    monkeypatch.setenv("PGOUTLIER_DATABASE_URL", url)
    monkeypatch.setattr(status, "_ask", list)
    return run


def refusal_of(run: Run, words: list[str]) -> str | None:
    """The sentence with which a command is refused for want of a right, or None."""
    done = run(*words)
    if done.exception is None or isinstance(done.exception, SystemExit):
        return None
    assert isinstance(done.exception, Exception)
    sentence, _ = explained(done.exception)
    assert sentence is not None, done.exception
    return sentence if "denied" in sentence else None


@pytest.mark.postgres18
@pytest.mark.parametrize("kind", KINDS)
def test_a_command_that_looks_works_or_says_what_gives_the_right(
    transactions: Table, as_writer: Run, role: str, kind: str | None, tmp_path: Path
) -> None:
    if kind is not None:
        assert granting.grant(transactions.runtime, role, kind) == []  # type: ignore[arg-type]
    for command, works_for in LOOKS.items():
        words = shlex.split(command.replace("FILE", str(tmp_path / "page.html")))
        refused = refusal_of(as_writer, words)
        assert (refused is None) == (kind in works_for), (command, refused)
        if refused is not None:
            assert len(refused.splitlines()) == 1
            assert "permission denied for" in refused
            assert f"pgoutlier db grant {role}" in refused


@pytest.mark.postgres18
def test_what_is_said_to_give_the_right_gives_it(
    transactions: Table, as_writer: Run, role: str, tmp_path: Path
) -> None:
    for command in LOOKS:
        transactions.user.execute(f"DROP OWNED BY {role}".encode())
        words = shlex.split(command.replace("FILE", str(tmp_path / "page.html")))
        granted = []
        while refused := refusal_of(as_writer, words):
            named = re.findall(r"--as (\w+)", refused.split("; what gives this right: ")[1])
            granted.append(named[-1] if named else "analyst")
            assert granted.count(granted[-1]) == 1, refused
            granting.grant(transactions.runtime, role, granted[-1])  # type: ignore[arg-type]


@pytest.mark.postgres18
@pytest.mark.parametrize("kind", KINDS)
def test_doctor_says_of_each_part_which_right_it_takes(
    transactions: Table, as_writer: Run, role: str, kind: str | None
) -> None:
    if kind is not None:
        granting.grant(transactions.runtime, role, kind)  # type: ignore[arg-type]
    done = as_writer("doctor", "--json")
    assert isinstance(done.exception, SystemExit)
    found = {finding["what"]: finding for finding in json.loads(done.output)}
    closed = [finding for finding in found.values() if "may not look" in finding["detail"]]
    assert (closed == []) == (kind == "worker")
    assert all(f"pgoutlier db grant {role}" in finding["mend"] for finding in closed)


@pytest.mark.postgres18
def test_status_says_of_a_queue_that_may_not_be_read_and_shows_the_others(
    transactions: Table, as_writer: Run, role: str
) -> None:
    transactions.user.execute("CREATE TABLE other (id bigint PRIMARY KEY, x float8)")
    attach_table(transactions.user, transactions.runtime, relation="other", key="id", features="x")
    granting.grant(transactions.runtime, role, "monitor")
    transactions.insert(21, 25)
    transactions.user.execute(f"REVOKE ALL ON outlier.queue_other FROM {role}".encode())
    done = as_writer("status", "--json")
    assert done.exit_code == 0, done.exception
    other, seen = json.loads(done.output)["sources"]
    assert (other["n_queued"], seen["n_queued"]) == (None, 5)
    assert (
        other["problem"]
        == "writer may not read its queue; run again: pgoutlier db grant writer --as monitor, or --as worker"
    )
    assert "?" in as_writer("status").output
