"""The types of the columns that a key may have, as they travel in PostgreSQL's binary COPY format.

Keys stay in their wire form between reading a batch and writing its scores; nothing is decoded row by row.
Wire formats: the type's send function, big-endian integers, which times are as well, 16 raw bytes for uuid, UTF-8 for
text (https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format").
"""

from __future__ import annotations

import re
import uuid
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql

from pgoutlier.db.sql import civil_time

Keys = npt.NDArray[Any]

_INTEGERS = {"smallint": ">i2", "integer": ">i4", "bigint": ">i8"}
# Those that only a key of several columns may have: as one column's they would be a text that a session's settings
# change, where a key of several is JSON, see db.sql.keys.
_TIMES = {"timestamptz": ">i8", "timestamp": ">i8", "date": ">i4"}
_NUMBERS = _INTEGERS | _TIMES
_LIMITS = {name: 2 ** (8 * np.dtype(wire).itemsize - 1) for name, wire in _INTEGERS.items()}
_WHOLE_NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*", re.ASCII)
KEY_TYPES = (*_INTEGERS, "uuid", "text")
# All of them, and PostgreSQL's number of each (pg_type.oid).
OIDS = {
    "smallint": 21,
    "integer": 23,
    "bigint": 20,
    "uuid": 2950,
    "text": 25,
    "timestamptz": 1184,
    "timestamp": 1114,
    "date": 1082,
}


def wire_dtype(key_type: str, *, text_bytes: int = 1) -> np.dtype[Any]:
    """Of one key inside a COPY field. Text is padded to `text_bytes`, its true length beside it."""
    if key_type in _NUMBERS:
        return np.dtype(_NUMBERS[key_type])
    if key_type == "uuid":
        return np.dtype("V16")
    if key_type == "text":
        return np.dtype([("length", "<i4"), ("bytes", "u1", (text_bytes,))])
    raise ValueError(f"not a key type: {key_type}")


def to_values(keys: Keys, key_type: str) -> list[Any]:
    """The keys as the driver sends them, and as JSON has them but for uuid: numbers, UUIDs, texts; times as text.

    For the few rows that do not go through COPY (flagged, re-scored, quarantined).
    """
    if key_type in _INTEGERS:
        return keys.tolist()  # type: ignore[no-any-return]
    if key_type in _TIMES:
        return [civil_time.to_text(count, key_type) for count in keys.tolist()]
    if key_type == "uuid":
        return [uuid.UUID(bytes=raw) for raw in keys.tolist()]
    return [
        bytes(row[:length]).decode()
        for row, length in zip(keys["bytes"], keys["length"].tolist(), strict=True)
    ]


def sortable(keys: Keys, key_type: str) -> Keys:
    """The keys in a form that NumPy sorts and compares: as numbers, or by their bytes."""
    if key_type in _NUMBERS:
        return keys.astype(np.int64)
    return as_bytes(octets(keys, key_type))


def octets(keys: Keys, key_type: str) -> npt.NDArray[np.uint8]:
    """The keys (n,) as bytes (n, length) whose order is theirs: that of the type, of text that of its bytes."""
    if key_type in _NUMBERS:
        width = keys.dtype.itemsize
        found = keys.astype(f">i{width}").view(np.uint8).reshape(len(keys), width)
        found[:, 0] ^= 0x80  # negative numbers come first
        return found
    if key_type == "text":
        return np.ascontiguousarray(keys["bytes"])
    return np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), 16)


def as_bytes(octets: npt.NDArray[np.uint8]) -> Keys:
    """Bytes (n, length) as n values that NumPy compares."""
    return np.ascontiguousarray(octets).view(f"S{octets.shape[1]}").reshape(-1)


def array_type(key_type: str) -> sql.SQL:
    """The SQL name of an array of this key type."""
    return {name: sql.SQL(f"{name}[]") for name in OIDS}[key_type]


def scalar_type(key_type: str) -> sql.SQL:
    """The SQL name of this key type."""
    return {name: sql.SQL(name) for name in OIDS}[key_type]


def writing_order(key: sql.Composable, key_type: str) -> sql.Composable:
    """SQL that orders by this key as workers write scores: as `sortable` does."""
    return key + sql.SQL(' COLLATE "C"') if key_type == "text" else key


def before(number: int, key_type: str) -> str | None:
    """The key before a number, as text; None where there is none of that type."""
    return str(number - 1) if number > -_LIMITS[key_type] else None


def canonical(text: str, key_type: str) -> str:
    """A key that somebody wrote, as PostgreSQL prints it; a time as db.sql.civil_time does.

    Raises ValueError, with what is wrong, if it is no key of this type.
    """
    if key_type in _INTEGERS:
        if _WHOLE_NUMBER.fullmatch(text) is None:
            raise ValueError("not a whole number")
        number = int(text)
        if not -_LIMITS[key_type] <= number < _LIMITS[key_type]:
            raise ValueError("too large")
        return str(number)
    if key_type in _TIMES:
        return civil_time.canonical(text, key_type)
    if key_type == "uuid":
        return str(uuid.UUID(text.strip()))
    if "\x00" in text:
        raise ValueError("holds a NUL character")
    text.encode()  # a UnicodeEncodeError is a ValueError
    return text


def is_number(key_type: str) -> bool:
    """Whether a key of this type is a number in JSON."""
    return key_type in _INTEGERS
