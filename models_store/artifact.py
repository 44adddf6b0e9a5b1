"""A detector as bytes: one safetensors file whose header holds the recipe. Nothing in it can run.

Everything is checked before anything is allocated: size, digest, signature, then the header's array names,
shapes and types against what the recipe calls for (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pgoutlier.detector import Detector, DetectorError, Recipe, encoding, expected_arrays

FORMAT_VERSION = 1
_METADATA_KEY = "pgoutlier"
_HEADER_MAX_BYTES = 2**20
_DTYPES = {"F64": "float64", "F32": "float32", "I64": "int64", "I32": "int32", "BOOL": "bool", "U8": "uint8"}


class ArtifactRefused(Exception):
    """Bytes that are not a sound artifact; the sentence says why."""


class _Description(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    recipe: Recipe
    feature_names: tuple[str, ...] = Field(min_length=1, max_length=10_000)
    threshold: float = Field(allow_inf_nan=False)
    # Of columns that come as codes: place, kind, number of codes.
    encodings: tuple[tuple[int, Literal["rarity", "share"], int], ...] = Field((), max_length=10_000)


def pack(detector: Detector) -> bytes:
    """The artifact of a detector; the same detector always gives the same bytes."""
    description = _Description(
        format_version=FORMAT_VERSION,
        recipe=detector.recipe,
        feature_names=detector.feature_names,
        threshold=detector.threshold,
        encodings=tuple((each.place, each.kind, len(each.codes)) for each in detector.encodings),
    )
    # Without encodings it is, byte for byte, what earlier versions of this program wrote.
    left_out = None if description.encodings else {"encodings"}
    return save(
        {**detector.arrays, **encoding.arrays_of(detector.encodings)},
        metadata={_METADATA_KEY: description.model_dump_json(exclude=left_out)},
    )


def digest(artifact: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(artifact).hexdigest()


def sign(artifact: bytes, signing_key: str) -> str:
    """HMAC-SHA-256 in hexadecimal."""
    return hmac.new(signing_key.encode(), artifact, hashlib.sha256).hexdigest()


def verify(artifact: bytes, *, sha256: str, signature: str | None, signing_key: str | None) -> None:
    """Raises ArtifactRefused if the digest differs or, when a key is set, the signature is missing or wrong."""
    if not hmac.compare_digest(digest(artifact), sha256):
        raise ArtifactRefused("its bytes do not have the recorded sha256: corrupted or replaced")
    if signing_key is None:
        return
    if signature is None:
        raise ArtifactRefused("it is not signed, and PGOUTLIER_SIGNING_KEY is set")
    if not hmac.compare_digest(sign(artifact, signing_key), signature):
        raise ArtifactRefused("its signature was not made with this PGOUTLIER_SIGNING_KEY")


def unpack(artifact: bytes) -> Detector:
    """The detector in an artifact. Raises ArtifactRefused, and nothing else, for any other bytes."""
    description, header = _read_header(artifact)
    try:
        names = description.feature_names
        expected = expected_arrays(description.recipe, len(names), feature_names=names)
    except DetectorError as error:
        raise ArtifactRefused(f"its recipe does not fit its features: {error}") from None
    of_encodings = encoding.expected_arrays(description.encodings)
    _compare(header, {**expected, **of_encodings})
    try:
        arrays = load(artifact)
        found = encoding.of_arrays(description.encodings, arrays, len(names))
        own = {name: array for name, array in arrays.items() if name not in of_encodings}
        return Detector(description.recipe, description.feature_names, own, description.threshold, found)
    except (SafetensorError, DetectorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactRefused(f"its arrays cannot be used: {error}") from None


def _read_header(artifact: bytes) -> tuple[_Description, dict[str, Any]]:
    n_header = int.from_bytes(artifact[:8], "little")
    if len(artifact) < 8 or n_header > min(len(artifact) - 8, _HEADER_MAX_BYTES):
        raise ArtifactRefused("it is truncated, or its header is too large")
    try:
        header = json.loads(artifact[8 : 8 + n_header])
        description = _Description.model_validate_json(header.pop("__metadata__")[_METADATA_KEY])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError, DetectorError):
        raise ArtifactRefused("its header does not describe a detector") from None
    if description.format_version != FORMAT_VERSION:
        raise ArtifactRefused(
            f"its format is {description.format_version}, this program reads {FORMAT_VERSION}"
        )
    return description, header


def _compare(header: dict[str, Any], expected: dict[str, Any]) -> None:
    different = sorted(set(header) ^ set(expected))
    if different:
        raise ArtifactRefused(f"arrays are missing or unknown: {', '.join(different[:5])}")
    for name, (shape, dtype) in expected.items():
        entry = header[name]
        if not isinstance(entry, dict) or entry.get("shape") != list(shape):
            raise ArtifactRefused(f"array {name} has not the shape {tuple(shape)} that its recipe calls for")
        if _DTYPES.get(str(entry.get("dtype"))) != str(dtype):
            raise ArtifactRefused(f"array {name} is not {dtype}")
