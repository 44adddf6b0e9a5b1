"""How well errors tell anomalies from normal rows; the anomaly is the positive class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pgoutlier.detector.arrays import BoolVector, Float64Vector
from pgoutlier.detector.errors import MetricsError
from pgoutlier.detector.thresholds import exceeds

TOP_ROWS = 100
FALSE_POSITIVE_RATE = 0.01


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often flags were right, in rows."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def n_rows(self) -> int:
        return self.true_positives + self.false_positives + self.false_negatives + self.true_negatives

    @property
    def accuracy(self) -> float:
        """Share of the rows whose flag is right."""
        return (self.true_positives + self.true_negatives) / self.n_rows

    @property
    def precision(self) -> float | None:
        """Share of the flagged rows that are anomalies; None where nothing is flagged."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """Share of the anomalies that are flagged; None where there is none."""
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None where nothing is flagged and nothing is an anomaly."""
        wrong = self.false_positives + self.false_negatives
        return _share(2 * self.true_positives, 2 * self.true_positives + wrong)

    @property
    def of_normal(self) -> Confusion:
        """The same with the normal rows, those not flagged, as the positive class."""
        return Confusion(
            true_positives=self.true_negatives,
            false_positives=self.false_negatives,
            false_negatives=self.false_positives,
            true_negatives=self.true_positives,
        )


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Figures that need no threshold: how far up the anomalies are when rows are ordered by their error.

    auroc: area under the ROC curve. average_precision: the step-wise area under the precision-recall curve; what
    chance gives is the prevalence. precision_at_100: share of anomalies among the 100 rows (all, if there are
    fewer) with the largest errors, rows of equal error counting in equal parts. best_f1: the largest F1 of any
    threshold, with that threshold. recall_at_1pct_fpr: the largest recall of any threshold that flags at most 1 % of
    the normal rows.
    """

    n_rows: int
    n_anomalies: int
    auroc: float
    average_precision: float
    precision_at_100: float
    best_f1: float
    best_f1_precision: float
    best_f1_recall: float
    best_f1_threshold: float
    recall_at_1pct_fpr: float

    @property
    def prevalence(self) -> float:
        """Share of the rows that are anomalies."""
        return self.n_anomalies / self.n_rows


def confusion(is_anomaly: ArrayLike, flagged: ArrayLike) -> Confusion:
    """Both (n_rows,) bool. Raises MetricsError if they are not, or empty."""
    truth, flags = _checked(is_anomaly, flagged)
    if flags.dtype != np.bool_:
        raise MetricsError(f"Flags must be bool, not {flags.dtype}.")
    return Confusion(
        true_positives=int((truth & flags).sum()),
        false_positives=int((~truth & flags).sum()),
        false_negatives=int((truth & ~flags).sum()),
        true_negatives=int((~truth & ~flags).sum()),
    )


def confusion_at(is_anomaly: ArrayLike, errors: ArrayLike, threshold: float) -> Confusion:
    """What flagging the errors (n_rows,) above the threshold gives. Raises MetricsError as `confusion`."""
    return confusion(is_anomaly, exceeds(np.asarray(errors, dtype=np.float64), threshold))


def ranking(is_anomaly: ArrayLike, errors: ArrayLike) -> Ranking:
    """The figures of errors (n_rows,), finite, whose truth (n_rows,) bool is known.

    Raises MetricsError if the shapes differ, an error is not finite, or the rows are all of one class.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    truth, values = _checked(is_anomaly, np.asarray(errors, dtype=np.float64))
    if not np.isfinite(values).all():
        raise MetricsError("Some errors are not finite, so the rows cannot be put in order.")
    n_anomalies = int(truth.sum())
    if not 0 < n_anomalies < len(truth):
        raise MetricsError(
            f"{n_anomalies} of the {len(truth)} rows are anomalies; figures need rows of both classes."
        )
    # Points on a straight piece of the curve are kept: the one wanted may be one of them.
    false_rate, recall, _ = roc_curve(truth, values, drop_intermediate=False)
    best, best_threshold = _best_f1(truth, values)
    return Ranking(
        n_rows=len(truth),
        n_anomalies=n_anomalies,
        auroc=float(roc_auc_score(truth, values)),
        average_precision=float(average_precision_score(truth, values)),
        precision_at_100=precision_of_top(truth, values, TOP_ROWS),
        best_f1=best.f1 or 0.0,
        best_f1_precision=best.precision or 0.0,
        best_f1_recall=best.recall or 0.0,
        best_f1_threshold=best_threshold,
        recall_at_1pct_fpr=float(recall[false_rate <= FALSE_POSITIVE_RATE].max()),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _checked(is_anomaly: ArrayLike, values: ArrayLike) -> tuple[BoolVector, np.ndarray]:
    truth, array = np.asarray(is_anomaly), np.asarray(values)
    if truth.dtype != np.bool_ or truth.ndim != 1 or array.shape != truth.shape or not len(truth):
        raise MetricsError(
            f"The truth must be one bool for each row, and the rows at least one; got {truth.dtype} of shape "
            f"{truth.shape} for {array.shape}."
        )
    return truth, array


def _best_f1(truth: BoolVector, errors: Float64Vector) -> tuple[Confusion, float]:
    """The best confusion of any threshold, and that threshold: the largest error that is not flagged by it."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, lowest_flagged = precision_recall_curve(truth, errors)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    lowest = lowest_flagged[int(np.argmax(f1[:-1]))]
    below = errors[errors < lowest]
    threshold = float(below.max() if len(below) else np.nextafter(lowest, -np.inf))
    return confusion_at(truth, errors, threshold), threshold


def precision_of_top(truth: BoolVector, errors: Float64Vector, n_top: int) -> float:
    """The share of anomalies among the n_top rows with the largest errors, rows of equal error in equal parts."""
    n_top = min(n_top, len(errors))
    last = np.partition(errors, -n_top)[-n_top]
    above, tied = errors > last, errors == last
    return float((truth[above].sum() + (n_top - above.sum()) * truth[tied].mean()) / n_top)
