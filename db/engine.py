"""The engine: how every process connects to PostgreSQL, and what holds in each session or transaction of ours.

A pooler such as PgBouncer may give each transaction another session of the server's, which others use before and after.
So whoever is behind one leaves nothing in it: see docs/decisions/0033-behind-a-pooler.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import IsolationLevel
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from pgoutlier.db.errors import SettingsError

APPLICATION_NAME = "pgoutlier"
# What holds in all that we do, see `secure`.
_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "row_security": "off",
    "outlier.session": "on",
    "default_transaction_isolation": "read committed",  # of a statement by itself, in autocommit
    "DateStyle": "ISO",
    "array_nulls": "on",
    "extra_float_digits": "1",
}
# Executions of a statement after which psycopg has the session keep it prepared: its default.
_PREPARED_AFTER = 5
_SHARED = "outlier shared"
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
            "prepare_threshold": None,
            **keepalives(url.query),
        },
    )
    event.listen(engine, "connect", _connected)
    event.listen(engine, "begin", _begun)
    return engine


def _connected(driver: psycopg.Connection[Any], record: Any) -> None:
    record.info[_SHARED] = secure(driver)


def _begun(connection: Connection) -> None:
    if is_shared(connection):
        connection.exec_driver_sql(_settings(local=True))


def is_shared(connection: Connection) -> bool:
    """Whether a pooler stands between, so that the server's session may be another one in the next transaction."""
    return bool(connection.info.get(_SHARED))


def secure(driver: psycopg.Connection[Any]) -> bool:
    """Make a new session of ours safe; it is in no transaction afterwards.

    Names are looked for in pg_catalog alone: whoever may create something elsewhere could otherwise have it run with
    our rights, in place of a function or operator of PostgreSQL's. Around triggers of the user's the role's own
    search_path is in force, see db.ddl.path_triggers and db.scoring.write_back. And a row that a policy hides from
    this role is none that is gone: a statement that would not see it fails, with a sentence of PostgreSQL's. What else
    is set here is what this program is written for, and what an administrator may have set otherwise for the role or
    the database: transactions that see what was committed before each statement, and values as the driver reads and
    writes them. Of DateStyle only how dates are printed, so that views go on reading theirs.

    Said by a statement and not by options of the connection: poolers refuse those, and they would be the DEFAULT.

    Returns whether a pooler stands between: it tells of no process of the server's, but of one that it has made up.
    Then nothing is set or kept in the session, and each transaction has to begin with the settings: the engine sees to
    its own, `transaction` to those of others. connect with prepare_threshold=None, so that nothing is prepared before.
    """
    driver.isolation_level = IsolationLevel.READ_COMMITTED
    own = driver.execute(
        f"{_settings(local=False)} WHERE pg_catalog.pg_backend_pid()"
        f" OPERATOR(pg_catalog.=) ({driver.info.backend_pid})".encode()
    ).fetchone()
    if not driver.autocommit:
        driver.commit()
    if own is not None:
        driver.prepare_threshold = _PREPARED_AFTER
        _let_go_of_lost(driver)
    return own is None


@contextmanager
def transaction(driver: psycopg.Connection[Any], *, shared: bool) -> Iterator[None]:
    """What a connection in autocommit asks meanwhile is asked with our settings; shared: what `secure` has returned."""
    if not shared:
        yield
        return
    with driver.transaction():
        driver.execute(_settings(local=True).encode())
        yield


def _settings(*, local: bool) -> str:
    calls = (
        f"pg_catalog.set_config('{name}', '{value}', {str(local).lower()})"
        for name, value in _SETTINGS.items()
    )
    return f"SELECT {', '.join(calls)}"


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


def driver_connection(connection: Connection) -> psycopg.Connection[Any]:
    """The psycopg connection beneath, for COPY and for composed identifiers; same transaction."""
    # Of a connection that was taken out of the pool, SQLAlchemy still knows this one, and no driver_connection.
    driver: object = connection.connection.dbapi_connection
    if not isinstance(driver, psycopg.Connection):
        raise TypeError("the engine must use the psycopg driver")
    return driver
