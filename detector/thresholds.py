"""When is a row flagged: the threshold policies, and the one comparison."""

from __future__ import annotations

import math

import numpy as np

from detector.arrays import BoolVector, Float64Vector
from detector.errors import TrainingDataError
from detector.recipes import (
    FixedThreshold,
    MeanStdThreshold,
    PrecisionEqualsRecallThreshold,
    ThresholdPolicy,
)

# Fewer exceedances than this make an empirical quantile too noisy; then the tail is extrapolated.
MIN_EXCEEDANCES = 10


def exceeds(errors: Float64Vector, threshold: float) -> BoolVector:
    """Which rows are flagged: those whose error is above the threshold, not those exactly at it.

    errors: (n_rows,) reconstruction errors. Returns (n_rows,) bool.
    """
    return np.greater(errors, threshold)


def choose_threshold(
    policy: ThresholdPolicy, *, calibration_errors: Float64Vector, fit_errors: Float64Vector
) -> float:
    """The threshold that the policy draws from the errors (each (n,), at least one)."""
    if isinstance(policy, FixedThreshold):
        return policy.value
    if isinstance(policy, MeanStdThreshold):
        errors = fit_errors if policy.rows == "fit" else calibration_errors
        return float(errors.mean() + policy.k * errors.std())
    if isinstance(policy, PrecisionEqualsRecallThreshold):
        raise TrainingDataError("The threshold policy precision_equals_recall needs labels of the rows.")
    return upper_quantile(calibration_errors, policy.contamination)


def precision_equals_recall(errors: Float64Vector, positive: BoolVector) -> float:
    """The threshold that as many errors exceed as rows are positive: then precision equals recall.

    errors, positive: (n_rows,). With TP rows flagged rightly, precision is TP / flagged and recall TP / positive.
    Between equal errors no threshold can tell; then fewer rows are flagged. Raises TrainingDataError if no row
    is positive, or every one is.
    """
    n_positive = int(positive.sum())
    if not 0 < n_positive < len(errors):
        raise TrainingDataError(
            f"{n_positive} of {len(errors)} rows are labelled anomalies; precision equals recall needs some rows"
            " of either kind."
        )
    return float(np.partition(errors, -n_positive - 1)[-n_positive - 1])


def upper_quantile(errors: Float64Vector, contamination: float) -> float:
    """The value that a share `contamination` of such errors exceeds.

    With enough rows an order statistic, at most that share of the rows above it. With few rows the
    excesses over a high level are taken as generalised Pareto, fitted by probability-weighted moments:
    Hosking and Wallis, Parameter and quantile estimation for the generalized Pareto distribution,
    Technometrics 29 (1987) 339-349 (their k is minus the shape here).
    """
    n_rows = len(errors)
    if n_rows * contamination >= MIN_EXCEEDANCES:
        return float(np.quantile(errors, 1 - contamination, method="higher"))
    ordered = np.sort(errors)
    n_tail = min(max(30, n_rows // 20), n_rows // 2)
    if n_tail < 2 or n_rows * contamination >= n_tail:
        return float(np.quantile(errors, 1 - contamination, method="higher"))
    level = ordered[-n_tail - 1]
    return float(level + _pareto_excess(ordered[-n_tail:] - level, contamination * n_rows / n_tail))


def _pareto_excess(excesses: Float64Vector, share: float) -> float:
    """The excess that a share of such excesses is above; excesses (n,) ascending, not negative."""
    n_rows = len(excesses)
    mean = excesses.mean()
    weighted = float(np.mean(excesses * (1 - (np.arange(1, n_rows + 1) - 0.35) / n_rows)))
    if mean <= 0 or mean <= 2 * weighted:
        return float(excesses[-1])
    # Beyond these bounds the shape says more about the luck of a small sample than about the tail.
    shape = min(0.5, max(-0.5, 2 - mean / (mean - 2 * weighted)))
    scale = mean * (1 - shape)
    if abs(shape) < 1e-6:
        return float(-scale * math.log(share))
    return float(scale / shape * (share**-shape - 1))
