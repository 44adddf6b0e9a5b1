"""Rows from a file: CSV, CSV.gz, TSV, Parquet or NPZ."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from pgoutlier.db.errors import PgoutlierError, first_line

# What the label column of an NPZ file is called.
NPZ_LABEL = "y"
_PARQUET = (".parquet", ".pq")
_TEXT = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_NPZ = (".npz",)


class FileError(PgoutlierError):
    """A file whose rows cannot be used."""


def is_npz(path: Path) -> bool:
    """Whether the name says so."""
    return path.name.lower().endswith(_NPZ)


def read_table(path: Path, *, header: bool = True) -> pd.DataFrame:
    """The file's rows in its order, column names as text.

    header: False for text files whose first line is a row already; columns are then named 0, 1, ... by their place.
    Of an NPZ file, `X` (n_rows, n_features) gives the columns 0, 1, ..., and `y` (n_rows,), if there, the column y.
    Nothing in a file is ever run. Raises FileError with one sentence if there is no table of at least one row.
    """
    if not path.is_file():
        raise FileError(f"There is no file {path}; name a CSV, CSV.gz, Parquet or NPZ file.")
    try:
        rows = _read(path, header=header)
    except FileError:
        raise
    except pd.errors.ParserWarning:
        raise FileError(f"{path} has rows with more fields than its header has names.") from None
    except (MemoryError, OverflowError):
        raise FileError(f"{path} cannot be read: it asks for more memory than there is.") from None
    except Exception as error:
        # What the readers raise on a damaged file has no common class; a KeyError was among it.
        raise FileError(f"{path} cannot be read: {first_line(error)}") from None
    rows.columns = [str(name) for name in rows.columns]
    if rows.empty:
        raise FileError(f"{path} has no rows.")
    twice = rows.columns[rows.columns.duplicated()]
    if len(twice):
        raise FileError(f"{path} has more than one column named {twice[0]!r}; give each its own name.")
    return rows


def check_header(rows: pd.DataFrame, path: Path, advice: str) -> None:
    """Raises FileError, ending in this advice, if the file's first line looks like a row of numbers."""
    if path.name.lower().endswith(_TEXT) and all(_is_number(name) for name in rows.columns):
        raise FileError(f"{path} seems to have no header: its first line is {column_names(rows)}. {advice}")


def column_names(rows: pd.DataFrame) -> str:
    """The first of the table's columns, for a sentence."""
    return ", ".join(list(rows.columns[:12])) + (", ..." if len(rows.columns) > 12 else "")


def _read(path: Path, *, header: bool) -> pd.DataFrame:
    name = path.name.lower()
    if name.endswith(_TEXT):
        separator = "\t" if ".tsv" in name else ","
        # In one piece, so that a column has one type however long the file is.
        with warnings.catch_warnings():
            # Else rows with more fields than the header would lose them, or their first one would become an index.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # In one piece, so that a column has one type however long the file is.
            return pd.read_csv(
                path, sep=separator, header=0 if header else None, index_col=False, low_memory=False
            )
    if not name.endswith((*_PARQUET, *_NPZ)):
        raise FileError(
            f"{path.name} is none of .csv, .csv.gz, .parquet and .npz; convert it to one of them."
        )
    if not header:
        raise FileError(f"--no-header is for CSV files; the columns of {path.name} have names.")
    return pd.read_parquet(path) if name.endswith(_PARQUET) else _read_npz(path)


def _read_npz(path: Path) -> pd.DataFrame:
    with path.open("rb") as opened:
        # NumPy would take anything else for a pickle, and say so.
        if not zipfile.is_zipfile(opened):
            raise FileError(f"{path} is not an NPZ file.")
    with np.load(path, allow_pickle=False) as arrays:
        if "X" not in arrays:
            raise FileError(f"{path} has no array X; it needs X (rows, features) and may have y (rows,).")
        features = arrays["X"]
        labels = arrays.get("y")
    for array_name, array in (("X", features), ("y", labels)):
        if array is not None and array.dtype.kind not in "buif":
            raise FileError(f"{array_name} in {path} must hold numbers, not {array.dtype}.")
    if features.ndim != 2 or (labels is not None and labels.shape != features.shape[:1]):
        shapes = f"X {features.shape}" + ("" if labels is None else f" and y {labels.shape}")
        raise FileError(f"{path} needs X of shape (rows, features) and y of shape (rows,); it has {shapes}.")
    rows = pd.DataFrame(features, columns=[str(i) for i in range(features.shape[1])])
    if labels is not None:
        rows[NPZ_LABEL] = labels
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
