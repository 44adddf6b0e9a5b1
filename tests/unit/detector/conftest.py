"""Small tables and small detectors; a fit takes a second or two, so fitted ones are shared."""

from __future__ import annotations

import numpy as np
import pytest

from pgoutlier.detector import FitResult, Recipe, fit, recipe_named
from pgoutlier.detector.recipes import (
    EarlyStopping,
    FixedThreshold,
    Layer,
    PseudoLabels,
    QuantileThreshold,
    Recurrent,
    Split,
)

N_FEATURES = 6
NAMES = tuple(f"f{i}" for i in range(N_FEATURES))


def table(n_rows: int, *, seed: int = 0, n_features: int = N_FEATURES) -> np.ndarray:
    """Correlated features of very different scales."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(n_features, n_features))
    return generator.normal(size=(n_rows, n_features)) @ mixing * 10.0 ** np.arange(n_features) + 5.0


def small_recipe(**changes: object) -> Recipe:
    """A recipe that fits in about a second; changes are validated."""
    fields: dict[str, object] = {
        "name": "small",
        "layers": (Layer(units=8, activation="elu"), Layer(units=3, activation="tanh")),
        "batch_size": 128,
        "epochs": 3,
        "early_stopping": EarlyStopping(min_delta=0.0, patience=2),
        "split": Split(fit_fraction=0.7, order="random"),
        "threshold": QuantileThreshold(contamination=0.02),
    }
    return Recipe(**{**fields, **changes})


RECIPES_TO_CHECK = {
    "mse": small_recipe(),
    "mae": small_recipe(error_metric="mae", loss="mae"),
    "mahalanobis": small_recipe(error_metric="mahalanobis", trim_fraction=0.01),
    "mahalanobis joined": small_recipe(error_metric="mahalanobis", trim_fraction=0.05, join_input=True),
    "prototypes": small_recipe(error_metric="mahalanobis", prototypes=16),
    "prototypes capped": small_recipe(
        error_metric="mahalanobis", prototypes=16, prototype_weight=0.5, prototype_cap=1.2
    ),
    "every activation": small_recipe(
        layers=tuple(
            Layer(units=5, activation=name)
            for name in ("relu", "leaky_relu", "sigmoid", "linear", "tanh", "elu")
        ),
        output_activation="leaky_relu",
    ),
    "every step": small_recipe(
        preprocessing=(
            {"step": "drop_columns", "names": ("f2", "unknown")},
            {"step": "clip", "low": -1e5, "high": 1e5},
            {"step": "standardise", "only": ("f0", "f4", "unknown")},
            {"step": "global_min_max"},
        ),
        error_metric="mahalanobis",
        missing="median",
    ),
    "principal components": small_recipe(
        preprocessing=({"step": "standardise"}, {"step": "pca", "n_components": 3}), error_metric="mae"
    ),
    "windows": small_recipe(
        layers=(),
        recurrent=Recurrent(window=2, encoder=(4,), decoder=(3,), activation="relu"),
        pseudo_labels=PseudoLabels(contamination=0.05),
        preprocessing=({"step": "standardise"}, {"step": "pca", "n_components": 4}),
    ),
    "default": recipe_named("default").model_copy(update={"epochs": 2}),
    "fraud-dense-14-7-4": recipe_named("fraud-dense-14-7-4").model_copy(update={"epochs": 2}),
    "fraud-dense-14-7": recipe_named("fraud-dense-14-7").model_copy(update={"epochs": 2}),
    "ecg-dense-32-16-8": recipe_named("ecg-dense-32-16-8").model_copy(update={"epochs": 2}),
}


@pytest.fixture(scope="session", params=list(RECIPES_TO_CHECK))
def fitted(request: pytest.FixtureRequest) -> FitResult:
    """One fit for each metric, activation, step and built-in recipe."""
    return fit(RECIPES_TO_CHECK[request.param], table(600), NAMES)


@pytest.fixture(scope="session")
def fitted_small() -> FitResult:
    return fit(small_recipe(error_metric="mahalanobis"), table(600), NAMES)


@pytest.fixture(scope="session")
def fixed_threshold_recipe() -> Recipe:
    return small_recipe(threshold=FixedThreshold(value=0.5))
