"""The engine: how every process connects to PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from pgoutlier.db.errors import SettingsError

APPLICATION_NAME = "pgoutlier"
# How often a pooler is given the chance to show what it does, while others take sessions of its pool as well.
_TRIES = 5
# A peer that vanished without a word is noticed within a minute, unless the URL says otherwise.
_KEEPALIVES = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",  # milliseconds
}


def sqlalchemy_url(database_url: str) -> URL:
    """The URL with the psycopg 3 driver named. Raises SettingsError if it cannot be parsed."""
    try:
        return make_url(database_url).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError):
        raise SettingsError(
            "PGOUTLIER_DATABASE_URL cannot be parsed; write postgresql://user:password@host:5432/database,"
            " with special characters of user and password as % and two hexadecimal digits, such as %40 for @."
        ) from None


def keepalives(given: Iterable[str]) -> dict[str, str]:
    """libpq's parameters by which a peer that has vanished is noticed, but for those that are given in the URL."""
    return {name: value for name, value in _KEEPALIVES.items() if name not in given}


def make_engine(
    database_url: str,
    *,
    pool_size: int = 5,
    max_overflow: int = 5,
    application_name: str = APPLICATION_NAME,
) -> Engine:
    """An engine whose pooled connections are checked before use, so that a server restart is survived.

    Who wants one more than pool_size and max_overflow waits, for half a minute at most.
    """
    url = sqlalchemy_url(database_url)
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_pre_ping=True,
        connect_args={
            "application_name": application_name,
            "client_encoding": "utf8",
            "connect_timeout": 10,
            **keepalives(url.query),
        },
    )
    event.listen(engine, "connect", lambda driver, _: secure(driver))
    return engine


def secure(driver: psycopg.Connection[Any]) -> None:
    """Make a new session of ours safe; it is in no transaction afterwards.

    Names are looked for in pg_catalog alone: whoever may create something elsewhere could otherwise have it run with
    our rights, in place of a function or operator of PostgreSQL's. Around triggers of the user's the role's own
    search_path is in force, see db.ddl.path_triggers and db.scoring.write_back. And a row that a policy hides from
    this role is none that is gone: a statement that would not see it fails, with a sentence of PostgreSQL's. What else
    is set here is what this program is written for, and what an administrator may have set otherwise for the role or
    the database: transactions that see what was committed before each statement, and values as the driver reads and
    writes them. Of DateStyle only how dates are printed, so that views go on reading theirs.

    Said by a statement and not by options of the connection: poolers refuse those, and they would be the DEFAULT.
    Raises SettingsError where a pooler would give the next transaction a session of which all this does not hold.
    """
    found = driver.execute(
        "SELECT pg_catalog.pg_backend_pid(),"
        " pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false),"
        " pg_catalog.set_config('row_security', 'off', false), pg_catalog.set_config('outlier.session', 'on', false),"
        " pg_catalog.set_config('default_transaction_isolation', 'read committed', false),"
        " pg_catalog.set_config('DateStyle', 'ISO', false), pg_catalog.set_config('array_nulls', 'on', false),"
        " pg_catalog.set_config('extra_float_digits', '1', false)"
    ).fetchone()
    if not driver.autocommit:
        driver.commit()
    if found is not None and found[0] == driver.info.backend_pid:
        _let_go_of_lost(driver)
    # A pooler tells of no process of the server's, but of one that it has made up.
    if found is not None and found[0] != driver.info.backend_pid and _is_shared(driver):
        raise SettingsError(
            "PGOUTLIER_DATABASE_URL leads to a pooler that gives each transaction another session (PgBouncer with"
            " pool_mode = transaction); name the server itself, or a pool with pool_mode = session."
        )


def _let_go_of_lost(driver: psycopg.Connection[Any]) -> None:
    """Have the server give this session up when we have vanished, as soon as we would give up the server.

    It would keep the rows and locks of a machine that was cut off for two hours: its own keepalives begin after that.
    """
    if driver.info.host.startswith(("/", "@")):
        return
    given = {**_KEEPALIVES, **driver.info.get_parameters()}
    values = {f"tcp_{name.removeprefix('tcp_')}": given[name] for name in _KEEPALIVES}
    set_each = ", ".join(f"pg_catalog.set_config('{name}', %({name})s, false)" for name in values)
    driver.execute(f"SELECT {set_each}".encode(), values)
    if not driver.autocommit:
        driver.commit()


def _is_shared(driver: psycopg.Connection[Any]) -> bool:
    """Whether another connection is given the server's session of this one, which is in no transaction."""
    password = driver.info.password or None
    with psycopg.connect(driver.info.dsn, password=password, prepare_threshold=None) as other:
        for _ in range(_TRIES):
            sessions = []
            for connection in (driver, other):
                sessions.append(connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone())
                if connection is driver and not driver.autocommit:
                    driver.commit()
            other.rollback()
            if sessions[0] == sessions[1]:
                return True
    return False


def driver_connection(connection: Connection) -> psycopg.Connection[Any]:
    """The psycopg connection beneath, for COPY and for composed identifiers; same transaction."""
    # Of a connection that was taken out of the pool, SQLAlchemy still knows this one, and no driver_connection.
    driver: object = connection.connection.dbapi_connection
    if not isinstance(driver, psycopg.Connection):
        raise TypeError("the engine must use the psycopg driver")
    return driver
