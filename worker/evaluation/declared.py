"""The entries of --features on the columns of a file: as of a source, and with the same values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pgoutlier.db.errors import PgoutlierError
from pgoutlier.db.past import entries, kernel
from pgoutlier.db.past.entries import Entry
from pgoutlier.db.past.kernel import Known, Rows
from pgoutlier.db.source.definition import RARITY, TRANSFORMS
from pgoutlier.db.sql.identifiers import display, parse_identifier, split_identifiers
from pgoutlier.detector.encoding import Kind

Floats = npt.NDArray[np.float64]
_CALL = re.compile(r"(?P<transform>[a-z_]+)\((?P<column>.+)\)", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Declared:
    """matrix (n, d) of the features named, and which of them come as codes, see detector.encoding."""

    names: tuple[str, ...]
    matrix: Floats
    codes: dict[str, Kind]


def declared(
    frame: pd.DataFrame,
    text: str,
    times: npt.NDArray[Any] | None,
    is_fraud: npt.NDArray[np.bool_] | None,
) -> Declared:
    """The features that the text lists, as --features of an attach would, of all rows of a frame.

    times (n,): when each row happened, in seconds, or datetime64 in UTC. is_fraud (n,): by label. Raises
    PgoutlierError, naming the entry, if one cannot be had of these columns.
    """
    names: list[str] = []
    columns: list[Floats] = []
    codes: dict[str, Kind] = {}
    past: list[tuple[int, Entry]] = []
    for entry_text in split_identifiers(text, ","):
        entry = None if entry_text in frame.columns else entries.parse(entry_text)
        if entry is not None:
            _check(frame, entry_text, entry, times)
            past.append((len(names), entry))
            names.append(entry.past.shown(display(entry.column or "")))
            columns.append(np.empty(len(frame)))
            if entry.past.function == "risk":
                codes[names[-1]] = "share"
            continue
        name, column, kind = _of_the_row(frame, entry_text)
        names.append(name)
        columns.append(column)
        if kind is not None:
            codes[name] = kind
    if times is not None and past:
        found = over_rows_before(frame, [entry for _, entry in past], times, is_fraud)
        for (place, _), values in zip(past, found.T, strict=True):
            columns[place] = values
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PgoutlierError(f"The feature {twice} is named twice; name it once.")
    return Declared(tuple(names), np.column_stack(columns), codes)


def _check(frame: pd.DataFrame, text: str, entry: Entry, times: npt.NDArray[Any] | None) -> None:
    if times is None:
        raise PgoutlierError(f"{text} looks at the rows before; say with --time which column orders them.")
    for name in filter(None, (entry.past.by, entry.column)):
        _column(frame, name, text)
    if entry.column is not None and entry.past.takes_number:
        _number_column(frame, entry.column, text)
    if entry.past.function == "risk" and not np.issubdtype(times.dtype, np.datetime64):
        raise PgoutlierError(f"{text} needs a --time column of times, not of numbers.")


def _of_the_row(frame: pd.DataFrame, text: str) -> tuple[str, Floats, Kind | None]:
    """Name, values and kind of code of an entry that looks at its own row alone."""
    match = None if text in frame.columns else _CALL.fullmatch(text)
    if match is None:
        name = text if text in frame.columns else parse_identifier(text)
        return name, _number_column(frame, name, text), None
    transform, name = match["transform"], parse_identifier(match["column"].strip())
    column, shown = _column(frame, name, text), f"{match['transform']}({name})"
    if transform == RARITY:
        return shown, codes_of(column), "rarity"
    if transform not in TRANSFORMS:
        known = ", ".join((*TRANSFORMS, RARITY, *entries.FORMS))
        raise PgoutlierError(f"There is no transform {transform}; known are {known}.")
    try:
        return shown, _of_time(pd.to_datetime(column, utc=True), transform), None
    except (ValueError, TypeError):
        raise PgoutlierError(f"{text} needs a column of times, like 2026-01-31T12:00:00.") from None


def _of_time(moments: pd.Series[Any], transform: str) -> Floats:
    """The same numbers as db.source.definition.TRANSFORMS."""
    parts = moments.dt
    hour = parts.hour + parts.minute / 60 + (parts.second + parts.microsecond / 1e6) / 3600
    angle = 2 * np.pi * hour / 24
    found: dict[str, Any] = {
        "hour": hour,
        "hour_sin": np.sin(angle),
        "hour_cos": np.cos(angle),
        "weekday": parts.day_of_week,
        "monthday": parts.day,
        "epoch": (moments - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1),
    }
    return numbers(found[transform])


def _column(frame: pd.DataFrame, name: str, text: str) -> pd.Series[Any]:
    if name not in frame.columns:
        raise PgoutlierError(
            f"There is no column {name!r} for {text}; there are {', '.join(map(str, frame.columns))}."
        )
    return frame[name]


def _number_column(frame: pd.DataFrame, name: str, text: str) -> Floats:
    column = _column(frame, name, text)
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_complex_dtype(column):
        raise PgoutlierError(f"{text} needs numbers, and {name!r} holds something else.")
    return numbers(column)


def over_rows_before(
    frame: pd.DataFrame,
    wanted: Sequence[Entry],
    times: npt.NDArray[np.generic],
    is_fraud: npt.NDArray[np.bool_] | None,
) -> Floats:
    """(n, k) of the frame's n rows: k features. Rows of one time are in the order of the frame.

    times (n,): seconds, or datetime64 in UTC. is_fraud (n,): by label.
    """
    if np.issubdtype(times.dtype, np.datetime64):
        in_order, units = times.astype("datetime64[us]").astype(np.int64), 1_000_000
    else:
        in_order, units = times.astype(np.float64), 1
    found = np.empty((len(frame), len(wanted)))
    for by in dict.fromkeys(entry.past.by for entry in wanted):
        places = [place for place, entry in enumerate(wanted) if entry.past.by == by]
        found[:, places] = _of_entity(
            frame, [wanted[place] for place in places], by, in_order, units, is_fraud
        )
    return found


def _of_entity(
    frame: pd.DataFrame,
    wanted: Sequence[Entry],
    by: str | None,
    times: npt.NDArray[np.generic],
    units: int,
    is_fraud: npt.NDArray[np.bool_] | None,
) -> Floats:
    entities = np.zeros(len(frame), np.int64) if by is None else pd.factorize(frame[by])[0].astype(np.int64)
    order = np.lexsort((times, entities))  # stable: rows of one time stay in the order of the frame
    known_entity = entities[order] >= 0
    order, lonely = order[known_entity], order[~known_entity]
    columns = {(entry.column or "", entry.past.takes_number) for entry in wanted if entry.column is not None}
    values = {name: numbers(frame[name]) for name, is_number in columns if is_number}
    codes = {
        name: pd.factorize(frame[name])[0].astype(np.int64)[order]
        for name, is_number in columns
        if not is_number
    }
    rows = Rows(
        entities[order],
        times[order],
        units,
        {name: column[order] for name, column in values.items()},
        codes,
        None if is_fraud is None else Known.of_labels(is_fraud[order], times.dtype),
    )
    asked = [(entry.past, entry.column or "") for entry in wanted]
    found = np.empty((len(frame), len(wanted)))
    found[order], _ = kernel.compute(asked, rows, np.arange(len(order)))
    for place, (past, name) in enumerate(asked):
        own = values[name][lonely] if past.takes_number else np.zeros(len(lonely))
        found[lonely, place] = kernel.of_no_rows(past, own)
    return found


def numbers(column: pd.Series[Any]) -> Floats:
    """The values of a column of numbers or booleans, NaN where there is none."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def codes_of(column: pd.Series[Any]) -> Floats:
    """The code of each value, as db.source.definition makes it of a column of text, whole numbers or booleans."""
    places, values = pd.factorize(column)
    codes = np.array([_code(value) for value in values] + [-1.0])
    return codes[places]


def _code(value: object) -> float:
    if isinstance(value, bool | np.bool_):
        text = "true" if value else "false"
    elif isinstance(value, float) and value.is_integer():
        text = str(int(value))  # a whole number in a column with gaps
    else:
        text = str(value)
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") >> 4)
