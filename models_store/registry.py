"""Use of the registry: register a version, say who is champion, promote, roll back, load what scores."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection

from pgoutlier.db.errors import ModelError
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import sources
from pgoutlier.db.tables import JsonObject
from pgoutlier.db.versions import aliases, version_rows
from pgoutlier.db.versions.aliases import AliasMove, Pointed
from pgoutlier.db.versions.version_rows import NewVersion, Packed
from pgoutlier.detector import Detector, DetectorError, Recipe
from pgoutlier.detector.drift import Reference
from pgoutlier.models_store import artifact
from pgoutlier.models_store.artifact import ArtifactRefused
from pgoutlier.models_store.seal import Seal

log = structlog.get_logger()

# Of ONNX Runtime's sessions and what they allocate for a block of rows, as measured on the recipes that come with us.
_BYTES_OF_A_SCORER = 2 * 2**20


@dataclass(frozen=True)
class LoadedVersion:
    """A detector and the version it is; refused names a newer champion that could not be used, and why."""

    version: int
    detector: Detector
    refused: str | None = None


@dataclass(frozen=True)
class TrainingWindow:
    """What a version was trained on."""

    n_rows: int
    first: str | None
    last: str | None


class DetectorCache:
    """The detectors this process scores with, by version id; safe between threads.

    Versions are immutable, so an entry is never stale. Refused ones are remembered too, so that a broken
    artifact is read once and not with every batch. Of more than capacity, or than take about max_bytes, those that
    were not used for the longest time are let go. Whoever wants one that is there never waits for one that is loaded.
    """

    def __init__(self, seal: Seal, *, capacity: int = 128, max_bytes: int = 256 * 2**20) -> None:
        self._seal = seal
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._entries: OrderedDict[int, Detector | str] = OrderedDict()
        self._loading: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, connection: Connection, source: Source, pointed: Pointed) -> Detector:
        """Raises ArtifactRefused, naming the version."""
        entry = self._known(pointed.version_id)
        if entry is None:
            with self._lock:
                loading = self._loading.setdefault(pointed.version_id, threading.Lock())
            with loading:
                entry = self._known(pointed.version_id) or self._load_and_keep(connection, source, pointed)
        if isinstance(entry, str):
            raise ArtifactRefused(entry)
        return entry

    def has_room(self) -> bool:
        """Whether one more of the size of the largest would push out none."""
        with self._lock:
            sizes = [_size(entry) for entry in self._entries.values()]
        return len(sizes) < self._capacity and sum(sizes) + max(sizes, default=0) <= self._max_bytes

    def _known(self, version_id: int) -> Detector | str | None:
        with self._lock:
            entry = self._entries.get(version_id)
            if entry is not None:
                self._entries.move_to_end(version_id)
            return entry

    def _load_and_keep(self, connection: Connection, source: Source, pointed: Pointed) -> Detector | str:
        try:
            entry = self._load(connection, source, pointed.version)
            with self._lock:
                self._entries[pointed.version_id] = entry
                while len(self._entries) > 1 and self._is_too_full():
                    self._entries.popitem(last=False)
            return entry
        finally:
            with self._lock:
                self._loading.pop(pointed.version_id, None)

    def _is_too_full(self) -> bool:
        return (
            len(self._entries) > self._capacity or sum(map(_size, self._entries.values())) > self._max_bytes
        )

    def loaded(self, version_id: int) -> Detector | None:
        """The detector if this process has it already; asks nobody."""
        with self._lock:
            entry = self._entries.get(version_id)
        return entry if isinstance(entry, Detector) else None

    def _load(self, connection: Connection, source: Source, version: int) -> Detector | str:
        try:
            return load(connection, source, version, seal=self._seal)
        except ArtifactRefused as refusal:
            log.error("artifact_refused", source=source.name, version=version, reason=str(refusal))
            return str(refusal)


def _size(entry: Detector | str) -> int:
    """About what it takes in memory: the arrays are in ONNX Runtime's session as well, in two graphs."""
    if isinstance(entry, str):
        return len(entry)
    return _BYTES_OF_A_SCORER + 3 * sum(array.nbytes for array in entry.arrays.values())


def load(connection: Connection, source: Source, version: int, *, seal: Seal) -> Detector:
    """The detector of a version. Raises ArtifactRefused naming the version, ModelError if there is none."""
    stored = version_rows.artifact(connection, source.id, version, max_bytes=seal.max_bytes)
    if stored is None:
        raise ModelError(
            f"{source.name} has no model version {version}; see: pgoutlier models list {source.name}"
        )
    name = f"version {version} of {source.name}"
    if stored.artifact is None:
        raise ArtifactRefused(
            f"{name} is refused: its artifact has {stored.n_bytes} bytes, more than the {seal.max_bytes} of"
            " PGOUTLIER_ARTIFACT_MAX_BYTES"
        )
    try:
        artifact.verify(
            stored.artifact, sha256=stored.sha256, signature=stored.signature, signing_key=seal.signing_key
        )
        detector = artifact.unpack(stored.artifact)
    except ArtifactRefused as refusal:
        raise ArtifactRefused(f"{name} is refused: {refusal}") from None
    if detector.feature_names != source.definition.feature_names:
        raise ArtifactRefused(f"{name} is refused: it was trained on other features than the source has now")
    return detector


def register(
    connection: Connection,
    source: Source,
    detector: Detector,
    *,
    window: TrainingWindow,
    metrics: JsonObject,
    seal: Seal,
    drift_reference: Reference | None = None,
    imported_from: JsonObject | None = None,
) -> int:
    """Store a detector as the source's next version. Returns its number; no alias moves.

    imported_from: what it was where it comes from, for one that was not trained here.
    """
    champion = aliases.alias(connection, source.id) if imported_from is None else None
    return version_rows.insert_version(
        connection,
        source.id,
        NewVersion(
            recipe_name=detector.recipe.name,
            **vars(_packed(detector, seal)),
            feature_names=list(detector.feature_names),
            metrics=metrics,
            n_training_rows=window.n_rows,
            training_from=window.first,
            training_to=window.last,
            parent_version=champion.version if champion else None,
            drift_reference=drift_reference.model_dump(mode="json") if drift_reference else None,
            imported_from=imported_from,
            errors_of=None,
        ),
    )


def with_threshold(
    connection: Connection,
    source: Source,
    version: int,
    threshold: float,
    *,
    seal: Seal,
) -> int:
    """The version that is this one in all but its threshold; stored as the next one if there is none yet.

    Its metrics are those of the training that do not depend on the threshold. Raises ModelError if there is no such
    version, its artifact cannot be used, or the number cannot be a threshold.
    """
    known = version_rows.with_threshold(connection, source.id, version, threshold)
    if known is not None:
        return known
    try:
        detector = load(connection, source, version, seal=seal).with_threshold(threshold)
    except ArtifactRefused as refusal:
        raise ModelError(f"No threshold was set: {refusal}.") from None
    except DetectorError:
        raise ModelError(f"{threshold} cannot be a threshold; write a number from 0 to 1e12.") from None
    return version_rows.copy_version(connection, source.id, version, _packed(detector, seal))


def _packed(detector: Detector, seal: Seal) -> Packed:
    packed = artifact.pack(detector)
    return Packed(
        recipe=json.loads(detector.recipe.model_dump_json()),
        artifact=packed,
        sha256=artifact.digest(packed),
        signature=artifact.sign(packed, seal.signing_key) if seal.signing_key else None,
        threshold=detector.threshold,
    )


def champion(connection: Connection, source: Source, cache: DetectorCache) -> LoadedVersion | None:
    """What scores now: the champion, or if its artifact is refused the last champion before it that is sound.

    None if there is no champion yet. Raises ArtifactRefused if no champion there ever was can be used.
    """
    return what_scores(connection, source, cache, aliases.alias(connection, source.id))


def what_scores(
    connection: Connection, source: Source, cache: DetectorCache, current: Pointed | None
) -> LoadedVersion | None:
    """`champion`, where current is what the alias points at."""
    if current is None:
        return None
    try:
        return LoadedVersion(current.version, cache.get(connection, source, current))
    except ArtifactRefused as refusal:
        for version in _earlier_champions(connection, source, current.version):
            stored = version_rows.version_id(connection, source.id, version)
            if stored is None:
                continue
            try:
                detector = cache.get(connection, source, Pointed(stored, version))
            except ArtifactRefused:
                continue
            return LoadedVersion(version, detector, refused=str(refusal))
        raise


def _earlier_champions(connection: Connection, source: Source, current: int) -> list[int]:
    """Versions that were champion before, the latest first, without the current one."""
    seen = dict.fromkeys(
        version
        for event in aliases.alias_history(connection, source.id)
        for version in (event.to_version, event.from_version)
        if version is not None
    )
    return [version for version in seen if version != current]


def promote(
    connection: Connection,
    source: Source,
    version: int,
    *,
    reason: str,
    seal: Seal,
) -> bool:
    """Make a version the champion. Returns False if it is already. The next batch is scored with it.

    Raises ModelError if there is no such version or its artifact cannot be used.
    """
    aliases.lock_alias(connection, source.id)
    current = aliases.alias(connection, source.id)
    if current and current.version == version:
        return False
    try:
        load(connection, source, version, seal=seal)
    except ArtifactRefused as refusal:
        raise ModelError(f"Not promoted: {refusal}. The champion stays as it is.") from None
    aliases.move_alias(
        connection,
        source.id,
        name=aliases.CHAMPION,
        from_version=current.version if current else None,
        to_version=version,
        action="promote",
        reason=reason,
    )
    _retire_challenger(connection, source, version)
    # Whether scoring goes on now is for the next batch to say.
    sources.set_problem(connection, source.id, None)
    return True


def rollback(connection: Connection, source: Source, *, reason: str, seal: Seal) -> tuple[int, int]:
    """Back to the champion before this one. Returns (from, to); again goes one further back.

    Raises ModelError if there was none before, or its artifact cannot be used.
    """
    aliases.lock_alias(connection, source.id)
    current = aliases.alias(connection, source.id)
    previous = _previous_champion(aliases.alias_history(connection, source.id))
    if current is None or previous is None:
        raise ModelError(f"{source.name} has no earlier champion to roll back to.")
    try:
        load(connection, source, previous, seal=seal)
    except ArtifactRefused as refusal:
        raise ModelError(
            f"Not rolled back: {refusal}. To go to another version: pgoutlier models promote {source.name} VERSION"
        ) from None
    aliases.move_alias(
        connection,
        source.id,
        name=aliases.CHAMPION,
        from_version=current.version,
        to_version=previous,
        action="rollback",
        reason=reason,
    )
    _retire_challenger(connection, source, previous)
    sources.set_problem(connection, source.id, None)
    return current.version, previous


def challenge(
    connection: Connection,
    source: Source,
    version: int,
    *,
    reason: str,
    seal: Seal,
    check: Callable[[Recipe], object],
) -> bool:
    """Make a version the challenger. Returns False if it is already. The next batch is scored with it as well.

    check: raises if versions of this recipe cannot score the source. Raises what it does, and ModelError if there is
    no such version, it is the champion, or its artifact cannot be used.
    """
    aliases.lock_alias(connection, source.id)
    present = aliases.both(connection, source.id)
    before = present.challenger.version if present.challenger else None
    if before == version:
        return False
    if present.champion and present.champion.version == version:
        raise ModelError(
            f"Version {version} is the champion of {source.name}; a challenger is another version, see:"
            f" pgoutlier models list {source.name}"
        )
    try:
        detector = load(connection, source, version, seal=seal)
    except ArtifactRefused as refusal:
        raise ModelError(f"Not made the challenger: {refusal}. Nothing was changed.") from None
    check(detector.recipe)
    aliases.move_alias(
        connection,
        source.id,
        name=aliases.CHALLENGER,
        from_version=before,
        to_version=version,
        action="challenge",
        reason=reason,
    )
    return True


def clear_challenger(connection: Connection, source: Source, *, reason: str) -> int | None:
    """Have no challenger any more. Returns the version that was it, or None."""
    aliases.lock_alias(connection, source.id)
    present = aliases.both(connection, source.id).challenger
    if present is None:
        return None
    aliases.move_alias(
        connection,
        source.id,
        name=aliases.CHALLENGER,
        from_version=present.version,
        to_version=None,
        action="clear",
        reason=reason,
    )
    return present.version


def _retire_challenger(connection: Connection, source: Source, champion: int) -> None:
    """A challenger that has become the champion is the challenger no more."""
    present = aliases.both(connection, source.id).challenger
    if present is not None and present.version == champion:
        clear_challenger(connection, source, reason="it became the champion")


def _previous_champion(newest_first: list[AliasMove]) -> int | None:
    """Replays the history as a stack: a promotion pushes, a rollback pops."""
    stack: list[int] = []
    for event in reversed(newest_first):
        if event.action == "rollback" and len(stack) > 1:
            stack.pop()
        elif event.action == "promote" and event.to_version is not None:
            stack.append(event.to_version)
    return stack[-2] if len(stack) > 1 else None
