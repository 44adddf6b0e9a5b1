"""What administrators do with versions: move the aliases, tag, prune; each in one transaction, and recorded."""

from __future__ import annotations

import re

import structlog
from sqlalchemy import Connection

from pgoutlier.db.ddl import installation
from pgoutlier.db.errors import ModelError
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import sources
from pgoutlier.db.versions import aliases, version_care, version_rows
from pgoutlier.db.versions.version_care import VersionEvent
from pgoutlier.db.versions.version_rows import DescribedVersion
from pgoutlier.models_store import registry
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring.sequences import index_advice, require_order

log = structlog.get_logger()

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def listed(runtime: Runtime, source_name: str) -> list[DescribedVersion]:
    """All versions, the newest first. Raises SourceError if there is no such source."""
    with runtime.engine.begin() as connection:
        return version_rows.versions(connection, sources.find(connection, source_name).id)


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
            seal=runtime.seal,
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
            seal=runtime.seal,
        )
    log.info("champion_rolled_back", source=source_name, from_version=moved[0], to_version=moved[1])
    return moved


def promote_with_threshold(
    runtime: Runtime, connection: Connection, source: Source, version: int, threshold: float
) -> int:
    """Promote the version that is this one with another threshold, in the caller's transaction. Returns its number.

    Raises ModelError if the number cannot be a threshold.
    """
    aliases.lock_alias(connection, source.id)
    number = registry.with_threshold(connection, source, version, threshold, seal=runtime.seal)
    if number == version:
        return version
    version_care.record(
        connection, source.id, number, "threshold", f"{threshold:.6g}, else as version {version}"
    )
    reason = f"threshold set to {threshold:.6g}"
    registry.promote(connection, source, number, reason=reason, seal=runtime.seal)
    log.info("threshold_set", source=source.name, version=number, threshold=threshold)
    return number


def challenge(runtime: Runtime, source_name: str, version: int, *, reason: str) -> bool:
    """Make a version the challenger, whose scores are kept beside the champion's. Returns False if it is already.

    Makes the tables for them where the source was attached before there were any. Raises SourceError or ModelError
    if there is no such source or version, it is the champion, it cannot be used, or the source does not say which
    rows come before a row and the version wants them.
    """
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        if installation.lacks_for_challenger(connection, source.definition):
            columns = catalog.inspect(connection, source.definition.relation).own_columns
            installation.add_challenger_objects(connection, source.definition, columns)
        moved = registry.challenge(
            connection,
            source,
            version,
            reason=reason,
            seal=runtime.seal,
            check=lambda recipe: require_order(recipe, source.definition),
        )
    if moved:
        log.info("challenger_set", source=source_name, version=version, reason=reason)
    return moved


def clear_challenger(runtime: Runtime, source_name: str, *, reason: str) -> int | None:
    """Have no challenger any more. Returns the version that was it, or None."""
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        cleared = registry.clear_challenger(connection, source, reason=reason)
    if cleared is not None:
        log.info("challenger_cleared", source=source_name, version=cleared, reason=reason)
    return cleared


def challenger_advice(runtime: Runtime, source_name: str) -> str | None:
    """The CREATE INDEX without which the source's challenger would be slow, or None."""
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        challenger = aliases.both(connection, source.id).challenger
        if challenger is None:
            return None
        detector = runtime.cache.get(connection, source, challenger)
        return index_advice(connection, source.definition, [detector.recipe])


def tag(runtime: Runtime, source_name: str, version: int, name: str) -> bool:
    """Tag a version, which is then never pruned. Returns False if it has the tag already.

    Raises SourceError or ModelError if there is no such source or version, or it cannot be a tag.
    """
    return _tag(runtime, source_name, version, name, wanted=True)


def untag(runtime: Runtime, source_name: str, version: int, name: str) -> bool:
    """Take a tag away. Returns False if the version does not have it. Raises as `tag` does."""
    return _tag(runtime, source_name, version, name, wanted=False)


def _tag(runtime: Runtime, source_name: str, version: int, name: str, *, wanted: bool) -> bool:
    if not _TAG.fullmatch(name):
        raise ModelError(
            f"{name!r} cannot be a tag; use letters, digits, dots, hyphens and underscores, 63 at most, the first"
            " a letter or digit."
        )
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        # A prune at the same time sees either the tag or no version.
        aliases.lock_alias(connection, source.id)
        _require(connection, source, version)
        change = version_care.tag if wanted else version_care.untag
        changed = change(connection, source.id, version, name)
        if changed:
            version_care.record(connection, source.id, version, "tag" if wanted else "untag", name)
    return changed


def prune(runtime: Runtime, source_name: str, *, keep: int | None = None, dry_run: bool = False) -> list[int]:
    """Remove all versions but the newest `keep` (PGOUTLIER_KEEP_VERSIONS) and those that were ever champion, are the
    challenger, have a job, or are tagged. Returns the numbers of those removed, or with dry_run that would be.
    """
    keep = runtime.settings.keep_versions if keep is None else keep
    if keep < 1:
        raise ModelError("At least the newest version is kept; write --keep 1 or more.")
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        aliases.lock_alias(connection, source.id)
        gone = version_care.dispensable(connection, source.id, keep=keep)
        if dry_run or not gone:
            return gone
        version_care.delete(connection, source.id, gone)
        for version in gone:
            version_care.record(connection, source.id, version, "prune", f"kept the newest {keep}")
    log.info("versions_pruned", source=source_name, versions=gone, keep=keep)
    return gone


def number(runtime: Runtime, source_name: str, text: str) -> int:
    """The version that a number or an alias names. Raises SourceError or ModelError if there is none."""
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        if text in {aliases.CHAMPION, aliases.CHALLENGER}:
            found = aliases.alias(connection, source.id, text)
            if found is None:
                raise ModelError(f"{source.name} has no {text}; see: pgoutlier models list {source.name}")
            return found.version
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise ModelError(f"{text!r} is not a version; write its number, champion or challenger.")
        _require(connection, source, int(text))
        return int(text)


def _require(connection: Connection, source: Source, version: int) -> None:
    if version_rows.version_id(connection, source.id, version) is None:
        raise ModelError(
            f"{source.name} has no model version {version}; see: pgoutlier models list {source.name}"
        )


def history(
    runtime: Runtime, source_name: str, *, alias: str | None = None, limit: int | None = None
) -> list[VersionEvent]:
    """What was done with the versions of a source, the newest first; only moves of one alias if that is given."""
    if alias not in {None, aliases.CHAMPION, aliases.CHALLENGER}:
        raise ModelError(f"{alias!r} is not an alias; write champion or challenger.")
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        return version_care.history(connection, source.id, alias=alias, limit=limit)


def described(runtime: Runtime, source_name: str, version: int) -> DescribedVersion:
    """Raises SourceError or ModelError if there is none."""
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        _require(connection, source, version)
        return next(row for row in version_rows.versions(connection, source.id) if row.version == version)
