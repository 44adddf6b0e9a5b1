"""A model version as one file, to carry it from one database to another. Nothing in it can run.

    magic, 18 bytes | length of the header, 8 bytes, big endian | header, JSON | artifact | HMAC-SHA-256 or 32 zeros |
    SHA-256 of everything before

The HMAC is of header and artifact with what stands before them, by the signing key. Everything is checked before
anything is made of it: size, digest, signature, header, and then the artifact as `models_store.artifact` does.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pgoutlier.db.tables import JsonObject
from pgoutlier.detector import Detector
from pgoutlier.detector.drift import Reference
from pgoutlier.models_store import artifact, imported_metrics
from pgoutlier.models_store.artifact import ArtifactRefused
from pgoutlier.models_store.seal import Seal

MAGIC = b"pgoutlier version\n"
HEADER_MAX_BYTES = 16 * 2**20
_LENGTH_BYTES = 8
_DIGEST_BYTES = 32
_UNSIGNED = bytes(_DIGEST_BYTES)
_LEAST_BYTES = len(MAGIC) + _LENGTH_BYTES + 2 * _DIGEST_BYTES


# Characters of the first and last key or event time, and of names.
_LONGEST_END = 1_000_000


class FileRefused(Exception):
    """Bytes that are not a sound file of a version; the sentence goes on after "it"."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Origin(_Frozen):
    """What a version was in the database that it comes from."""

    source: str
    version: int = Field(ge=1, lt=2**31)
    created_at: datetime
    created_by: str


class Header(_Frozen):
    """All of a version but its detector, which is in the artifact."""

    format_version: Literal[1] = 1
    origin: Origin
    metrics: Annotated[JsonObject, AfterValidator(imported_metrics.checked)]
    n_training_rows: int = Field(ge=0, lt=2**63)
    training_from: Annotated[str, Field(max_length=_LONGEST_END)] | None
    training_to: Annotated[str, Field(max_length=_LONGEST_END)] | None
    drift_reference: Reference | None


@dataclass(frozen=True)
class VersionFile:
    """What a sound file holds."""

    header: Header
    detector: Detector


def largest(max_artifact_bytes: int) -> int:
    """Bytes of the largest file that can hold such an artifact."""
    return _LEAST_BYTES + HEADER_MAX_BYTES + max_artifact_bytes


def dump(header: Header, packed: bytes, *, signing_key: str | None) -> bytes:
    """The file of a version with this artifact; the same version always gives the same bytes."""
    text = header.model_dump_json().encode()
    body = b"".join([MAGIC, len(text).to_bytes(_LENGTH_BYTES, "big"), text, packed])
    signed = body + (_signature(body, signing_key) if signing_key else _UNSIGNED)
    return signed + hashlib.sha256(signed).digest()


def parse(content: bytes, *, seal: Seal) -> VersionFile:
    """What is in the bytes of a file. Raises FileRefused, and nothing else, for any others."""
    text, packed = _checked(content, seal)
    try:
        header = Header.model_validate(_plain_json(text))
    except (ValueError, RecursionError, ValidationError):
        raise FileRefused("has a header that does not describe a model version") from None
    try:
        detector = artifact.unpack(packed)
    except ArtifactRefused as refusal:
        raise FileRefused(f"holds an artifact that cannot be used: {refusal}") from None
    reference = header.drift_reference
    if reference is not None and set(reference.features) != set(detector.feature_names):
        raise FileRefused("tells drift by other features than its detector has")
    return VersionFile(header, detector)


def _checked(content: bytes, seal: Seal) -> tuple[bytes, bytes]:
    """Header and artifact of bytes that are whole and, where a key is set, signed with it."""
    if not content.startswith(MAGIC):
        raise FileRefused("is not a model version that pgoutlier has exported")
    if len(content) < _LEAST_BYTES or len(content) > largest(seal.max_bytes):
        raise FileRefused("is truncated, or larger than PGOUTLIER_ARTIFACT_MAX_BYTES allows")
    signed, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if not hmac.compare_digest(hashlib.sha256(signed).digest(), digest):
        raise FileRefused("is truncated or was changed: it does not have the sha256 that stands at its end")
    body, signature = signed[:-_DIGEST_BYTES], signed[-_DIGEST_BYTES:]
    if seal.signing_key is not None:
        if signature == _UNSIGNED:
            raise FileRefused("is not signed, and PGOUTLIER_SIGNING_KEY is set")
        if not hmac.compare_digest(_signature(body, seal.signing_key), signature):
            raise FileRefused("was not signed with this PGOUTLIER_SIGNING_KEY")
    start = len(MAGIC) + _LENGTH_BYTES
    n_header = int.from_bytes(body[len(MAGIC) : start], "big")
    if n_header > min(len(body) - start, HEADER_MAX_BYTES):
        raise FileRefused("has a header that is longer than it may be")
    packed = body[start + n_header :]
    if len(packed) > seal.max_bytes:
        raise FileRefused(
            f"holds an artifact of {len(packed)} bytes, more than the {seal.max_bytes} of"
            " PGOUTLIER_ARTIFACT_MAX_BYTES"
        )
    return body[start : start + n_header], packed


def _signature(body: bytes, signing_key: str) -> bytes:
    # Apart from signatures of artifacts, so that neither can stand for the other.
    return hmac.new(signing_key.encode(), b"version file\x00" + body, hashlib.sha256).digest()


def _plain_json(text: bytes) -> Any:
    """JSON of values that PostgreSQL takes too. Raises ValueError for others."""

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(number)
        return value

    found = json.loads(text, parse_float=finite, parse_constant=finite)
    # Lone surrogates cannot be encoded; NUL is no character of PostgreSQL's.
    if b"\x00" in json.dumps(found, ensure_ascii=False).encode() or b"\\u0000" in text:
        raise ValueError("NUL")
    return found
