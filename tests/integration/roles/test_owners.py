"""What somebody else has put into schema outlier is found before it could run with the rights of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine

from pgoutlier.db import migrate
from pgoutlier.db.engine import make_engine
from pgoutlier.db.errors import SchemaNotReady, SourceError
from pgoutlier.worker.doctor import checks
from pgoutlier.worker.doctor.source_checks import of_source
from tests.support import ASKED, Table, attach_table

User = psycopg.Connection[Any]
# Runs as whoever writes to the table that it is a trigger of.
TRAP = (
    "RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN INSERT INTO public.caught VALUES (current_user); RETURN NEW; END $$"
)


@pytest.fixture
def mallory(empty_database_url: str) -> Iterator[User]:
    """The session of a role that may make schemas in a database where nothing is ours yet."""
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        owner.execute("CREATE ROLE mallory LOGIN")
        owner.execute(f"GRANT CREATE ON DATABASE {owner.info.dbname} TO mallory".encode())
        owner.execute("CREATE TABLE public.caught (who text); GRANT INSERT ON public.caught TO PUBLIC")
        try:
            with psycopg.connect(empty_database_url, user="mallory", autocommit=True) as session:
                yield session
        finally:
            owner.execute("DROP OWNED BY mallory CASCADE")
            owner.execute("DROP ROLE mallory")


def test_a_schema_that_another_made_first_is_not_upgraded(
    empty: Engine, empty_database_url: str, mallory: User
) -> None:
    mallory.execute(
        "CREATE SCHEMA outlier; CREATE TABLE outlier.alembic_version (version_num varchar(32));"
        f" CREATE FUNCTION outlier.trap() {TRAP};"
        " CREATE TRIGGER trap BEFORE INSERT OR UPDATE ON outlier.alembic_version"
        " FOR EACH ROW EXECUTE FUNCTION outlier.trap()"
    )
    with pytest.raises(
        SchemaNotReady, match=r"schema outlier belongs to mallory.*rights of postgres.*OWNER TO postgres"
    ):
        migrate.upgrade(empty)
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        # The schema alone is handed over: what is in it stays another's.
        owner.execute("ALTER SCHEMA outlier OWNER TO postgres")
        with pytest.raises(SchemaNotReady, match=r"table outlier.alembic_version belongs to mallory"):
            migrate.upgrade(empty)
        assert owner.execute("SELECT * FROM public.caught").fetchall() == []
        owner.execute("DROP SCHEMA outlier CASCADE")
        migrate.upgrade(empty)
    assert mallory.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_whoever_looks_after_the_schema_upgrades_it(
    empty: Engine, empty_database_url: str, mallory: User
) -> None:
    """Its owner, a member of the owner's role, and a superuser who was made one."""
    mallory.execute("CREATE SCHEMA outlier")
    own = make_engine(empty_database_url.replace("postgres@", "mallory@"))
    migrate.upgrade(own, "0011")
    own.dispose()
    with pytest.raises(SchemaNotReady, match="GRANT mallory TO postgres;"):
        migrate.upgrade(empty)
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        owner.execute("GRANT mallory TO postgres")
        migrate.upgrade(empty)
        owner.execute("REVOKE mallory FROM postgres")


@pytest.fixture
def intruder(transactions: Table, role: str, connect: Callable[..., User]) -> User:
    """The session of a role that may attach tables of its own, and so make things in our schema."""
    transactions.user.execute(f"GRANT USAGE, CREATE ON SCHEMA outlier TO {role}".encode())
    transactions.user.execute("CREATE TABLE other (id bigint PRIMARY KEY, x float8)")
    return connect(user=role)


@pytest.mark.parametrize(
    ("planted", "what"),
    [
        (f"CREATE FUNCTION outlier.enqueue_insert_other() {TRAP}", "function outlier.enqueue_insert_other"),
        ("CREATE VIEW outlier.flagged_other AS SELECT 1 AS id", "view outlier.flagged_other"),
        ("CREATE TABLE outlier.scores_other (key bigint)", "table outlier.scores_other"),
        ("CREATE TABLE outlier.score_history_other (key bigint)", "table outlier.score_history_other"),
    ],
)
def test_attach_refuses_what_another_has_put_in_its_way(
    transactions: Table, intruder: User, planted: str, what: str
) -> None:
    intruder.execute(planted.encode())
    with pytest.raises(SourceError, match=f"The {what} belongs to writer.*Nothing was changed"):
        attach_table(transactions.user, transactions.runtime, relation="other", key="id", features="x")
    assert transactions.keys("SELECT name FROM outlier.sources") == ["transactions"]
    assert transactions.rows("SELECT FROM pg_trigger WHERE tgrelid = 'other'::regclass") == []


def test_attaching_again_and_doctor_find_what_was_put_in_place_of_ours(
    transactions: Table, intruder: User
) -> None:
    with transactions.runtime.engine.begin() as connection:
        assert checks._owners(connection).ok
        found = {f.what: f for f in of_source(connection, transactions.runtime, transactions.source)}
        assert found["transactions owners"].ok
    transactions.user.execute("DROP FUNCTION outlier.enqueue_insert_transactions CASCADE")
    intruder.execute(f"CREATE FUNCTION outlier.enqueue_insert_transactions() {TRAP}".encode())
    intruder.execute(f"CREATE FUNCTION outlier.helper() {TRAP}".encode())
    with pytest.raises(SourceError, match=r"function outlier.enqueue_insert_transactions belongs to writer"):
        attach_table(transactions.user, transactions.runtime, **ASKED)
    with transactions.runtime.engine.begin() as connection:
        assert "function outlier.helper belongs to writer" in checks._owners(connection).detail
        found = {f.what: f for f in of_source(connection, transactions.runtime, transactions.source)}
    assert "enqueue_insert_transactions belongs to writer" in found["transactions owners"].detail


def test_a_role_that_attached_a_table_itself_is_no_intruder(
    transactions: Table, intruder: User, role: str
) -> None:
    """Its source is mended by a superuser, and is as before."""
    user = transactions.user
    user.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA outlier TO {role}".encode())
    user.execute(f"GRANT SELECT, TRIGGER ON other TO {role}".encode())
    url = transactions.runtime.engine.url.set(username=role).render_as_string(hide_password=False)
    settings = transactions.runtime.settings
    from pgoutlier.worker.runtime import make_runtime

    own = make_runtime(settings.model_copy(update={"database_url": type(settings.database_url)(url)}))
    asked = {"relation": "other", "key": "id", "features": "x"}
    attach_table(user, own, **asked)
    own.engine.dispose()
    other = attach_table(user, transactions.runtime, **asked)
    with transactions.runtime.engine.begin() as connection:
        found = {f.what: f for f in of_source(connection, transactions.runtime, other.source)}
        assert found["other owners"].ok
        assert checks._owners(connection).ok
