"""Columns that come as codes, and become numbers by what the training rows were like.

A rarity comes as the code of a value, and becomes minus the natural logarithm of the share that the value has of the
training rows. Values that were not among these, or were too rare to be kept, have one share together. A share of frauds
comes as two counts in one number, and becomes the share among the rows counted, drawn towards that of all: with few of
them it is that of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pgoutlier.detector.arrays import Float64Matrix, Float64Vector
from pgoutlier.detector.errors import InvalidDetector

Kind = Literal["rarity", "share"]
# Of a rarity column so many values are kept, the most frequent ones.
MOST_VALUES = 10_000
# How two counts are one number: rows * COUNT_UNIT + frauds.
COUNT_UNIT = 2.0**26
# As many rows as the share of all is worth.
PRIOR_ROWS = 20.0
_PARTS = ("codes", "values", "other")


@dataclass(frozen=True, eq=False)
class Encoding:
    """What becomes of the column at this place.

    rarity: codes (k,) ascending, values (k,) what each becomes, other: what any other code becomes. share: other is
    the share of all, and there are no codes.
    """

    place: int
    kind: Kind
    codes: Float64Vector
    values: Float64Vector
    other: float

    def apply(self, column: Float64Vector) -> Float64Vector:
        """The column (n,) in numbers; NaN stays."""
        if self.kind == "share":
            n_rows = np.floor(column / COUNT_UNIT)
            shares = (column - n_rows * COUNT_UNIT + PRIOR_ROWS * self.other) / (n_rows + PRIOR_ROWS)
            return np.asarray(shares, dtype=np.float64)
        found = np.minimum(np.searchsorted(self.codes, column), max(len(self.codes) - 1, 0))
        is_known = self.codes[found] == column if len(self.codes) else np.zeros(column.shape, dtype=np.bool_)
        values = self.values[found] if len(self.codes) else column
        return np.where(np.isnan(column), np.nan, np.where(is_known, values, self.other))


def fit_encodings(features: Float64Matrix, kinds: Mapping[int, Kind]) -> tuple[Encoding, ...]:
    """Of the columns at these places, fitted on rows (n, d) as they come."""
    return tuple(
        _rarity(place, features[:, place]) if kind == "rarity" else _share(place, features[:, place])
        for place, kind in sorted(kinds.items())
    )


def encoded(features: Float64Matrix, encodings: Sequence[Encoding]) -> Float64Matrix:
    """features (..., d) with these columns in numbers; the same matrix if there are none."""
    if not encodings:
        return features
    found = features.copy()
    for encoding in encodings:
        found[..., encoding.place] = encoding.apply(features[..., encoding.place])
    return found


def _rarity(place: int, column: Float64Vector) -> Encoding:
    codes, counts = np.unique(column[~np.isnan(column)], return_counts=True)
    n_rows = int(counts.sum()) + 1  # with one row of a value that was not there
    kept = np.sort(np.argsort(-counts, kind="stable")[:MOST_VALUES])
    left_out = np.delete(counts, kept)
    other = float(left_out.mean()) if len(left_out) else 1.0
    return Encoding(
        place, "rarity", codes[kept], -np.log(counts[kept] / n_rows), -float(np.log(other / n_rows))
    )


def _share(place: int, column: Float64Vector) -> Encoding:
    counted = column[~np.isnan(column)]
    n_rows = np.floor(counted / COUNT_UNIT)
    n_frauds = counted - n_rows * COUNT_UNIT
    nothing = np.empty(0)
    return Encoding(place, "share", nothing, nothing, float(n_frauds.sum() / max(n_rows.sum(), 1.0)))


def arrays_of(encodings: Sequence[Encoding]) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays that an artifact holds of them, by name."""
    return {
        f"encoding.{encoding.place}.{part}": np.atleast_1d(
            np.asarray(getattr(encoding, part), dtype=np.float64)
        )
        for encoding in encodings
        for part in _PARTS
    }


def expected_arrays(
    places: Sequence[tuple[int, Kind, int]],
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Name, shape and dtype of these, of encodings by place, kind and number of codes."""
    float64 = np.dtype(np.float64)
    return {
        f"encoding.{place}.{part}": ((1,) if part == "other" else (n_codes,), float64)
        for place, _, n_codes in places
        for part in _PARTS
    }


def of_arrays(
    places: Sequence[tuple[int, Kind, int]], arrays: Mapping[str, np.ndarray[Any, Any]], n_features: int
) -> tuple[Encoding, ...]:
    """The encodings out of such arrays. Raises InvalidDetector, naming what is wrong with them."""
    found = []
    for place, kind, n_codes in places:
        codes, values, other = (arrays[f"encoding.{place}.{part}"] for part in _PARTS)
        sound = np.isfinite(codes).all() and np.isfinite(values).all() and np.isfinite(other).all()
        if (
            not sound
            or not (codes[1:] > codes[:-1]).all()
            or n_codes > MOST_VALUES
            or not 0 <= place < n_features
        ):
            raise InvalidDetector(
                f"Encoding {place} has codes that are not in order, too many, or values not finite."
            )
        found.append(Encoding(place, kind, codes, values, float(other[0])))
    if len({encoding.place for encoding in found}) != len(found):
        raise InvalidDetector("Two encodings are of one column.")
    return tuple(found)
