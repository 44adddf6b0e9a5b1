"""Rows that are scored with the rows before them: windows, the published recipe, and what it is fitted on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgoutlier.detector import (
    Detector,
    FitResult,
    NonFiniteFeatures,
    Recipe,
    TrainingDataError,
    WindowMismatch,
    expected_arrays,
    fit,
    recipe_named,
    reference,
    top_features,
    window_positions,
)
from pgoutlier.detector.cleaning import isolation_forest_outliers
from pgoutlier.detector.recipes import Pca, Recurrent
from pgoutlier.detector.recurrent import build_recurrent
from tests.unit.detector.conftest import N_FEATURES, NAMES, RECIPES_TO_CHECK, table

SMALL = RECIPES_TO_CHECK["windows"]


@pytest.fixture(scope="module")
def published() -> FitResult:
    return fit(recipe_named("iforest-lstm-32-16").model_copy(update={"epochs": 1}), table(600), NAMES)


def random_arrays(recipe: Recipe) -> dict[str, np.ndarray]:
    """Of a detector that nobody has fitted."""
    random = np.random.default_rng(0)
    return {
        name: np.asarray(np.abs(random.normal(scale=0.3, size=shape)), dtype)
        for name, (shape, dtype) in expected_arrays(recipe, N_FEATURES).items()
    }


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 6))
def test_a_window_holds_the_rows_before_in_the_same_group_or_the_groups_first(
    groups: list[str], window: int
) -> None:
    expected = []
    for i, group in enumerate(groups):
        mine = [j for j in range(i + 1) if groups[j] == group]
        expected.append(([mine[0]] * window + mine)[-window:])
    positions = window_positions(len(groups), np.array(groups, dtype=str), window)
    assert positions.tolist() == expected


def test_without_groups_all_rows_are_of_one() -> None:
    assert window_positions(3, None, 3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2]]
    with pytest.raises(WindowMismatch, match="one label for each of the 3 rows"):
        window_positions(3, [1, 2], 3)


def test_the_published_recipe_scores_as_its_numpy_twin_does(published: FitResult) -> None:
    """In float32, so to four digits."""
    detector = published.detector
    rows = table(300, seed=1)
    features = np.concatenate([rows, rows * 1e2, rows * 1e6, np.full((1, N_FEATURES), 1e300)])
    fast, slow = detector.score(features), detector.numpy_score(features)
    np.testing.assert_allclose(fast.reconstruction_error, slow.reconstruction_error, rtol=1e-3)
    assert (fast.contributions >= 0).all()
    sums = fast.contributions.astype(np.float64).sum(axis=1)
    np.testing.assert_allclose(sums, fast.reconstruction_error, rtol=1e-5)


def test_the_numpy_twin_computes_what_keras_does(published: FitResult) -> None:
    detector = published.detector
    layers = detector.recipe.recurrent
    assert layers is not None
    model = build_recurrent(detector.recipe, layers, 5, seed=0)
    cells = [
        [detector.arrays[f"recurrent.{i}.{part}"] for part in ("kernel", "recurrent", "bias")]
        for i in range(4)
    ]
    dense = [detector.arrays[f"layer.0.{part}"] for part in ("kernel", "bias")]
    model.set_weights([array for cell in (*cells, dense) for array in cell])
    windows = np.random.default_rng(0).normal(size=(50, 3, 5))
    by_keras = model(windows.astype(np.float32)).numpy()[:, -1]
    by_hand = reference.reconstruct_last(detector.recipe, detector.arrays, windows)
    np.testing.assert_allclose(by_keras, by_hand, rtol=1e-4, atol=1e-5)


def test_the_published_network_has_the_parameters_of_its_layers() -> None:
    """4 (inputs + units + 1) units for an LSTM layer, inputs + 1 for each output of the dense one."""
    layout = expected_arrays(recipe_named("iforest-lstm-32-16"), 29)
    n_weights = sum(int(np.prod(shape)) for name, (shape, _) in layout.items() if name[:3] in ("lay", "rec"))
    assert n_weights == 4 * (38 * 32 + 49 * 16 + 33 * 16 + 49 * 32) + 33 * 5


def test_ready_windows_score_as_the_rows_they_are_made_of(published: FitResult) -> None:
    detector, features = published.detector, table(40, seed=3)
    groups = np.arange(40) % 3
    windows = features[window_positions(40, groups, 3)]
    np.testing.assert_array_equal(
        detector.score(windows).reconstruction_error,
        detector.score(features, groups=groups).reconstruction_error,
    )
    with pytest.raises(WindowMismatch, match="windows of 3 rows, not of 2"):
        detector.score(windows[:, 1:])
    windows[7, 0, 2] = np.nan
    with pytest.raises(NonFiniteFeatures) as raised:
        detector.score(windows)
    assert (raised.value.rows.tolist(), raised.value.columns.tolist()) == ([7], [2])


def test_the_top_contributor_after_principal_components_is_the_feature_that_was_moved() -> None:
    """As many components as features: only turning the residual back can tell which it was."""
    recipe = SMALL.model_copy(update={"preprocessing": (Pca(n_components=N_FEATURES),)})
    arrays = random_arrays(recipe)
    arrays["preprocessing.0.components"] = np.linalg.qr(arrays["preprocessing.0.components"])[0]
    detector = Detector(recipe, NAMES, arrays, 1.0)
    windows = np.zeros((N_FEATURES, 2, N_FEATURES))
    windows[np.arange(N_FEATURES), 1, np.arange(N_FEATURES)] = 1000.0
    indices, _ = top_features(detector.score(windows).contributions, 1)
    np.testing.assert_array_equal(indices[:, 0], np.arange(N_FEATURES))


def test_windows_that_hold_a_row_not_normal_are_not_fitted_on() -> None:
    """Every tenth row is not normal; it spoils its own window and the one after it. One of them has a gap."""
    features, normal = table(600), np.arange(600) % 10 != 0
    features[100] = np.nan
    recipe = SMALL.model_copy(update={"pseudo_labels": None})
    metrics = fit(recipe, features, NAMES, normal=normal).metrics
    assert metrics["n_fit"] + metrics["n_calibration"] == 600 - 60 - 60
    assert metrics["n_not_normal"] == 59


def test_too_few_windows_of_normal_rows_are_refused() -> None:
    normal = np.arange(600) % 2 == 1
    with pytest.raises(TrainingDataError, match="There are 0 windows of 2 normal rows in a row"):
        fit(SMALL, table(600), NAMES, normal=normal)


def test_the_same_rows_and_seed_give_the_same_recurrent_network() -> None:
    first, second = (fit(SMALL, table(300), NAMES, seed=4).detector.arrays for _ in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


def test_the_threshold_flags_as_many_rows_as_the_forest_does(published: FitResult) -> None:
    flagged = published.detector.score(table(600)).reconstruction_error > published.detector.threshold
    assert flagged.sum() == published.metrics["n_pseudo_outliers"] == 12
    assert published.metrics["pseudo_precision"] == published.metrics["pseudo_recall"]


def test_the_forest_finds_the_rows_far_out_and_always_the_same() -> None:
    values = np.random.default_rng(0).normal(size=(500, 3))
    values[:10] = 1e300
    found = [
        isolation_forest_outliers(values, n_trees=50, n_samples=50, contamination=0.02, seed=3)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(np.flatnonzero(found[0]), np.arange(10))
    np.testing.assert_array_equal(found[0], found[1])


def test_a_longer_window_looks_further_back() -> None:
    recipe = SMALL.model_copy(update={"recurrent": Recurrent(window=4, encoder=(3,), decoder=(3,))})
    detector = Detector(recipe, NAMES, random_arrays(recipe), 1.0)
    features = np.random.default_rng(5).normal(size=(10, N_FEATURES))
    before = detector.score(features).reconstruction_error
    features[3] += 0.5
    changed = np.flatnonzero(detector.score(features).reconstruction_error != before)
    assert changed.tolist() == [3, 4, 5, 6]
