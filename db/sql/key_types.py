"""The five key types a source may have, as they travel in PostgreSQL's binary COPY format.

Keys stay in their wire form between reading a batch and writing its scores; nothing is decoded row by row.
Wire formats: the type's send function, big-endian integers, 16 raw bytes for uuid, UTF-8 for text
(https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format").
"""

from __future__ import annotations

import re
import uuid
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql

Keys = npt.NDArray[Any]

_INTEGERS = {"smallint": ">i2", "integer": ">i4", "bigint": ">i8"}
_LIMITS = {name: 2 ** (8 * np.dtype(wire).itemsize - 1) for name, wire in _INTEGERS.items()}
_WHOLE_NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*", re.ASCII)
KEY_TYPES = (*_INTEGERS, "uuid", "text")


def wire_dtype(key_type: str, *, text_bytes: int = 1) -> np.dtype[Any]:
    """Of one key inside a COPY field. Text is padded to `text_bytes`, its true length beside it."""
    if key_type in _INTEGERS:
        return np.dtype(_INTEGERS[key_type])
    if key_type == "uuid":
        return np.dtype("V16")
    if key_type == "text":
        return np.dtype([("length", "<i4"), ("bytes", "u1", (text_bytes,))])
    raise ValueError(f"not a key type: {key_type}")


def to_parameters(keys: Keys, key_type: str) -> list[Any]:
    """The keys as a list the driver can send as an array of the key's type.

    For the few rows that do not go through COPY (flagged, re-scored, quarantined).
    """
    if key_type in _INTEGERS:
        return keys.tolist()  # type: ignore[no-any-return]
    if key_type == "uuid":
        return [uuid.UUID(bytes=raw) for raw in keys.tolist()]
    return [
        bytes(row[:length]).decode()
        for row, length in zip(keys["bytes"], keys["length"].tolist(), strict=True)
    ]


def sortable(keys: Keys, key_type: str) -> Keys:
    """The keys in a form that NumPy sorts and compares: as numbers, or by their bytes.

    Workers write the scores of a batch in this order, so that two of them never wait for each other in turn.
    """
    if key_type in _INTEGERS:
        return keys.astype(np.int64)
    raw = keys["bytes"] if key_type == "text" else keys
    return (
        np.ascontiguousarray(raw)
        .view(f"S{raw.dtype.itemsize if raw.ndim == 1 else raw.shape[1]}")
        .reshape(-1)
    )


def array_type(key_type: str) -> sql.SQL:
    """The SQL name of an array of this key type."""
    return {name: sql.SQL(f"{name}[]") for name in KEY_TYPES}[key_type]


def scalar_type(key_type: str) -> sql.SQL:
    """The SQL name of this key type."""
    return {name: sql.SQL(name) for name in KEY_TYPES}[key_type]


def writing_order(key: sql.Composable, key_type: str) -> sql.Composable:
    """SQL that orders by this key as workers write scores: as `sortable` does."""
    return key + sql.SQL(' COLLATE "C"') if key_type == "text" else key


def rises(key_type: str) -> bool:
    """Whether new rows are likely to have the largest keys, as those that are counted have."""
    return key_type in _INTEGERS


def before(number: int, key_type: str) -> str | None:
    """The key before a number, as text; None where there is none of that type."""
    return str(number - 1) if number > -_LIMITS[key_type] else None


def to_texts(keys: Keys, key_type: str) -> list[str]:
    """The keys as PostgreSQL prints them."""
    return [str(key) for key in to_parameters(keys, key_type)]


def canonical(text: str, key_type: str) -> str:
    """A key that somebody wrote, as PostgreSQL prints it. Raises ValueError if it is no key of this type."""
    if key_type in _INTEGERS:
        if _WHOLE_NUMBER.fullmatch(text) is None:
            raise ValueError("not a whole number")
        number = int(text)
        if not -_LIMITS[key_type] <= number < _LIMITS[key_type]:
            raise ValueError("too large")
        return str(number)
    if key_type == "uuid":
        return str(uuid.UUID(text.strip()))
    if "\x00" in text:
        raise ValueError("holds a NUL character")
    text.encode()  # a UnicodeEncodeError is a ValueError
    return text
