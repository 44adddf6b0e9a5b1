"""Analysts see by our views what the table's own policies and rights let them see, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgoutlier.db.ddl import installation
from pgoutlier.worker.doctor.source_checks import of_source
from pgoutlier.worker.notices import webhook_control
from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.status import flagged_rows
from pgoutlier.worker.verdicts import judging
from pgoutlier.worker.versions import versions
from tests.support import ASKED, FEATURES, Table, attach_table, make_detector, quote, register

User = psycopg.Connection[Any]
# Cheaper than any operator, so that PostgreSQL runs it first wherever it may.
PEEP = (
    "CREATE FUNCTION peep(seen double precision) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS"
    " $$ BEGIN RAISE NOTICE 'seen %', seen; RETURN true; END $$"
)


@pytest.fixture
def flagged(transactions: Table) -> Table:
    """100 scored rows of which each tenth is flagged, compared with a challenger's; even ones are writer's."""
    transactions.promote(make_detector(FEATURES, threshold=1e6))
    challenger = register(transactions.runtime, transactions.source, make_detector(FEATURES, threshold=-1.0))
    versions.challenge(transactions.runtime, "transactions", challenger, reason="test")
    transactions.user.execute(
        "INSERT INTO transactions SELECT i, CASE WHEN i % 10 = 0 THEN 1e6 + i ELSE i END, 1, 1,"
        " CASE WHEN i % 4 = 0 THEN 'writer' ELSE 'somebody' END FROM generate_series(1, 100) i"
    )
    transactions.drain()
    return transactions


@pytest.fixture
def analyst(flagged: Table, role: str, connect: Callable[..., User]) -> User:
    assert granting.grant(flagged.runtime, role, "analyst") == []
    return connect(user=role)


def hide_rows(table: Table) -> None:
    table.user.execute(
        "ALTER TABLE transactions ENABLE ROW LEVEL SECURITY;"
        " CREATE POLICY own ON transactions USING (note = current_user)"
    )


def count(user: User, view: str) -> int:
    [(n,)] = user.execute(f"SELECT count(*) FROM outlier.{view}_transactions".encode()).fetchall()
    return int(n)


def test_policies_of_the_table_hold_in_every_view(flagged: Table, analyst: User) -> None:
    assert [count(analyst, view) for view in ("scored", "flagged", "compared")] == [100, 10, 100]
    hide_rows(flagged)
    assert [count(analyst, view) for view in ("scored", "flagged", "compared")] == [25, 5, 25]
    assert [count(flagged.user, view) for view in ("scored", "flagged", "compared")] == [100, 10, 100]
    judging.label(flagged.runtime, "transactions", ["4", "5"], "fraud", note=None, by=None)
    [(n,)] = analyst.execute("SELECT sum(labelled) FROM outlier.quality_transactions").fetchall()
    assert n == 1


def test_the_views_give_no_right_on_the_table(flagged: Table, analyst: User, role: str) -> None:
    flagged.user.execute("REVOKE SELECT (id, amount, hour, distance, note) ON transactions FROM writer")
    for view in ("scored", "flagged", "compared", "quality", "rows"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            count(analyst, view)
    flagged.user.execute("ALTER TABLE transactions ADD COLUMN secret text")
    granting.grant(flagged.runtime, role, "analyst")
    assert count(analyst, "flagged") == 10
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        analyst.execute("SELECT secret FROM transactions")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        analyst.execute("SELECT * FROM outlier.scores_transactions")


@pytest.mark.parametrize("policies", [False, True])
def test_a_cheap_function_sees_only_the_flagged_rows(
    flagged: Table, analyst: User, *, policies: bool
) -> None:
    if policies:
        hide_rows(flagged)
        attach_table(flagged.user, flagged.runtime, **ASKED)
    flagged.user.execute(PEEP)
    seen: list[str] = []
    analyst.add_notice_handler(lambda said: seen.append(said.message_primary or ""))
    analyst.execute("SET enable_nestloop = off")
    for column in ("amount", "reconstruction_error"):
        seen.clear()
        analyst.execute(f"SELECT id FROM outlier.flagged_transactions WHERE peep({column})".encode())
        assert len(seen) == (5 if policies else 10)
        seen.clear()
        analyst.execute(f"SELECT id FROM outlier.scored_transactions WHERE peep({column})".encode())
        assert len(seen) == (25 if policies else 100)
        if column == "amount":
            continue
        seen.clear()
        analyst.execute(f"SELECT id FROM outlier.compared_transactions WHERE peep({column})".encode())
        assert len(seen) == (25 if policies else 100)


@pytest.fixture
def as_writer(flagged: Table, analyst: User, role: str) -> Iterator[Runtime]:
    settings = flagged.runtime.settings
    url = settings.database_url.get_secret_value().replace("postgres@", f"{role}@")  # type: ignore[union-attr]
    changed = settings.model_copy(update={"database_url": type(settings.database_url)(url)})
    runtime = make_runtime(changed, application_name="tests")
    yield runtime
    runtime.engine.dispose()


def test_commands_of_an_analyst_show_what_policies_allow(flagged: Table, as_writer: Runtime) -> None:
    hide_rows(flagged)
    rows = flagged_rows.newest(as_writer, "transactions", since=None, limit=100).rows
    assert sorted(row["id"] for row in rows) == [20, 40, 60, 80, 100]
    assert judging.label(as_writer, "transactions", ["20"], "fraud").n_given == 1
    with pytest.raises(Exception, match="no scored row of transactions with the key '10'"):
        judging.label(as_writer, "transactions", ["10"], "fraud")


def findings(table: Table) -> dict[str, Any]:
    with table.runtime.engine.begin() as connection:
        return {finding.what: finding for finding in of_source(connection, table.runtime, table.source)}


@pytest.fixture
def earlier(flagged: Table, role: str) -> Table:
    """The views as an earlier version made them, and a role that reads them."""
    user = flagged.user
    user.execute("DROP VIEW outlier.rows_transactions CASCADE")
    ours = "s.reconstruction_error, s.flagged, s.model_version, s.scored_at, s.top_features, NULL::text AS verdict"
    for view, where in (("scored", ""), ("flagged", " WHERE s.flagged")):
        user.execute(
            f"CREATE VIEW outlier.{view}_transactions AS SELECT t.id, t.amount, t.hour, t.distance, t.note, {ours}"
            f" FROM transactions t JOIN outlier.scores_transactions s ON s.key = t.id{where}".encode()
        )
        user.execute(f"GRANT SELECT ON outlier.{view}_transactions TO {quote(role)}".encode())
    user.execute(f"GRANT USAGE ON SCHEMA outlier TO {quote(role)}".encode())
    user.execute("ALTER TABLE transactions ADD COLUMN since text")
    return flagged


def test_views_of_an_earlier_version_are_mended_by_attach_and_named_by_doctor(
    earlier: Table, role: str, connect: Callable[..., User]
) -> None:
    hide_rows(earlier)
    analyst = connect(user=role)
    assert count(analyst, "scored") == 100
    found = findings(earlier)["transactions views"]
    assert not found.ok
    assert "scored_transactions, flagged_transactions one sees rows that row-level security" in found.detail
    attach_table(earlier.user, earlier.runtime, **ASKED)
    with earlier.runtime.engine.begin() as connection:
        assert installation.shows_too_much(connection, earlier.source.definition) == []
        assert installation.lacks(connection, earlier.source.definition) == []
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        count(analyst, "scored")
    assert findings(earlier)["transactions views"].mend == "pgoutlier db grant writer"
    assert granting.grant(earlier.runtime, role, "analyst") == []
    assert [count(analyst, view) for view in ("scored", "flagged", "compared")] == [25, 5, 25]
    assert findings(earlier)["transactions views"].ok


def test_doctor_names_views_from_before_the_table_had_policies(flagged: Table) -> None:
    assert findings(flagged)["transactions views"].ok
    hide_rows(flagged)
    found = findings(flagged)["transactions views"]
    assert "scored_transactions, quality_transactions, compared_transactions" in found.detail
    attach_table(flagged.user, flagged.runtime, **ASKED)
    assert findings(flagged)["transactions views"].ok


def notices_and_verdicts(user: User, view: str) -> list[str]:
    column = "key" if view != "comparison_transactions" else "rows::text"
    return [key for (key,) in user.execute(f"SELECT {column} FROM outlier.{view} ORDER BY 1".encode())]


@pytest.fixture
def told(flagged: Table) -> Table:
    """The same with notices of two rows and verdicts on two, of which policies hide one each."""
    user = flagged.user
    webhook_control.set_webhook(flagged.runtime, "transactions", None)
    user.execute(
        "INSERT INTO transactions VALUES (120, 1e9, 1, 1, 'writer'), (130, 1e9, 1, 1, 'somebody'),"
        " (140, 1e9, 1, 1, NULL)"
    )
    flagged.drain()
    judging.label(flagged.runtime, "transactions", ["4", "5"], "fraud", note="seen", by="boss")
    return flagged


SEEN = {
    "flagged_notices": (["120", "130", "140"], ["120"]),
    "current_verdicts": (["4", "5"], ["4"]),
    "verdict_log": (["4", "5"], ["4"]),
    "comparison_transactions": (["103"], []),
}


@pytest.mark.parametrize("view", SEEN)
def test_notices_verdicts_and_counts_are_of_rows_that_policies_show(
    told: Table, role: str, connect: Callable[..., User], view: str
) -> None:
    granting.grant(told.runtime, role, "analyst")
    analyst = connect(user=role)
    everything, own = SEEN[view]
    assert notices_and_verdicts(analyst, view) == everything
    hide_rows(told)
    assert notices_and_verdicts(analyst, view) == own
    assert notices_and_verdicts(told.user, view) == everything
    told.user.execute("DELETE FROM transactions WHERE id IN (4, 120)")
    assert notices_and_verdicts(analyst, view) == []


def test_notices_and_verdicts_are_of_tables_that_one_may_read(told: Table, analyst: User) -> None:
    told.user.execute("REVOKE SELECT (id) ON transactions FROM writer")
    for view in ("flagged_notices", "current_verdicts", "verdict_log"):
        assert notices_and_verdicts(analyst, view) == []
    for relation in ("verdicts", "notices", "quarantine", "drift_reports", "model_reports", "jobs"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            analyst.execute(f"SELECT * FROM outlier.{relation}".encode())


def test_a_cheap_function_sees_no_notice_or_verdict_of_a_hidden_row(told: Table, analyst: User) -> None:
    hide_rows(told)
    told.user.execute(PEEP.replace("double precision", "text"))
    seen: list[str] = []
    analyst.add_notice_handler(lambda said: seen.append(said.message_primary or ""))
    for view, key in (("flagged_notices", "120"), ("current_verdicts", "4"), ("verdict_log", "4")):
        seen.clear()
        analyst.execute(f"SELECT FROM outlier.{view} WHERE peep(key)".encode())
        assert seen == [f"seen {key}"]


def test_verdicts_are_listed_and_given_on_rows_that_policies_show(told: Table, as_writer: Runtime) -> None:
    hide_rows(told)
    for history in (True, False):
        listed = judging.listed(as_writer, "transactions", key=None, history=history, limit=9)
        assert [verdict.key for verdict in listed] == ["4"]
    assert judging.label(as_writer, "transactions", ["4"], "withdrawn").n_given == 1
    assert judging.label(as_writer, "transactions", ["4"], "withdrawn").n_given == 0


def test_an_analyst_of_an_earlier_version_is_named_by_doctor_until_it_is_granted_anew(
    told: Table, role: str, analyst: User
) -> None:
    told.user.execute(f"GRANT SELECT ON outlier.verdicts TO {quote(role)}".encode())
    assert findings(told)["transactions views"].ok
    hide_rows(told)
    attach_table(told.user, told.runtime, **ASKED)
    found = findings(told)["transactions views"]
    assert "writer may read outlier.verdicts" in found.detail
    assert found.mend == "pgoutlier db grant writer"
    granting.grant(told.runtime, role, "analyst")
    assert findings(told)["transactions views"].ok
    granting.grant(told.runtime, role, "worker")
    granting.grant(told.runtime, role, "analyst")
    analyst.execute("SELECT FROM outlier.verdicts")


def test_a_comparison_of_an_earlier_version_is_named_and_mended(told: Table, analyst: User) -> None:
    [(made,)] = told.rows("SELECT pg_get_viewdef('outlier.comparison_transactions'::regclass)")
    before = re.sub(r"WHERE \(NOT row_security_active\(.*\)\)", "", made)
    told.user.execute(f"CREATE OR REPLACE VIEW outlier.comparison_transactions AS {before}".encode())
    hide_rows(told)
    assert count(analyst, "comparison") == 1
    assert "comparison_transactions" in findings(told)["transactions views"].detail
    attach_table(told.user, told.runtime, **ASKED)
    assert findings(told)["transactions views"].ok
    assert count(analyst, "comparison") == 0


def test_the_log_takes_verdicts_on_rows_that_policies_show(told: Table, analyst: User) -> None:
    hide_rows(told)
    give = "INSERT INTO outlier.verdict_log (source, key, verdict) VALUES ('transactions', {}, 'fraud') RETURNING key"
    assert analyst.execute(give.format("'08'").encode()).fetchall() == [("8",)]
    with pytest.raises(psycopg.errors.WithCheckOptionViolation):
        analyst.execute(give.format("'9'").encode())
