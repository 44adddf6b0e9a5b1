"""Versions out of a registry and into another one, as the bytes of a file."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection

from pgoutlier.db.errors import ModelError
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sql.identifiers import display
from pgoutlier.db.versions import aliases, version_care, version_rows
from pgoutlier.detector import Recipe
from pgoutlier.detector.drift import Reference
from pgoutlier.models_store import artifact, registry, version_file
from pgoutlier.models_store.artifact import ArtifactRefused
from pgoutlier.models_store.registry import TrainingWindow
from pgoutlier.models_store.seal import Seal
from pgoutlier.models_store.version_file import FileRefused, Header, Origin


def export(connection: Connection, source: Source, version: int, *, seal: Seal) -> bytes:
    """The file of a version. Raises ModelError if there is no such version or its artifact cannot be used."""
    try:
        registry.load(connection, source, version, seal=seal)
    except ArtifactRefused as refusal:
        raise ModelError(f"Not exported: {refusal}.") from None
    stored = version_rows.artifact(connection, source.id, version, max_bytes=seal.max_bytes)
    row = version_rows.find(connection, source.id, version)
    if stored is None or stored.artifact is None or row is None:
        raise ModelError(f"Version {version} of {source.name} was removed meanwhile.")
    header = Header(
        origin=Origin(
            source=source.name, version=version, created_at=row.created_at, created_by=row.created_by
        ),
        metrics=row.metrics,
        n_training_rows=row.n_training_rows,
        training_from=row.training_from,
        training_to=row.training_to,
        drift_reference=None
        if row.drift_reference is None
        else Reference.model_validate(row.drift_reference),
    )
    version_care.record(connection, source.id, version, "export", f"sha256 {stored.sha256}")
    return version_file.dump(header, stored.artifact, signing_key=seal.signing_key)


def import_(
    connection: Connection,
    source: Source,
    content: bytes,
    *,
    seal: Seal,
    check: Callable[[Recipe], object],
) -> tuple[int, bool]:
    """The version that a file becomes, and whether it is new: the same detector is not stored twice.

    No alias moves. check: raises if versions of this recipe cannot score the source. Raises what it does, and
    FileRefused if the file is not sound or its features are not those of the source.
    """
    found = version_file.parse(content, seal=seal)
    detector, header = found.detector, found.header
    if detector.feature_names != source.definition.feature_names:
        raise FileRefused(
            f"is of a model of other features ({_names(detector.feature_names)}) than {source.name} has"
            f" ({_names(source.definition.feature_names)})"
        )
    check(detector.recipe)
    aliases.lock_alias(connection, source.id)
    present = version_care.same_artifact(connection, source.id, artifact.digest(artifact.pack(detector)))
    if present is not None:
        return present, False
    number = registry.register(
        connection,
        source,
        detector,
        window=TrainingWindow(header.n_training_rows, header.training_from, header.training_to),
        metrics=header.metrics,
        seal=seal,
        drift_reference=header.drift_reference,
        imported_from=header.origin.model_dump(mode="json"),
    )
    origin = header.origin
    version_care.record(
        connection, source.id, number, "import", f"version {origin.version} of {origin.source}"
    )
    return number, True


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(display(name) for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
