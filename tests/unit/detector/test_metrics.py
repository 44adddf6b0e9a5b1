"""Figures of a detection, against values worked out by hand and against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from pgoutlier.detector import MetricsError, exceeds
from pgoutlier.detector.metrics import Confusion, confusion, confusion_at, ranking

TRUTH = np.array([True, True, False, True, False, False, False, False])
ERRORS = np.array([9.0, 8.0, 7.0, 6.0, 5.0, 5.0, 2.0, 1.0])

# Few distinct errors, so that ties are common.
cases = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=300).filter(
    lambda rows: len({truth for truth, _ in rows}) == 2
)


def arrays(rows: list[tuple[bool, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([truth for truth, _ in rows]), np.array([error for _, error in rows], dtype=np.float64)


def test_the_figures_of_eight_rows_are_those_worked_out_by_hand() -> None:
    found = ranking(TRUTH, ERRORS)
    assert (found.n_rows, found.n_anomalies, found.prevalence) == (8, 3, 3 / 8)
    # Of the 15 pairs of an anomaly and a normal row one is in the wrong order.
    assert found.auroc == pytest.approx(14 / 15)
    assert found.average_precision == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found.precision_at_100 == pytest.approx(3 / 8)
    assert found.best_f1 == pytest.approx(6 / 7)
    assert (found.best_f1_precision, found.best_f1_recall) == (3 / 4, 1.0)
    assert found.best_f1_threshold == 5.0
    assert found.recall_at_1pct_fpr == pytest.approx(2 / 3)


def test_a_row_at_the_threshold_is_not_flagged() -> None:
    at = confusion_at(TRUTH, ERRORS, 7.0)
    assert at == Confusion(true_positives=2, false_positives=0, false_negatives=1, true_negatives=5)
    assert (at.accuracy, at.precision, at.recall, at.f1) == (7 / 8, 1.0, 2 / 3, 4 / 5)


def test_the_normal_class_has_figures_of_its_own() -> None:
    normal = confusion_at(TRUTH, ERRORS, 7.0).of_normal
    assert (normal.precision, normal.recall) == (5 / 6, 1.0)
    assert normal.f1 == pytest.approx(10 / 11)


def test_where_nothing_is_flagged_there_is_no_precision() -> None:
    none = confusion_at(TRUTH, ERRORS, 9.0)
    assert (none.precision, none.recall, none.f1) == (None, 0.0, 0.0)
    nothing = confusion(np.zeros(3, dtype=bool), np.zeros(3, dtype=bool))
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.accuracy) == (None, None, None, 1.0)


def test_precision_at_100_looks_at_the_100_largest_errors() -> None:
    errors = np.arange(1_000.0)
    truth = np.zeros(1_000, dtype=bool)
    truth[900:930] = truth[:500] = True
    assert ranking(truth, errors).precision_at_100 == pytest.approx(0.3)


def test_rows_of_equal_error_count_in_equal_parts_whatever_their_order() -> None:
    truth = np.arange(1_000) < 100
    errors = np.ones(1_000)
    assert ranking(truth, errors).precision_at_100 == pytest.approx(0.1)
    assert ranking(truth[::-1], errors).precision_at_100 == pytest.approx(0.1)


@given(cases)
def test_threshold_figures_are_those_of_scikit_learn(rows: list[tuple[bool, int]]) -> None:
    truth, errors = arrays(rows)
    at = confusion_at(truth, errors, 3.0)
    flagged = exceeds(errors, 3.0)
    assert metrics.confusion_matrix(truth, flagged).ravel().tolist() == [
        at.true_negatives,
        at.false_positives,
        at.false_negatives,
        at.true_positives,
    ]
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        truth, flagged, average="binary", zero_division=0
    )
    assert (at.precision or 0.0, at.recall, at.f1) == pytest.approx((precision, recall, f1))
    normal = metrics.precision_recall_fscore_support(~truth, ~flagged, average="binary", zero_division=0)[:3]
    assert (at.of_normal.precision or 0.0, at.of_normal.recall, at.of_normal.f1) == pytest.approx(normal)


@given(cases)
def test_no_threshold_has_a_better_f1_or_more_recall_at_one_percent(rows: list[tuple[bool, int]]) -> None:
    truth, errors = arrays(rows)
    found = ranking(truth, errors)
    every = [confusion_at(truth, errors, threshold) for threshold in (-1.0, *np.unique(errors))]
    assert found.best_f1 == pytest.approx(max(at.f1 or 0.0 for at in every))
    few = [at.recall or 0.0 for at in every if at.false_positives <= 0.01 * (~truth).sum()]
    assert found.recall_at_1pct_fpr == pytest.approx(max(few))
    best = confusion_at(truth, errors, found.best_f1_threshold)
    assert (best.f1, best.precision, best.recall) == pytest.approx(
        (found.best_f1, found.best_f1_precision, found.best_f1_recall)
    )


@pytest.mark.parametrize(
    ("truth", "errors", "says"),
    [
        (TRUTH, ERRORS[:3], "one bool for each row"),
        (TRUTH.astype(int), ERRORS, "one bool for each row"),
        (TRUTH[:0], ERRORS[:0], "at least one"),
        (np.ones(8, dtype=bool), ERRORS, "both classes"),
        (TRUTH, np.full(8, np.nan), "not finite"),
    ],
)
def test_figures_that_do_not_exist_are_refused(truth: np.ndarray, errors: np.ndarray, says: str) -> None:
    with pytest.raises(MetricsError, match=says):
        ranking(truth, errors)


def test_flags_must_be_bool() -> None:
    with pytest.raises(MetricsError, match="bool"):
        confusion(TRUTH, ERRORS)
