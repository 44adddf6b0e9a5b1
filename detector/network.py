"""Fitting networks: a Keras model, its own loop over the epochs, no global random state.

keras.Model.fit draws its shuffling and its dropout from process-wide generators, which two trainings in
one process would share. Here every random number comes from the seed that is passed in, and an epoch is
one call of a compiled function.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgoutlier.detector._tensorflow import keras, tensorflow
from pgoutlier.detector.arrays import Float32Matrix
from pgoutlier.detector.errors import TrainingDataError
from pgoutlier.detector.recipes import Layer, Recipe

# The slope of TensorFlow's own leaky_relu, which the published systems used.
LEAKY_SLOPE = 0.2
# Validation in slices bounds the memory that a wide network's activations take.
VALIDATION_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is known after an epoch; epoch counts from 1, losses are means over the rows."""

    epoch: int
    n_epochs: int
    loss: float
    val_loss: float
    eta_seconds: float


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class FittedNetwork:
    """Arrays "layer.<i>.kernel" and "layer.<i>.bias", the losses of each epoch, and which epoch's weights
    the arrays are (counted from 1)."""

    arrays: dict[str, np.ndarray]
    loss: list[float]
    val_loss: list[float]
    kept_epoch: int

    @property
    def metrics(self) -> dict[str, float]:
        kept = self.kept_epoch - 1
        return {
            "epochs": len(self.loss),
            "kept_epoch": self.kept_epoch,
            "loss": self.loss[kept],
            "val_loss": self.val_loss[kept],
        }

    @property
    def history(self) -> dict[str, list[float]]:
        return {"loss": self.loss, "val_loss": self.val_loss}


def fit_network(
    recipe: Recipe,
    fit_rows: Float32Matrix,
    validation_rows: Float32Matrix,
    *,
    seed: int,
    on_progress: ProgressCallback | None = None,
) -> FittedNetwork:
    """Fit an autoencoder to preprocessed rows (n, n_kept); the validation rows decide when to stop.

    Deterministic on one machine's CPU: the same rows and seed give the same arrays, bit for bit.
    Raises TrainingDataError when the loss stops being a finite number.
    """
    model = build_model(recipe, fit_rows.shape[1], seed)

    def loss_of(batch: Any, *, training: bool) -> Any:
        outputs, penalty = _forward(recipe, model, batch, training=training)
        return mean_loss(recipe, outputs - batch) + penalty

    losses, val_losses, kept_epoch = fit_model(
        recipe, model, loss_of, fit_rows, validation_rows, seed=seed, on_progress=on_progress
    )
    return FittedNetwork(_weights(model), losses, val_losses, kept_epoch)


def mean_loss(recipe: Recipe, difference: Any) -> Any:
    """The recipe's loss of what a reconstruction differs by, of any shape, as one number."""
    tf = tensorflow()
    return tf.reduce_mean(tf.abs(difference) if recipe.loss == "mae" else tf.square(difference))


def fit_model(
    recipe: Recipe,
    model: Any,
    loss_of: Callable[..., Any],
    fit_rows: NDArray[np.float32],
    validation_rows: NDArray[np.float32],
    *,
    seed: int,
    on_progress: ProgressCallback | None,
) -> tuple[list[float], list[float], int]:
    """Fit a Keras model to rows of its input's shape. Returns both losses of each epoch, and which epoch is kept.

    loss_of: (batch, *, training: bool) -> mean loss of the batch. Raises TrainingDataError when the loss stops
    being a finite number.
    """
    tf = tensorflow()
    run_epoch, validation_loss = _compiled(recipe, model, loss_of, recipe.batch_rows(len(fit_rows)))
    rows, held_out = tf.constant(fit_rows), tf.constant(validation_rows)
    shuffler = np.random.default_rng(seed)
    losses: list[float] = []
    val_losses: list[float] = []
    stopper = _Stopper(recipe, model)
    started = time.perf_counter()
    for epoch in range(1, recipe.epochs + 1):
        order = tf.constant(shuffler.permutation(len(fit_rows)).astype(np.int32))
        losses.append(float(run_epoch(rows, order)))
        val_losses.append(float(validation_loss(held_out)))
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
    return losses, val_losses, stopper.restore() or len(losses)


def build_model(recipe: Recipe, n_inputs: int, seed: int) -> Any:
    """The Keras model of the recipe, with initial weights and dropout masks drawn from the seed."""
    k = keras()
    layers: list[Any] = [k.Input((n_inputs,), dtype="float32")]
    output = Layer(units=min(n_inputs, 4096), activation=recipe.output_activation)
    for i, layer in enumerate((*recipe.layers, output)):
        layers.append(
            k.layers.Dense(
                layer.units,
                activation=activation_function(layer.activation),
                kernel_initializer=k.initializers.GlorotUniform(seed=derived_seed(seed, i)),
                dtype="float32",
            )
        )
        if layer.dropout > 0:
            layers.append(k.layers.Dropout(layer.dropout, seed=derived_seed(seed, 1000 + i), dtype="float32"))
    return k.Sequential(layers)


def derived_seed(seed: int, part: int) -> int:
    """A seed for one part of the model, so that no two layers start with the same numbers."""
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0] >> 1)


def activation_function(name: str) -> Any:
    k = keras()
    if name == "leaky_relu":
        return lambda x: k.activations.leaky_relu(x, negative_slope=LEAKY_SLOPE)
    return k.activations.get(name)


def _compiled(
    recipe: Recipe, model: Any, loss_of: Callable[..., Any], batch_rows: int
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(one epoch over the rows in an order -> mean loss, mean loss of rows without dropout)."""
    tf = tensorflow()
    optimizer = keras().optimizers.Adam(learning_rate=recipe.learning_rate)
    optimizer.build(model.trainable_variables)
    signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)

    def step(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(batch, training=True)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    def run_epoch(rows: Any, order: Any) -> Any:
        n_rows = tf.shape(order)[0]
        total = tf.constant(0.0)
        for start in tf.range(0, n_rows, batch_rows):
            picked = order[start : start + batch_rows]
            total += step(tf.gather(rows, picked)) * tf.cast(tf.shape(picked)[0], tf.float32)
        return total / tf.cast(n_rows, tf.float32)

    def validation_loss(rows: Any) -> Any:
        n_rows = tf.shape(rows)[0]
        total = tf.constant(0.0)
        for start in tf.range(0, n_rows, VALIDATION_ROWS):
            part = rows[start : start + VALIDATION_ROWS]
            total += loss_of(part, training=False) * tf.cast(tf.shape(part)[0], tf.float32)
        return total / tf.cast(n_rows, tf.float32)

    # Only the loops above need AutoGraph; it would warn about the imports inside the functions they call.
    loss_of = tf.autograph.experimental.do_not_convert(loss_of)
    step = tf.autograph.experimental.do_not_convert(step)
    order = tf.TensorSpec((None,), tf.int32)
    return (
        tf.function(run_epoch, input_signature=[signature, order]),
        tf.function(validation_loss, input_signature=[signature]),
    )


def _forward(recipe: Recipe, model: Any, batch: Any, *, training: bool) -> tuple[Any, Any]:
    """The model's output and the activity penalties, averaged over the batch's rows as tf.keras did."""
    tf = tensorflow()
    n_rows = tf.cast(tf.shape(batch)[0], tf.float32)
    penalty = tf.constant(0.0)
    hidden = iter(recipe.layers)
    values = batch
    for layer in model.layers:
        values = layer(values, training=training)
        wanted = next(hidden, None) if _is_dense(layer) else None
        if wanted is not None and wanted.activity_l1 > 0:
            penalty += wanted.activity_l1 * tf.reduce_sum(tf.abs(values)) / n_rows
        if wanted is not None and wanted.activity_l2 > 0:
            penalty += wanted.activity_l2 * tf.reduce_sum(tf.square(values)) / n_rows
    return values, penalty


def _is_dense(layer: Any) -> bool:
    return isinstance(layer, keras().layers.Dense)


def _weights(model: Any) -> dict[str, np.ndarray]:
    arrays = {}
    for i, layer in enumerate(layer for layer in model.layers if _is_dense(layer)):
        kernel, bias = layer.get_weights()
        arrays[f"layer.{i}.kernel"] = kernel.astype(np.float32)
        arrays[f"layer.{i}.bias"] = bias.astype(np.float32)
    return arrays


class _Stopper:
    """Early stopping with the meaning of keras.callbacks.EarlyStopping."""

    def __init__(self, recipe: Recipe, model: Any) -> None:
        self._rule = recipe.early_stopping
        self._model = model
        self._best_loss = np.inf
        self._best_weights: list[np.ndarray] | None = None
        self._epoch = self._best_epoch = self._waited = 0

    def is_done(self, val_loss: float) -> bool:
        """Whether to stop after an epoch with this validation loss."""
        self._epoch += 1
        if self._rule is None:
            return False
        if val_loss < self._best_loss - self._rule.min_delta:
            self._best_loss, self._waited = val_loss, 0
            if self._rule.restore_best:
                self._best_epoch, self._best_weights = self._epoch, self._model.get_weights()
            return False
        self._waited += 1
        return self._waited >= self._rule.patience

    def restore(self) -> int:
        """Give the model back the weights of its best epoch and return that epoch; 0 when none is kept."""
        if self._best_weights is not None:
            self._model.set_weights(self._best_weights)
        return self._best_epoch
