"""Fitting the recurrent autoencoder: LSTM layers over windows of rows, every random number from the seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector._tensorflow import keras, tensorflow
from detector.errors import TrainingDataError
from detector.network import (
    VALIDATION_ROWS,
    FittedNetwork,
    Progress,
    ProgressCallback,
    Stopper,
    activation_function,
    derived_seed,
)
from detector.recipes import Recipe, Recurrent


def fit_recurrent(
    recipe: Recipe,
    layers: Recurrent,
    fit_windows: NDArray[np.float32],
    validation_windows: NDArray[np.float32],
    *,
    seed: int,
    on_progress: ProgressCallback | None = None,
) -> FittedNetwork:
    """Fit an LSTM autoencoder to preprocessed windows (n, window, k); the loss is that of all their rows.

    The arrays are "recurrent.<i>.kernel", ".recurrent" and ".bias", and "layer.0.kernel" and ".bias".
    Deterministic on one machine's CPU: the same windows and seed give the same arrays, bit for bit.
    Raises TrainingDataError when the loss stops being a finite number.
    """
    tf = tensorflow()
    model = build_recurrent(recipe, layers, fit_windows.shape[2], seed)
    run_epoch, loss_of_all = _compiled(recipe, model, recipe.batch_rows(len(fit_windows)))
    windows, held_out = tf.constant(fit_windows), tf.constant(validation_windows)
    shuffler = np.random.default_rng(seed)
    losses: list[float] = []
    val_losses: list[float] = []
    stopper = Stopper(recipe, model)
    started = time.perf_counter()
    for epoch in range(1, recipe.epochs + 1):
        order = tf.constant(shuffler.permutation(len(fit_windows)).astype(np.int32))
        losses.append(float(run_epoch(windows, order)))
        val_losses.append(float(loss_of_all(held_out)))
        if not np.isfinite(losses[-1] + val_losses[-1]):
            raise TrainingDataError(
                f"The loss was no longer finite in epoch {epoch}; lower the recipe's learning_rate."
            )
        if on_progress is not None:
            spent = time.perf_counter() - started
            on_progress(
                Progress(
                    epoch=epoch,
                    n_epochs=recipe.epochs,
                    loss=losses[-1],
                    val_loss=val_losses[-1],
                    eta_seconds=spent / epoch * (recipe.epochs - epoch),
                )
            )
        if stopper.is_done(val_losses[-1]):
            break
    kept_epoch = stopper.restore() or len(losses)
    return FittedNetwork(_weights(model), losses, val_losses, kept_epoch)


def build_recurrent(recipe: Recipe, layers: Recurrent, n_inputs: int, seed: int) -> Any:
    """The Keras model of the recurrent layers, (n, window, n_inputs) to the same, weights drawn from the seed."""
    k = keras()
    last_encoder = len(layers.encoder) - 1
    model: list[Any] = [k.Input((layers.window, n_inputs), dtype="float32")]
    for i, units in enumerate((*layers.encoder, *layers.decoder)):
        model.append(
            k.layers.LSTM(
                units,
                activation=activation_function(layers.activation),
                kernel_initializer=k.initializers.GlorotUniform(seed=derived_seed(seed, i)),
                recurrent_initializer=k.initializers.Orthogonal(seed=derived_seed(seed, 1000 + i)),
                return_sequences=i != last_encoder,
                unroll=True,
                dtype="float32",
            )
        )
        if i == last_encoder:
            model.append(k.layers.RepeatVector(layers.window, dtype="float32"))
    output = k.layers.Dense(
        n_inputs,
        activation=activation_function(recipe.output_activation),
        kernel_initializer=k.initializers.GlorotUniform(seed=derived_seed(seed, 2000)),
        dtype="float32",
    )
    return k.Sequential([*model, k.layers.TimeDistributed(output, dtype="float32")])


def _compiled(recipe: Recipe, model: Any, batch_rows: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(one epoch over the windows in an order -> mean loss, mean loss of windows)."""
    tf = tensorflow()
    optimizer = keras().optimizers.Adam(learning_rate=recipe.learning_rate)
    optimizer.build(model.trainable_variables)
    signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)

    def loss_of(batch: Any) -> Any:
        difference = model(batch, training=True) - batch
        return tf.reduce_mean(tf.abs(difference) if recipe.loss == "mae" else tf.square(difference))

    def step(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(batch)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    def run_epoch(windows: Any, order: Any) -> Any:
        n_rows = tf.shape(order)[0]
        total = tf.constant(0.0)
        for start in tf.range(0, n_rows, batch_rows):
            picked = order[start : start + batch_rows]
            total += step(tf.gather(windows, picked)) * tf.cast(tf.shape(picked)[0], tf.float32)
        return total / tf.cast(n_rows, tf.float32)

    def loss_of_all(windows: Any) -> Any:
        n_rows = tf.shape(windows)[0]
        total = tf.constant(0.0)
        for start in tf.range(0, n_rows, VALIDATION_ROWS):
            part = windows[start : start + VALIDATION_ROWS]
            total += loss_of(part) * tf.cast(tf.shape(part)[0], tf.float32)
        return total / tf.cast(n_rows, tf.float32)

    # Only the loops above need AutoGraph; it would warn about the imports inside the functions they call.
    loss_of = tf.autograph.experimental.do_not_convert(loss_of)
    step = tf.autograph.experimental.do_not_convert(step)
    order = tf.TensorSpec((None,), tf.int32)
    return (
        tf.function(run_epoch, input_signature=[signature, order]),
        tf.function(loss_of_all, input_signature=[signature]),
    )


def _weights(model: Any) -> dict[str, np.ndarray]:
    arrays = {}
    layers = [layer for layer in model.layers if layer.weights]
    for i, layer in enumerate(layers[:-1]):
        for part, array in zip(("kernel", "recurrent", "bias"), layer.get_weights(), strict=True):
            arrays[f"recurrent.{i}.{part}"] = array.astype(np.float32)
    kernel, bias = layers[-1].get_weights()
    arrays["layer.0.kernel"], arrays["layer.0.bias"] = kernel.astype(np.float32), bias.astype(np.float32)
    return arrays
