"""PostgreSQL's binary formats, as NumPy reads and writes them: what is around the rows of a COPY, and arrays.

COPY: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". Arrays: array_send in PostgreSQL's
src/backend/utils/adt/arrayfuncs.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg.abc import AdaptContext, DumperKey
from psycopg.adapt import Dumper, PyFormat
from psycopg.pq import Format

# Signature, flags, and the length of an extension that there is none of; then rows; then a row of -1 fields.
COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
COPY_TRAILER = b"\xff\xff"

# Header of an array: number of dimensions, has-null flag, element type, then (length, lower bound) of each dimension,
# four bytes each. Elements follow, each after its length in four bytes.
_HEADER_BYTES = {1: 20, 2: 28}
_HAS_NULL = slice(4, 8)


@dataclass(frozen=True)
class Array:
    """A parameter that is an array: n elements (n,) of one length, in their binary format, and their pg_type.oid."""

    oid: int
    elements: npt.NDArray[Any]


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def __init__(self, kind: type, context: AdaptContext | None = None) -> None:
        super().__init__(kind, context)
        self.oid = 0  # the statement says the type

    def dump(self, array: Array) -> bytes:
        written = np.empty(
            len(array.elements), np.dtype([("length", ">i4"), ("value", array.elements.dtype)])
        )
        written["length"], written["value"] = array.elements.dtype.itemsize, array.elements
        header = np.array([1, 0, array.oid, len(array.elements), 1], ">i4")
        return header.tobytes() + written.tobytes()


@dataclass(frozen=True)
class Received:
    """A parameter that is a value as PostgreSQL sent it in binary, of the type with this pg_type.oid."""

    oid: int
    value: bytes


class _ReceivedDumper(Dumper):
    format = Format.BINARY

    def get_key(self, received: Received, format: PyFormat) -> DumperKey:
        return (self.cls, cast(type, received.oid))

    def upgrade(self, received: Received, format: PyFormat) -> Dumper:
        dumper = _ReceivedDumper(self.cls)
        dumper.oid = received.oid
        return dumper

    def dump(self, received: Received) -> bytes:
        return received.value


psycopg.adapters.register_dumper(Array, _ArrayDumper)
psycopg.adapters.register_dumper(Received, _ReceivedDumper)


def has_null(array: bytes) -> bool:
    """Whether an element of a binary array is NULL."""
    return array[_HAS_NULL] != bytes(4)


def elements(array: bytes, dtype: Any, *, n_dimensions: int = 1) -> npt.NDArray[Any]:
    """The elements of a binary array without NULLs, in place and in one row.

    dtype: of one element in its binary format, big-endian.
    """
    layout = np.dtype([("length", ">i4"), ("value", dtype)])
    return np.frombuffer(array, dtype=layout, offset=_HEADER_BYTES[n_dimensions])["value"]
