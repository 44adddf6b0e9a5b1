"""Fitting a recipe: split the rows, fit preprocessing and network on one part, calibrate on the other."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from detector import reference
from detector.arrays import BoolVector, Float64Matrix, Float64Vector, IntVector
from detector.detector import Detector
from detector.errors import TrainingDataError
from detector.fit_result import FitResult, error_metrics
from detector.network import ProgressCallback, fit_network
from detector.preprocessing import apply_preprocessing, fit_preprocessing
from detector.recipes import MAX_FEATURES, Recipe
from detector.residuals import fit_whitening, held_out_distances, untrimmed
from detector.sequence_training import fit_sequences
from detector.thresholds import choose_threshold

MIN_ROWS = 200


def fit(
    recipe: Recipe,
    features: ArrayLike,
    feature_names: Sequence[str],
    *,
    normal: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    seed: int | None = None,
    on_progress: ProgressCallback | None = None,
) -> FitResult:
    """Fit the recipe to rows and calibrate its threshold.

    features: (n_rows, n_features) float64 in the source's units, rows in time order.
    normal: (n_rows,) bool; only these rows are fitted on and calibrated with, the others only measured.
    groups: (n_rows,) whose row each is, for a recipe with a window, see `detector.windows`.
    seed: replaces the recipe's. on_progress is called after each epoch; what it raises ends the fit.
    Preprocessing and network see the fit part alone; residual statistics and threshold come from the
    calibration part, which also decides when the network stops.
    Raises TrainingDataError, in one sentence, on too few rows (MIN_ROWS normal ones), wrong shapes, no
    features, features that are all constant, and non-finite ones when recipe.missing is "quarantine".
    """
    started = time.perf_counter()
    seed = recipe.seed if seed is None else seed
    matrix, is_normal, names = _checked(recipe, features, feature_names, normal)
    if recipe.recurrent is not None:
        fit_index, calibration_index = _split(recipe, np.flatnonzero(is_normal), seed)
        return fit_sequences(
            recipe,
            matrix,
            names,
            is_normal=is_normal,
            groups=groups,
            fit_index=fit_index,
            calibration_index=calibration_index,
            seed=seed,
            on_progress=on_progress,
        )
    fit_index, calibration_index = _split(recipe, np.flatnonzero(is_normal), seed)
    arrays = fit_preprocessing(recipe, matrix[fit_index], names)
    fit_values = apply_preprocessing(recipe, arrays, matrix[fit_index], names)
    calibration_values = apply_preprocessing(recipe, arrays, matrix[calibration_index], names)

    network = fit_network(
        recipe,
        _trimmed(fit_values, recipe.trim_fit_fraction).astype(np.float32),
        calibration_values.astype(np.float32),
        seed=seed,
        on_progress=on_progress,
    )
    arrays.update(network.arrays)
    calibration_errors = _calibrate(recipe, arrays, calibration_values)
    fit_errors = reference.score(recipe, names, arrays, matrix[fit_index])[0]
    threshold = choose_threshold(
        recipe.threshold, calibration_errors=calibration_errors, fit_errors=fit_errors
    )
    detector = Detector.from_arrays(recipe, names, arrays, threshold)
    metrics: dict[str, float] = {
        "n_fit": len(fit_index),
        "n_calibration": len(calibration_index),
        "seed": seed,
        "epochs": len(network.loss),
        "kept_epoch": network.kept_epoch,
        "loss": network.loss[network.kept_epoch - 1],
        "val_loss": network.val_loss[network.kept_epoch - 1],
        "threshold": threshold,
        **error_metrics("calibration", calibration_errors, threshold),
        **_measure_others(detector, matrix[~is_normal]),
    }
    metrics["seconds"] = time.perf_counter() - started
    history = {"loss": network.loss, "val_loss": network.val_loss}
    return FitResult(detector=detector, metrics=metrics, history=history)


def _checked(
    recipe: Recipe, features: ArrayLike, feature_names: Sequence[str], normal: ArrayLike | None
) -> tuple[Float64Matrix, BoolVector, tuple[str, ...]]:
    matrix = np.asarray(features, dtype=np.float64)
    names = tuple(feature_names)
    if matrix.ndim != 2 or matrix.shape[1] != len(names):
        raise TrainingDataError(
            f"The features must be a matrix with one column for each of the {len(names)} names, "
            f"not of shape {matrix.shape}."
        )
    if not 1 <= len(names) <= MAX_FEATURES:
        raise TrainingDataError(f"A recipe is fitted on 1 to {MAX_FEATURES} features, not {len(names)}.")
    is_normal = np.ones(len(matrix), dtype=bool) if normal is None else np.asarray(normal)
    if is_normal.shape != (len(matrix),) or is_normal.dtype != np.bool_:
        raise TrainingDataError(
            f"normal must hold one bool for each of the {len(matrix)} rows, "
            f"not {is_normal.dtype} of shape {is_normal.shape}."
        )
    n_normal = int(is_normal.sum())
    if n_normal < MIN_ROWS:
        raise TrainingDataError(
            f"A fit needs at least {MIN_ROWS} normal rows and there are {n_normal}; "
            "widen the training window."
        )
    _check_values(recipe, matrix[is_normal], names)
    return matrix, is_normal, names


def _check_values(recipe: Recipe, rows: Float64Matrix, names: tuple[str, ...]) -> None:
    finite = np.isfinite(rows)
    bad = [names[column] for column in np.flatnonzero(~finite.all(axis=0))]
    if bad and recipe.missing == "quarantine":
        raise TrainingDataError(
            f"Columns {', '.join(bad)} hold NaN or infinity; leave those rows out, "
            "or use a recipe whose missing policy is 'median'."
        )
    kept = list(recipe.kept_columns(names))
    largest = np.where(finite, rows, -np.inf)[:, kept].max(axis=0)
    smallest = np.where(finite, rows, np.inf)[:, kept].min(axis=0)
    if not (largest > smallest).any():
        raise TrainingDataError("Every feature is constant, so there is nothing to learn from these rows.")


def _split(recipe: Recipe, rows: IntVector, seed: int) -> tuple[IntVector, IntVector]:
    """(fit rows, calibration rows), each in time order."""
    order = rows
    if recipe.split.order == "random":
        order = np.random.default_rng(seed).permutation(rows)
    n_fit = math.floor(len(rows) * recipe.split.fit_fraction)
    return np.sort(order[:n_fit]), np.sort(order[n_fit:])


def _trimmed(values: Float64Matrix, fraction: float) -> Float64Matrix:
    """The rows without the share of them that is farthest from the rest, in Mahalanobis distance."""
    if fraction == 0:
        return values
    location, whitening = fit_whitening(values, fraction)
    distances = np.square((values - location) @ whitening).sum(axis=1)
    return values[untrimmed(distances, fraction)]


def _calibrate(recipe: Recipe, arrays: dict[str, np.ndarray], values: Float64Matrix) -> Float64Vector:
    """The errors of the calibration rows; puts the residual statistics into the arrays if it needs them."""
    residuals = reference.residuals(recipe, arrays, values)
    if recipe.error_metric != "mahalanobis":
        terms = np.abs(residuals) if recipe.error_metric == "mae" else np.square(residuals)
        errors: Float64Vector = terms.mean(axis=1)
        return errors
    ridge = np.zeros(residuals.shape[1])
    ridge[-values.shape[1] :] = recipe.residual_ridge
    location, whitening = fit_whitening(residuals, recipe.trim_fraction, ridge, features=values)
    arrays["residual.location"], arrays["residual.whitening"] = location, whitening
    return held_out_distances(residuals, recipe.trim_fraction, ridge, features=values)


def _measure_others(detector: Detector, rows: Float64Matrix) -> dict[str, float]:
    """How the rows that were not fitted on as normal are scored, leaving out those with gaps."""
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        return {"n_not_normal": 0}
    errors = detector.score(rows).reconstruction_error
    return {"n_not_normal": len(rows), **error_metrics("not_normal", errors, detector.threshold)}
