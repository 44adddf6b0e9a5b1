"""The Mahalanobis distance of a residual, and how much each feature has to do with it.

With location m, covariance S, standard deviations D = diag(S)^(1/2) and correlation R, the whitened
residual of a row z is w = R^(-1/2) D^(-1) (z - m); its length is the Mahalanobis distance of z. The
squares of w are the corr-max partition of the squared distance: never negative, one for each variable,
each whitened variable being as correlated with its own variable as can be.

Garthwaite and Koch, Evaluating the contributions of individual variables to a quadratic form,
Australian & New Zealand Journal of Statistics 58 (2016) 99-119; Kessy, Lewin and Strimmer, Optimal
whitening and decorrelation, The American Statistician 72 (2018) 309-314 (there "ZCA-cor").
"""

from __future__ import annotations

import numpy as np

from detector.arrays import Float64Matrix, Float64Vector

# Variables of a smaller spread are taken as constant, of spread 1: they are dimensionless by then.
MIN_SPREAD = 1e-9
# A network that fits well leaves residuals that the features almost determine; this bounds by how much the
# rest is enlarged. Between 1e-6 and 1e-3 the detection quality does not change.
MIN_SHRINKAGE = 1e-4


def fit_whitening(
    rows: Float64Matrix, trim_fraction: float, ridge: Float64Vector | float = 0.0
) -> tuple[Float64Vector, Float64Matrix]:
    """Location (m,) and whitening matrix (m, m) of rows (n, m): w = (rows - location) @ whitening.

    The share trim_fraction of the rows that is farthest by a first estimate is left out of the second,
    so that a few outliers do not widen the very covariance that should tell them apart.
    ridge, one number or (m,), is added to the diagonal of the correlation: variables with a ridge count less.
    """
    location, whitening = _whitening(rows, ridge)
    if trim_fraction > 0:
        distances = np.square((rows - location) @ whitening).sum(axis=1)
        n_kept = max(2, len(rows) - int(np.ceil(len(rows) * trim_fraction)))
        location, whitening = _whitening(rows[np.argsort(distances, kind="stable")[:n_kept]], ridge)
    return location, whitening


def _whitening(rows: Float64Matrix, ridge: Float64Vector | float) -> tuple[Float64Vector, Float64Matrix]:
    n_rows, n_variables = rows.shape
    location = rows.mean(axis=0)
    spread = rows.std(axis=0)
    spread[spread < MIN_SPREAD] = 1.0
    standard = (rows - location) / spread
    correlation = standard.T @ standard / n_rows
    # Towards the identity, as in Ledoit and Wolf (2004), but by a share that is set by the number of
    # rows for each variable alone: negligible when rows abound, complete when they are fewer than variables.
    share = min(1.0, max(MIN_SHRINKAGE, (n_variables / n_rows) ** 2))
    correlation = (1 - share) * correlation + share * np.eye(n_variables)
    correlation[np.diag_indices(n_variables)] += ridge
    eigenvalues, eigenvectors = np.linalg.eigh(correlation)
    roots = 1 / np.sqrt(np.maximum(eigenvalues, share))
    whitening = ((eigenvectors * roots) @ eigenvectors.T) / spread[:, None]
    return location, whitening


def held_out_distances(
    rows: Float64Matrix, trim_fraction: float, ridge: Float64Vector | float = 0.0, *, n_folds: int = 5
) -> Float64Vector:
    """The distance of each row by statistics that the row had no part in, (n,).

    A distance measured on the rows of the covariance itself is too short, the more so the fewer rows
    there are; a threshold set by it would flag too much.
    """
    distances = np.empty(len(rows))
    fold = np.arange(len(rows)) % n_folds
    for k in range(n_folds):
        location, whitening = fit_whitening(rows[fold != k], trim_fraction, ridge)
        distances[fold == k] = np.sqrt(np.square((rows[fold == k] - location) @ whitening).sum(axis=1))
    return distances
