"""Which tables are watched."""

from __future__ import annotations

from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import sources
from pgoutlier.worker.runtime import Runtime


def every(runtime: Runtime) -> list[Source]:
    """All sources by name."""
    with runtime.engine.begin() as connection:
        return sources.every(connection)


def find(runtime: Runtime, source_name: str) -> Source:
    """Raises SourceError, naming the sources there are, if this is none."""
    with runtime.engine.begin() as connection:
        return sources.find(connection, source_name)
