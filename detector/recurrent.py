"""Fitting the recurrent autoencoder: LSTM layers over windows of rows, every random number from the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgoutlier.detector._tensorflow import keras
from pgoutlier.detector.network import (
    FittedNetwork,
    ProgressCallback,
    activation_function,
    derived_seed,
    fit_model,
    mean_loss,
)
from pgoutlier.detector.recipes import Recipe, Recurrent


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
    model = build_recurrent(recipe, layers, fit_windows.shape[2], seed)

    def loss_of(batch: Any, *, training: bool) -> Any:
        return mean_loss(recipe, model(batch, training=training) - batch)

    losses, val_losses, kept_epoch = fit_model(
        recipe, model, loss_of, fit_windows, validation_windows, seed=seed, on_progress=on_progress
    )
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


def _weights(model: Any) -> dict[str, np.ndarray]:
    arrays = {}
    layers = [layer for layer in model.layers if layer.weights]
    for i, layer in enumerate(layers[:-1]):
        for part, array in zip(("kernel", "recurrent", "bias"), layer.get_weights(), strict=True):
            arrays[f"recurrent.{i}.{part}"] = array.astype(np.float32)
    kernel, bias = layers[-1].get_weights()
    arrays["layer.0.kernel"], arrays["layer.0.bias"] = kernel.astype(np.float32), bias.astype(np.float32)
    return arrays
