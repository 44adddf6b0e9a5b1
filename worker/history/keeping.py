"""Earlier scores of a source: kept from now on, no more, looked at."""

from __future__ import annotations

import structlog

from pgoutlier.db.errors import SourceError
from pgoutlier.db.history import score_history
from pgoutlier.db.history.score_history import RowScore
from pgoutlier.db.roles import grants
from pgoutlier.db.sources import sources
from pgoutlier.db.sql import key_types
from pgoutlier.worker.runtime import Runtime

log = structlog.get_logger()


def keep(runtime: Runtime, source_name: str) -> bool:
    """Keep the earlier score whenever another version scores a row anew. Returns False if that is so already.

    Raises SourceError if there is no such source, or its table of scores is in use.
    """
    with runtime.engine.begin() as connection:
        changed = score_history.keep(connection, sources.find(connection, source_name))
        grants.give_new_tables(connection, source_name)
    if changed:
        log.info("history_kept", source=source_name)
    return changed


def stop(runtime: Runtime, source_name: str, *, drop: bool = False) -> bool:
    """Keep earlier scores no more, and with drop remove those that were kept. Returns False if nothing was to do."""
    with runtime.engine.begin() as connection:
        changed = score_history.stop(connection, sources.find(connection, source_name), drop=drop)
    if changed:
        log.info("history_stopped", source=source_name, dropped=drop)
    return changed


def of_row(runtime: Runtime, source_name: str, key: str) -> list[RowScore]:
    """Every score the row of this key has had, the newest first.

    Raises SourceError if there is no such source, no earlier scores are kept, or it cannot be a key of the source.
    """
    with runtime.engine.begin() as connection:
        definition = sources.find(connection, source_name).definition
        try:
            canonical = key_types.canonical(key, definition.key_type)
        except ValueError:
            raise SourceError(
                f"{key!r} cannot be a key of source {source_name}, whose keys are of type {definition.key_type}."
            ) from None
        return score_history.of_key(connection, definition, canonical)
