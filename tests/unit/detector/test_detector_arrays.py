from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pgoutlier.detector import Detector, FitResult, InvalidDetector, expected_arrays, recipe_named
from tests.unit.detector.conftest import table

Change = Callable[[dict[str, np.ndarray]], object]


def test_a_detector_is_rebuilt_from_its_arrays(fitted: FitResult) -> None:
    source = fitted.detector
    again = Detector(source.recipe, source.feature_names, dict(source.arrays), source.threshold)
    features = table(20, seed=9)
    np.testing.assert_array_equal(
        again.score(features).reconstruction_error, source.score(features).reconstruction_error
    )
    assert again.threshold == source.threshold


def test_the_arrays_are_those_that_the_layout_promises(fitted: FitResult) -> None:
    detector = fitted.detector
    names = detector.feature_names
    layout = expected_arrays(detector.recipe, len(names), feature_names=names)
    assert {name: (array.shape, array.dtype) for name, array in detector.arrays.items()} == layout


def put(name: str, value: float) -> Change:
    return lambda arrays: arrays[name].reshape(-1).__setitem__(0, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda arrays: arrays.pop("layer.1.bias"), "missing layer.1.bias"),
        (lambda arrays: arrays.update(evil=np.zeros(3)), "unexpected evil"),
        (lambda arrays: arrays.update({"layer.0.bias": np.zeros(9, np.float32)}), r"'layer.0.bias' must be"),
        (lambda arrays: arrays.update({"layer.0.bias": np.zeros(8)}), r"float32 \(8,\), not float64"),
        (lambda arrays: arrays.update({"layer.0.bias": [0.0] * 8}), "not list"),
        (put("layer.0.kernel", np.nan), "'layer.0.kernel' holds NaN"),
        (put("residual.whitening", np.inf), "'residual.whitening' holds NaN or infinity"),
        (put("preprocessing.0.scale", 0.0), "a scale that is not positive"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(
    fitted_small: FitResult, change: Change, says: str
) -> None:
    source = fitted_small.detector
    arrays = {name: array.copy() for name, array in source.arrays.items()}
    change(arrays)
    with pytest.raises(InvalidDetector, match=says):
        Detector(source.recipe, source.feature_names, arrays, source.threshold)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_that_is_not_finite_is_refused(fitted_small: FitResult, threshold: float) -> None:
    source = fitted_small.detector
    with pytest.raises(InvalidDetector, match="threshold"):
        Detector(source.recipe, source.feature_names, source.arrays, threshold)


def test_two_features_of_one_name_are_refused(fitted_small: FitResult) -> None:
    source = fitted_small.detector
    names = ("f0",) * len(source.feature_names)
    with pytest.raises(InvalidDetector, match="same name"):
        Detector(source.recipe, names, source.arrays, source.threshold)


@pytest.mark.parametrize("n_features", [0, 4097])
def test_a_layout_for_too_many_features_is_refused(n_features: int) -> None:
    with pytest.raises(InvalidDetector, match="1 to 4096 features"):
        expected_arrays(recipe_named("default"), n_features)
