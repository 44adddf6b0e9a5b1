from __future__ import annotations

import numpy as np
import pytest

from pgoutlier.detector import TrainingDataError
from pgoutlier.detector.recipes import FixedThreshold, MeanStdThreshold, QuantileThreshold
from pgoutlier.detector.thresholds import choose_threshold, exceeds, precision_equals_recall, upper_quantile

ERRORS = np.array([1.0, 2.0, 3.0, 4.0])
OTHERS = np.array([10.0, 10.0, 10.0, 14.0])


def chosen(policy: FixedThreshold | MeanStdThreshold | QuantileThreshold) -> float:
    return choose_threshold(policy, calibration_errors=ERRORS, fit_errors=OTHERS)


def test_fixed_is_its_value() -> None:
    assert chosen(FixedThreshold(value=7.5)) == 7.5


def test_mean_std_is_the_mean_plus_k_population_standard_deviations() -> None:
    assert chosen(MeanStdThreshold(k=2.0)) == pytest.approx(2.5 + 2 * np.sqrt(1.25))
    assert chosen(MeanStdThreshold(k=1.0, rows="fit")) == pytest.approx(11.0 + np.sqrt(3.0))


def test_the_quantile_of_many_rows_is_an_order_statistic() -> None:
    errors = np.random.default_rng(0).permutation(1000).astype(np.float64)
    threshold = upper_quantile(errors, 0.05)
    assert threshold == 950.0
    assert exceeds(errors, threshold).sum() == 49


@pytest.mark.parametrize("n_rows", [60, 300, 3000])
def test_the_quantile_of_few_rows_is_extrapolated(n_rows: int) -> None:
    # Quantiles of the exponential distribution at evenly spaced levels: a sample without luck.
    errors = -np.log(1 - (np.arange(n_rows) + 0.5) / n_rows)
    assert upper_quantile(errors, 0.001) == pytest.approx(np.log(1000), rel=0.12)


def test_the_quantile_of_rows_that_are_all_alike_is_their_value() -> None:
    assert upper_quantile(np.full(50, 3.0), 0.001) == 3.0


@pytest.mark.parametrize("n_rows", [1, 2, 3, 5])
def test_the_quantile_of_hardly_any_row_is_finite(n_rows: int) -> None:
    assert np.isfinite(upper_quantile(np.arange(n_rows, dtype=np.float64), 0.01))


@pytest.mark.parametrize("n_positive", [1, 7, 99])
def test_as_many_rows_are_flagged_as_are_positive_so_that_precision_equals_recall(n_positive: int) -> None:
    random = np.random.default_rng(n_positive)
    errors = random.normal(size=100)
    positive = random.permutation(100) < n_positive
    flagged = exceeds(errors, precision_equals_recall(errors, positive))
    assert flagged.sum() == n_positive
    hits = (flagged & positive).sum()
    assert hits / flagged.sum() == hits / positive.sum()


def test_precision_cannot_equal_recall_without_anomalies() -> None:
    with pytest.raises(TrainingDataError, match="needs labelled anomalies"):
        precision_equals_recall(ERRORS, np.zeros(4, bool))
