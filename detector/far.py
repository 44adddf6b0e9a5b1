"""Values so far out that a few rows decide what is fitted: placeholders such as 1e12, wrong units, lost decimal points.

A mean and a standard deviation, a scale from smallest to largest and a threshold drawn from the tail of a few hundred
errors each follow one such row wherever it goes: the feature is as good as constant for all others, or nothing is far
enough to be flagged. So a feature's spread is measured without its farthest rows, and beside it the distance of these.

Only so far out does a value count as far (FAR_SPREADS) that rows of heavy tails are none: what is left of the data sets
that docs/decisions/0029-values-far-out.md measures is all but a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pgoutlier.detector.arrays import BoolVector, Float64Matrix, Float64Vector
from pgoutlier.detector.preprocessing import RAW_LIMIT

# How far out our own recipes leave a row out.
FAR_SPREADS = 1_000.0
# The rows that are left out by a feature: one, or of many rows this share.
FEW = 0.001
# More rows than these, of all features together, are not left out: then they are what the table is like.
MOST_LEFT_OUT = 0.01
# A feature is worth a word when rows so many spreads out, up to this share of all, make its spread so many times that
# of the others.
SPREADS_TO_WARN_OF = 100.0
FEW_TO_WARN_OF = 0.01
SPREAD_RATIO = 10.0


@dataclass(frozen=True)
class FarValues:
    """A feature whose spread a few rows decide.

    n_rows of them, of n_all; farthest: the value that is farthest out, in the source's units. spread_ratio: how many
    times the spread is what it would be without them. n_left_out: of them, those that were not fitted on.
    """

    feature: str
    n_rows: int
    n_all: int
    farthest: float
    spread_ratio: float
    n_left_out: int

    def sentence(self) -> str:
        """What a training says of it, with what to do."""
        rows = "1 row makes" if self.n_rows == 1 else f"{self.n_rows:,} rows make"
        said = (
            f"of {self.n_all:,} rows {rows} the spread of {self.feature} {self.spread_ratio:.2g} times that of the"
            f" others, up to {self.farthest:.6g}"
        )
        if self.n_left_out == self.n_rows:
            return f"{said}; left out of this training."
        some = f"{self.n_left_out:,} of them were left out; " if self.n_left_out else ""
        little = "so that differences among the others count little"
        return f"{said}, {little}; {some}mend these values, or label the rows fraud."


def far_rows(features: Float64Matrix, spreads: float) -> BoolVector:
    """Which rows (n,) of features (n, d) hold a value farther than so many spreads from the middle of its feature.

    Of a feature the farthest FEW rows at most, of all together the farthest MOST_LEFT_OUT. NaN and infinity are never
    far: they are another matter.
    """
    farness = np.zeros(len(features))
    for _, distances in _distances(features, FEW):
        np.maximum(farness, np.where(distances > spreads, distances, 0.0), out=farness)
    far: BoolVector = farness > 0
    most = max(1, int(len(features) * MOST_LEFT_OUT))
    if far.sum() > most:
        far = np.zeros(len(features), dtype=bool)
        far[np.argsort(-farness, kind="stable")[:most]] = True
    return far


def decided_by_few(
    features: Float64Matrix, names: Sequence[str], *, left_out: BoolVector
) -> tuple[FarValues, ...]:
    """The features (of n rows, (n, d)) whose spread a few rows decide. left_out (n,): the rows not fitted on."""
    found = []
    for column, distances in _distances(features, FEW_TO_WARN_OF):
        far = np.flatnonzero(distances > SPREADS_TO_WARN_OF)
        ratio = _root_mean_square(distances)
        if len(far) and ratio >= SPREAD_RATIO:
            found.append(
                FarValues(
                    feature=names[column],
                    n_rows=len(far),
                    n_all=len(features),
                    farthest=float(features[far[np.argmax(distances[far])], column]),
                    spread_ratio=ratio,
                    n_left_out=int(left_out[far].sum()),
                )
            )
    return tuple(found)


def _distances(features: Float64Matrix, few: float) -> Iterator[tuple[int, Float64Vector]]:
    """By feature its place, and how many spreads each row is from its median: 0 where the value is NaN or infinite.

    The spread is a root mean square, without the farthest few rows and those that hold the median: where nearly all
    rows are zero, the others are compared with each other. Where no other row is left, the feature is passed over.
    """
    for column in range(features.shape[1]):
        values = np.clip(features[:, column], -RAW_LIMIT, RAW_LIMIT)
        known = np.isfinite(features[:, column])
        n_known = int(known.sum())
        if n_known < 2:
            continue
        middle = np.quantile(values[known], 0.5, method="lower")
        distances = np.where(known, np.abs(values - middle), 0.0)
        n_inner = n_known - max(1, int(n_known * few))
        inner: Float64Vector = np.partition(distances[known], n_inner - 1)[:n_inner]
        differing = inner[inner > 0]
        if not len(differing):
            continue
        size = differing.max()
        spread = max(float(size * _root_mean_square(differing / size)), float(np.finfo(np.float64).tiny))
        with np.errstate(over="ignore"):
            in_spreads: Float64Vector = np.minimum(distances / spread, RAW_LIMIT)
        yield column, in_spreads


def _root_mean_square(values: Float64Vector) -> float:
    size = float(values.max(initial=0.0))
    if size == 0 or not np.isfinite(size):
        return size
    return float(size * np.sqrt(np.mean(np.square(values / size))))
