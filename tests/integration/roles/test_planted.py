"""What somebody plants where pgoutlier may find it: casts, operators, functions run with nobody's rights but theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import Runtime
from tests.support import Table, attach_table

pytestmark = pytest.mark.postgres18

User = psycopg.Connection[Any]
NOTE = "INSERT INTO public.caught VALUES (current_user)"


@pytest.fixture
def mallory(user: User, database_url: str) -> Iterator[User]:
    """Owns a schema with a table that another attaches, and may plant things in public and in our schema."""
    user.execute(
        "CREATE ROLE mallory LOGIN; CREATE SCHEMA m AUTHORIZATION mallory;"
        " CREATE TABLE public.caught (who name); GRANT INSERT ON public.caught TO PUBLIC;"
        " GRANT USAGE, CREATE ON SCHEMA public TO mallory"
    )
    with psycopg.connect(database_url, user="mallory", autocommit=True) as session:
        session.execute("CREATE TABLE m.t (id bigint PRIMARY KEY, at timestamptz, amount numeric)")
        yield session
    user.execute("DROP OWNED BY mallory CASCADE; DROP ROLE mallory")


@pytest.fixture
def attached(user: User, runtime: Runtime, mallory: User) -> Table:
    return attach_table(user, runtime, relation="m.t", key="id", features="amount,weekday(at)")


def caught(user: User) -> set[str]:
    return {who for (who,) in user.execute("SELECT who FROM public.caught")} - {"mallory"}


@pytest.mark.parametrize("how", ["ASSIGNMENT", "IMPLICIT"])
def test_a_cast_of_the_key_s_type_is_not_run_by_the_triggers(
    attached: Table, mallory: User, how: str
) -> None:
    mallory.execute(
        "CREATE TYPE m.evil AS ENUM ('1', '2', '3');"
        f" CREATE FUNCTION m.f(m.evil) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN {NOTE}; RETURN 1; END $$;"
        f" CREATE CAST (m.evil AS bigint) WITH FUNCTION m.f(m.evil) AS {how};"
        " ALTER TABLE m.t RENAME id TO old; ALTER TABLE m.t DROP CONSTRAINT t_pkey;"
        " ALTER TABLE m.t ALTER old DROP NOT NULL;"
        " ALTER TABLE m.t ADD id m.evil; INSERT INTO m.t VALUES (1, now(), 2, '1'), (2, now(), 2, '2');"
        " UPDATE m.t SET amount = 3; UPDATE m.t SET id = '3' WHERE old = 1"
    )
    assert caught(attached.user) == set()
    assert attached.queued() == []


def test_an_operator_in_public_is_not_run_by_a_feature_view_s_source(
    user: User, runtime: Runtime, mallory: User
) -> None:
    user.execute("CREATE VIEW f AS SELECT id, at, amount FROM m.t")
    user.execute("GRANT SELECT ON f TO mallory")
    table = attach_table(
        user, runtime, relation="m.t", key="id", feature_view="f", features="amount,weekday(at),hour_sin(at)"
    )
    for name, right in (("-", "integer"), ("/", "numeric"), ("*", "numeric"), ("+", "numeric")):
        mallory.execute(
            f"CREATE FUNCTION public.e{ord(name)}(numeric, {right}) RETURNS numeric LANGUAGE plpgsql AS"
            f" $$ BEGIN {NOTE}; RETURN 7; END $$;"
            f" CREATE OPERATOR public.{name} (LEFTARG = numeric, RIGHTARG = {right}, FUNCTION = public.e{ord(name)})"
        )
    table.promote()
    mallory.execute("INSERT INTO m.t VALUES (1, now(), 2), (2, now(), 1e300)")
    table.drain()
    assert table.scored() == [1, 2]
    assert caught(user) == set()


@pytest.mark.parametrize(
    "planted",
    [
        f"FUNCTION outlier.views_t(text, text, text, boolean) RETURNS void LANGUAGE plpgsql AS $$ BEGIN {NOTE}; END $$",
        "FUNCTION outlier.grant_statements(grants jsonb, views text) RETURNS SETOF text LANGUAGE sql AS"
        f" $$ SELECT $x$ {NOTE} $x$ $$",
    ],
    ids=["views", "grants"],
)
def test_a_function_beside_ours_is_not_called_in_its_place(
    attached: Table, mallory: User, planted: str
) -> None:
    attached.user.execute("GRANT USAGE, CREATE ON SCHEMA outlier TO mallory")
    mallory.execute(f"CREATE {planted}")
    for function in ("before_migration", "after_migration"):
        with suppress(psycopg.errors.InsufficientPrivilege):  # it would run with the rights of another
            mallory.execute(f"SELECT outlier.{function}('m.t')")
    assert caught(attached.user) == set()


def test_a_worker_s_role_cannot_say_what_a_source_is(attached: Table, mallory: User) -> None:
    granting.grant(attached.runtime, "mallory", "worker")
    for change in ("relation = 'm.t'::regclass", "migration = '{}'", "definition = '{}'", "name = 'x'"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            mallory.execute(f"UPDATE outlier.sources SET {change}")
    mallory.execute("UPDATE outlier.sources SET last_problem = NULL, swept_at = now()")
