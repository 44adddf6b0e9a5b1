"""Give a role what an analyst, a worker process or an operator needs."""

from __future__ import annotations

from pgoutlier.db.roles import grants
from pgoutlier.db.roles.grants import Kind
from pgoutlier.db.sql.statements import as_text, run
from pgoutlier.worker.runtime import Runtime


def grant(runtime: Runtime, role: str, kind: Kind) -> None:
    """Grant it. Raises SourceError if there is no such role."""
    with runtime.engine.begin() as connection:
        for statement in grants.grants(connection, role, kind):
            run(connection, statement)


def script(runtime: Runtime, role: str, kind: Kind) -> str:
    """The SQL that `grant` would run; nothing is changed. Raises SourceError if there is no such role."""
    with runtime.engine.begin() as connection:
        return "".join(f"{as_text(statement)};\n" for statement in grants.grants(connection, role, kind))
