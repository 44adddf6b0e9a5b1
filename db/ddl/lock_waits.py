"""Statements on tables that others are at work on.

While a statement waits for a lock on a table, every later writer of it waits behind that. So each try is short, and
between two of them everybody is let through.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from psycopg import errors, sql
from sqlalchemy import Connection

from pgoutlier.db.errors import SourceError
from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sql.identifiers import SCHEMA
from pgoutlier.db.sql.statements import run, run_dicts

LOCK_WAIT = "100ms"
PAUSES_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
_OURS = ("queue", "scores", "shadow_scores", "score_history")


def run_ddl(connection: Connection, definition: SourceDefinition, statements: Sequence[sql.Composed]) -> None:
    """Run statements on a source's objects, all or none of them; those on the user's table come last.

    What the transaction has locked before stays locked while this waits. Raises SourceError, naming the session that is
    in the way, if a lock is not to be had, or the objects of the user's that need what is dropped.
    """
    for pause in (*PAUSES_SECONDS, None):
        try:
            with connection.begin_nested():
                run(connection, sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_WAIT)))
                for statement in statements:
                    run(connection, statement)
                run(connection, "SET LOCAL lock_timeout TO DEFAULT")
            return
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            if pause is None:
                raise SourceError(
                    f"{definition.relation} is in use: no lock on it, or on what was made for it, in"
                    f" {len(PAUSES_SECONDS) + 1} tries, and nothing was changed; {_in_the_way(connection, definition)},"
                    " or try again later."
                ) from None
            time.sleep(pause)
        except errors.DependentObjectsStillExist as error:
            detail = (error.diag.message_detail or "").splitlines() or ["one of them"]
            raise SourceError(
                f"{definition.name} cannot be changed or detached while other objects need it: {detail[0]}; drop those"
                " first."
            ) from None


def _in_the_way(connection: Connection, definition: SourceDefinition) -> str:
    """Who has held a lock on one of the tables longest, and how to end that."""
    found = run_dicts(
        connection,
        "SELECT l.pid, l.relation::regclass::text AS relation, a.application_name AS program, a.usename::text AS role,"
        " a.state, a.backend_type AS kind, p.gid,"
        " extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared))::bigint AS seconds"
        " FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace"
        " LEFT JOIN pg_stat_activity a ON a.pid = l.pid"
        " LEFT JOIN pg_prepared_xacts p ON l.pid IS NULL AND l.virtualtransaction = '-1/' || p.transaction::text"
        " WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND (n.nspname = %(schema)s AND c.relname = %(name)s"
        " OR n.nspname = %(ours)s AND c.relname = ANY (%(tables)s))"
        # A reader is in the way of a few statements only.
        " ORDER BY l.mode = 'AccessShareLock', seconds DESC NULLS LAST LIMIT 1",
        {
            "schema": definition.relation_schema,
            "name": definition.relation_name,
            "ours": SCHEMA,
            "tables": [f"{kind}_{definition.name}" for kind in _OURS],
        },
    )
    return _holder(found[0]) if found else "end the transactions that wrote to it"


def _holder(found: dict[str, Any]) -> str:
    if found["gid"] is not None:
        return (
            f"the prepared transaction {found['gid']!r} holds {found['relation']}: commit it or roll it back"
        )
    words = [
        found["program"] or found["kind"],
        f"role {found['role']}" if found["role"] else None,
        found["state"],
    ]
    if found["seconds"] is not None:
        words.append(f"in a transaction for {found['seconds']:,} s")
    return (
        f"the session of process {found['pid']} ({', '.join(filter(None, words))}) holds {found['relation']}: end its"
        " transaction"
    )
