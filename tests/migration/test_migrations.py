"""Migrations up and down, twice at once, and behind somebody else's lock."""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest
from sqlalchemy import Engine, text

from pgoutlier.db import migrate
from pgoutlier.db.engine import make_engine
from pgoutlier.db.errors import LockTaken, MissingPrivilege, SchemaNotReady
from pgoutlier.worker.notices import webhook_control
from pgoutlier.worker.versions import versions
from tests.conftest import Connect
from tests.servers import Postgres
from tests.support import Table, detach_table, register

UPGRADE = (
    "import sys; from pgoutlier.db import engine, migrate; migrate.upgrade(engine.make_engine(sys.argv[1]))"
)


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {
            name
            for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'outlier'")
        }


def test_up_down_and_up_again(empty: Engine, empty_database_url: str, postgres: Postgres) -> None:
    migrate.upgrade(empty)
    first = postgres.run("pg_dump", empty_database_url, "--schema-only", "--restrict-key=x")
    migrate.downgrade(empty, "base")
    assert tables(empty_database_url) == {"alembic_version"}
    migrate.upgrade(empty)
    assert postgres.run("pg_dump", empty_database_url, "--schema-only", "--restrict-key=x") == first


def test_upgrading_twice_changes_nothing(engine: Engine, database_url: str) -> None:
    before = tables(database_url)
    migrate.upgrade(engine)
    assert tables(database_url) == before


def test_the_migrated_schema_is_the_one_the_program_is_written_for(engine: Engine) -> None:
    migrate.check(engine)
    with engine.begin() as connection:
        migrate.require_current(connection)


def test_tables_of_sources_are_no_difference(transactions: Table) -> None:
    migrate.check(transactions.runtime.engine)


def test_two_upgrades_at_once_both_succeed(empty_database_url: str) -> None:
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, empty_database_url], stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for program in programs:
        complaint = program.communicate(timeout=120)[1]
        assert program.returncode == 0, complaint
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT version_num FROM outlier.alembic_version").fetchall() == [
            (migrate.head(),)
        ]


def test_a_table_in_use_gives_a_sentence_and_leaves_everything_as_it_was(
    engine: Engine, database_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "200ms")
    reader = connect(autocommit=False)
    reader.execute("SELECT * FROM outlier.sources")
    before = tables(database_url)
    with pytest.raises(SchemaNotReady, match=r"could not get its lock within 200ms; nothing was changed"):
        migrate.downgrade(engine, "base")
    assert tables(database_url) == before


def test_whoever_holds_the_lock_of_migrations_without_a_right_is_named(
    engine: Engine, role: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "200ms")
    connect(user=role).execute("SELECT pg_advisory_lock(hashtext('outlier.migrations'))")
    with pytest.raises(LockTaken, match=r"role writer.*the lock 'migrations' of pgoutlier; end it: SELECT"):
        migrate.upgrade(engine)


def test_going_down_is_refused_while_sources_are_attached(transactions: Table) -> None:
    engine = transactions.runtime.engine
    with pytest.raises(SchemaNotReady, match=r"still attached.*pgoutlier detach transactions"):
        migrate.downgrade(engine, "base")
    transactions.insert(1)
    assert transactions.queued() == [1]
    detach_table(transactions)
    migrate.downgrade(engine, "base")


def test_a_source_from_before_verdicts_takes_them_after_the_upgrade(
    empty: Engine, empty_database_url: str
) -> None:
    migrate.upgrade(empty, "0002")
    with psycopg.connect(empty_database_url, autocommit=True) as user:
        user.execute(
            "INSERT INTO outlier.sources (name, definition, recipe) VALUES ('t', '{\"key_type\": \"uuid\"}', '{}')"
        )
        migrate.upgrade(empty)
        key = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
        user.execute(
            "INSERT INTO outlier.verdicts (source, key, verdict) VALUES ('t', upper(%s), 'fraud')", (key,)
        )
        assert user.execute("SELECT key, verdict FROM outlier.current_verdicts").fetchall() == [
            (key, "fraud")
        ]
        with pytest.raises(SchemaNotReady, match=r"still attached \(t\).*pgoutlier detach t"):
            migrate.downgrade(empty, "0002")
        user.execute("DELETE FROM outlier.sources")
        assert user.execute("SELECT * FROM outlier.verdicts").fetchall() == []
    migrate.downgrade(empty, "0002")
    assert "verdicts" not in tables(empty_database_url)


def test_scores_of_challengers_go_with_the_migration_down_and_come_back_with_a_challenger(
    transactions: Table,
) -> None:
    runtime, engine = transactions.runtime, transactions.runtime.engine
    transactions.promote()
    versions.challenge(runtime, "transactions", register(runtime, transactions.source), reason="test")
    migrate.downgrade(engine, "0004")
    left = "SELECT relname FROM pg_class WHERE relname ~ '^(shadow_scores|compared|comparison)_' OR relname ~ '_tags$'"
    assert transactions.rows(left) == []
    assert transactions.keys("SELECT alias FROM outlier.model_aliases") == ["champion"]
    assert transactions.keys("SELECT action FROM outlier.alias_events") == ["promote"]
    migrate.upgrade(engine)
    migrate.check(engine)
    assert versions.challenge(runtime, "transactions", 2, reason="again")
    transactions.insert(1)
    transactions.drain()
    assert transactions.keys("SELECT key FROM outlier.shadow_scores_{source}") == [1]
    detach_table(transactions)
    migrate.downgrade(engine, "base")


def test_scores_are_written_on_when_notices_go_with_the_migration_down(transactions: Table) -> None:
    transactions.promote()
    webhook_control.set_webhook(transactions.runtime, "transactions", None)
    migrate.downgrade(transactions.runtime.engine, "0007")
    transactions.user.execute(
        "INSERT INTO outlier.scores_transactions (key, change_id, reconstruction_error, model_version, flagged)"
        " VALUES (1, 1, 1, 1, true)"
    )
    assert transactions.scored() == [1]


def test_a_database_that_was_never_migrated_says_what_to_run(empty: Engine) -> None:
    with (
        empty.begin() as connection,
        pytest.raises(SchemaNotReady, match=r"at revision none.*run: pgoutlier db upgrade"),
    ):
        migrate.require_current(connection)


def test_a_database_of_another_revision_says_what_to_run(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE outlier.alembic_version SET version_num = 'older'"))
    with (
        engine.begin() as connection,
        pytest.raises(SchemaNotReady, match=f"revision older, this program needs {migrate.head()}"),
    ):
        migrate.require_current(connection)


def test_a_role_that_may_not_create_schemas_migrates_into_one_made_for_it(
    empty_database_url: str, postgres: Postgres
) -> None:
    owner = psycopg.connect(empty_database_url, autocommit=True)
    owner.execute("CREATE ROLE migrator LOGIN")
    migrator = make_engine(empty_database_url.replace("postgres@", "migrator@"))
    try:
        with pytest.raises(MissingPrivilege, match="CREATE SCHEMA outlier AUTHORIZATION migrator;"):
            migrate.upgrade(migrator)
        owner.execute("CREATE SCHEMA outlier AUTHORIZATION migrator")
        migrate.upgrade(migrator)
    finally:
        migrator.dispose()
        owner.execute("DROP OWNED BY migrator CASCADE")
        owner.execute("DROP ROLE migrator")
        owner.close()
