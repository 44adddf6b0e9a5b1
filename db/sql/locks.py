"""Advisory locks: each is known by a name, and held for one source or for all of them, while a transaction lasts.

Those that are held for longer are in db.sql.long_locks.

PostgreSQL lets any session take any advisory lock of its database. So no row waits for one to be scored; and where one
is not to be had, it is looked whether its holder is one of ours, for else nobody would find out what is waited for.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from psycopg import errors, sql
from sqlalchemy import Connection

from pgoutlier.db.errors import LockTaken
from pgoutlier.db.sql.identifiers import display
from pgoutlier.db.sql.statements import compose, one, records, run

# Held for a source by a drain that looks into its queue by itself, every few milliseconds.
PACED = "paced"
_LISTENER_SLEEPS = "listener sleeps"
_OF_ALL = ("attach", "migrations")
_OF_A_SOURCE = (
    *("sweep", "jobs", "fill", "training", "webhook", "versions", "aliases"),
    *(PACED, _LISTENER_SLEEPS),
)
# How long one of ours is waited for before it is looked whether it is one of ours; then it is waited for on.
_LOOK_EVERY = "1s"


@dataclass(frozen=True)
class Stranger:
    """A session that holds a lock of ours, known by this name, and whose role may not do what it is for."""

    pid: int
    role: str
    lock: str

    def __str__(self) -> str:
        return (
            f"the session of process {self.pid} (role {display(self.role)}), which has no right to it, holds the lock"
            f" {self.lock!r} of pgoutlier"
        )

    @property
    def mend(self) -> str:
        """The statement that ends it."""
        return f"SELECT pg_terminate_backend({self.pid});"


def strangers(connection: Connection) -> list[Stranger]:
    """Those of all our locks in this database; sessions that may write trainings are ours."""
    return records(
        connection,
        Stranger,
        "SELECT DISTINCT l.pid, a.usename::text AS role, n.name AS lock"
        " FROM (SELECT name, hashtext('outlier.' || name)::bigint & 4294967295 AS number,"
        " name = ANY (%(of_all)s) AS of_all FROM unnest(%(names)s::text[]) name) n"
        " JOIN pg_locks l ON l.locktype = 'advisory' AND l.granted"
        " AND l.objsubid = CASE WHEN n.of_all THEN 1 ELSE 2 END"
        " AND n.number = CASE WHEN n.of_all THEN l.objid ELSE l.classid END::bigint"
        " JOIN pg_stat_activity a ON a.pid = l.pid AND a.datid = l.database AND a.datname = current_database()"
        " WHERE NOT has_table_privilege(a.usesysid, 'outlier.training_runs', 'INSERT') ORDER BY l.pid",
        {"names": [*_OF_ALL, *_OF_A_SOURCE], "of_all": list(_OF_ALL)},
    )


def refuse_strangers(connection: Connection, name: str) -> None:
    """Raise LockTaken if one of them holds this lock."""
    for found in strangers(connection):
        if found.lock == name:
            raise LockTaken(f"T{str(found)[1:]}; end it: {found.mend}")


def number(name: sql.Composable) -> sql.Composable:
    """SQL for the number that PostgreSQL knows a name by."""
    return compose("hashtext('outlier.' || {name}::text)", name=name)


def listener_sleeps(source_name: sql.Composable) -> sql.Composable:
    """SQL for the two numbers of the lock that a listener holds while it sleeps and is to be notified of a source."""
    return compose("{a}, {b}", a=number(sql.Literal(_LISTENER_SLEEPS)), b=number(source_name))


def hold(connection: Connection, name: str, source_id: int | None = None) -> None:
    """Wait for a lock, and hold it until the transaction ends. Without a source it is one for all.

    Raises LockTaken if a stranger has it.
    """
    lock = numbers(name, source_id)
    if one(connection, compose("SELECT pg_try_advisory_xact_lock({lock})", lock=lock)):
        return
    before = one(connection, "SELECT current_setting('lock_timeout')")
    while True:
        refuse_strangers(connection, name)
        with suppress(errors.LockNotAvailable), connection.begin_nested():
            run(connection, "SELECT set_config('lock_timeout', %s, true)", (_LOOK_EVERY,))
            run(connection, compose("SELECT pg_advisory_xact_lock({lock})", lock=lock))
            run(connection, "SELECT set_config('lock_timeout', %s, true)", (before,))
            return


def try_hold(connection: Connection, name: str, source_id: int) -> bool:
    """Whether the lock was free, and is held until the transaction ends. Raises LockTaken if a stranger has it."""
    lock = numbers(name, source_id)
    taken = bool(one(connection, compose("SELECT pg_try_advisory_xact_lock({lock})", lock=lock)))
    if not taken:
        refuse_strangers(connection, name)
    return taken


def numbers(name: str, source_id: int | None) -> sql.Composable:
    """SQL for the number, or the two, that PostgreSQL knows a lock by."""
    known_by = number(sql.Literal(name))
    return known_by if source_id is None else compose("{n}, {s}", n=known_by, s=sql.Literal(source_id))


def is_free(name: str, source_id: int) -> sql.Composable:
    """SQL that tells whether nobody holds or shares a lock at this moment."""
    return compose("pg_try_advisory_xact_lock({lock})", lock=numbers(name, source_id))
