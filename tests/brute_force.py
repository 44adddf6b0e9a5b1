"""Features over the rows before as their documentation says, one row at a time: what every path is held against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from pgoutlier.db.past import entries, kernel
from pgoutlier.db.past.entries import Past


def compute(frame: pd.DataFrame, past: Past, column: str) -> list[float]:
    """Of every row of a frame with `key`, `time` and the columns named, in its order. Times are seconds or instants."""
    return [_of_row(frame, row, past, column) for _, row in frame.iterrows()]


def _of_row(frame: pd.DataFrame, row: Any, past: Past, column: str) -> float:
    before = _before(frame, row, past)
    if past.function == "risk":
        return _counts(before.iloc[-entries.MOST_ROWS :], row, past)
    own = row[column] if past.takes_number or past.takes_any_value else None
    if past.function == "since_last":
        return (
            min(_seconds(row["time"] - before["time"].iloc[-1]), past.window_seconds)
            if len(before)
            else past.window_seconds
        )
    if past.function in ("lag", "diff"):
        value = before[column].iloc[-past.steps] if len(before) >= past.steps else own
        value = own if pd.isna(value) else value
        return float(value) if past.function == "lag" else float(own - value)
    if past.window_seconds:
        gaps = row["time"] - before["time"]
        before = before[np.array([_seconds(gap) <= past.window_seconds for gap in gaps], dtype=bool)]
        before = before.iloc[-entries.MOST_ROWS :]
    if past.function == "count":
        return len(before)
    known = before[column].dropna()
    if past.function == "distinct":
        return known.nunique()
    if past.function == "is_new":
        return float(not before[column].isna().any() if pd.isna(own) else own not in set(known))
    return _of_numbers(past.function, known.to_numpy(dtype=float), float(own))


def _counts(before: pd.DataFrame, row: Any, past: Past) -> float:
    """Rows in the window before the delay, and frauds among them as far as known then, in one number."""
    n = frauds = 0
    for _, other in before.iterrows():
        age = _seconds(row["time"] - other["time"])
        if past.delay_seconds <= age <= past.delay_seconds + past.window_seconds:
            n += 1
            told = [said for at, said in other["verdicts"] if at <= row["time"]]
            known = told[-1] if told else "withdrawn"
            frauds += bool(other["label"]) if known == "withdrawn" else known == "fraud"
    return float(n * kernel.COUNT_UNIT + frauds)


def _of_numbers(function: str, known: np.ndarray, own: float) -> float:
    n = len(known)
    mean = math.fsum(known) / n if n else own
    match function:
        case "sum":
            return math.fsum(known)
        case "mean":
            return mean
        case "min" | "max":
            return (min if function == "min" else max)(known) if n else own
        case "std":
            return float(np.std(known, ddof=1)) if n > 1 else 0.0
        case "ratio":
            return math.nan if math.isnan(own) else own / mean if n and mean else 1.0
    if n == 0 or math.isnan(own):
        return 0.0 if n == 0 and not math.isnan(own) else math.nan
    spread = math.sqrt((math.fsum((known - mean) ** 2) + mean**2) / (n + 1))
    return (own - mean) / spread if spread else float(np.sign(own)) * math.sqrt(n + 1)


def _before(frame: pd.DataFrame, row: Any, past: Past) -> pd.DataFrame:
    """The rows of the same entity with an earlier (time, key), in that order."""
    if pd.isna(row["time"]) or (past.by is not None and pd.isna(row[past.by])):
        return frame.iloc[:0]
    same = frame["time"].notna() if past.by is None else frame[past.by] == row[past.by]
    earlier = (frame["time"] < row["time"]) | ((frame["time"] == row["time"]) & (frame["key"] < row["key"]))
    return frame[same & earlier].sort_values(["time", "key"])


def _seconds(gap: Any) -> float:
    return gap.total_seconds() if hasattr(gap, "total_seconds") else float(gap)
