"""Which of unlabelled rows are likely anomalies."""

from __future__ import annotations

import numpy as np

from pgoutlier.detector.arrays import BoolVector, Float64Matrix

# The trees hold float32, in which larger numbers are infinite.
_LARGEST = 1e30


def isolation_forest_outliers(
    values: Float64Matrix, *, n_trees: int, n_samples: int, contamination: float, seed: int
) -> BoolVector:
    """The share `contamination` of the rows (n, d), finite, that an Isolation Forest isolates soonest, (n,).

    Each tree sees n_samples rows, or all if there are fewer. Liu, Ting and Zhou, Isolation Forest, Eighth IEEE
    International Conference on Data Mining (2008) 413-422. The same rows and seed give the same answer.
    """
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(
        n_estimators=n_trees,
        max_samples=min(n_samples, len(values)),
        contamination=contamination,
        random_state=seed,
    )
    outliers: BoolVector = forest.fit_predict(np.clip(values, -_LARGEST, _LARGEST)) == -1
    return outliers
