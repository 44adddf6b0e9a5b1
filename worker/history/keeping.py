"""Earlier scores of a source: kept from now on, no more, looked at."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from pgoutlier.db.errors import SourceError
from pgoutlier.db.history import score_history
from pgoutlier.db.history.score_history import RowScore
from pgoutlier.db.roles import grants
from pgoutlier.db.source import typed_keys
from pgoutlier.db.source.typed_keys import Word
from pgoutlier.db.sources import sources
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


def of_row(runtime: Runtime, source_name: str, words: Sequence[Word]) -> list[RowScore]:
    """Every score the row of this key has had, the newest first.

    Raises SourceError if there is no such source, no earlier scores are kept, or it cannot be a key of the source.
    """
    with runtime.engine.begin() as connection:
        definition = sources.find(connection, source_name).definition
        keys = typed_keys.together(definition, words)
        if len(keys) != 1:
            raise SourceError(f"{len(keys)} keys are given; name one row.")
        return score_history.of_key(connection, definition, typed_keys.read(definition, keys[0]))
