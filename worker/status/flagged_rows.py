"""The last flagged rows of a source. Knows nothing of Celery, which takes longer to import than this to answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgoutlier.db.errors import SourceError
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.sources import sources
from pgoutlier.db.status import overview
from pgoutlier.worker.runtime import Runtime


@dataclass(frozen=True)
class FlaggedRows:
    """The newest first; each row by column: the user's columns and the score's."""

    definition: SourceDefinition
    rows: list[dict[str, Any]]


def newest(runtime: Runtime, source_name: str, *, since: datetime | None, limit: int) -> FlaggedRows:
    """Raises SourceError if there is no such source, or its views are away."""
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        if not overview.has_views(connection, source.definition):
            raise SourceError(_why_no_views(source))
        rows = overview.flagged(connection, source.definition, since=since, limit=limit)
        return FlaggedRows(source.definition, rows)


def _why_no_views(source: Source) -> str:
    if source.table_problem is not None:
        return f"{source.table_problem}."
    return f"There is no view outlier.flagged_{source.name}; make it: run the same pgoutlier attach again."
