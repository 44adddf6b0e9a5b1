"""The gate: what it measures on held-out rows, and what it finds wrong with a version."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pgoutlier.detector import Detector, fit, gate
from pgoutlier.detector.fit_result import FitResult
from pgoutlier.detector.recipes import QuantileThreshold
from tests.unit.detector.conftest import small_recipe

N_ROWS, N_HELD_OUT = 3_000, 1_000
NAMES = ("a", "b", "c")


def rows_of(n_fraud: int = 0, *, shift: float = 6.0) -> gate.Rows:
    """Rows without frauds but for the last of the hold-out, which are far out in the first feature."""
    matrix = np.random.default_rng(0).normal(size=(N_ROWS, 3))
    fraud = np.arange(N_ROWS) >= N_ROWS - n_fraud
    matrix[fraud, 0] += shift
    return gate.Rows(matrix, ~fraud, fraud, N_HELD_OUT)


@pytest.fixture(scope="module")
def fitted() -> FitResult:
    recipe = small_recipe(
        error_metric="mahalanobis", join_input=True, threshold=QuantileThreshold(contamination=0.01)
    )
    return fit(recipe, rows_of().matrix[:-N_HELD_OUT], NAMES)


def judged(
    fitted: FitResult, rows: gate.Rows, *, new: Detector | None = None, champion: Detector | None = None
) -> gate.Judgement:
    return gate.judge(
        new or fitted.detector,
        champion,
        rows,
        calibration_errors=fitted.calibration_errors,
        most_flagged=0.3,
    )


def blind(detector: Detector) -> Detector:
    """The same with whitening that does not see the first feature."""
    arrays = dict(detector.arrays)
    whitening = arrays["residual.whitening"].copy()
    whitening[[0, 3]] = 0.0
    whitening[:, [0, 3]] = 0.0
    return Detector(detector.recipe, NAMES, {**arrays, "residual.whitening": whitening}, detector.threshold)


def with_threshold(detector: Detector, threshold: float) -> Detector:
    return Detector(detector.recipe, NAMES, dict(detector.arrays), threshold)


def test_a_sound_version_has_nothing_against_it(fitted: FitResult) -> None:
    found = judged(fitted, rows_of())
    assert (found.refused, found.worse, found.decided_by) == ([], [], "proxies")
    assert found.champion_not_measured == "there is none"


def test_a_version_that_finds_more_fraud_than_the_champion_is_better(fitted: FitResult) -> None:
    rows = rows_of(20)
    found = judged(fitted, rows, champion=blind(fitted.detector))
    assert (found.decided_by, found.worse) == ("labels", [])
    assert found.new["average_precision"] > found.champion["average_precision"]
    other_way = judged(fitted, rows, new=blind(fitted.detector), champion=fitted.detector)
    assert any("the champion's" in sentence for sentence in other_way.worse)
    assert "the baseline without a network" in other_way.note


def test_a_version_that_is_just_as_good_as_the_champion_is_not_better(fitted: FitResult) -> None:
    found = judged(fitted, rows_of(20), champion=fitted.detector)
    assert found.worse == ["it is no better than the champion"]


def test_too_few_frauds_decide_nothing(fitted: FitResult) -> None:
    found = judged(fitted, rows_of(gate.MIN_FRAUD - 1), champion=blind(fitted.detector))
    assert found.decided_by == "proxies"
    assert "average_precision" not in found.new


def test_rows_of_which_nobody_knows_more_than_that_they_are_flagged_have_no_part(fitted: FitResult) -> None:
    rows = rows_of(20)
    unknown = np.zeros(N_ROWS, dtype=bool)
    unknown[-120:-20] = True
    rows.matrix[unknown, 0] += 60
    some = replace(rows, normal=rows.normal & ~unknown)
    assert judged(fitted, some).new["average_precision"] > 0.9
    assert judged(fitted, rows).new["average_precision"] < 0.3


def test_a_version_that_flags_too_much_is_refused(fitted: FitResult) -> None:
    low = with_threshold(fitted.detector, float(np.quantile(fitted.calibration_errors, 0.5)))
    assert "of the hold-out, above 30.00%" in judged(fitted, rows_of(), new=low).refused[0]


def test_a_hold_out_unlike_the_calibration_speaks_against_a_version_without_labels(fitted: FitResult) -> None:
    rows = rows_of()
    rows.matrix[-N_HELD_OUT:] *= 2
    worse = judged(fitted, rows).worse
    assert any("PSI" in sentence for sentence in worse)
    assert any("of the calibration rows" in sentence for sentence in worse)


def test_a_silent_feature_speaks_against_a_version(fitted: FitResult) -> None:
    assert "a has no part in any error" in judged(fitted, rows_of(), new=blind(fitted.detector)).worse


def test_a_champion_of_other_features_is_not_measured(fitted: FitResult) -> None:
    other = fit(small_recipe(), rows_of().matrix[:500, :2], NAMES[:2]).detector
    found = judged(fitted, rows_of(), champion=other)
    assert found.champion is None
    assert "features" in found.champion_not_measured


def test_the_baseline_takes_gaps_and_constant_features(fitted: FitResult) -> None:
    rows = rows_of(20)
    rows.matrix[::7, 1] = np.nan
    rows.matrix[:, 2] = 5.0
    errors = gate._baseline_errors(rows)
    assert np.isfinite(errors).all()
    assert errors[-20:].min() > np.median(errors)
