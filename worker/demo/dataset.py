"""The rows a demo runs on: simulated transactions, or the user's own file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pgoutlier.db.errors import PgoutlierError
from pgoutlier.db.source.labels import says_fraud
from pgoutlier.db.sql.identifiers import display
from pgoutlier.worker.demo import simulator
from pgoutlier.worker.evaluation.files import check_header, column_names, read_table

LEAST_ROWS = 1_000
_LABEL_NAMES = ("class", "label", "is_fraud", "fraud", "isfraud", "target", "anomaly", "outlier", "y")
_TIME_NAMES = ("time", "timestamp", "occurred_at", "created_at", "date", "datetime", "event_time")


class DatasetError(PgoutlierError):
    """A file the demo cannot run on."""


@dataclass(frozen=True)
class Dataset:
    """rows in the order they arrive, without a key; fraud_kinds: None where a row is none, or not known.

    features: as --features of attach has them.
    """

    title: str
    key: str
    rows: pd.DataFrame
    features: tuple[str, ...]
    time: str | None
    entity: str | None
    label: str | None
    fraud_kinds: list[str | None] | None
    threshold: str | None = None

    @property
    def column_types(self) -> dict[str, str]:
        """The PostgreSQL type of each column."""
        return {str(name): _sql_type(self.rows[name]) for name in self.rows.columns}


def simulated(*, n_rows: int, seed: int) -> Dataset:
    """Transactions of the simulator."""
    made = simulator.simulate(n_rows=n_rows, seed=seed)
    kinds = [None if kind == simulator.NORMAL else str(kind) for kind in made.fraud_kind]
    return Dataset(
        title=f"{n_rows:,} simulated card transactions, {int(made.is_fraud.sum())} of them frauds",
        key=simulator.KEY,
        rows=made.rows.drop(columns=list(simulator.OVER_ROWS_BEFORE)),
        features=tuple(simulator.OVER_ROWS_BEFORE.get(name, name) for name in simulator.FEATURES),
        time=simulator.TIME,
        entity=simulator.ENTITY,
        label=None,
        fraud_kinds=kinds,
        # The alert budget: a bank flags about as many payments as it expects frauds.
        threshold="quantile:0.004",
    )


def from_file(path: Path, *, label: str | None = None) -> Dataset:
    """The user's rows, in the file's order. Raises FileError or DatasetError if they cannot be used."""
    rows = _read(path)
    if len(rows) < LEAST_ROWS:
        raise DatasetError(f"{path} has {len(rows)} rows; the demo needs at least {LEAST_ROWS:,}.")
    label = _label_column(rows, label, path)
    time = next((str(c) for c in rows.columns if str(c).lower() in _TIME_NAMES), None)
    features = tuple(
        display(str(name))
        for name in rows.columns
        if str(name) not in {label, time}
        and _sql_type(rows[name]) in {"bigint", "double precision", "boolean"}
    )
    if not features:
        raise DatasetError(
            f"{path} has no numeric column to be a feature; its columns: {column_names(rows)}."
        )
    key = next(name for name in ("id", "row_id", "pgoutlier_demo_id") if name not in rows.columns)
    kinds: list[str | None] | None = None
    if label is not None:
        marked = rows[label].astype(str).map(says_fraud)
        kinds = ["fraud" if fraud else None for fraud in marked.to_numpy()]
    known = (
        "" if kinds is None else f", {sum(k is not None for k in kinds)} of them labelled fraud in {label}"
    )
    return Dataset(
        title=f"{len(rows):,} rows of {path.name}{known}",
        key=key,
        rows=rows,
        features=features,
        time=time,
        entity=None,
        label=label,
        fraud_kinds=kinds,
    )


def _read(path: Path) -> pd.DataFrame:
    rows = read_table(path)
    check_header(rows, path, "Add one.")
    if any(not 0 < len(name.encode()) <= 63 for name in rows.columns):
        raise DatasetError(
            f"{path} needs a header with names of 1 to 63 bytes; it has: {column_names(rows)}."
        )
    return rows


def _label_column(rows: pd.DataFrame, label: str | None, path: Path) -> str | None:
    if label is not None:
        if label not in rows.columns:
            raise DatasetError(f"{path} has no column {label}; its columns: {column_names(rows)}.")
        return label
    candidates = [str(c) for c in rows.columns if str(c).lower() in _LABEL_NAMES]
    return next((c for c in candidates if rows[c].nunique(dropna=True) == 2), None)


def _sql_type(column: pd.Series[Any]) -> str:
    if pd.api.types.is_bool_dtype(column):
        return "boolean"
    if (
        pd.api.types.is_unsigned_integer_dtype(column)
        and len(column)
        and column.max() > np.iinfo(np.int64).max
    ):
        return "double precision"
    if pd.api.types.is_integer_dtype(column):
        return "bigint"
    if pd.api.types.is_float_dtype(column):
        return "double precision"
    return "timestamptz" if pd.api.types.is_datetime64_any_dtype(column) else "text"


def as_csv(rows: pd.DataFrame) -> list[bytes]:
    """Each row as one CSV line for COPY. Rows that hold line breaks are kept whole."""
    text = rows.to_csv(header=False, index=False, date_format="%Y-%m-%dT%H:%M:%S.%f%z")
    lines = text.encode().splitlines(keepends=True)
    if len(lines) == len(rows):
        return lines
    return [row.to_csv(header=False, index=False).encode() for _, row in rows.groupby(np.arange(len(rows)))]
