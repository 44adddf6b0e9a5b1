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

from pgoutlier.detector.arrays import Float64Matrix, Float64Vector, IntVector

# Variables of a smaller spread are taken as constant, of spread 1: they are dimensionless by then.
MIN_SPREAD = 1e-9
# A network that fits well leaves residuals that the features almost determine; this bounds by how much the
# rest is enlarged. Between 1e-6 and 1e-3 the detection quality does not change.
MIN_SHRINKAGE = 1e-4
# Values of a feature within this many of its standard deviations are one level.
LEVEL_WIDTH = 0.1
# A level that fewer rows hold may be an anomaly itself, so trimming may remove it.
MIN_LEVEL_SHARE = 0.005
MIN_LEVEL_ROWS = 20
# Of a level, trimming leaves the nearest rows, this share: usual for the minimum covariance determinant too
# (Rousseeuw and Van Driessen, Technometrics 41 (1999) 212-223). Anomalies gather in rare levels.
LEVEL_CORE = 0.75


def fit_whitening(
    rows: Float64Matrix,
    trim_fraction: float,
    ridge: Float64Vector | float = 0.0,
    *,
    features: Float64Matrix | None = None,
) -> tuple[Float64Vector, Float64Matrix]:
    """Location (m,) and whitening matrix (m, m) of rows (n, m): w = (rows - location) @ whitening.

    The share trim_fraction of the rows that is farthest by a first estimate is left out of the second,
    so that a few outliers do not widen the very covariance that should tell them apart. With features, (n, k),
    the values that the rows come from, trimming does not empty any of their levels: see `untrimmed`.
    ridge, one number or (m,), is added to the diagonal of the correlation: variables with a ridge count less.
    """
    location, whitening = _whitening(rows, ridge)
    if trim_fraction > 0:
        distances = np.square((rows - location) @ whitening).sum(axis=1)
        kept = untrimmed(distances, trim_fraction, features)
        location, whitening = _whitening(rows[kept], ridge)
    return location, whitening


def untrimmed(
    distances: Float64Vector, trim_fraction: float, features: Float64Matrix | None = None
) -> IntVector:
    """Indices, ascending, of the rows that are left when the share trim_fraction that is farthest is trimmed.

    Rows that hold a rare level of a feature, say a flag that one row in a hundred has, are all far. Without
    them the feature would be constant, or determined by others, and every later row that holds the level
    would be taken for the worst of anomalies. So of each level of the features (n, k), if these are given,
    the nearest rows are left too, however far they are.
    """
    n_rows = len(distances)
    order = np.argsort(distances, kind="stable")
    kept = np.zeros(n_rows, dtype=bool)
    kept[: max(2, n_rows - int(np.ceil(n_rows * trim_fraction)))] = True
    for column in () if features is None else features[order].T:
        spread = column.std()
        if spread == 0:
            continue
        # Only a level as far out as 3,000 standard deviations does not fit, and no more than one row in ten
        # million can be there. The sorting of so short numbers takes linear time.
        level = np.clip(np.rint(column / (LEVEL_WIDTH * spread)), -32_768, 32_767).astype(np.int16)
        by_level = np.argsort(level, kind="stable")
        _, first, n_held = np.unique(level[by_level], return_index=True, return_counts=True)
        n_core = np.where(
            n_held >= max(MIN_LEVEL_ROWS, MIN_LEVEL_SHARE * n_rows), np.floor(LEVEL_CORE * n_held), 0
        )
        place = np.arange(n_rows) - np.repeat(first, n_held)
        kept[by_level[place < np.repeat(n_core, n_held)]] = True
    return np.sort(order[kept])


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
