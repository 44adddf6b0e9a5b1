"""Give a role what an analyst, a worker process, an operator or a monitor needs."""

from __future__ import annotations

from pgoutlier.db.roles import grants
from pgoutlier.db.roles.grants import Kind, Refused
from pgoutlier.db.sql.statements import as_text
from pgoutlier.worker.runtime import Runtime


def grant(runtime: Runtime, role: str, kind: Kind) -> list[Refused]:
    """Grant it, and return what PostgreSQL refused, as for a table that is gone or is another owner's.

    Raises SourceError if there is no such role.
    """
    with runtime.engine.begin() as connection:
        grants.require_role(connection, role)
        return grants.give(connection, grants.grants(connection, role, kind))


def script(runtime: Runtime, role: str, kind: Kind) -> str:
    """The SQL that `grant` would run, whether there is such a role or not; nothing is changed."""
    with runtime.engine.begin() as connection:
        return "".join(f"{as_text(statement)};\n" for statement in grants.grants(connection, role, kind))
