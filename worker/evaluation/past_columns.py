"""Features over the rows before, of a file: the same entries as of a source, and the same values."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from pgoutlier.db.past import kernel
from pgoutlier.db.past.entries import Entry
from pgoutlier.db.past.kernel import Known, Rows

Floats = npt.NDArray[np.float64]


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
    found[order] = kernel.compute(asked, rows, np.arange(len(order)))
    for place, (past, name) in enumerate(asked):
        own = values[name][lonely] if past.takes_number else np.zeros(len(lonely))
        found[lonely, place] = kernel.of_no_rows(past, own)
    return found


def numbers(column: pd.Series) -> Floats:
    """The values of a column of numbers or booleans, NaN where there is none."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def codes_of(column: pd.Series) -> Floats:
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
