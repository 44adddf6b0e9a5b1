"""The graph against the NumPy reference, for any recipe; and against what version 0.1.0 gave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgoutlier.detector import Detector, Recipe, expected_arrays
from pgoutlier.detector.recipes import FixedThreshold
from pgoutlier.models_store.artifact import unpack
from tests.unit.detector.strategies import ROWS_OF_A_SIZE, SIZES, detectors, rows_of

STORED = Path(__file__).parents[2] / "data" / "versions_0_1_0"


@settings(deadline=None, max_examples=200)
@given(detectors(), st.integers(0, 2**32 - 1))
def test_any_recipe_scores_as_its_numpy_twin_does(detector: Detector, seed: int) -> None:
    """To 1e-5 of each row's error, unless that is rounding alone. A float32 network is that precise for residuals that
    are not thousands of times smaller than the features; so there, of the largest error of the rows of its size."""
    features = rows_of(detector, seed=seed)
    fast, slow = detector.score(features), detector.numpy_score(features)
    errors = slow.reconstruction_error
    largest = np.repeat(errors.reshape(len(SIZES), ROWS_OF_A_SIZE).max(axis=1), ROWS_OF_A_SIZE)
    is_precise = detector.recipe.scoring_precision == "float64"
    scale = np.maximum(errors, 1e-9 * largest) if is_precise else largest
    assert (np.abs(fast.reconstruction_error - errors) <= 1e-5 * scale).all()
    assert (np.abs(fast.contributions - slow.contributions) <= 1e-5 * scale[:, None]).all()
    assert (fast.contributions >= 0).all()
    sums = fast.contributions.astype(np.float64).sum(axis=1)
    np.testing.assert_allclose(sums, fast.reconstruction_error, rtol=1e-5)
    np.testing.assert_allclose(detector.reconstruction_error(features), fast.reconstruction_error, rtol=1e-12)


@settings(deadline=None, max_examples=50)
@given(detectors(), st.sampled_from([1e290, 1e300, np.finfo(np.float64).max]))
def test_values_near_and_beyond_the_largest_bound_score_as_in_numpy(
    detector: Detector, largest: float
) -> None:
    random = np.random.default_rng(0)
    shape = rows_of(detector, seed=0).shape
    features = random.choice([-1.0, 0.0, 1.0], size=shape) * largest
    fast, slow = detector.score(features), detector.numpy_score(features)
    assert np.isfinite(slow.reconstruction_error).all()
    largest_error = slow.reconstruction_error.max()
    np.testing.assert_allclose(
        fast.reconstruction_error, slow.reconstruction_error, rtol=1e-5, atol=1e-5 * largest_error
    )


@pytest.mark.parametrize("scale", [1e-320, 1e-305, 1e305])
def test_scales_whose_reciprocal_is_out_of_range_still_divide(scale: float) -> None:
    recipe = Recipe(name="scaled", prototypes=1, threshold=FixedThreshold(value=1.0))
    arrays = {
        "preprocessing.0.shift": np.zeros(1),
        "preprocessing.0.scale": np.array([scale]),
        "prototypes.rows": np.zeros((1, 1)),
    }
    detector = Detector(recipe, ["x"], arrays, 1.0)
    features = np.array([[0.0], [3 * scale], [1e300]])
    np.testing.assert_allclose(
        detector.score(features).reconstruction_error,
        detector.numpy_score(features).reconstruction_error,
        rtol=1e-9,
    )


@pytest.mark.parametrize("quantises", [True, False])
def test_a_row_that_is_nearly_a_prototype_is_measured_from_it(quantises: bool) -> None:
    """Though another prototype is so near that float32 could not tell which is the nearer one."""
    random = np.random.default_rng(0)
    names = [f"f{i}" for i in range(5)]
    recipe = Recipe(
        name="near",
        preprocessing=(),
        prototypes=40,
        layers=() if quantises else ({"units": 2},),
        error_metric="mse" if quantises else "mahalanobis",
        threshold=FixedThreshold(value=1.0),
    )
    layout = expected_arrays(recipe, 5)
    arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.items()}
    centres = random.normal(scale=1e3, size=(20, 5))
    arrays["prototypes.rows"] = np.concatenate([centres, centres + 1e-3 * random.normal(size=(20, 5))])
    if not quantises:
        arrays["prototypes.scale"] = np.ones(2)
    detector = Detector(recipe, names, arrays, 1.0)
    features = arrays["prototypes.rows"] + 1e-5 * random.normal(size=(40, 5))
    fast, slow = detector.score(features), detector.numpy_score(features)
    np.testing.assert_allclose(fast.reconstruction_error, slow.reconstruction_error, rtol=1e-5)
    assert slow.reconstruction_error.max() < 1e-4


@pytest.mark.parametrize("name", ["default", "iforest-lstm-32-16", "series", "fraud-dense-14-7"])
def test_a_version_that_0_1_0_has_stored_scores_as_it_did(name: str) -> None:
    """Fitted, stored and scored by 0.1.0, whose scores TensorFlow computed."""
    detector = unpack((STORED / f"{name}.safetensors").read_bytes())
    with np.load(STORED / f"{name}.npz") as stored:
        features, errors, parts = (
            stored[key] for key in ("features", "reconstruction_error", "contributions")
        )
    scores = detector.score(features)
    np.testing.assert_allclose(scores.reconstruction_error, errors, rtol=1e-5)
    largest = parts.max(axis=1, keepdims=True)
    np.testing.assert_allclose(scores.contributions / largest, parts / largest, rtol=1e-5, atol=1e-6)
    if detector.recipe.window == 1:
        np.testing.assert_allclose(detector.reconstruction_error(features), errors, rtol=1e-5)


def test_scoring_imports_neither_what_fits_nor_what_checks() -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from pgoutlier.models_store.artifact import unpack;"
        f"unpack(Path({str(STORED / 'default.safetensors')!r}).read_bytes()).warm_up();"
        "print(sorted({'tensorflow', 'keras', 'sklearn', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
