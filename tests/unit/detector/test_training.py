from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from pgoutlier.detector import Progress, Recipe, TrainingDataError, exceeds, fit, recipe_named
from pgoutlier.detector.recipes import FixedThreshold, MeanStdThreshold, Split
from tests.unit.detector.conftest import N_FEATURES, NAMES, small_recipe, table

TIME_SPLIT = Split(fit_fraction=0.5, order="time")


def test_preprocessing_and_network_are_fitted_on_the_fit_rows_only() -> None:
    recipe = small_recipe(
        split=TIME_SPLIT,
        preprocessing=({"step": "standardise"}, {"step": "global_min_max"}),
        missing="median",
    )
    clean, poisoned = table(400), table(400)
    poisoned[200:] = 1e6 * poisoned[200:] + 1e9
    one, other = fit(recipe, clean, NAMES).detector, fit(recipe, poisoned, NAMES).detector
    names = [name for name in one.arrays if name.startswith(("preprocessing", "missing"))]
    assert len(names) == 5
    for name in names:
        np.testing.assert_array_equal(one.arrays[name], other.arrays[name])


def test_only_scales_and_threshold_come_from_the_calibration_rows() -> None:
    recipe = small_recipe(
        split=TIME_SPLIT, error_metric="mahalanobis", prototypes=8, epochs=1, early_stopping=None
    )
    features = table(400)
    louder = features.copy()
    louder[200:] = louder[200:] * 3
    one, other = fit(recipe, features, NAMES).detector, fit(recipe, louder, NAMES).detector
    for name in one.arrays:
        unchanged = np.array_equal(one.arrays[name], other.arrays[name])
        assert unchanged == (name != "prototypes.scale"), name
    assert (one.arrays["prototypes.scale"] < other.arrays["prototypes.scale"]).all()

    by_mse = small_recipe(split=TIME_SPLIT, threshold=MeanStdThreshold(k=2.0))
    result = fit(by_mse, features, NAMES)
    errors = result.detector.score(features[200:]).reconstruction_error
    assert result.detector.threshold == pytest.approx(errors.mean() + 2 * errors.std(), rel=1e-9)


def test_a_threshold_may_be_drawn_from_the_fit_rows_instead() -> None:
    recipe = small_recipe(split=TIME_SPLIT, threshold=MeanStdThreshold(k=1.0, rows="fit"))
    result = fit(recipe, table(400), NAMES)
    errors = result.detector.score(table(400)[:200]).reconstruction_error
    assert result.detector.threshold == pytest.approx(errors.mean() + errors.std(), rel=1e-9)


def test_a_fixed_threshold_is_kept() -> None:
    recipe = small_recipe(threshold=FixedThreshold(value=0.25))
    assert fit(recipe, table(300), NAMES).detector.threshold == 0.25


def test_new_normal_rows_are_flagged_about_as_often_as_the_recipe_says() -> None:
    for n_rows, most in ((300, 0.08), (4000, 0.04)):
        recipe = small_recipe(error_metric="mahalanobis", join_input=True)
        detector = fit(recipe, table(n_rows), NAMES).detector
        rate = exceeds(detector.score(table(20_000, seed=1)).reconstruction_error, detector.threshold).mean()
        assert 0.002 < rate < most


def test_rows_that_are_not_normal_are_measured_and_not_fitted_on() -> None:
    features, normal = table(400), np.ones(400, dtype=bool)
    normal[::10] = False
    spoiled = features.copy()
    spoiled[~normal] *= 1e5
    spoiled[10] = np.nan
    one = fit(small_recipe(), features, NAMES, normal=normal)
    other = fit(small_recipe(), spoiled, NAMES, normal=normal)
    for name in one.detector.arrays:
        np.testing.assert_array_equal(one.detector.arrays[name], other.detector.arrays[name])
    assert one.detector.threshold == other.detector.threshold
    assert other.metrics["n_not_normal"] == 39
    assert other.metrics["not_normal_flag_rate"] == 1.0


PRINT_DIGEST = """
import sys
from pgoutlier.detector import Recipe
from tests.unit.detector.test_training import digest_of_a_fit
print(digest_of_a_fit(Recipe.model_validate_json(sys.argv[1]), seed=7))
"""


def digest_of_a_fit(recipe: Recipe, *, seed: int) -> str:
    """A hash of every bit of the fitted detector."""
    detector = fit(recipe, table(400), NAMES, seed=seed).detector
    digest = hashlib.sha256(repr(detector.threshold).encode())
    for name, array in detector.arrays.items():
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()


def test_one_seed_gives_identical_detectors_twice_and_in_another_process() -> None:
    recipe = small_recipe(
        layers=({"units": 8, "activation": "elu", "dropout": 0.2}, {"units": 3, "activity_l1": 1e-3}),
        error_metric="mahalanobis",
    )
    command = [sys.executable, "-c", PRINT_DIGEST, recipe.model_dump_json()]
    elsewhere = subprocess.run(command, capture_output=True, text=True, check=True)
    here = digest_of_a_fit(recipe, seed=7)
    assert digest_of_a_fit(recipe, seed=7) == here
    assert elsewhere.stdout.strip() == here
    assert elsewhere.stderr == ""
    assert digest_of_a_fit(recipe, seed=8) != here


def test_fitting_leaves_the_global_random_states_alone() -> None:
    state = np.random.get_state()[1].copy()
    fit(small_recipe(), table(300), NAMES)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_progress_is_told_once_an_epoch_and_metrics_are_json() -> None:
    told: list[Progress] = []
    result = fit(small_recipe(epochs=3, early_stopping=None), table(300), NAMES, on_progress=told.append)
    assert [progress.epoch for progress in told] == [1, 2, 3]
    assert told[0].eta_seconds > 0
    assert told[-1].eta_seconds == 0
    assert [progress.val_loss for progress in told] == result.history["val_loss"]
    metrics = json.loads(json.dumps(result.metrics))
    assert metrics["n_fit"] + metrics["n_calibration"] == 300
    assert metrics["epochs"] == 3


def test_an_exception_from_the_progress_callback_ends_the_fit() -> None:
    def cancel(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(small_recipe(), table(300), NAMES, on_progress=cancel)


def test_early_stopping_ends_the_fit_and_restores_the_best_epoch() -> None:
    recipe = small_recipe(
        epochs=40, learning_rate=0.3, early_stopping={"min_delta": 0.0, "patience": 3}, split=TIME_SPLIT
    )
    result = fit(recipe, table(400), NAMES)
    assert result.metrics["epochs"] < 40
    errors = result.detector.score(table(400)[200:]).reconstruction_error
    assert errors.mean() == pytest.approx(min(result.history["val_loss"]), rel=1e-4)


def test_a_network_learns() -> None:
    recipe = small_recipe(epochs=30, batch_size=16, learning_rate=5e-3)
    history = fit(recipe, table(600), NAMES).history
    assert history["val_loss"][-1] < 0.5 * history["val_loss"][0]


@pytest.mark.parametrize("name", ["default", "fraud-dense-14-7-4"])
def test_constant_columns_are_fitted_and_scored(name: str) -> None:
    features = table(400)
    features[:, 1], features[:, 3] = 0.0, 1e3
    recipe = recipe_named(name).model_copy(update={"epochs": 1})
    detector = fit(recipe, features, NAMES).detector
    changed = features[:1].copy()
    changed[0, 1] = 1e7
    for rows in (features, changed):
        assert np.isfinite(detector.score(rows).reconstruction_error).all()
    assert detector.score(changed).reconstruction_error > detector.score(features[:1]).reconstruction_error


@pytest.mark.parametrize("name", ["default", "fraud-dense-14-7-4"])
@pytest.mark.filterwarnings("error")
def test_huge_values_among_the_fit_rows_give_a_finite_detector(name: str) -> None:
    features = table(400)
    features[[5, 50, 150], [0, 1, 1]] = [1e300, -1.7e308, 1.7e308]
    recipe = recipe_named(name).model_copy(update={"epochs": 1})
    detector = fit(recipe, features, NAMES).detector
    assert np.isfinite(detector.score(features).reconstruction_error).all()


def test_more_features_than_calibration_rows_still_make_a_detector() -> None:
    features = table(200, n_features=150) / 10.0 ** np.arange(150)
    recipe = recipe_named("default").model_copy(update={"epochs": 1})
    detector = fit(recipe, features, [f"f{i}" for i in range(150)]).detector
    assert np.isfinite(detector.score(features).reconstruction_error).all()


def bad_values(value: float) -> np.ndarray:
    features = table(300)
    features[[4, 9], [1, 5]] = value
    return features


@pytest.mark.parametrize(
    ("features", "names", "normal", "says"),
    [
        (table(199), NAMES, None, "at least 200 normal rows and there are 199"),
        (table(300), NAMES, np.arange(300) < 150, "there are 150"),
        (bad_values(np.nan), NAMES, None, "Columns f1, f5 hold NaN"),
        (bad_values(-np.inf), NAMES, None, "Columns f1, f5 hold NaN"),
        (table(300), NAMES[:-1], None, "one column for each of the 5 names"),
        (table(300)[0], NAMES, None, "must be a matrix"),
        (np.empty((300, 0)), (), None, "1 to 4096 features, not 0"),
        (np.ones((300, N_FEATURES)), NAMES, None, "Every feature is constant"),
        (table(300), NAMES, np.ones(299, dtype=bool), "one bool for each of the 300 rows"),
        (table(300), NAMES, np.ones(300), "one bool for each"),
    ],
)
def test_rows_that_cannot_be_fitted_on_are_refused_in_one_sentence(
    features: np.ndarray, names: tuple[str, ...], normal: np.ndarray | None, says: str
) -> None:
    with pytest.raises(TrainingDataError, match=says) as raised:
        fit(small_recipe(), features, names, normal=normal)
    assert str(raised.value).endswith(".")


def test_gaps_are_fitted_on_where_the_recipe_imputes_them() -> None:
    features = bad_values(np.nan)
    features[:, 2] = np.nan
    recipe = recipe_named("default").model_copy(update={"missing": "median", "epochs": 1})
    detector = fit(recipe, features, NAMES).detector
    assert np.isfinite(detector.score(features).reconstruction_error).all()
    medians = detector.arrays["missing.median"]
    assert medians[2] == 0.0
    assert np.isfinite(medians).all()


def test_held_out_rows_calibrate_in_place_of_the_recipes_split() -> None:
    rows = table(600)
    normal, held_out = np.arange(600) % 10 != 0, np.arange(600) >= 500
    metrics = fit(small_recipe(epochs=1), rows, NAMES, normal=normal, held_out=held_out).metrics
    assert (metrics["n_fit"], metrics["n_calibration"]) == (450, 90)


@pytest.mark.parametrize(
    "held_out", [np.zeros(600, dtype=bool), np.arange(600) >= 199, np.zeros(600), np.zeros(3, dtype=bool)]
)
def test_held_out_rows_that_leave_too_few_are_refused(held_out: np.ndarray) -> None:
    with pytest.raises(TrainingDataError, match="held"):
        fit(small_recipe(), table(600), NAMES, held_out=held_out)
