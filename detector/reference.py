"""The same scores in plain NumPy, float64: what the graph is checked against.

Fitting uses it too, for the residuals that statistics and threshold are drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pgoutlier.detector.arrays import Arrays, Float64Matrix, Float64Vector
from pgoutlier.detector.network import LEAKY_SLOPE
from pgoutlier.detector.preprocessing import apply_preprocessing
from pgoutlier.detector.prototypes import from_nearest
from pgoutlier.detector.recipes import Recipe
from pgoutlier.detector.tails import shares_of


def _sigmoid(x: Float64Matrix) -> Float64Matrix:
    # Imported here: whoever scores by the graph does not need SciPy.
    from scipy.special import expit

    values: Float64Matrix = expit(x)
    return values


ACTIVATIONS: dict[str, Callable[[Float64Matrix], Float64Matrix]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "leaky_relu": lambda x: np.where(x > 0, x, LEAKY_SLOPE * x),
    "sigmoid": _sigmoid,
    "linear": lambda x: x,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
}


def reconstruct(recipe: Recipe, arrays: Arrays, values: Float64Matrix) -> Float64Matrix:
    """The autoencoder's output for preprocessed rows (n_rows, n_kept), of the same shape."""
    if recipe.takes_tails:
        return np.zeros_like(values)
    if recipe.quantises:
        return values - from_nearest(values, arrays["prototypes.rows"])
    activations = [*(layer.activation for layer in recipe.layers), recipe.output_activation]
    for i, activation in enumerate(activations):
        kernel = arrays[f"layer.{i}.kernel"].astype(np.float64)
        values = ACTIVATIONS[activation](values @ kernel + arrays[f"layer.{i}.bias"].astype(np.float64))
    return values


def reconstruct_last(recipe: Recipe, arrays: Arrays, windows: NDArray[np.float64]) -> Float64Matrix:
    """The recurrent autoencoder's output for the last step of windows (n, window, k), (n, k)."""
    if recipe.recurrent is None:
        raise ValueError("the recipe has no recurrent layers")
    activation = ACTIVATIONS[recipe.recurrent.activation]
    n_encoder = len(recipe.recurrent.encoder)
    steps = list(np.moveaxis(windows, 1, 0))
    for i in range(n_encoder + len(recipe.recurrent.decoder)):
        if i == n_encoder:
            steps = steps[-1:] * len(steps)
        kernel, recurrent, bias = (
            arrays[f"recurrent.{i}.{part}"].astype(np.float64) for part in ("kernel", "recurrent", "bias")
        )
        steps = _lstm(steps, kernel, recurrent, bias, activation)
    dense = [arrays[f"layer.0.{part}"].astype(np.float64) for part in ("kernel", "bias")]
    return ACTIVATIONS[recipe.output_activation](steps[-1] @ dense[0] + dense[1])


def _lstm(
    steps: list[Float64Matrix],
    kernel: Float64Matrix,
    recurrent: Float64Matrix,
    bias: Float64Vector,
    activation: Callable[[Float64Matrix], Float64Matrix],
) -> list[Float64Matrix]:
    """A layer's output at each step. Gers, Schmidhuber and Cummins, Learning to forget: continual prediction
    with LSTM, Neural Computation 12 (2000) 2451-2471, with a free choice of the squashing function."""
    units = len(recurrent)
    output = cell = np.zeros((len(steps[0]), units))
    outputs = []
    for step in steps:
        gates = step @ kernel + output @ recurrent + bias
        let_in, keep, let_out = (_sigmoid(gates[:, g * units : (g + 1) * units]) for g in (0, 1, 3))
        cell = keep * cell + let_in * activation(gates[:, 2 * units : 3 * units])
        output = let_out * activation(cell)
        outputs.append(output)
    return outputs


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
    recipe: Recipe, feature_names: Sequence[str], arrays: Arrays, features: NDArray[np.float64]
) -> tuple[Float64Vector, Float64Matrix]:
    """Errors (n_rows,) and contributions (n_rows, n_features), float64; features as in `Detector.score`.

    Of a recurrent recipe the error is that of the window's last row. After a PCA the residual is turned back,
    r @ components: the components being orthonormal, its length stays, and its squares tell the features' shares.
    """
    n_features = features.shape[-1]
    values = apply_preprocessing(recipe, arrays, features.reshape(-1, n_features), feature_names)
    contributions = np.zeros((len(features), n_features))
    kept = list(recipe.kept_columns(feature_names))
    error: Float64Vector
    if recipe.takes_tails:
        error, contributions[:, kept] = shares_of(values)
        return error, contributions
    if recipe.error_metric == "mahalanobis":
        n_kept = values.shape[1]
        error = np.zeros(len(features))
        scales = arrays["prototypes.scale"] if recipe.prototypes else (1.0,)
        limits = (np.inf, recipe.prototype_limit)[: len(scales)]
        for scale, limit, differences in zip(
            scales, limits, differences_of(recipe, arrays, values), strict=True
        ):
            terms = (
                np.square(differences)
                .reshape(len(features), differences.shape[1] // n_kept, n_kept)
                .sum(axis=1)
            )
            length = np.sqrt(terms.sum(axis=1))
            part = np.minimum(length / scale, limit)
            error += part
            contributions[:, kept] += terms * (part / np.square(np.where(length > 0, length, 1.0)))[:, None]
        return error, contributions
    if recipe.recurrent is None:
        residual = residuals(recipe, arrays, values)
    else:
        windows = values.reshape(len(features), recipe.window, -1)
        residual = windows[:, -1] - reconstruct_last(recipe, arrays, windows)
    terms = np.abs(residual) if recipe.error_metric == "mae" else np.square(residual)
    error = terms.mean(axis=1)
    if recipe.pca is None:
        contributions[:, kept] = terms / residual.shape[1]
        return error, contributions
    turned_back = residual @ arrays[f"preprocessing.{len(recipe.preprocessing) - 1}.components"]
    shares = np.square(turned_back)
    total = shares.sum(axis=1)
    contributions[:, kept] = shares * (error / np.where(total > 0, total, 1.0))[:, None]
    return error, contributions
