"""Random recipes, detectors of them that nobody has fitted, and rows to score."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pgoutlier.detector import Detector, Recipe, expected_arrays
from pgoutlier.detector.recipes import Activation, FixedThreshold, Pca

# A busy machine is not a failure.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ACTIVATIONS = get_args(Activation)
# Rows of each of these sizes, in units of the preprocessed values, beside ones of ordinary size.
SIZES = (1.0, 1e3, 1e5)
ROWS_OF_A_SIZE = 6


@st.composite
def recipes(draw: st.DrawFn, names: tuple[str, ...]) -> Recipe:
    """Any recipe that scores features of these names, small."""
    kind = draw(st.sampled_from(["dense", "dense", "recurrent", "prototypes"]))
    metrics = ["mse", "mae", "mahalanobis"] if kind == "dense" else ["mse", "mae"]
    metric = draw(st.sampled_from(metrics))
    fields: dict[str, Any] = {
        "name": "random",
        "threshold": FixedThreshold(value=1.0),
        "error_metric": metric,
        "preprocessing": draw(_steps(names, may_project=metric != "mahalanobis")),
        "missing": draw(st.sampled_from(["quarantine", "median"])),
        "output_activation": draw(st.sampled_from(ACTIVATIONS)),
        "scoring_precision": draw(st.sampled_from(["float32", "float64"])),
    }
    if kind == "dense":
        layer = st.fixed_dictionaries(
            {"units": st.integers(1, 9), "activation": st.sampled_from(ACTIVATIONS)}
        )
        fields["layers"] = draw(st.lists(layer, min_size=1, max_size=4))
    elif kind == "recurrent":
        units = st.lists(st.integers(1, 6), min_size=1, max_size=2)
        fields["recurrent"] = {
            "window": draw(st.integers(2, 4)),
            "encoder": draw(units),
            "decoder": draw(units),
            "activation": draw(st.sampled_from(ACTIVATIONS)),
        }
    if metric == "mahalanobis":
        fields["join_input"] = draw(st.booleans())
    if kind == "prototypes" or (metric == "mahalanobis" and draw(st.booleans())):
        fields["prototypes"] = draw(st.integers(1, 20))
        fields["prototype_weight"] = draw(st.floats(0.1, 10.0))
        fields["prototype_cap"] = draw(st.none() | st.floats(1.0, 100.0))
    return Recipe.model_validate(fields)


@st.composite
def _steps(draw: st.DrawFn, names: tuple[str, ...], *, may_project: bool) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = draw(
        st.lists(
            st.one_of(
                st.just({"step": "standardise"}),
                st.just({"step": "global_min_max"}),
                st.builds(
                    lambda low, width: {"step": "clip", "low": low, "high": low + width},
                    st.floats(-1e5, 1e4),
                    st.floats(1.0, 1e5),
                ),
            ),
            max_size=3,
        )
    )
    dropped = draw(st.lists(st.sampled_from(names), unique=True, max_size=len(names) - 1))
    if dropped:
        place = draw(st.integers(0, len(steps)))
        steps.insert(place, {"step": "drop_columns", "names": [*dropped, "not of the table"]})
    if may_project and draw(st.booleans()):
        steps.append({"step": "pca", "n_components": draw(st.integers(1, 5))})
    return steps


@st.composite
def detectors(draw: st.DrawFn) -> Detector:
    """Of a random recipe, with random arrays."""
    names = tuple(f"f{i}" for i in range(draw(st.integers(1, 7))))
    recipe = draw(recipes(names))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layout = expected_arrays(recipe, len(names), feature_names=names)
    arrays = {}
    for name, (shape, dtype) in layout.items():
        values = random.normal(size=shape)
        if name.endswith(".scale"):
            values = np.exp(2 * values)
        elif len(shape) == 2 and name.startswith(("layer", "recurrent")):
            values /= np.sqrt(shape[0])
        elif name.endswith(".components"):
            values = np.linalg.svd(values, full_matrices=False)[2][: shape[0]]
        elif name == "residual.whitening":
            values *= 10.0 ** random.uniform(-3, 3, size=(1, shape[1]))
        arrays[name] = np.asarray(values, dtype)
    return Detector(recipe, names, arrays, 1.0)


def rows_of(detector: Detector, *, seed: int) -> np.ndarray:
    """Rows as large as the detector's arrays take for ordinary, then larger ones, ROWS_OF_A_SIZE of each of SIZES, with
    gaps where it imputes them; in a recipe with a window, ready windows of such rows."""
    random = np.random.default_rng(seed)
    recipe, n_features = detector.recipe, len(detector.feature_names)
    steps = () if recipe.window == 1 else (recipe.window,)
    rows = np.concatenate([random.normal(size=(ROWS_OF_A_SIZE, *steps, n_features)) * size for size in SIZES])
    for i, step in reversed(list(enumerate(recipe.preprocessing))):
        if f"preprocessing.{i}.scale" in detector.arrays and not isinstance(step, Pca):
            scale, shift = (detector.arrays[f"preprocessing.{i}.{part}"] for part in ("scale", "shift"))
            rows = rows * scale + shift
    if recipe.missing == "median":
        gaps = random.choice([np.nan, np.inf, -np.inf], size=rows.shape)
        rows = np.where(random.random(rows.shape) < 0.2, gaps, rows)
    return rows
