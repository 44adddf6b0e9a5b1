"""Fitting a recipe: split the rows, fit preprocessing and network on one part, calibrate on the other."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from detector import reference
from detector.arrays import BoolVector, Float64Matrix, Float64Vector, IntVector
from detector.cleaning import isolation_forest_outliers
from detector.detector import Detector
from detector.errors import TrainingDataError
from detector.network import Progress, ProgressCallback, fit_network
from detector.preprocessing import apply_preprocessing, fit_preprocessing
from detector.prototypes import fit_prototypes, fit_scale
from detector.recipes import MAX_FEATURES, Recipe
from detector.residuals import fit_whitening, untrimmed
from detector.thresholds import choose_threshold, exceeds

__all__ = ["MIN_ROWS", "FitResult", "Progress", "fit"]

MIN_ROWS = 200
# More rows than this change the statistics of residuals by nothing that shows, and take memory.
MAX_STATISTICS_ROWS = 200_000
BLOCK_ROWS = 65_536
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """metrics: numbers that JSON can hold; history: "loss" and "val_loss", one number an epoch."""

    detector: Detector
    metrics: dict[str, float]
    history: dict[str, list[float]]


def fit(
    recipe: Recipe,
    features: ArrayLike,
    feature_names: Sequence[str],
    *,
    normal: ArrayLike | None = None,
    seed: int | None = None,
    on_progress: ProgressCallback | None = None,
) -> FitResult:
    """Fit the recipe to rows and calibrate its threshold.

    features: (n_rows, n_features) float64 in the source's units, rows in time order.
    normal: (n_rows,) bool; only these rows are fitted on and calibrated with, the others only measured.
    seed: replaces the recipe's. on_progress is called after each epoch; what it raises ends the fit.
    Preprocessing, network and residual statistics see the fit part alone; the scales of the two distances and the
    threshold come from the calibration part, which also decides when the network stops.
    Raises TrainingDataError, in one sentence, on too few rows (MIN_ROWS normal ones), wrong shapes, no
    features, features that are all constant, and non-finite ones when recipe.missing is "quarantine".
    """
    started = time.perf_counter()
    seed = recipe.seed if seed is None else seed
    matrix, is_normal, names = _checked(recipe, features, feature_names, normal)
    fit_index, calibration_index = _split(recipe, np.flatnonzero(is_normal), seed)
    arrays = fit_preprocessing(recipe, matrix[fit_index], names)
    fit_values = apply_preprocessing(recipe, arrays, matrix[fit_index], names)
    fit_values = _without_outliers(recipe, fit_values, seed=seed)
    calibration_values = apply_preprocessing(recipe, arrays, matrix[calibration_index], names)

    network = fit_network(
        recipe,
        _trimmed(fit_values, recipe.trim_fit_fraction).astype(np.float32),
        calibration_values.astype(np.float32),
        seed=seed,
        on_progress=on_progress,
    )
    arrays.update(network.arrays)
    if recipe.error_metric == "mahalanobis":
        arrays = _fit_statistics(recipe, arrays, fit_values, calibration_values, seed=seed)
    calibration_errors = _errors(recipe, names, arrays, matrix[calibration_index])
    fit_errors = _errors(recipe, names, arrays, matrix[fit_index])
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
        **_error_metrics("calibration", calibration_errors, threshold),
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


def _without_outliers(recipe: Recipe, values: Float64Matrix, *, seed: int) -> Float64Matrix:
    """The rows without those that the recipe's Isolation Forest, if it has one, takes for anomalies."""
    labels = recipe.pseudo_labels
    if labels is None:
        return values
    outlier = isolation_forest_outliers(
        values,
        n_trees=labels.n_trees,
        n_samples=labels.n_samples,
        contamination=labels.contamination,
        seed=seed,
    )
    return values[~outlier]


def _trimmed(values: Float64Matrix, fraction: float) -> Float64Matrix:
    """The rows without the share of them that is farthest from the rest, in Mahalanobis distance."""
    if fraction == 0:
        return values
    location, whitening = fit_whitening(values, fraction)
    distances = np.square((values - location) @ whitening).sum(axis=1)
    return values[untrimmed(distances, fraction)]


def _fit_statistics(
    recipe: Recipe,
    arrays: dict[str, np.ndarray],
    fit_values: Float64Matrix,
    calibration_values: Float64Matrix,
    *,
    seed: int,
) -> dict[str, np.ndarray]:
    """Whitening and prototypes of the fit rows, and how far the calibration rows are by each."""
    values = fit_values
    if len(values) > MAX_STATISTICS_ROWS:
        values = values[np.random.default_rng(seed).choice(len(values), MAX_STATISTICS_ROWS, replace=False)]
    residuals = reference.residuals(recipe, arrays, values)
    ridge = np.zeros(residuals.shape[1])
    ridge[-values.shape[1] :] = recipe.residual_ridge
    location, whitening = fit_whitening(residuals, recipe.trim_fraction, ridge, features=values)
    fitted = {**arrays, "residual.location": location, "residual.whitening": whitening}
    if recipe.prototypes:
        fitted["prototypes.rows"] = fit_prototypes(values, recipe.prototypes, seed=seed)
        fitted["prototypes.scale"] = fit_scale(reference.differences_of(recipe, fitted, calibration_values))
    return fitted


def _errors(
    recipe: Recipe, names: Sequence[str], arrays: dict[str, np.ndarray], features: Float64Matrix
) -> Float64Vector:
    """The reconstruction errors of rows in the source's units, block by block for the memory."""
    blocks = range(0, len(features), BLOCK_ROWS)
    errors = [reference.score(recipe, names, arrays, features[i : i + BLOCK_ROWS])[0] for i in blocks]
    return np.concatenate(errors)


def _error_metrics(prefix: str, errors: Float64Vector, threshold: float) -> dict[str, float]:
    metrics = {f"{prefix}_flag_rate": float(exceeds(errors, threshold).mean())}
    for quantile in QUANTILES:
        metrics[f"{prefix}_error_q{quantile * 100:g}"] = float(np.quantile(errors, quantile))
    return metrics


def _measure_others(detector: Detector, rows: Float64Matrix) -> dict[str, float]:
    """How the rows that were not fitted on as normal are scored, leaving out those with gaps."""
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        return {"n_not_normal": 0}
    errors = detector.score(rows).reconstruction_error
    return {"n_not_normal": len(rows), **_error_metrics("not_normal", errors, detector.threshold)}
