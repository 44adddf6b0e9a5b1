from __future__ import annotations

import threading

import numpy as np
import pytest

from pgoutlier.detector import (
    Detector,
    FeatureMismatch,
    FitResult,
    NonFiniteFeatures,
    exceeds,
    fit,
    top_features,
)
from pgoutlier.detector.scorer import BLOCK_ROWS
from tests.unit.detector.conftest import N_FEATURES, NAMES, small_recipe, table


def far_out(rows: np.ndarray) -> np.ndarray:
    """The rows and, below them, the same rows up to a million times as large."""
    return np.concatenate([rows, rows * 1e2, rows * 1e6])


def test_the_compiled_score_agrees_with_the_numpy_reference(fitted: FitResult) -> None:
    features = far_out(table(300, seed=1))
    fast, slow = fitted.detector.score(features), fitted.detector.numpy_score(features)
    np.testing.assert_allclose(fast.reconstruction_error, slow.reconstruction_error, rtol=1e-5)
    largest = slow.contributions.max(axis=1, keepdims=True)
    np.testing.assert_allclose(fast.contributions / largest, slow.contributions / largest, atol=1e-5)


def test_contributions_are_not_negative_and_sum_to_the_error(fitted: FitResult) -> None:
    scores = fitted.detector.score(far_out(table(300, seed=2)))
    assert (scores.contributions >= 0).all()
    sums = scores.contributions.astype(np.float64).sum(axis=1)
    np.testing.assert_allclose(sums, scores.reconstruction_error, rtol=1e-5)


def test_shapes_and_dtypes_are_as_documented_for_no_row_one_row_and_many(fitted: FitResult) -> None:
    features = table(BLOCK_ROWS + 7, seed=3)
    whole = fitted.detector.score(features)
    for n_rows in (0, 1, len(features)):
        scores = fitted.detector.score(features[:n_rows])
        assert scores.reconstruction_error.shape == (n_rows,)
        assert scores.reconstruction_error.dtype == np.float64
        assert scores.contributions.shape == (n_rows, N_FEATURES)
        assert scores.contributions.dtype == np.float32
        np.testing.assert_allclose(
            scores.reconstruction_error, whole.reconstruction_error[:n_rows], rtol=1e-5
        )


def test_a_row_of_huge_values_has_a_finite_error_above_any_other(fitted: FitResult) -> None:
    detector = fitted.detector
    ordinary = detector.score(table(200, seed=4)).reconstruction_error
    for value in (1e300, -1e300, np.finfo(np.float64).max):
        scores = detector.score(np.full((1, N_FEATURES), value))
        assert np.isfinite(scores.reconstruction_error).all()
        assert np.isfinite(scores.contributions).all()
        if not any(step.step == "clip" for step in detector.recipe.preprocessing):
            assert scores.reconstruction_error[0] > ordinary.max()


def test_rows_with_nan_or_infinity_are_named(fitted_small: FitResult) -> None:
    features = table(10)
    features[3, 2], features[7, 5], features[7, 1] = np.nan, np.inf, -np.inf
    with pytest.raises(NonFiniteFeatures, match="2 rows") as raised:
        fitted_small.detector.score(features)
    np.testing.assert_array_equal(raised.value.rows, [3, 7])
    np.testing.assert_array_equal(raised.value.columns, [2, 1])


@pytest.mark.parametrize("shape", [(4, N_FEATURES - 1), (4, N_FEATURES + 1), (N_FEATURES,), (0, 1), ()])
def test_another_number_of_columns_is_refused(fitted_small: FitResult, shape: tuple[int, ...]) -> None:
    with pytest.raises(FeatureMismatch, match="fitted on 6 features"):
        fitted_small.detector.score(np.zeros(shape))


def test_a_missing_value_scores_as_the_training_median() -> None:
    detector = fit(small_recipe(missing="median"), table(400), NAMES).detector
    gaps, filled = table(5, seed=5), table(5, seed=5)
    gaps[1, 3], gaps[2, 0] = np.nan, np.inf
    filled[1, 3], filled[2, 0] = detector.arrays["missing.median"][[3, 0]]
    np.testing.assert_array_equal(
        detector.score(gaps).reconstruction_error, detector.score(filled).reconstruction_error
    )


def test_a_row_exactly_at_the_threshold_is_not_flagged() -> None:
    errors = np.array([1.0, np.nextafter(1.0, 2.0), np.nextafter(1.0, 0.0)])
    np.testing.assert_array_equal(exceeds(errors, threshold=1.0), [False, True, False])


def test_the_top_contributor_is_the_feature_that_was_moved() -> None:
    independent = np.random.default_rng(0).normal(size=(2000, N_FEATURES))
    recipe = small_recipe(error_metric="mahalanobis", join_input=True)
    detector = fit(recipe, independent, NAMES).detector
    moved = independent[:N_FEATURES].copy()
    moved[np.arange(N_FEATURES), np.arange(N_FEATURES)] += 12.0
    indices, _ = top_features(detector.score(moved).contributions, 1)
    np.testing.assert_array_equal(indices[:, 0], np.arange(N_FEATURES))


def test_a_dropped_feature_neither_changes_the_error_nor_contributes() -> None:
    recipe = small_recipe(preprocessing=({"step": "drop_columns", "names": ("f1",)}, {"step": "standardise"}))
    detector = fit(recipe, table(400), NAMES).detector
    features = table(5, seed=6)
    before = detector.score(features)
    features[:, 1] *= -1000
    after = detector.score(features)
    np.testing.assert_array_equal(after.reconstruction_error, before.reconstruction_error)
    assert (after.contributions[:, 1] == 0).all()
    assert detector.preprocess(features).shape == (5, N_FEATURES - 1)


def test_top_features_are_the_largest_in_falling_order() -> None:
    contributions = np.array([[0.1, 5.0, 3.0, 4.0], [9.0, 0.0, 1.0, 2.0]], dtype=np.float32)
    indices, values = top_features(contributions, 3)
    np.testing.assert_array_equal(indices, [[1, 3, 2], [0, 3, 2]])
    np.testing.assert_array_equal(values, np.array([[5, 4, 3], [9, 2, 1]], dtype=np.float32))
    assert top_features(contributions, 9)[0].shape == (2, 4)
    assert top_features(contributions[:0], 2)[0].shape == (0, 2)


def test_reconstruction_and_preprocessing_give_the_error_back() -> None:
    detector = fit(small_recipe(), table(400), NAMES).detector
    features = table(50, seed=7)
    residual = detector.preprocess(features) - detector.reconstruct(features)
    np.testing.assert_allclose(
        np.square(residual).mean(axis=1), detector.score(features).reconstruction_error, rtol=1e-3
    )


def test_threads_that_score_at_once_with_one_detector_all_get_the_same(fitted_small: FitResult) -> None:
    source = fitted_small.detector
    # A copy that nobody has compiled yet, so that the threads race for that too.
    detector = Detector(source.recipe, source.feature_names, source.arrays, source.threshold)
    features = table(3000, seed=8)
    expected = source.score(features).reconstruction_error
    barrier, results = threading.Barrier(4), []

    def work() -> None:
        barrier.wait()
        for _ in range(5):
            results.append(detector.score(features).reconstruction_error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_a_detector_cannot_be_changed(fitted_small: FitResult) -> None:
    with pytest.raises(AttributeError):
        fitted_small.detector.threshold = 0.0
    with pytest.raises(ValueError, match="read-only"):
        fitted_small.detector.arrays["layer.0.bias"][0] = 1.0
