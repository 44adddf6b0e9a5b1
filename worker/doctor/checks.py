"""Every check: servers, schema, sources, beat, schedules, listener and workers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import redis
from kombu import Connection as BrokerConnection
from kombu.exceptions import OperationalError as BrokerUnavailable
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from pgoutlier.db import migrate
from pgoutlier.db.engine import is_shared
from pgoutlier.db.errors import PgoutlierError, SettingsError, first_line
from pgoutlier.db.schedules import schedules
from pgoutlier.db.source import catalog
from pgoutlier.db.sources import sources
from pgoutlier.db.sql import locks, long_locks, owners
from pgoutlier.db.sql.identifiers import display
from pgoutlier.db.status import overview
from pgoutlier.worker.doctor.finding import Finding, allowed
from pgoutlier.worker.doctor.source_checks import of_source
from pgoutlier.worker.runtime import Runtime, server_urls
from pgoutlier.worker.schedules import schedule_control
from pgoutlier.worker.status.status import alive_workers

_OLDEST_POSTGRES = 150_000
_CLOCK_SECONDS = 2.0
_DIRECT = "PGOUTLIER_DATABASE_DIRECT_URL"
_QUEUES = ("score", "admin", "train")


def examine(runtime: Runtime) -> Iterator[Finding]:
    """What each check finds. Ends early where nothing more can be looked at."""
    yield from _broker(server_urls(runtime.settings)[1])
    try:
        with runtime.engine.begin() as connection:
            yield from _postgres(connection)
            pooled, facts = is_shared(connection), catalog.server_facts(connection)
            [schema] = allowed(connection, "schema", lambda: iter([_schema(connection)]))
            yield schema
    except SettingsError as error:
        found, _, mend = error.sentence.rstrip(".").partition("; ")
        yield Finding("PostgreSQL", False, found, mend)
        return
    except (DBAPIError, psycopg.Error) as error:
        yield Finding(
            "PostgreSQL", False, first_line(error), "start the server, or mend PGOUTLIER_DATABASE_URL"
        )
        return
    yield from _way(runtime, pooled, facts)
    if schema.ok:
        with runtime.engine.begin() as connection:
            yield _owners(connection)
            every = sources.every(connection)
        for source in every:
            # Each in a transaction of its own, since what was looked at stays locked to the end of it.
            with runtime.engine.begin() as connection:
                of_it = list(of_source(connection, runtime, source))
            yield from (replace(each, source=source.name) for each in of_it)
        with runtime.engine.begin() as connection:
            yield _locks(connection)
            yield from allowed(connection, "listener", lambda: iter([_listeners(connection)]))
            yield from allowed(connection, "beat", lambda: iter([_beat(connection)]))
            yield from allowed(connection, "schedules", lambda: _schedules(connection))
    yield from _workers()


def _broker(url: str) -> Iterator[Finding]:
    try:
        with BrokerConnection(
            url, connect_timeout=3, transport_options={"socket_connect_timeout": 3}
        ) as broker:
            broker.ensure_connection(max_retries=1, timeout=5)
            client = broker.default_channel.client
            info = client.info("server")
    except (BrokerUnavailable, redis.RedisError, OSError) as error:
        yield Finding("broker", False, str(error), "start Redis or Valkey, or mend PGOUTLIER_BROKER_URL")
        return
    name, version = (
        ("Valkey", info["valkey_version"]) if "valkey_version" in info else ("Redis", info["redis_version"])
    )
    old = tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < ((7, 2) if name == "Valkey" else (6, 2))
    yield Finding(
        "broker", not old, f"{name} {version}", "use Redis 6.2 or Valkey 7.2, or later" if old else ""
    )


def _postgres(connection: Connection) -> Iterator[Finding]:
    facts = catalog.server_facts(connection)
    old = facts["server_version_num"] < _OLDEST_POSTGRES
    yield Finding(
        "PostgreSQL",
        not old and not facts["in_recovery"],
        f"{facts['server_version']}, database {facts['database']} as {facts['role']}"
        + (", read-only standby" if facts["in_recovery"] else ""),
        "use PostgreSQL 15 or later" if old else "name the primary" if facts["in_recovery"] else "",
    )
    apart = abs((datetime.now(UTC) - facts["clock"]).total_seconds())
    yield Finding(
        "clocks",
        apart <= _CLOCK_SECONDS,
        f"{apart:.1f} s between this machine and PostgreSQL",
        "" if apart <= _CLOCK_SECONDS else "synchronise both with NTP",
    )


def _way(runtime: Runtime, pooled: bool, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether a pooler stands between, and what the direct URL leads to, if there is one.

    In no transaction: where that is the same pooler, one would wait for the other.
    """
    if pooled:
        told = "PGOUTLIER_DATABASE_URL leads through one, and nothing is left in its sessions"
        if runtime.direct is None:
            told += (
                "; without PGOUTLIER_DATABASE_DIRECT_URL the listener looks every quarter of a second, and the place"
                f" of a killed training is free after {long_locks.LEASE.seconds} s"
            )
        yield Finding("pooler", True, told)
    if runtime.direct is None:
        return
    try:
        with runtime.direct.begin() as direct:
            yield _direct(facts, direct)
    except (DBAPIError, psycopg.Error) as error:
        yield Finding("direct URL", False, first_line(error), f"mend {_DIRECT}, or take it away")


def _direct(ours: Mapping[str, Any], direct: Connection) -> Finding:
    if is_shared(direct):
        mend = "name the server itself, or take it away"
        return Finding("direct URL", False, f"{_DIRECT} leads through a pooler, too", mend)
    its = catalog.server_facts(direct)
    if (ours["started_at"], ours["database"]) != (its["started_at"], its["database"]):
        mend = f"mend {_DIRECT}: of what is in the other database nothing is heard there"
        return Finding("direct URL", False, f"{_DIRECT} leads to another server or database", mend)
    return Finding("direct URL", True, f"leads to the same database, as {its['role']}")


def _schema(connection: Connection) -> Finding:
    try:
        migrate.require_current(connection)
    except PgoutlierError as error:
        return Finding("schema", False, str(error), "pgoutlier db upgrade")
    return Finding("schema", True, f"outlier at revision {migrate.head()}")


def _owners(connection: Connection) -> Finding:
    """Whether all of our schema that is of no source is its owner's."""
    owner = owners.schema_owner(connection)
    found = owners.plugin_wide(connection, owner)
    if not found:
        return Finding("owners", True, f"all is {display(owner)}'s, who owns the schema")
    first = found[0]
    return Finding(
        "owners",
        False,
        "; ".join(map(str, found)),
        f"look at it, then drop it or: ALTER {first.kind.upper()} {first.object} OWNER TO {display(owner)};",
    )


def _locks(connection: Connection) -> Finding:
    """Whether somebody else holds an advisory lock of ours, as any session may."""
    found = locks.strangers(connection)
    return Finding(
        "locks",
        not found,
        "; ".join(map(str, found)) or "nobody else holds one of ours",
        " ".join(dict.fromkeys(each.mend for each in found)),
    )


def _listeners(connection: Connection) -> Finding:
    count = overview.listeners(connection)
    mend = (
        ""
        if count
        else "pgoutlier up, or: pgoutlier listener (without one, beat finds new rows every few seconds)"
    )
    return Finding("listener", count > 0, f"{count} connected", mend)


def _beat(connection: Connection) -> Finding:
    found = schedules.beats(connection)
    alive = schedule_control.beats_alive(connection)
    if alive:
        return Finding("beat", True, f"{', '.join(alive)}, last tick {found[0].seconds_ago:.0f} s ago")
    last = (
        f"the last tick was at {found[0].ticked_at:%Y-%m-%d %H:%M:%S %Z}" if found else "none has ticked yet"
    )
    return Finding(
        "beat",
        False,
        f"{last}; nothing is swept, retrained or pruned",
        "pgoutlier up, or: celery -A pgoutlier.worker beat; if it runs, see its log: it may not reach the broker",
    )


def _schedules(connection: Connection) -> Iterator[Finding]:
    for schedule in schedules.times(connection):
        if schedule.enabled and schedule.problem:
            yield Finding(
                f"schedule {schedule.name}",
                False,
                schedule.problem,
                f"pgoutlier schedule set {schedule.name} --help, or: pgoutlier schedule pause {schedule.name}",
            )


def _workers() -> Iterator[Finding]:
    workers = alive_workers()
    if workers is None:
        return
    taken = {queue for worker in workers for queue in worker.queues}
    for queue in _QUEUES:
        names = [worker.name for worker in workers if queue in worker.queues]
        yield Finding(
            f"queue {queue}",
            queue in taken,
            f"taken by {', '.join(names)}" if names else "no worker takes from it",
            "" if names else f"pgoutlier up, or: celery -A pgoutlier.worker worker -Q {queue}",
        )
