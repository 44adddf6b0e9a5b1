"""When is a row flagged: the threshold policies, and the one comparison.

The policies that count rows, with labels or for an alert budget, choose among the errors that occur and one
number just below them all: between two of these no other threshold flags other rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pgoutlier.detector.arrays import BoolVector, Float64Vector
from pgoutlier.detector.errors import TrainingDataError
from pgoutlier.detector.recipes import (
    AlertBudgetThreshold,
    FixedThreshold,
    LabelledThreshold,
    MaxF1Threshold,
    MeanStdThreshold,
    TargetPrecisionThreshold,
    TargetRecallThreshold,
    ThresholdPolicy,
)

# Fewer exceedances than this make an empirical quantile too noisy; then the tail is extrapolated.
MIN_EXCEEDANCES = 10
# Sums of weights are off by less than this share of themselves; a target is met if it is met but for that.
_ROUNDING = 1e-9


def exceeds(errors: Float64Vector, threshold: float) -> BoolVector:
    """Which rows are flagged: those whose error is above the threshold, not those exactly at it.

    errors: (n_rows,) reconstruction errors. Returns (n_rows,) bool.
    """
    return np.greater(errors, threshold)


@dataclass(frozen=True, eq=False)
class AllRows:
    """Rows that nothing was fitted on, normal and other ones, as many of each as the data have.

    errors: (n,). anomalous: (n,) bool. weights: (n,), positive, how many rows each of them stands for.
    rows_per_day: of the data, for an alert budget; None where it is not known.
    """

    errors: Float64Vector
    anomalous: BoolVector
    weights: Float64Vector
    rows_per_day: float | None = None


def choose_threshold(
    policy: ThresholdPolicy,
    *,
    calibration_errors: Float64Vector,
    fit_errors: Float64Vector,
    all_rows: AllRows | None = None,
) -> float:
    """The threshold that the policy draws from the errors (each (n,), at least one).

    all_rows: for the policies that need labels, and for alert budgets. Raises TrainingDataError where they
    are missing, or where no threshold gives the precision asked for.
    """
    if isinstance(policy, FixedThreshold):
        return policy.value
    if isinstance(policy, MeanStdThreshold):
        errors = fit_errors if policy.rows == "fit" else calibration_errors
        return float(errors.mean() + policy.k * errors.std())
    if isinstance(policy, AlertBudgetThreshold):
        if all_rows is None or all_rows.rows_per_day is None:
            raise unknown_rate()
        return alert_budget(
            all_rows.errors,
            flags_per_day=policy.flags_per_day,
            rows_per_day=all_rows.rows_per_day,
            weights=all_rows.weights,
        )
    if isinstance(policy, LabelledThreshold):
        if all_rows is None:
            raise no_anomalies()
        return _by_labels(policy, all_rows)
    return upper_quantile(calibration_errors, policy.contamination)


def _by_labels(policy: LabelledThreshold, rows: AllRows) -> float:
    labelled = rows.errors, rows.anomalous
    if isinstance(policy, MaxF1Threshold):
        return max_f1(*labelled, weights=rows.weights)
    if isinstance(policy, TargetPrecisionThreshold):
        return target_precision(*labelled, policy.precision, weights=rows.weights)
    if isinstance(policy, TargetRecallThreshold):
        return target_recall(*labelled, policy.recall, weights=rows.weights)
    return precision_equals_recall(*labelled, weights=rows.weights)


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


@dataclass(frozen=True, eq=False)
class _Cuts:
    """Every set of rows that some threshold flags, the smallest first.

    thresholds: (m,), falling: each error that occurs, and one below them all. flagged, hits: (m,), weight of
    the rows above each threshold, and of the anomalies among them.
    """

    thresholds: Float64Vector
    flagged: Float64Vector
    hits: Float64Vector


def _cuts(errors: Float64Vector, positive: BoolVector, weights: Float64Vector | None) -> _Cuts:
    order = np.argsort(-errors, kind="stable")
    falling = errors[order]
    weight = np.ones(len(errors)) if weights is None else weights[order]
    thresholds = np.append(falling, np.nextafter(falling[-1], -np.inf))
    # Rows of equal error are flagged together, by the next lower threshold.
    first_of_equals = np.append(True, thresholds[1:] < thresholds[:-1])
    flagged = np.append(0.0, np.cumsum(weight))
    hits = np.append(0.0, np.cumsum(weight * positive[order]))
    return _Cuts(thresholds[first_of_equals], flagged[first_of_equals], hits[first_of_equals])


def _labelled_cuts(errors: Float64Vector, positive: BoolVector, weights: Float64Vector | None) -> _Cuts:
    if not positive.any():
        raise no_anomalies()
    return _cuts(errors, positive, weights)


def no_anomalies() -> TrainingDataError:
    """What to raise where a policy needs labelled anomalies and there are none."""
    return TrainingDataError(
        "The threshold policy needs labelled anomalies and there are none among these rows; label some, or use"
        " a policy without labels, such as quantile."
    )


def unknown_rate() -> TrainingDataError:
    """What to raise where an alert budget is asked for and the number of rows a day is not known."""
    return TrainingDataError(
        "The threshold policy alert_budget needs to know how many rows a day brings, and these rows do not tell;"
        " train on rows of several moments, or use a policy without a budget, such as quantile."
    )


def precision_equals_recall(
    errors: Float64Vector, positive: BoolVector, *, weights: Float64Vector | None = None
) -> float:
    """The threshold that flags as many rows as there are anomalies.

    Precision is hits / flagged and recall hits / anomalies, so the two are equal there. Where equal errors do
    not let it flag just as many, it flags as near to that many as can be, of two as near the fewer.
    errors: (n,), at least one. positive: (n,) bool, the anomalies. weights: (n,), positive, how many rows each
    row stands for; None counts each once. Raises TrainingDataError without an anomaly.
    """
    cuts = _labelled_cuts(errors, positive, weights)
    return float(cuts.thresholds[np.argmin(np.abs(cuts.flagged - cuts.hits[-1]))])


def max_f1(errors: Float64Vector, positive: BoolVector, *, weights: Float64Vector | None = None) -> float:
    """The threshold with the largest F1 = 2 hits / (flagged + anomalies), of several the highest.

    Arguments and errors raised as for `precision_equals_recall`.
    """
    cuts = _labelled_cuts(errors, positive, weights)
    return float(cuts.thresholds[np.argmax(cuts.hits / (cuts.flagged + cuts.hits[-1]))])


def target_precision(
    errors: Float64Vector, positive: BoolVector, precision: float, *, weights: Float64Vector | None = None
) -> float:
    """The lowest threshold whose hits / flagged is at least `precision`.

    Arguments as for `precision_equals_recall`. Raises TrainingDataError without an anomaly, and if no
    threshold gives that precision.
    """
    cuts = _labelled_cuts(errors, positive, weights)
    found = np.flatnonzero((cuts.hits > 0) & (cuts.hits >= precision * cuts.flagged * (1 - _ROUNDING)))
    if not len(found):
        best = float(np.max(cuts.hits[1:] / cuts.flagged[1:]))
        raise TrainingDataError(
            f"No threshold has a precision of {precision:g} on the calibration rows, the best one {best:.3g};"
            " ask for less, or use another threshold policy."
        )
    return float(cuts.thresholds[found[-1]])


def target_recall(
    errors: Float64Vector, positive: BoolVector, recall: float, *, weights: Float64Vector | None = None
) -> float:
    """The highest threshold whose hits / anomalies is at least `recall`.

    Arguments and errors raised as for `precision_equals_recall`.
    """
    cuts = _labelled_cuts(errors, positive, weights)
    return float(cuts.thresholds[np.argmax(cuts.hits >= recall * cuts.hits[-1] * (1 - _ROUNDING))])


def alert_budget(
    errors: Float64Vector,
    *,
    flags_per_day: float,
    rows_per_day: float,
    weights: Float64Vector | None = None,
) -> float:
    """The lowest threshold that flags at most the share flags_per_day / rows_per_day of these rows.

    errors, weights: as for `precision_equals_recall`. rows_per_day: positive, of the data they are drawn from.
    """
    cuts = _cuts(errors, np.zeros(len(errors), dtype=bool), weights)
    allowed = cuts.flagged[-1] * flags_per_day / rows_per_day
    return float(cuts.thresholds[np.flatnonzero(cuts.flagged <= allowed * (1 + _ROUNDING))[-1]])
