"""A file's rows as a detector takes them: features, truth, order; with what was left out, and why."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pgoutlier.db.errors import PgoutlierError
from pgoutlier.detector.encoding import Kind
from pgoutlier.worker.evaluation.declared import Declared, declared
from pgoutlier.worker.evaluation.files import NPZ_LABEL, check_header, column_names, is_npz, read_table

_CONDITION = re.compile(
    r"\s*(?P<column>.+?)\s*(?P<operator><=|>=|==|!=|<|>|=)\s*"
    r"(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*",
    re.DOTALL,
)
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}


class EvaluationError(PgoutlierError):
    """An evaluation that these rows or these options do not allow."""


@dataclass(frozen=True)
class Condition:
    """Which rows to keep: those whose value in the column compares so with the number. NaN never does."""

    column: str
    operator: str
    number: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """From COLUMN OP NUMBER, such as `Amount<1500`. Raises EvaluationError if it is anything else."""
        match = _CONDITION.fullmatch(text)
        if match is None or not math.isfinite(float(match["number"])):
            raise EvaluationError(
                f"--where {text!r} is not COLUMN OP NUMBER; OP is one of {' '.join(_OPERATORS)}, "
                "as in --where 'Amount<1500'."
            )
        return cls(match["column"], match["operator"], float(match["number"]))

    def keeps(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Which of the values (n_rows,) fulfil it."""
        kept: npt.NDArray[np.bool_] = _OPERATORS[self.operator](values, self.number) & ~np.isnan(values)
        return kept


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns of a file are for; those not named here are features.

    label: column of 0 and 1, of which normal_value means normal. time: orders the rows; not a feature. features: the
    entries of --features, see `worker.evaluation.declared`; None for all columns but these.
    """

    label: str | None = None
    normal_value: int = 0
    time: str | None = None
    drop: tuple[str, ...] = ()
    features: str | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """features (n_rows, n_features) float64, is_anomaly (n_rows,) where the truth is known, times (n_rows,) where
    there is a time column; rows ordered by it, else as in the file. left_out: rows passed over, by reason. codes:
    features that come as codes, see `detector.encoding`."""

    name: str
    features: npt.NDArray[np.float64]
    feature_names: tuple[str, ...]
    is_anomaly: npt.NDArray[np.bool_] | None
    times: npt.NDArray[Any] | None
    n_read: int
    left_out: dict[str, int] = field(default_factory=dict)
    codes: dict[str, Kind] = field(default_factory=dict)


def load(
    path: Path,
    columns: Columns,
    *,
    header: bool = True,
    where: Sequence[str] = (),
    keep_duplicates: bool = False,
    keep_incomplete: bool = False,
) -> Table:
    """The file's rows without exact duplicates (rows equal in every column of the file, the first one stays), rows
    that a `where` does not keep, and, unless keep_incomplete, rows with NaN or infinity in a feature.

    Raises FileError or EvaluationError, in one sentence, if the file or its columns cannot be used.
    """
    conditions = [Condition.parse(text) for text in where]
    rows = read_table(path, header=header)
    if header:
        check_header(rows, path, "Add one, or give --no-header.")
    if columns.label is None and is_npz(path) and NPZ_LABEL in rows:
        columns = Columns(**{**vars(columns), "label": NPZ_LABEL})
    names = _feature_names(rows, columns, [condition.column for condition in conditions], path)
    kept = np.ones(len(rows), dtype=bool) if keep_duplicates else ~_duplicated(rows, path)
    found = _features(rows, columns, names, kept)
    left_out = {"duplicates": int((~kept).sum())}
    fulfilled = np.ones(len(rows), dtype=bool)
    for condition in conditions:
        fulfilled &= condition.keeps(_numbers(rows[condition.column]))
    left_out["filtered"] = int((kept & ~fulfilled).sum())
    kept &= fulfilled
    features = found.matrix
    usable = np.ones(len(rows), dtype=bool) if keep_incomplete else np.isfinite(features).all(axis=1)
    left_out["incomplete"] = int((kept & ~usable).sum())
    kept &= usable
    if not kept.any():
        raise EvaluationError(f"No row of {path} is left: {describe_left_out(left_out)}.")
    index = np.flatnonzero(kept)
    times = None
    if columns.time is not None:
        times = _times(rows[columns.time].iloc[index], columns.time)
        order = np.argsort(times, kind="stable")
        index, times = index[order], times[order]
    return Table(
        name=path.name,
        features=features[index],
        feature_names=found.names,
        codes=found.codes,
        is_anomaly=None if columns.label is None else _truth(rows[columns.label], columns)[index],
        times=times,
        n_read=len(rows),
        left_out=left_out,
    )


def _features(
    rows: pd.DataFrame, columns: Columns, names: tuple[str, ...], kept: npt.NDArray[np.bool_]
) -> Declared:
    """Of all rows; one that is passed over for being a duplicate is not among those before others."""
    if columns.features is None:
        return Declared(names, np.column_stack([_numbers(rows[name]) for name in names]), {})
    there = rows[kept]
    times = None if columns.time is None else _times(there[columns.time], columns.time)
    truth = None if columns.label is None else _truth(there[columns.label], columns)
    found = declared(there, columns.features, times, truth)
    matrix = np.full((len(rows), len(found.names)), np.nan)
    matrix[kept] = found.matrix
    return Declared(found.names, matrix, found.codes)


def describe_left_out(left_out: dict[str, int]) -> str:
    """The counts of a table's left_out as words."""
    words = {
        "duplicates": "exact duplicates",
        "filtered": "not kept by --where",
        "incomplete": "with NaN or infinity",
    }
    return ", ".join(f"{n:,} {words[reason]}" for reason, n in left_out.items())


def _feature_names(rows: pd.DataFrame, columns: Columns, compared: list[str], path: Path) -> tuple[str, ...]:
    """The columns that are features, all of them numeric, as are those that a condition compares."""
    named = {
        "--label": [columns.label],
        "--time": [columns.time],
        "--drop": columns.drop,
        "--where": compared,
    }
    for option, wanted in named.items():
        for name in wanted:
            if name is not None and name not in rows.columns:
                raise EvaluationError(
                    f"{path} has no column {name!r} for {option}; its columns: {column_names(rows)}."
                )
    if columns.label is not None and columns.label in (columns.time, *columns.drop):
        raise EvaluationError(
            f"Column {columns.label!r} is the label, so it cannot be used for --time or --drop."
        )
    if columns.features is not None:
        return ()
    others = {columns.label, columns.time, *columns.drop}
    names = tuple(name for name in rows.columns if name not in others)
    words = [name for name in (*names, *compared) if not _is_numeric(rows[name])]
    if words:
        raise EvaluationError(
            f"Columns that are not numeric cannot be features: {', '.join(dict.fromkeys(words))}; "
            f"leave them out with --drop '{','.join(dict.fromkeys(words))}'."
        )
    if not names:
        raise EvaluationError(f"{path} has no column left to be a feature.")
    return names


def _is_numeric(column: pd.Series[Any]) -> bool:
    types = pd.api.types
    return types.is_numeric_dtype(column) and not types.is_complex_dtype(column)


def _numbers(column: pd.Series[Any]) -> npt.NDArray[np.float64]:
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _duplicated(rows: pd.DataFrame, path: Path) -> npt.NDArray[np.bool_]:
    try:
        return rows.duplicated().to_numpy()
    except TypeError:
        raise EvaluationError(
            f"{path} has a column of lists or records; write one plain column each."
        ) from None


def _truth(column: pd.Series[Any], columns: Columns) -> npt.NDArray[np.bool_]:
    """Which rows are anomalies. Text such as '0' counts as the number that it quotes."""
    values = column
    if not _is_numeric(column):
        values = pd.to_numeric(column.astype(str).str.strip(" '\""), errors="coerce")
    numbers = _numbers(values)
    odd = ~np.isin(numbers, (0, 1))
    if odd.any():
        first = column.iloc[int(np.flatnonzero(odd)[0])]
        raise EvaluationError(
            f"The label column {columns.label!r} must hold 0 and 1 only, and {int(odd.sum()):,} rows hold "
            f"something else, such as {str(first)[:40]!r}."
        )
    anomalies: npt.NDArray[np.bool_] = numbers != columns.normal_value
    return anomalies


def _times(column: pd.Series[Any], name: str) -> npt.NDArray[Any]:
    """Numbers as they are, anything else as UTC instants."""
    n_missing = int(column.isna().sum())
    if n_missing:
        raise EvaluationError(
            f"The time column {name!r} is empty in {n_missing:,} rows, which have no place then."
        )
    if _is_numeric(column):
        return column.to_numpy()
    try:
        instants = pd.to_datetime(column, utc=True, format=None if _is_time(column) else "ISO8601")
    except (ValueError, TypeError, OverflowError):
        raise EvaluationError(
            f"The time column {name!r} holds neither numbers nor times like 2026-01-31T12:00:00."
        ) from None
    return instants.dt.tz_localize(None).to_numpy()


def _is_time(column: pd.Series[Any]) -> bool:
    return pd.api.types.is_datetime64_any_dtype(column)
