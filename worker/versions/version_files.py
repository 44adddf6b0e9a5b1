"""Versions to files and from files."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import structlog

from pgoutlier.db.errors import ModelError
from pgoutlier.db.sources import sources
from pgoutlier.models_store import exchange, version_file
from pgoutlier.models_store.version_file import FileRefused
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring.sequences import require_order

log = structlog.get_logger()


def export(runtime: Runtime, source_name: str, version: int, path: Path) -> int:
    """Write a version to a file, whole or not at all; one that is there is replaced. Returns its bytes.

    Raises SourceError or ModelError if there is no such source or version, its artifact is refused, or the file cannot
    be written.
    """
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        content = exchange.export(
            connection,
            source,
            version,
            max_bytes=runtime.settings.artifact_max_bytes,
            signing_key=runtime.signing_key,
        )
        # In the transaction: where no file comes about, no export is recorded.
        _write(path, content)
    log.info("version_exported", source=source_name, version=version, n_bytes=len(content))
    return len(content)


def import_(runtime: Runtime, source_name: str, path: Path) -> tuple[int, bool]:
    """Make a file a version of the source; returns its number, and whether it is new. It is not promoted.

    Raises SourceError if there is no such source, ModelError with one sentence if the file cannot be read, is not what
    was exported, or does not fit the source; then nothing is stored.
    """
    content = _read(path, version_file.largest(runtime.settings.artifact_max_bytes))
    with runtime.engine.begin() as connection:
        source = sources.find(connection, source_name)
        try:
            number, made = exchange.import_(
                connection,
                source,
                content,
                max_bytes=runtime.settings.artifact_max_bytes,
                signing_key=runtime.signing_key,
                check=lambda recipe: require_order(recipe, source.definition),
            )
        except FileRefused as refusal:
            raise ModelError(f"{path} {refusal}; nothing was imported.") from None
    if made:
        log.info("version_imported", source=source_name, version=number)
    return number, made


def _read(path: Path, at_most: int) -> bytes:
    try:
        with path.open("rb") as file:
            # What is too large is not even read: one byte more says so.
            content = file.read(at_most + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) > at_most:
        raise ModelError(
            f"{path} is larger than any model version within PGOUTLIER_ARTIFACT_MAX_BYTES; nothing was imported."
        )
    return content


def _write(path: Path, content: bytes) -> None:
    if not path.name:
        raise ModelError(f"{path} is a folder; name a file in it.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ModelError(f"The version cannot be written to {path}: {error.strerror}.") from None
