"""The same scores in plain NumPy, float64: what the compiled function is checked against.

Fitting uses it too, for the residuals that statistics and threshold are drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit

from detector.arrays import Arrays, Float64Matrix, Float64Vector
from detector.network import LEAKY_SLOPE
from detector.preprocessing import apply_preprocessing
from detector.prototypes import from_nearest
from detector.recipes import Recipe

ACTIVATIONS: dict[str, Callable[[Float64Matrix], Float64Matrix]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "leaky_relu": lambda x: np.where(x > 0, x, LEAKY_SLOPE * x),
    "sigmoid": expit,
    "linear": lambda x: x,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
}


def reconstruct(recipe: Recipe, arrays: Arrays, values: Float64Matrix) -> Float64Matrix:
    """The autoencoder's output for preprocessed rows (n_rows, n_kept), of the same shape."""
    activations = [*(layer.activation for layer in recipe.layers), recipe.output_activation]
    for i, activation in enumerate(activations):
        kernel = arrays[f"layer.{i}.kernel"].astype(np.float64)
        values = ACTIVATIONS[activation](values @ kernel + arrays[f"layer.{i}.bias"].astype(np.float64))
    return values


def residuals(recipe: Recipe, arrays: Arrays, values: Float64Matrix) -> Float64Matrix:
    """What the Mahalanobis distance is taken of: values - reconstruction, (n_rows, n_kept);
    with recipe.join_input the preprocessed values themselves come first, (n_rows, 2 * n_kept)."""
    residual = values - reconstruct(recipe, arrays, values)
    return np.concatenate([values, residual], axis=1) if recipe.join_input else residual


def differences_of(recipe: Recipe, arrays: Arrays, values: Float64Matrix) -> tuple[Float64Matrix, ...]:
    """The whitened residuals of preprocessed rows and, when the recipe has them, what sets the rows apart from
    the nearest prototype."""
    whitened = (residuals(recipe, arrays, values) - arrays["residual.location"]) @ arrays[
        "residual.whitening"
    ]
    if not recipe.prototypes:
        return (whitened,)
    return whitened, from_nearest(values, arrays["prototypes.rows"])


def score(
    recipe: Recipe, feature_names: Sequence[str], arrays: Arrays, features: Float64Matrix
) -> tuple[Float64Vector, Float64Matrix]:
    """Errors (n_rows,) and contributions (n_rows, n_features), float64."""
    values = apply_preprocessing(recipe, arrays, features, feature_names)
    n_kept = values.shape[1]
    contributions = np.zeros(features.shape)
    kept = list(recipe.kept_columns(feature_names))
    if recipe.error_metric == "mahalanobis":
        error: Float64Vector = np.zeros(len(features))
        scales = arrays["prototypes.scale"] if recipe.prototypes else (1.0,)
        for scale, differences in zip(scales, differences_of(recipe, arrays, values), strict=True):
            terms = np.square(differences).reshape(len(features), -1, n_kept).sum(axis=1)
            length = np.sqrt(terms.sum(axis=1))
            error += length / scale
            contributions[:, kept] += terms / (np.where(length > 0, length, 1.0) * scale)[:, None]
        return error, contributions
    residual = residuals(recipe, arrays, values)
    terms = np.abs(residual) if recipe.error_metric == "mae" else np.square(residual)
    contributions[:, kept] = terms / n_kept
    return contributions.sum(axis=1), contributions
