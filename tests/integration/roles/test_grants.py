"""What `db grant` gives each kind of role and says it could not give; who did what is PostgreSQL's to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from pgoutlier.db.errors import ModelError, VerdictError
from pgoutlier.db.sources.attach import AttachRequest
from pgoutlier.detector import Recipe
from pgoutlier.worker.history import keeping
from pgoutlier.worker.jobs import job_control
from pgoutlier.worker.notices import webhook_control
from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import Runtime, make_runtime
from pgoutlier.worker.sources import attaching
from pgoutlier.worker.status import status
from pgoutlier.worker.verdicts import judging
from pgoutlier.worker.versions import versions
from tests.integration.conftest import Run
from tests.support import Table, attach_table

User = psycopg.Connection[Any]
OTHER = {"relation": "other", "key": "id", "features": "x"}


@pytest.fixture
def other(user: User) -> None:
    user.execute("CREATE TABLE other (id bigint PRIMARY KEY, x float8)")


@pytest.fixture
def as_writer(runtime: Runtime, role: str) -> Iterator[Runtime]:
    """A runtime whose role is writer."""
    url = runtime.engine.url.set(username=role).render_as_string(hide_password=False)
    made = make_runtime(runtime.settings.model_copy(update={"database_url": SecretStr(url)}))
    yield made
    made.engine.dispose()


def sources_at_work(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    monkeypatch.setattr(status, "_ask", list)
    return {source.name: source.n_queued for source in status.status(lambda: runtime).sources}


def test_a_monitor_sees_how_things_are(
    transactions: Table, as_writer: Runtime, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transactions.insert(1, 5)
    transactions.promote()
    webhook_control.set_webhook(transactions.runtime, "transactions", "https://a.example.com/secret")
    job_control.backfill(transactions.runtime, "transactions")
    assert granting.grant(transactions.runtime, role, "monitor") == []
    monkeypatch.setattr(status, "_ask", list)
    found = status.status(lambda: as_writer)
    assert [(s.name, s.n_queued, s.champion) for s in found.sources] == [("transactions", 5, 1)]
    assert found.sources[0].notices is not None
    assert len(found.jobs) == 1
    with as_writer.engine.begin() as connection:
        read = connection.exec_driver_sql(
            "SELECT version, threshold, metrics, created_by FROM outlier.model_versions"
        )
        assert [row.version for row in read] == [1]


@pytest.mark.parametrize(
    "secret",
    [
        "SELECT keys FROM outlier.queue_transactions",
        "SELECT * FROM outlier.scores_transactions",
        "SELECT * FROM outlier.scored_transactions",
        "SELECT * FROM transactions",
        "SELECT note FROM outlier.verdicts",
        "SELECT key FROM outlier.quarantine",
        "SELECT detail FROM outlier.quarantine",
        "SELECT first_key FROM outlier.job_ranges",
        "SELECT artifact FROM outlier.model_versions",
        "SELECT top_features FROM outlier.notices",
        "SELECT url FROM outlier.webhooks",
        "SELECT kwargs FROM outlier.schedules",
        "SELECT page FROM outlier.model_reports",
        "DELETE FROM outlier.jobs",
        "UPDATE outlier.schedules SET enabled = false",
    ],
)
def test_a_monitor_sees_nothing_of_the_rows_and_changes_nothing(
    transactions: Table, role: str, connect: Callable[..., User], secret: str
) -> None:
    granting.grant(transactions.runtime, role, "monitor")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connect(user=role).execute(secret.encode())


@pytest.mark.parametrize("kind", ["worker", "monitor"])
def test_status_works_for_a_role_that_was_granted_before_the_table_was_attached(
    transactions: Table,
    other: None,
    as_writer: Runtime,
    role: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    granting.grant(transactions.runtime, role, kind)  # type: ignore[arg-type]
    attach_table(transactions.user, transactions.runtime, **OTHER)
    transactions.user.execute("INSERT INTO other VALUES (1, 1), (2, 2)")
    assert sources_at_work(as_writer, monkeypatch) == {"other": 2, "transactions": 0}


def test_a_later_attach_gives_a_worker_our_tables_and_not_the_user_s(
    transactions: Table, other: None, as_writer: Runtime, role: str, connect: Callable[..., User]
) -> None:
    granting.grant(transactions.runtime, role, "worker")
    table = attach_table(transactions.user, transactions.runtime, **OTHER)
    keeping.keep(transactions.runtime, "other")
    worker = connect(user=role)
    worker.execute(
        "SELECT FROM outlier.scores_other, outlier.shadow_scores_other, outlier.score_history_other"
    )
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        worker.execute("SELECT FROM other")
    done = attaching.attach(table.runtime, AttachRequest(**OTHER), Recipe.model_validate(table.source.recipe))
    assert (done.made, done.workers_without_table) == (False, ["writer"])
    granting.grant(transactions.runtime, role, "worker")
    worker.execute("SELECT FROM other")


def test_nobody_else_is_given_what_a_later_attach_makes(
    transactions: Table, other: None, role: str, connect: Callable[..., User]
) -> None:
    """Also not who attaches tables, and needs much of what a worker does."""
    granting.grant(transactions.runtime, role, "analyst")
    granting.grant(transactions.runtime, role, "operator")
    transactions.user.execute(
        f"GRANT USAGE, CREATE ON SCHEMA outlier TO {role};"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA outlier TO {role}".encode()
    )
    attach_table(transactions.user, transactions.runtime, **OTHER)
    for relation in ("queue_other", "scores_other", "scored_other"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connect(user=role).execute(f"SELECT FROM outlier.{relation}".encode())


@pytest.mark.parametrize("gone", ["DROP TABLE other CASCADE", "ALTER TABLE other RENAME TO another"])
@pytest.mark.parametrize("kind", ["worker", "analyst"])
def test_a_table_that_is_gone_is_said_and_the_rest_is_given(
    transactions: Table, other: None, role: str, connect: Callable[..., User], gone: str, kind: str
) -> None:
    attach_table(transactions.user, transactions.runtime, **OTHER)
    transactions.user.execute(gone.encode())
    refused = granting.grant(transactions.runtime, role, kind)  # type: ignore[arg-type]
    assert {"public.other" in r.reason for r in refused} <= {True}
    if kind == "worker":
        # A table that has another name now is still the source's.
        expected = ['GRANT SELECT ON "public"."other" TO "writer"'] if "DROP" in gone else []
        assert [r.statement for r in refused] == expected
    connect(user=role).execute("SELECT id FROM outlier.scored_transactions")


def test_what_the_role_may_not_give_is_said(
    transactions: Table, other: None, user: User, role: str, connect: Callable[..., User]
) -> None:
    """By the owner of our tables, who only reads the user's; also where PostgreSQL only warns."""
    user.execute("CREATE ROLE admin LOGIN; CREATE ROLE wrk; GRANT SELECT ON other TO admin WITH GRANT OPTION")
    user.execute("GRANT SELECT ON transactions TO admin")
    attach_table(user, transactions.runtime, **OTHER)
    try:
        user.execute("DO $$ DECLARE r record; BEGIN FOR r IN SELECT oid::regclass AS t FROM pg_class WHERE relnamespace"
                     " = 'outlier'::regnamespace AND relkind IN ('r', 'v') LOOP EXECUTE format('ALTER TABLE %s OWNER TO"
                     " admin', r.t); END LOOP; END $$; ALTER SCHEMA outlier OWNER TO admin")  # fmt: skip
        url = transactions.runtime.engine.url.set(username="admin").render_as_string(hide_password=False)
        admin = make_runtime(
            transactions.runtime.settings.model_copy(update={"database_url": SecretStr(url)})
        )
        refused = granting.grant(admin, "wrk", "worker")
        admin.engine.dispose()
        assert [r.statement for r in refused if "SELECT" in r.statement] == [
            'GRANT SELECT ON "public"."transactions" TO "wrk"'
        ]
        assert user.execute("SELECT has_table_privilege('wrk', 'other', 'SELECT')").fetchone() == (True,)
    finally:
        user.execute(
            "REASSIGN OWNED BY admin TO CURRENT_USER; DROP OWNED BY admin, wrk; DROP ROLE admin, wrk"
        )


def test_the_command_says_what_it_could_not_grant(
    transactions: Table, other: None, role: str, run: Run
) -> None:
    attach_table(transactions.user, transactions.runtime, **OTHER)
    transactions.user.execute("DROP TABLE other CASCADE")
    done = run("db", "grant", role, "--as", "worker")
    assert done.exit_code == 1
    assert 'relation "public.other" does not exist): GRANT SELECT ON "public"."other"' in done.output
    assert "writer has all else that a pgoutlier worker needs." in done.output
    nobody = run("db", "grant", "nobody", "--as", "monitor", "--dry-run")
    assert nobody.exit_code == 0
    assert 'GRANT USAGE ON SCHEMA outlier TO "nobody";' in nobody.output
    assert run("db", "grant", "nobody").exit_code != 0


# -- who did what


@pytest.mark.parametrize(
    "forged",
    [
        "INSERT INTO outlier.schedules (name, task, every_seconds, created_by, last_run_by)"
        " VALUES ('mine', 'score.sweep_all', 60, 'boss', 'boss')",
        "INSERT INTO outlier.schedules (name, task, every_seconds) VALUES ('mine', 'score.sweep_all', 60);"
        " UPDATE outlier.schedules SET created_by = 'boss', changed_by = 'boss', last_run_by = 'boss'",
    ],
)
def test_an_operator_cannot_make_a_schedule_in_another_s_name(
    transactions: Table, role: str, connect: Callable[..., User], forged: str
) -> None:
    granting.grant(transactions.runtime, role, "operator")
    connect(user=role).execute(forged.encode())
    [row] = transactions.rows("SELECT created_by, changed_by, last_run_by FROM outlier.schedules")
    assert set(row) <= {"writer", None}


@pytest.mark.parametrize(
    "made",
    [
        "INSERT INTO outlier.jobs (source_id, kind, created_by, created_at) SELECT id, 'rescore', 'boss', 'epoch'"
        " FROM outlier.sources",
        "INSERT INTO outlier.alias_events (source_id, alias, action, reason, created_by, created_at)"
        " SELECT id, 'champion', 'promote', 'why', 'boss', 'epoch' FROM outlier.sources",
        "INSERT INTO outlier.training_runs (source_id, recipe, seed, created_by, started_at)"
        " SELECT id, '{}', 1, 'boss', 'epoch' FROM outlier.sources",
    ],
)
def test_a_worker_cannot_act_in_another_s_name(
    transactions: Table, role: str, connect: Callable[..., User], made: str
) -> None:
    granting.grant(transactions.runtime, role, "worker")
    worker = connect(user=role)
    returned = " RETURNING created_by, started_at > '2020-01-01'" if "started_at" in made else (
        " RETURNING created_by, created_at > '2020-01-01'")  # fmt: skip
    assert worker.execute((made + returned).encode()).fetchall() == [("writer", True)]
    table = made.split()[2]
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="cannot be changed"):
        worker.execute(f"UPDATE {table} SET created_by = 'boss'".encode())
    worker.execute("UPDATE outlier.sources SET promotion = 'always', promotion_set_by = 'boss'")
    assert transactions.rows("SELECT promotion_set_by FROM outlier.sources") == [("writer",)]


def test_notes_and_reasons_have_an_end(transactions: Table) -> None:
    transactions.insert(1)
    transactions.promote()
    with pytest.raises(VerdictError, match="note has 4,001 characters; shorten it to 4,000"):
        judging.label(transactions.runtime, "transactions", ["1"], "fraud", note="x" * 4001)
    assert judging.label(transactions.runtime, "transactions", ["1"], "fraud", note="x" * 4000).n_given == 1
    with pytest.raises(psycopg.errors.StringDataRightTruncation, match="may have 4000"):
        transactions.user.execute(
            "INSERT INTO outlier.verdicts (source, key, verdict, note)"
            " VALUES ('transactions', 1, 'fraud', repeat('x', 5000))"
        )
    transactions.promote()
    with pytest.raises(ModelError, match="reason has 5,000 characters"):
        versions.promote(transactions.runtime, "transactions", 1, reason="x" * 5000)
