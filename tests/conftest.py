"""Real servers, a fresh database for each test, and what the tests attach and score with."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
import structlog
from sqlalchemy import Engine

from pgoutlier.db.embedded import ServerKit
from pgoutlier.db.engine import make_engine
from pgoutlier.db.settings import Settings
from pgoutlier.worker.runtime import Runtime, make_runtime
from tests.servers import POSTGRES_15, TEMPLATE, Postgres, running_postgres, scratch_folder
from tests.support import Table, make_table, quick_settings, sessions_on

Connect = Callable[..., psycopg.Connection[Any]]

# The same examples in every run, however busy the machine: a failure is one of the change under test.
hypothesis.settings.register_profile(
    "pgoutlier", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("pgoutlier")


@pytest.fixture(scope="session")
def data_directory() -> Path:
    """Where the public test data lies: PGOUTLIER_TEST_DATA, else shared/data beside the checkout."""
    named = os.environ.get("PGOUTLIER_TEST_DATA")
    directory = Path(named) if named else Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not directory.is_dir():
        pytest.skip(f"no test data at {directory}; set PGOUTLIER_TEST_DATA to their directory")
    return directory


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A command that is run in this process configures the logs; the next test finds them as they were."""
    configured, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.configure(**configured)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A short folder that the servers' account can enter, also when root runs the tests."""
    with scratch_folder() as path:
        yield path


@pytest.fixture(scope="session")
def postgres18(scratch: Path) -> Iterator[Postgres]:
    """The PostgreSQL that comes with the product."""
    with running_postgres(scratch / "pg18", None) as postgres:
        yield postgres


@pytest.fixture(scope="session")
def postgres15(scratch: Path) -> Iterator[Postgres]:
    """The oldest PostgreSQL that is supported, where it is installed."""
    if not (POSTGRES_15 / "postgres").exists():
        pytest.skip(f"PostgreSQL 15, the oldest supported, is not installed in {POSTGRES_15}")
    with running_postgres(scratch / "pg15", POSTGRES_15) as postgres:
        yield postgres


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Postgres:
    """A test that uses it, or a database in it, runs once on each PostgreSQL, or on 18 alone where it is marked so."""
    name = {"pg18": "postgres18", "pg15": "postgres15"}[request.param]
    server: Postgres = request.getfixturevalue(name)
    return server


def pytest_xdist_auto_num_workers() -> int:
    """Half as many processes again as there are cores: some tests wait for processes while others compute."""
    return max(2, (os.cpu_count() or 1) * 3 // 2)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "postgres" in metafunc.fixturenames:
        servers = ["pg18"] if metafunc.definition.get_closest_marker("postgres18") else ["pg18", "pg15"]
        metafunc.parametrize("postgres", servers, indirect=True, scope="session")


@pytest.fixture(scope="session")
def broker_url(scratch: Path) -> Iterator[str]:
    """A Valkey that the tests share."""
    kit = ServerKit.of(scratch / "valkey")
    kit.folder.path.mkdir()
    kit.folder.adopt()
    kit.valkey.start()
    yield kit.valkey.url
    kit.valkey.stop()


@pytest.fixture
def template(postgres: Postgres, request: pytest.FixtureRequest) -> str:
    """What the test's database is a copy of: a migrated one, with the table of transactions where the test uses it.

    Modules have templates of their own, where many tests begin with the same.
    """
    attached = "transactions" in request.fixturenames
    return postgres.template("attached", _attach_transactions) if attached else TEMPLATE


@pytest.fixture
def database_url(postgres: Postgres, template: str) -> Iterator[str]:
    """A fresh, migrated database."""
    with postgres.database(template=template) as url:
        yield url


def _attach_transactions(database_url: str) -> None:
    with sessions_on(database_url) as (user, runtime):
        make_table(user, runtime)


@pytest.fixture
def empty_database_url(postgres: Postgres) -> Iterator[str]:
    """A fresh database in which nothing was migrated."""
    with postgres.database(template="template0") as url:
        yield url


@pytest.fixture
def environment(database_url: str, broker_url: str) -> dict[str, str]:
    """The settings that a subprocess needs to work on this test's database."""
    return {"PGOUTLIER_DATABASE_URL": database_url, "PGOUTLIER_BROKER_URL": broker_url}


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Of a runtime on this test's database."""
    return quick_settings(database_url)


@pytest.fixture
def runtime(settings: Settings) -> Iterator[Runtime]:
    made = make_runtime(settings, application_name="tests")
    yield made
    made.engine.dispose()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = make_engine(database_url)
    yield made
    made.dispose()


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Engine]:
    """Of a database in which nothing is ours yet."""
    made = make_engine(empty_database_url)
    yield made
    made.dispose()


@pytest.fixture
def connect(database_url: str) -> Iterator[Connect]:
    """Opens connections as a user's program would, closed at the end; autocommit unless told otherwise."""
    with ExitStack() as opened:

        def connection(*, autocommit: bool = True, **options: Any) -> psycopg.Connection[Any]:
            return opened.enter_context(psycopg.connect(database_url, autocommit=autocommit, **options))

        yield connection


@pytest.fixture
def user(connect: Connect) -> psycopg.Connection[Any]:
    """The session of somebody who owns the tables and knows nothing of us; in autocommit."""
    return connect()


@pytest.fixture
def role(user: psycopg.Connection[Any]) -> Iterator[str]:
    """A role that may log in and nothing else."""
    user.execute("CREATE ROLE writer LOGIN")
    yield "writer"
    user.execute("DROP OWNED BY writer CASCADE")
    user.execute("DROP ROLE writer")


@pytest.fixture
def transactions(user: psycopg.Connection[Any], runtime: Runtime) -> Table:
    """A table of card transactions with three features and a text column, empty and attached."""
    return Table(user, runtime, "transactions")
