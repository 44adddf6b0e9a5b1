"""Peers that need no package of their own: robust Mahalanobis distance, rank normalisation, PCA reconstruction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import ndtri
from sklearn.decomposition import PCA

from pgoutlier.detector.arrays import Float64Matrix, Float64Vector

Transform = Callable[[Float64Matrix], Float64Matrix]
Score = Callable[[Float64Matrix], Float64Vector]

TRIMMED_SHARE = 0.01
# Added to the variances of standardised features, so that features that determine each other do no harm.
RIDGE = 1e-6
KEPT_VARIANCE = 0.9


def standardisation(rows: Float64Matrix) -> Transform:
    """Subtract the mean and divide by the standard deviation of these rows; a constant column by 1."""
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    return lambda values: (values - mean) / spread


def rank_normalisation(rows: Float64Matrix) -> Transform:
    """Each value to the normal score of its rank among these rows: the standard normal quantile of rank / (n + 1).

    Ties share their mean rank. A value between two of these rows is interpolated, one beyond them gets the
    score of the outermost.
    """
    known = []
    for column in rows.T:
        values, counts = np.unique(column, return_counts=True)
        ranks = np.cumsum(counts) - (counts - 1) / 2
        known.append((values, ndtri(ranks / (len(rows) + 1))))
    return lambda new: np.column_stack(
        [np.interp(column, *pair) for column, pair in zip(new.T, known, strict=True)]
    )


def trimmed_mahalanobis(rows: Float64Matrix, *, trimmed_share: float = TRIMMED_SHARE) -> Score:
    """The distance from the mean of these rows by a covariance that the farthest of them have no part in."""
    distance = _mahalanobis(rows)
    farthest = np.argsort(distance(rows), kind="stable")[len(rows) - int(len(rows) * trimmed_share) :]
    return _mahalanobis(np.delete(rows, farthest, axis=0))


def _mahalanobis(rows: Float64Matrix) -> Score:
    location = rows.mean(axis=0)
    covariance = np.cov(rows, rowvar=False, ddof=0).reshape(rows.shape[1], rows.shape[1])
    inverse = np.linalg.inv(covariance + RIDGE * np.eye(rows.shape[1]))

    def score(values: Float64Matrix) -> Float64Vector:
        deviation = values - location
        squared: Float64Vector = np.einsum("ij,jk,ik->i", deviation, inverse, deviation, optimize=True)
        return np.sqrt(squared)

    return score


def pca_reconstruction(rows: Float64Matrix, *, kept_variance: float = KEPT_VARIANCE) -> Score:
    """The squared length of what the first principal components, with this share of the variance, leave."""
    components = PCA(n_components=kept_variance, svd_solver="full").fit(rows)

    def score(values: Float64Matrix) -> Float64Vector:
        left = values - components.inverse_transform(components.transform(values))
        squared: Float64Vector = np.square(left).sum(axis=1)
        return squared

    return score
