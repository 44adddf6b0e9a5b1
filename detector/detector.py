"""A detector: a fitted recipe, ready to score."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pgoutlier.detector import reference
from pgoutlier.detector.arrays import Arrays, Float32Matrix, Float64Matrix, Float64Vector, IntMatrix
from pgoutlier.detector.encoding import Encoding, encoded
from pgoutlier.detector.errors import FeatureMismatch, InvalidDetector, NonFiniteFeatures, WindowMismatch
from pgoutlier.detector.layout import checked_arrays
from pgoutlier.detector.preprocessing import apply_preprocessing
from pgoutlier.detector.recipes import Recipe
from pgoutlier.detector.scorer import BLOCK_ROWS, Scorer, TailScorer
from pgoutlier.detector.windows import window_positions


@dataclass(frozen=True, eq=False)
class Scores:
    """reconstruction_error: (n_rows,) float64; contributions: (n_rows, n_features) float32.

    Contributions are not negative and each row's sum to its error.
    """

    reconstruction_error: Float64Vector
    contributions: Float32Matrix


class Detector:
    """A fitted recipe: preprocessing arrays, weights, residual statistics, threshold.

    Immutable and safe to share between threads.
    """

    __slots__ = ("_lock", "_scorers", "arrays", "encodings", "feature_names", "recipe", "threshold")

    recipe: Recipe
    feature_names: tuple[str, ...]
    arrays: Mapping[str, NDArray[Any]]
    threshold: float
    encodings: tuple[Encoding, ...]
    _lock: threading.Lock
    _scorers: dict[bool, Scorer]

    def __init__(
        self,
        recipe: Recipe,
        feature_names: Sequence[str],
        arrays: Arrays,
        threshold: float,
        encodings: Sequence[Encoding] = (),
    ) -> None:
        """arrays: exactly those of `expected_arrays`. encodings: of columns that come as codes: `detector.encoding`.

        Raises InvalidDetector naming the array that is missing, unexpected, of another shape or dtype, or
        not finite, and for names that are not distinct or a threshold that is not finite; InvalidRecipe when the
        recipe drops every feature.
        """
        names = tuple(feature_names)
        if len(set(names)) != len(names):
            raise InvalidDetector("Two features have the same name; give each its own.")
        if not math.isfinite(threshold):
            raise InvalidDetector(f"The threshold must be a finite number, not {threshold}.")
        fields = {
            "recipe": recipe,
            "feature_names": names,
            "arrays": checked_arrays(recipe, names, arrays),
            "threshold": float(threshold),
            "encodings": tuple(encodings),
            "_lock": threading.Lock(),
            "_scorers": {},
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"A detector is immutable: {name} cannot be set.")

    def __repr__(self) -> str:
        return (
            f"Detector(recipe={self.recipe.name!r}, n_features={len(self.feature_names)}, "
            f"threshold={self.threshold:.6g})"
        )

    def with_threshold(self, threshold: float) -> Detector:
        """This detector with a fixed threshold; its errors are the same.

        threshold: in the unit of the reconstruction error. Raises InvalidRecipe if it cannot be one.
        """
        recipe = self.recipe.with_threshold({"policy": "fixed", "value": threshold})
        return Detector(recipe, self.feature_names, self.arrays, threshold, self.encodings)

    def with_encodings(self, encodings: Sequence[Encoding]) -> Detector:
        """This detector, which was fitted on rows that these had been applied to, for rows as they come."""
        return Detector(self.recipe, self.feature_names, self.arrays, self.threshold, encodings)

    def encoded(self, features: ArrayLike) -> Float64Matrix:
        """Rows (..., n_features) as they come, with what comes as codes in numbers."""
        return encoded(np.asarray(features, dtype=np.float64), self.encodings)

    def score(self, features: ArrayLike, *, groups: ArrayLike | None = None) -> Scores:
        """The reconstruction error of each row, dimensionless, and what each feature adds to it.

        features: (n_rows, n_features) float64 in the source's units, columns in the order of feature_names. A
        recipe with a window takes rows in time order, of the entities that groups (n_rows,) tells apart, or
        ready windows (n_rows, window, n_features), each row the last of its own, see `detector.windows`.
        The error is, by the recipe's error_metric, the mean squared residual, the mean absolute residual, the
        largest depth as in `detector.tails`, or the Mahalanobis distance (not its square) as in
        `detector.residuals`, where a feature's contribution is its share of the squared distance divided by the
        distance.
        Raises FeatureMismatch if the column count differs, WindowMismatch if the windows' length does;
        NonFiniteFeatures naming the rows that hold NaN or infinity, unless the recipe imputes them.
        """
        matrix = self._checked(features)
        errors, contributions = self._scorer(explains=True)(matrix, self._positions(matrix, groups))
        if contributions is None:
            raise AssertionError("a scorer that explains gives contributions")
        return Scores(errors, contributions)

    def reconstruction_error(self, features: ArrayLike) -> Float64Vector:
        """The errors (n_rows,) that `score` gives, without the contributions, which takes less time.

        features, errors: as in `score`; rows with a window come as ready windows.
        """
        matrix = self._checked(features)
        return self._scorer(explains=False)(matrix, self._positions(matrix, None))[0]

    def numpy_score(self, features: ArrayLike, *, groups: ArrayLike | None = None) -> Scores:
        """What `score` computes, in plain NumPy: slower, for checking. The same arguments and errors."""
        matrix = self._checked(features)
        positions = self._positions(matrix, groups)
        if positions is not None:
            matrix = matrix[positions]
        error, contributions = reference.score(self.recipe, self.feature_names, self.arrays, matrix)
        return Scores(error, contributions.astype(np.float32))

    def preprocess(self, features: ArrayLike) -> Float32Matrix:
        """The rows (n_rows, n_features) as the network sees them, (n_rows, n_inputs) float32, errors as in
        `score`."""
        return self._preprocessed(features).astype(np.float32)

    def reconstruct(self, features: ArrayLike, *, groups: ArrayLike | None = None) -> Float32Matrix:
        """The network's output for the rows (n_rows, n_features), (n_rows, n_inputs) float32 in preprocessed
        units; with a window, for the last row of each."""
        values = self._preprocessed(features)
        positions = self._positions(values, groups)
        if positions is None:
            return reference.reconstruct(self.recipe, self.arrays, values).astype(np.float32)
        return reference.reconstruct_last(self.recipe, self.arrays, values[positions]).astype(np.float32)

    def warm_up(self) -> None:
        """Import ONNX Runtime and build the graph, so that the first row does not wait for it."""
        self.score(np.zeros((BLOCK_ROWS, len(self.feature_names))))

    def _preprocessed(self, features: ArrayLike) -> Float64Matrix:
        matrix = self._checked(features)
        if matrix.ndim != 2:
            raise FeatureMismatch(expected=len(self.feature_names), got=None)
        return apply_preprocessing(self.recipe, self.arrays, matrix, self.feature_names)

    def _positions(self, matrix: Float64Matrix, groups: ArrayLike | None) -> IntMatrix | None:
        """Which rows make each window; None if the matrix is of windows already, or the recipe has none."""
        if self.recipe.window == 1 or matrix.ndim == 3:
            return None
        return window_positions(len(matrix), groups, self.recipe.window)

    def _checked(self, features: ArrayLike) -> Float64Matrix:
        matrix = np.ascontiguousarray(features, dtype=np.float64)
        n_axes = np.ndim(features)
        if n_axes not in ((2,) if self.recipe.window == 1 else (2, 3)):
            raise FeatureMismatch(expected=len(self.feature_names), got=None)
        if matrix.shape[-1] != len(self.feature_names):
            raise FeatureMismatch(expected=len(self.feature_names), got=matrix.shape[-1])
        if n_axes == 3 and matrix.shape[1] != self.recipe.window:
            raise WindowMismatch(
                f"The detector scores windows of {self.recipe.window} rows, not of {matrix.shape[1]}."
            )
        matrix = encoded(matrix, self.encodings)
        if self.recipe.missing == "quarantine":
            finite: NDArray[np.bool_] = np.isfinite(matrix)
            if n_axes == 3:
                finite = np.logical_and.reduce(finite, axis=1)
            if not finite.all():
                raise NonFiniteFeatures.of(finite, self.feature_names)
        return matrix

    def _scorer(self, *, explains: bool) -> Scorer | TailScorer:
        if self.recipe.takes_tails:
            return TailScorer(self.recipe, self.feature_names, self.arrays)
        scorer = self._scorers.get(explains)
        if scorer is None:
            with self._lock:
                scorer = self._scorers.get(explains)
                if scorer is None:
                    scorer = Scorer(self.recipe, self.feature_names, self.arrays, explains=explains)
                    self._scorers[explains] = scorer
        return scorer


def top_features(contributions: NDArray[Any], k: int) -> tuple[IntMatrix, NDArray[Any]]:
    """The k features that contribute most to each row, largest first.

    contributions: (n_rows, n_features). Returns their column indices, (n_rows, k) int64, and their values,
    (n_rows, k); k is reduced to n_features if larger.
    """
    n_features = contributions.shape[1]
    k = min(k, n_features)
    some = np.argpartition(-contributions, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(contributions, some, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    indices = np.take_along_axis(some, order, axis=1).astype(np.int64)
    return indices, np.take_along_axis(values, order, axis=1)
