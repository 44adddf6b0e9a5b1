"""The schema `outlier` of a runtime's database: which revision it is at, and brought up to date."""

from __future__ import annotations

from dataclasses import dataclass

from pgoutlier.db import migrate
from pgoutlier.worker.runtime import Runtime


@dataclass(frozen=True)
class Revision:
    """That of the database, None if nothing was migrated yet, and the one this program needs."""

    revision: str | None
    head: str


def revision(runtime: Runtime) -> Revision:
    with runtime.engine.begin() as connection:
        return Revision(migrate.current(connection), migrate.head())


def require_current(runtime: Runtime) -> None:
    """Raises SchemaNotReady, saying what to run, unless the database is at the revision this program needs."""
    with runtime.engine.begin() as connection:
        migrate.require_current(connection)


def upgrade(runtime: Runtime) -> str:
    """Bring it to this program's revision, and return that. Safe to run again, and twice at once."""
    migrate.upgrade(runtime.engine)
    return migrate.head()
