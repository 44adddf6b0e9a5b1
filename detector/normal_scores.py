"""Normal scores: a feature's values mapped so that the training rows are about normally distributed.

The map is van der Waerden's, the normal quantile of a value's mean rank, taken at a few knots and straight between
them; beyond the outer knots it goes on straight, so that extremes stay extreme. Conover, Practical Nonparametric
Statistics, 3rd edition (Wiley 1999), section 5.10.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from detector.arrays import Float64Matrix, Float64Vector
from detector.preprocessing import LIMIT

KNOT_RANKS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
N_KNOTS = len(KNOT_RANKS)
# The slope beyond an outer knot is that between it and the knot this many places further in.
_TAIL_KNOTS = 2


def fit_normal_scores(values: Float64Matrix) -> tuple[Float64Matrix, Float64Matrix, Float64Vector]:
    """Knots (N_KNOTS, d) ascending, slopes (N_KNOTS + 1, d), and the scores at the first knots (d,).

    values: (n_rows, d) preprocessed. Features of few different values repeat their last knot.
    """
    n_features = values.shape[1]
    knots = np.empty((N_KNOTS, n_features))
    slopes = np.zeros((N_KNOTS + 1, n_features))
    first = np.zeros(n_features)
    for j in range(n_features):
        ordered = np.sort(values[:, j])
        found = np.unique(np.quantile(ordered, KNOT_RANKS, method="nearest"))
        ranks = np.searchsorted(ordered, found, "left") + np.searchsorted(ordered, found, "right")
        scores = ndtri(np.clip(ranks / 2, 0.5, len(ordered) - 0.5) / len(ordered))
        n_found = len(found)
        knots[:n_found, j], knots[n_found:, j] = found, found[-1]
        first[j] = scores[0]
        slopes[[0, -1], j] = 1.0
        if n_found > 1:
            inner = min(_TAIL_KNOTS, n_found - 1)
            slopes[1:n_found, j] = np.diff(scores) / np.diff(found)
            slopes[0, j] = (scores[inner] - scores[0]) / (found[inner] - found[0])
            slopes[-1, j] = (scores[-1] - scores[-1 - inner]) / (found[-1] - found[-1 - inner])
    return knots, np.minimum(slopes, LIMIT), first


def normal_scores(
    values: Float64Matrix, knots: Float64Matrix, slopes: Float64Matrix, first: Float64Vector
) -> Float64Matrix:
    """The scores of values (n_rows, d), bounded to +-LIMIT; the other arguments are what `fit_normal_scores` gives."""
    scores = first + slopes[0] * (np.minimum(values, knots[0]) - knots[0])
    for k in range(1, N_KNOTS):
        scores += slopes[k] * (np.clip(values, knots[k - 1], knots[k]) - knots[k - 1])
    scores += slopes[-1] * (np.maximum(values, knots[-1]) - knots[-1])
    return np.clip(scores, -LIMIT, LIMIT)
