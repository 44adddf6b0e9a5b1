"""Migrations of the user's own tables: our views go out of their way and come back, with their rights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgoutlier.db.errors import SourceError
from pgoutlier.worker.runtime import Runtime
from tests.integration.conftest import Run
from tests.servers import TEMPLATE, Postgres
from tests.support import Table, attach_table, detach_table, quote, sessions_on

User = psycopg.Connection[Any]
Connect = Callable[..., User]

BEFORE, AFTER = "SELECT outlier.before_migration('pay')", "SELECT outlier.after_migration('pay')"
FREE = {
    "drop a column": "ALTER TABLE pay DROP COLUMN note",
    "another type": "ALTER TABLE pay ALTER note TYPE varchar(80)",
    "another type of a feature": "ALTER TABLE pay ALTER amount TYPE numeric(12, 2)",
    "another name": "ALTER TABLE pay RENAME note TO remark",
    "another name of a feature": "ALTER TABLE pay RENAME amount TO sum",
    "another name of the key": "ALTER TABLE pay RENAME id TO number",
    "another name of the time": "ALTER TABLE pay RENAME at TO paid_at",
    "names swapped": "ALTER TABLE pay RENAME amount TO x; ALTER TABLE pay RENAME hour TO amount;"
    " ALTER TABLE pay RENAME x TO hour",
    "another column": "ALTER TABLE pay ADD flagged_by text",
    "a column like ours": "ALTER TABLE pay ADD verdict text",
    "another name of the table": "ALTER TABLE pay RENAME TO paid",
    "an enum": "ALTER TABLE pay ALTER kind TYPE text; DROP TYPE kind; CREATE TYPE kind AS ENUM ('c', 'd');"
    " ALTER TABLE pay ALTER kind TYPE kind USING 'c'",
}


def make_pay(database_url: str) -> None:
    with sessions_on(database_url) as (user, runtime):
        user.execute(
            "CREATE TYPE kind AS ENUM ('a', 'b'); CREATE TABLE pay (gone int, id int PRIMARY KEY, amount float8,"
            " hour float8, note text, at timestamptz DEFAULT now(), kind kind); ALTER TABLE pay DROP gone"
        )
        table = attach_table(user, runtime, relation="pay", key="id", features="amount,hour", time="at")
        table.promote()
        user.execute("INSERT INTO pay SELECT i, i, 24 - i, 'x' FROM generate_series(1, 20) i")
        table.drain()


@pytest.fixture
def template(postgres: Postgres, request: pytest.FixtureRequest) -> str:
    return postgres.template("pay", make_pay) if "pay" in request.fixturenames else TEMPLATE


@pytest.fixture
def pay(user: User, runtime: Runtime) -> Table:
    """Twenty scored rows."""
    return Table(user, runtime, "pay")


@pytest.fixture
def reader(user: User) -> Any:
    user.execute("CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA outlier TO reader")
    yield "reader"
    user.execute("DROP OWNED BY reader CASCADE; DROP ROLE reader")


def grants(user: User) -> list[Any]:
    return user.execute(
        "SELECT c.relname, a.attname, coalesce(c.relacl::text, ''), coalesce(a.attacl::text, '') FROM pg_class c"
        " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attacl IS NOT NULL"
        " WHERE c.relnamespace = 'outlier'::regnamespace AND c.relkind = 'v' ORDER BY 1, 2"
    ).fetchall()


@pytest.mark.parametrize("change", FREE)
def test_a_change_between_the_two_works_and_the_views_come_back_with_their_rights(
    pay: Table, reader: str, change: str, run: Run
) -> None:
    user = pay.user
    user.execute(f"GRANT SELECT ON outlier.flagged_pay TO {reader} WITH GRANT OPTION")
    user.execute(f"GRANT SELECT (reconstruction_error) ON outlier.compared_pay TO {reader}")
    user.execute("GRANT SELECT ON outlier.quality_pay TO PUBLIC")
    granted, scored = grants(user), pay.errors()
    user.execute(f"BEGIN; {BEFORE}; {FREE[change]}")
    name = "paid" if change == "another name of the table" else "pay"
    user.execute(f"SELECT outlier.after_migration('{name}'); COMMIT")
    assert grants(user) == granted
    assert pay.errors() == scored
    shown = [column.name for column in user.execute("SELECT * FROM outlier.scored_pay").description or ()]
    now = [column.name for column in user.execute(f"SELECT * FROM {name}").description or ()]
    assert shown[: len(now)] == ["source_verdict" if column == "verdict" else column for column in now]
    assert len(pay.rows("SELECT * FROM outlier.scored_pay")) == 20
    pay.rows("SELECT * FROM outlier.flagged_pay, outlier.compared_pay, outlier.quality_pay")
    # Triggers and scoring know the new names, and the model goes on.
    key = "number" if change == "another name of the key" else "id"
    user.execute(f"UPDATE {name} SET {key} = {key}")
    assert pay.queued() == []
    feature = "sum" if change == "another name of a feature" else "amount"
    user.execute(f"UPDATE {name} SET {feature} = 5000 WHERE {key} = 3")
    assert pay.queued() == [3]
    user.execute(f"INSERT INTO {name} ({key}, {feature}, hour) VALUES (50, 1, 1)")
    pay.drain()
    assert pay.source.last_problem is None
    assert pay.errors()[3] != scored[3]
    assert len(pay.scored()) == 21
    assert pay.source.definition.feature_names == ("amount", "hour")
    assert run("flagged", "pay").exit_code == 0
    assert "has not ended" not in run("doctor").stdout


def test_a_migration_that_is_rolled_back_has_changed_nothing(pay: Table) -> None:
    before = grants(pay.user)
    pay.user.execute(f"BEGIN; {BEFORE}; ALTER TABLE pay DROP note; ROLLBACK")
    assert grants(pay.user) == before
    assert pay.source.migration is None


def test_each_may_be_called_twice_and_for_a_table_that_nobody_attached(pay: Table) -> None:
    user = pay.user
    before = grants(user)
    for statement in (AFTER, BEFORE, BEFORE, "ALTER TABLE pay RENAME note TO remark", AFTER, AFTER):
        user.execute(statement)
    assert grants(user) == before
    user.execute("CREATE TABLE other (id int)")
    said = user.execute("SELECT outlier.before_migration('other')").fetchone()
    assert said == ("other is attached to no source",) or said == ("public.other is attached to no source",)


def test_without_the_second_call_workers_go_on_and_doctor_and_attach_mend_it(
    pay: Table, run: Run, reader: str
) -> None:
    user = pay.user
    user.execute(f"GRANT SELECT ON outlier.flagged_pay TO {reader}")
    granted = grants(user)
    user.execute(f"{BEFORE}; ALTER TABLE pay DROP note")
    user.execute("INSERT INTO pay (id, amount, hour) VALUES (50, 1, 1)")
    pay.drain()
    assert len(pay.scored()) == 21
    said = " ".join(run("doctor").stdout.split())
    assert "has not ended: the views are away" in said
    assert "SELECT outlier.after_migration('public.pay')" in said
    shown = run("flagged", "pay")
    assert isinstance(shown.exception, SourceError)
    attach_table(user, pay.runtime, relation="pay", key="id", features="amount,hour", time="at")
    assert grants(user) == granted
    assert pay.source.migration is None


def test_attach_with_the_new_names_ends_a_migration_that_nobody_ended(pay: Table) -> None:
    user = pay.user
    user.execute(f"{BEFORE}; ALTER TABLE pay RENAME amount TO sum; ALTER TABLE pay RENAME id TO number")
    user.execute("INSERT INTO pay (number, sum, hour) VALUES (50, 1, 1)")
    assert pay.drain().n_scored == 0
    attach_table(user, pay.runtime, relation="pay", key="number", features="sum,hour", time="at")
    assert pay.source.definition.feature_names == ("amount", "hour")
    user.execute("UPDATE pay SET sum = 9 WHERE number IN (50, 2)")
    pay.make_due()
    pay.drain()
    assert len(pay.scored()) == 21
    attach_table(user, pay.runtime, relation="pay", key="number", features="sum,hour", time="at")
    assert pay.source.definition.feature_names == ("amount", "hour")


def test_a_key_of_a_type_that_cannot_be_joined_leaves_the_views_away_with_a_warning(
    pay: Table, run: Run
) -> None:
    user = pay.user
    warnings: list[str] = []
    user.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    user.execute(f"BEGIN; {BEFORE}; ALTER TABLE pay ALTER id TYPE text; {AFTER}; COMMIT")
    assert any("still away" in warning for warning in warnings)
    assert "the key id is text now, and was integer" in " ".join(run("doctor").stdout.split())
    attach_table(user, pay.runtime, relation="pay", key="id", features="amount,hour", time="at")
    assert len(pay.rows("SELECT * FROM outlier.scored_pay")) == 20
    assert pay.source.migration is None


# -- rights


@pytest.fixture
def owned(user: User, runtime: Runtime, role: str) -> Table:
    """A table of somebody else's, attached by a superuser."""
    user.execute(
        f"CREATE TABLE pay (id int PRIMARY KEY, amount float8, note text); ALTER TABLE pay OWNER TO {role}"
    )
    return attach_table(user, runtime, relation="pay", key="id", features="amount")


def test_the_owner_of_the_table_needs_no_other_right(owned: Table, role: str, connect: Connect) -> None:
    owner = connect(user=role)
    owner.execute(f"BEGIN; {BEFORE}; ALTER TABLE pay DROP note; {AFTER}; COMMIT")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        owner.execute("SELECT * FROM outlier.scored_pay")
    assert owned.rows("SELECT viewowner FROM pg_views WHERE viewname = 'scored_pay'") == [("postgres",)]


def test_nobody_else_may_call_them(owned: Table, reader: str, connect: Connect) -> None:
    other = connect(user=reader)
    other.execute("SET ROLE NONE")
    for function in ("before_migration", "after_migration"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="must be owner of table"):
            other.execute(f"SELECT outlier.{function}('pay')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        other.execute("SELECT outlier.views_pay(NULL, NULL, NULL, false)")
    lowered = connect()
    lowered.execute(f"SET ROLE {reader}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="must be owner of table"):
        lowered.execute(BEFORE)


def test_whoever_attached_keeps_the_views_where_another_role_upgraded(
    user: User, runtime: Runtime, role: str, connect: Connect
) -> None:
    """The views are made with the rights of the role that attached, and not with those of the schema's owner."""
    user.execute("CREATE TABLE pay (id int PRIMARY KEY, amount float8, note text)")
    table = attach_table(user, runtime, relation="pay", key="id", features="amount")
    user.execute(f"GRANT USAGE ON SCHEMA outlier TO {role}")
    for view in ("rows_pay", "scored_pay", "flagged_pay", "quality_pay", "compared_pay", "comparison_pay"):
        user.execute(f"ALTER VIEW outlier.{view} OWNER TO {role}")
    user.execute(f"ALTER FUNCTION outlier.views_pay OWNER TO {role}")
    for kind in ("enqueue_insert_pay", "enqueue_update_pay"):
        user.execute(f"ALTER FUNCTION outlier.{kind} OWNER TO {role}")
    user.execute(f"GRANT CREATE ON SCHEMA outlier TO {role}; GRANT SELECT ON pay TO {role}")
    user.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA outlier TO {role}")
    user.execute(f"BEGIN; {BEFORE}; ALTER TABLE pay RENAME note TO remark; {AFTER}; COMMIT")
    assert table.rows("SELECT viewowner FROM pg_views WHERE viewname = 'scored_pay'") == [(role,)]


# -- names

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\x00", exclude_categories=["Cs"]),
    min_size=1,
    max_size=20,
)
NASTY = st.sampled_from(
    [
        'x"outlier:key"',
        '"outlier:quote"',
        "$outlier$",
        "outlier:shown",
        "%s",
        "', 'x",
        "outlier:feature 0",
        "a\\b",
    ]
)


@pytest.mark.postgres18
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES | NASTY, min_size=6, max_size=6, unique=True))
def test_any_name_can_become_any_other(user: User, runtime: Runtime, names: list[str]) -> None:
    names = [name.encode()[:63].decode(errors="ignore") for name in names]
    if len(set(names)) < 6:
        return
    key, feature, note, new_key, new_feature, new_note = map(quote, names)
    user.execute("DROP TABLE IF EXISTS t CASCADE")
    user.execute(f"CREATE TABLE t ({key} int PRIMARY KEY, {feature} float8, {note} text)")
    table = attach_table(user, runtime, relation="t", key=key, features=feature, write_columns=True)
    try:
        table.promote()
        user.execute("INSERT INTO t VALUES (1, 2, 'x')")
        table.drain()
        user.execute("BEGIN; SELECT outlier.before_migration('t')")
        for old, new in ((key, new_key), (feature, new_feature), (note, new_note)):
            user.execute(f"ALTER TABLE t RENAME {old} TO {new}")
        user.execute("SELECT outlier.after_migration('t'); COMMIT")
        user.execute(f"UPDATE t SET {new_note} = 'y'")
        assert table.queued() == []
        user.execute(f"UPDATE t SET {new_feature} = 3")
        assert table.queued() == [1]
        table.drain()
        assert table.queued() == []
        seen = user.execute(f"SELECT reconstruction_error FROM outlier.scored_t WHERE {new_key} = 1")
        assert table.rows("SELECT reconstruction_error FROM t") == seen.fetchall()
    finally:
        user.execute("ROLLBACK")
        detach_table(table)
