"""The last flagged rows of a source. Knows nothing of Celery, which takes longer to import than this to answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgoutlier.db.source.definition import SourceDefinition
from pgoutlier.db.sources import sources
from pgoutlier.db.status import overview
from pgoutlier.worker.runtime import Runtime


@dataclass(frozen=True)
class FlaggedRows:
    """The newest first; each row by column: the user's columns and the score's."""

    definition: SourceDefinition
    rows: list[dict[str, Any]]


def newest(runtime: Runtime, source_name: str, *, since: datetime | None, limit: int) -> FlaggedRows:
    """Raises SourceError if there is no such source."""
    with runtime.engine.begin() as connection:
        definition = sources.find(connection, source_name).definition
        return FlaggedRows(definition, overview.flagged(connection, definition, since=since, limit=limit))
