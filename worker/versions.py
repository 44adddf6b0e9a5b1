"""Administrators' moves of the champion alias, each in one transaction and recorded in alias_events."""

from __future__ import annotations

import structlog

from db import sources
from models_store import registry
from worker.runtime import Runtime

log = structlog.get_logger()


def promote(runtime: Runtime, source_name: str, version: int, *, reason: str) -> bool:
    """Make a version the champion. Returns False if it is already.

    Raises SourceError or ModelError if there is no such source or version, or its artifact is refused.
    """
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        moved = registry.promote(
            connection,
            source,
            version,
            reason=reason,
            max_bytes=runtime.settings.artifact_max_bytes,
            signing_key=runtime.signing_key,
        )
    if moved:
        log.info("champion_promoted", source=source_name, version=version, reason=reason)
    return moved


def rollback(runtime: Runtime, source_name: str, *, reason: str) -> tuple[int, int]:
    """Back to the champion before this one. Returns (from, to). Raises ModelError if there is none it can use."""
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        moved = registry.rollback(
            connection,
            source,
            reason=reason,
            max_bytes=runtime.settings.artifact_max_bytes,
            signing_key=runtime.signing_key,
        )
    log.info("champion_rolled_back", source=source_name, from_version=moved[0], to_version=moved[1])
    return moved
