"""What each threshold policy promises, held against every threshold there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgoutlier.detector import InvalidRecipe, TrainingDataError, exceeds, fit, parse_threshold, threshold_text
from pgoutlier.detector.recipes import (
    AlertBudgetThreshold,
    FixedThreshold,
    MaxF1Threshold,
    MeanStdThreshold,
    QuantileThreshold,
    Split,
    TargetPrecisionThreshold,
    TargetRecallThreshold,
    ThresholdPolicy,
)
from pgoutlier.detector.thresholds import (
    alert_budget,
    choose_threshold,
    max_f1,
    precision_equals_recall,
    target_precision,
    target_recall,
)
from tests.unit.detector.conftest import NAMES, small_recipe, table
from tests.unit.detector.strategies import UNHURRIED

ROUNDING = 1e-6


@dataclass(frozen=True)
class Rows:
    """Rows with few different errors, so that many are equal."""

    errors: np.ndarray
    positive: np.ndarray
    weights: np.ndarray

    def figures(self, threshold: float) -> tuple[float, float, float]:
        """Weight of the flagged rows; precision, 0 if none is flagged; recall."""
        flagged = exceeds(self.errors, threshold)
        n_flagged, n_hits = self.weights[flagged].sum(), self.weights[flagged & self.positive].sum()
        return n_flagged, n_hits / n_flagged if n_flagged else 0.0, n_hits / self.n_positive

    @property
    def n_positive(self) -> float:
        return float(self.weights[self.positive].sum())

    @property
    def thresholds(self) -> list[float]:
        """One for every set of rows that can be flagged, rising."""
        return [-1.0, *np.unique(self.errors)]


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    n_rows = draw(st.integers(1, 30))

    def vector(elements: st.SearchStrategy[object]) -> np.ndarray:
        return np.array(draw(st.lists(elements, min_size=n_rows, max_size=n_rows)))

    positive = vector(st.booleans())
    positive[draw(st.integers(0, n_rows - 1))] = True
    weight = draw(st.sampled_from([1.0, 0.3, 0.25, 1 / 3]))
    return Rows(
        errors=vector(st.integers(0, 12)).astype(np.float64),
        positive=positive,
        weights=np.where(positive, weight, 1.0),
    )


@UNHURRIED
@given(rows(), st.floats(0.01, 1.0))
def test_target_precision_is_the_lowest_threshold_that_keeps_its_promise(rows: Rows, share: float) -> None:
    reaching = [t for t in rows.thresholds if rows.figures(t)[1] >= share]
    if not reaching:
        with pytest.raises(TrainingDataError, match=r"No threshold has a precision of .* the best one "):
            target_precision(rows.errors, rows.positive, share + ROUNDING, weights=rows.weights)
        return
    threshold = target_precision(rows.errors, rows.positive, share, weights=rows.weights)
    assert rows.figures(threshold)[1] >= share - ROUNDING
    assert rows.figures(threshold)[0] >= rows.figures(reaching[0])[0]


@UNHURRIED
@given(rows(), st.floats(0.01, 1.0))
def test_target_recall_is_the_highest_threshold_that_keeps_its_promise(rows: Rows, share: float) -> None:
    threshold = target_recall(rows.errors, rows.positive, share, weights=rows.weights)
    reaching = [t for t in rows.thresholds if rows.figures(t)[2] >= share]
    assert rows.figures(threshold)[2] >= share - ROUNDING
    assert rows.figures(threshold)[0] <= rows.figures(reaching[-1])[0]


@UNHURRIED
@given(rows())
def test_no_threshold_has_a_larger_f1(rows: Rows) -> None:
    def f1(threshold: float) -> float:
        _, precision, recall = rows.figures(threshold)
        return 2 * precision * recall / (precision + recall) if precision else 0.0

    found = f1(max_f1(rows.errors, rows.positive, weights=rows.weights))
    assert found >= max(map(f1, rows.thresholds)) - ROUNDING


@UNHURRIED
@given(rows())
def test_precision_equals_recall_as_nearly_as_equal_errors_allow(rows: Rows) -> None:
    threshold = precision_equals_recall(rows.errors, rows.positive, weights=rows.weights)
    n_flagged, precision, recall = rows.figures(threshold)
    nearest = min(abs(rows.figures(t)[0] - rows.n_positive) for t in rows.thresholds)
    assert abs(n_flagged - rows.n_positive) == pytest.approx(nearest)
    if n_flagged == rows.n_positive:
        assert precision == recall


@UNHURRIED
@given(rows(), st.floats(0.01, 40.0), st.floats(0.1, 100.0))
def test_an_alert_budget_is_never_overspent_and_no_lower_threshold_keeps_it(
    rows: Rows, flags_per_day: float, rows_per_day: float
) -> None:
    threshold = alert_budget(
        rows.errors, flags_per_day=flags_per_day, rows_per_day=rows_per_day, weights=rows.weights
    )
    allowed = flags_per_day / rows_per_day * rows.weights.sum()
    assert rows.figures(threshold)[0] <= allowed + ROUNDING
    within = [t for t in rows.thresholds if rows.figures(t)[0] <= allowed]
    assert rows.figures(threshold)[0] >= rows.figures(within[0])[0]


@UNHURRIED
@given(rows(), st.sampled_from([0.5, 0.8]))
def test_a_weight_of_two_is_a_row_that_is_there_twice(rows: Rows, share: float) -> None:
    twice = np.repeat(np.arange(len(rows.errors)), np.where(rows.positive, 2, 1))
    weights = np.where(rows.positive, 2.0, 1.0)
    policies: list[Callable[..., float]] = [
        precision_equals_recall,
        max_f1,
        lambda errors, positive, weights=None: target_recall(errors, positive, share, weights=weights),
    ]
    for policy in policies:
        assert policy(rows.errors, rows.positive, weights=weights) == policy(
            rows.errors[twice], rows.positive[twice]
        )


@pytest.mark.parametrize(
    "policy",
    [precision_equals_recall, max_f1, lambda e, p: target_recall(e, p, 0.5)],
    ids=["precision_equals_recall", "max_f1", "target_recall"],
)
def test_without_an_anomaly_there_is_nothing_to_choose_by(policy: Callable[..., float]) -> None:
    with pytest.raises(TrainingDataError, match="needs labelled anomalies and there are none"):
        policy(np.array([1.0, 2.0]), np.array([False, False]))


@pytest.mark.parametrize("policy", [MaxF1Threshold(), AlertBudgetThreshold(flags_per_day=5)])
def test_a_policy_without_the_rows_it_needs_is_refused(policy: ThresholdPolicy) -> None:
    errors = np.array([1.0, 2.0])
    with pytest.raises(TrainingDataError, match="needs"):
        choose_threshold(policy, calibration_errors=errors, fit_errors=errors)


POLICIES: st.SearchStrategy[ThresholdPolicy] = st.one_of(
    st.builds(FixedThreshold, value=st.floats(0, 1e12)),
    st.builds(MeanStdThreshold, k=st.floats(-10, 100)),
    st.builds(QuantileThreshold, contamination=st.floats(0, 0.5, exclude_min=True, exclude_max=True)),
    st.builds(AlertBudgetThreshold, flags_per_day=st.floats(0, 1e9, exclude_min=True)),
    st.builds(TargetPrecisionThreshold, precision=st.floats(0, 1, exclude_min=True)),
    st.builds(TargetRecallThreshold, recall=st.floats(0, 1, exclude_min=True)),
    st.sampled_from([parse_threshold("max_f1"), parse_threshold("precision_equals_recall")]),
)


@UNHURRIED
@given(POLICIES)
def test_a_policy_is_read_back_from_its_text(policy: ThresholdPolicy) -> None:
    assert parse_threshold(threshold_text(policy)) == policy


@settings(parent=UNHURRIED, max_examples=50)
@given(
    st.text(max_size=30)
    | st.tuples(
        st.sampled_from(["fixed", "quantile", "max_f1", "target_recall", "alert_budget", "mean_std", "x"]),
        st.sampled_from(["", ":", "::", "="]),
        st.floats().map(str) | st.integers().map(str) | st.text(max_size=5),
    ).map("".join)
)
def test_any_text_is_a_policy_or_is_refused_in_one_sentence(text: str) -> None:
    try:
        policy = parse_threshold(text)
    except InvalidRecipe as error:
        refusal = str(error)
    else:
        refusal = None
        assert parse_threshold(threshold_text(policy)) == policy
    assert refusal is None or refusal.endswith(".")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("median", "There is no threshold policy 'median'; write one of: quantile:SHARE, "),
        ("quantile", "'quantile' names no number; write quantile:SHARE."),
        ("quantile:0.7", "'quantile:0.7' cannot be used: Input should be less than 0.5."),
        ("target_recall:1.1", "less than or equal to 1"),
        ("alert_budget:0", "greater than 0"),
        ("fixed:nan", "finite number"),
        ("max_f1:2", "max_f1 takes no number; write max_f1 alone."),
    ],
)
def test_a_policy_that_cannot_be_is_refused_with_its_reason(text: str, says: str) -> None:
    with pytest.raises(InvalidRecipe) as raised:
        parse_threshold(text)
    assert says in str(raised.value)


def labelled_table(n_rows: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """(features, is anomaly): one row in twenty is moved, some of them far, some hardly."""
    features = table(n_rows)
    is_anomaly = np.arange(n_rows) % 20 == 3
    features[is_anomaly] *= np.geomspace(1.0, 50.0, is_anomaly.sum())[:, None]
    return features, is_anomaly


@pytest.mark.parametrize("order", ["time", "random"])
def test_anomalies_are_as_frequent_among_the_calibration_rows_as_in_the_data(order: str) -> None:
    features, is_anomaly = labelled_table()
    recipe = small_recipe(
        split=Split(fit_fraction=0.7, order=order),
        # As many flags as rows, so that the precision is the prevalence.
        threshold=AlertBudgetThreshold(flags_per_day=1),
        epochs=1,
        early_stopping=None,
    )
    metrics = fit(recipe, features, NAMES, normal=~is_anomaly, rows_per_day=1.0).metrics
    assert metrics["n_not_normal"] == is_anomaly.sum()
    assert metrics["calibration_recall"] == 1.0
    assert metrics["calibration_precision"] == pytest.approx(is_anomaly.mean(), rel=0.02)


def test_a_fit_keeps_what_its_policy_promises() -> None:
    features, is_anomaly = labelled_table()

    def metrics(threshold: str, **data: object) -> dict[str, float]:
        recipe = small_recipe(threshold=parse_threshold(threshold), epochs=1, early_stopping=None)
        return fit(recipe, features, NAMES, normal=~is_anomaly, **data).metrics  # type: ignore[arg-type]

    assert metrics("target_precision:0.8")["calibration_precision"] >= 0.8
    spent = metrics("alert_budget:6", rows_per_day=600.0)
    n_flagged = (
        spent["calibration_flag_rate"] * spent["n_calibration"]
        + spent["not_normal_flag_rate"] * spent["n_not_normal"] * 0.3
    )
    assert n_flagged <= 0.01 * (spent["n_calibration"] + spent["n_not_normal"] * 0.3)


def test_rows_that_are_neither_normal_nor_anomalous_count_as_false_alarms() -> None:
    features, is_anomaly = labelled_table()
    recipe = small_recipe(threshold=TargetPrecisionThreshold(precision=0.8), epochs=1, early_stopping=None)
    strange = np.arange(len(features)) % 20 == 7
    features[strange] *= 30.0
    normal = ~is_anomaly & ~strange
    as_false_alarms = fit(recipe, features, NAMES, normal=normal, anomalous=is_anomaly)
    as_hits = fit(recipe, features, NAMES, normal=normal)
    assert as_false_alarms.detector.threshold > as_hits.detector.threshold
    assert as_false_alarms.metrics["calibration_precision"] >= 0.8


@pytest.mark.parametrize(
    ("threshold", "data", "says"),
    [
        ("max_f1", {}, "needs labelled anomalies and there are none"),
        ("max_f1", {"normal": np.ones(300, dtype=bool)}, "needs labelled anomalies and there are none"),
        ("alert_budget:5", {}, "needs to know how many rows a day brings"),
        ("alert_budget:5", {"rows_per_day": 0.0}, "needs to know how many rows a day brings"),
        ("fixed:1", {"anomalous": np.ones(300, dtype=bool)}, "true only where normal is false"),
        ("fixed:1", {"anomalous": np.zeros(299, dtype=bool)}, "one bool for each of the 300 rows"),
    ],
)
def test_labels_or_rates_that_are_missing_or_wrong_are_refused_before_the_fit(
    threshold: str, data: dict[str, object], says: str
) -> None:
    def never(progress: object) -> None:
        raise AssertionError("the network was fitted")

    recipe = small_recipe(threshold=parse_threshold(threshold))
    with pytest.raises(TrainingDataError, match=says) as raised:
        fit(recipe, table(300), NAMES, on_progress=never, **data)  # type: ignore[arg-type]
    assert str(raised.value).endswith(".")
