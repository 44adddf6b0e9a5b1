"""Scoring as one compiled TensorFlow function, from raw features to error and contributions.

Built from plain operations over the detector's arrays, in float64 but for the network where the recipe
allows float32: residuals are differences of nearly equal numbers, and whitening enlarges what is lost there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from detector._tensorflow import tensorflow
from detector.arrays import Arrays
from detector.network import LEAKY_SLOPE
from detector.preprocessing import LIMIT, RAW_LIMIT
from detector.recipes import Clip, DropColumns, Pca, Recipe

# Blocks of just this many rows go through a version that XLA has fused for them, which takes two thirds of the
# processor time; it has to be compiled for each number of rows. Small enough for the processor's cache.
BLOCK_ROWS = 4096


def build_scorer(
    recipe: Recipe, feature_names: Sequence[str], arrays: Arrays, *, explains: bool = True
) -> Callable[[Any], Any]:
    """A function of (n_rows, n_features) float64 that gives (errors float64, contributions float32).

    Without explains it gives the errors alone, and leaves out what only the contributions need. With recurrent layers
    it takes windows, (n_rows, window, n_features). Traced twice, for BLOCK_ROWS rows and for any other number; safe to
    call from several threads.
    """
    tf = tensorflow()
    constants = {
        name: tf.constant(
            array, recipe.scoring_precision if name.startswith(("layer", "recurrent")) else tf.float64
        )
        for name, array in arrays.items()
    }
    kept = recipe.kept_columns(feature_names)

    def score(features: Any) -> Any:
        values = _preprocess(recipe, constants, tf.reshape(features, (-1, len(feature_names))), kept)
        if recipe.recurrent is None:
            outputs = _reconstruct(recipe, constants, values)
        else:
            steps = tf.unstack(tf.reshape(values, (-1, recipe.window, values.shape[1])), axis=1)
            values = steps[-1]
            outputs = _reconstruct(recipe, constants, _decoded(recipe, constants, steps))
        error, contributions = _measure(recipe, constants, values, values - outputs)
        if not explains:
            return error
        if len(kept) < len(feature_names):
            # Column n_kept of the padded matrix is zero: that is what a dropped feature contributes.
            source = [kept.index(i) if i in kept else len(kept) for i in range(len(feature_names))]
            contributions = tf.gather(tf.pad(contributions, [[0, 0], [0, 1]]), source, axis=1)
        return error, tf.cast(contributions, tf.float32)

    def function(n_rows: int | None, **options: bool) -> Any:
        steps = () if recipe.recurrent is None else (recipe.window,)
        signature = [tf.TensorSpec((n_rows, *steps, len(feature_names)), tf.float64)]
        return tf.function(score, input_signature=signature, autograph=False, **options)

    # The version for blocks is traced when the first block comes: most of those who score a few rows never need it.
    any_rows, block = function(None).get_concrete_function(), function(BLOCK_ROWS, jit_compile=True)
    return lambda features: (block if features.shape[0] == BLOCK_ROWS else any_rows)(features)


def _preprocess(recipe: Recipe, constants: dict[str, Any], values: Any, kept: tuple[int, ...]) -> Any:
    tf = tensorflow()
    n_features = values.shape[1]
    if recipe.missing == "median":
        values = tf.where(tf.math.is_finite(values), values, constants["missing.median"])
    values = tf.clip_by_value(values, np.float64(-RAW_LIMIT), np.float64(RAW_LIMIT))
    for i, step in enumerate(recipe.preprocessing):
        if isinstance(step, Clip):
            values = tf.clip_by_value(values, np.float64(step.low), np.float64(step.high))
        elif not isinstance(step, DropColumns | Pca):
            values = (values - constants[f"preprocessing.{i}.shift"]) / constants[f"preprocessing.{i}.scale"]
            values = tf.clip_by_value(values, np.float64(-RAW_LIMIT), np.float64(RAW_LIMIT))
    if len(kept) < n_features:
        values = tf.gather(values, kept, axis=1)
    values = tf.clip_by_value(values, np.float64(-LIMIT), np.float64(LIMIT))
    if recipe.pca is None:
        return values
    last = f"preprocessing.{len(recipe.preprocessing) - 1}"
    return tf.matmul(values - constants[f"{last}.mean"], constants[f"{last}.components"], transpose_b=True)


def _activations() -> dict[str, Callable[[Any], Any]]:
    tf = tensorflow()
    return {
        "tanh": tf.tanh,
        "relu": tf.nn.relu,
        "leaky_relu": lambda x: tf.nn.leaky_relu(x, alpha=LEAKY_SLOPE),
        "sigmoid": tf.sigmoid,
        "linear": tf.identity,
        "elu": tf.nn.elu,
    }


def _decoded(recipe: Recipe, constants: dict[str, Any], steps: list[Any]) -> Any:
    """What the last decoder layer gives at the last step, (n_rows, units); see `detector.reference`."""
    if recipe.recurrent is None:
        raise ValueError("the recipe has no recurrent layers")
    tf = tensorflow()
    activation = _activations()[recipe.recurrent.activation]
    n_encoder = len(recipe.recurrent.encoder)
    steps = [tf.cast(step, recipe.scoring_precision) for step in steps]
    for i in range(n_encoder + len(recipe.recurrent.decoder)):
        if i == n_encoder:
            steps = steps[-1:] * len(steps)
        kernel, recurrent, bias = (constants[f"recurrent.{i}.{p}"] for p in ("kernel", "recurrent", "bias"))
        output = cell = tf.zeros((tf.shape(steps[0])[0], recurrent.shape[0]), recipe.scoring_precision)
        outputs = []
        for step in steps:
            gates = tf.matmul(step, kernel) + tf.matmul(output, recurrent) + bias
            let_in, keep, new, let_out = tf.split(gates, 4, axis=1)
            cell = tf.sigmoid(keep) * cell + tf.sigmoid(let_in) * activation(new)
            output = tf.sigmoid(let_out) * activation(cell)
            outputs.append(output)
        steps = outputs
    return steps[-1]


def _reconstruct(recipe: Recipe, constants: dict[str, Any], values: Any) -> Any:
    tf = tensorflow()
    if recipe.quantises:
        return values - _from_nearest(values, constants["prototypes.rows"])
    functions = _activations()
    values = tf.cast(values, recipe.scoring_precision)
    activations = [*(layer.activation for layer in recipe.layers), recipe.output_activation]
    for i, activation in enumerate(activations):
        values = tf.matmul(values, constants[f"layer.{i}.kernel"]) + constants[f"layer.{i}.bias"]
        values = functions[activation](values)
    return tf.cast(values, tf.float64)


def _measure(recipe: Recipe, constants: dict[str, Any], values: Any, residual: Any) -> tuple[Any, Any]:
    """Errors (n_rows,) and contributions (n_rows, n_kept); the rows of the second sum to the first."""
    tf = tensorflow()
    n_kept = values.shape[1]
    if recipe.error_metric != "mahalanobis":
        terms = tf.abs(residual) if recipe.error_metric == "mae" else tf.square(residual)
        contributions = terms / np.float64(n_kept)
        error = tf.reduce_sum(contributions, axis=1)
        if recipe.pca is not None:
            components = constants[f"preprocessing.{len(recipe.preprocessing) - 1}.components"]
            shares = tf.square(tf.matmul(residual, components))
            total = tf.reduce_sum(shares, axis=1)
            contributions = shares * tf.math.divide_no_nan(error, total)[:, tf.newaxis]
        return error, contributions
    joined = tf.concat([values, residual], axis=1) if recipe.join_input else residual
    whitened = tf.matmul(joined - constants["residual.location"], constants["residual.whitening"])
    if not recipe.prototypes:
        return _distance(whitened, n_kept)
    scale = constants["prototypes.scale"]
    differences = _from_nearest(values, constants["prototypes.rows"])
    far, of_far = _distance(whitened, n_kept, scale[0])
    near, of_near = _distance(differences, n_kept, scale[1], recipe.prototype_limit)
    return far + near, of_far + of_near


def _distance(differences: Any, n_kept: int, scale: Any = 1.0, limit: float = math.inf) -> tuple[Any, Any]:
    """The length of each row (n_rows, n_kept or twice) over the scale, at most the limit, and each feature's share."""
    tf = tensorflow()
    terms = tf.square(differences)
    if terms.shape[1] > n_kept:
        terms = terms[:, :n_kept] + terms[:, n_kept:]
    square = tf.reduce_sum(terms, axis=1)
    distance = tf.minimum(tf.sqrt(square) / scale, np.float64(limit))
    return distance, terms * tf.math.divide_no_nan(distance, square)[:, tf.newaxis]


def _from_nearest(rows: Any, prototypes: Any) -> Any:
    """rows minus the nearest prototype of each; which one is nearest is found in float32, but not measured in it."""
    tf = tensorflow()
    half = tf.cast(tf.reduce_sum(tf.square(prototypes), axis=1, keepdims=True) / 2, tf.float32)
    # Prototypes are the rows here: XLA takes the minimum over the first axis many times as fast as over the last.
    far = half - tf.matmul(tf.cast(prototypes, tf.float32), tf.cast(rows, tf.float32), transpose_b=True)
    return rows - tf.gather(prototypes, tf.argmin(far, axis=0, output_type=tf.int32))
