from __future__ import annotations

import numpy as np

from pgoutlier.detector import fit
from pgoutlier.detector.cleaning import isolation_forest_outliers
from pgoutlier.detector.recipes import PseudoLabels
from tests.unit.detector.conftest import NAMES, small_recipe

CLEANING = {"n_trees": 20, "n_samples": 64, "contamination": 0.05}


def polluted(n_rows: int = 1_000) -> tuple[np.ndarray, np.ndarray]:
    """(rows, who is an outlier): of 6 features, 5 % of the rows far out, all in one direction."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(n_rows, len(NAMES)))
    is_outlier = np.arange(n_rows) % 20 == 0
    rows[is_outlier] += 8.0
    return rows, is_outlier


def test_an_isolation_forest_finds_the_rows_that_are_far_out() -> None:
    rows, is_outlier = polluted()
    found = isolation_forest_outliers(rows, seed=0, **CLEANING)
    assert found.dtype == np.bool_
    assert found.sum() == 50
    assert (found & is_outlier).sum() >= 48
    np.testing.assert_array_equal(found, isolation_forest_outliers(rows, seed=0, **CLEANING))


def test_nothing_is_fitted_on_rows_that_pseudo_labels_take_for_anomalies() -> None:
    rows, is_outlier = polluted()
    errors = {}
    for labels in (None, PseudoLabels(**CLEANING)):
        recipe = small_recipe(error_metric="mahalanobis", prototypes=16, pseudo_labels=labels)
        scores = fit(recipe, rows, NAMES).detector.score(rows)
        errors[labels is not None] = np.median(scores.reconstruction_error[is_outlier])
    assert errors[True] > 2 * errors[False]
