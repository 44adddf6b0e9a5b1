"""Fitting a recipe: split the rows, fit preprocessing and network on one part, calibrate on the other."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from pgoutlier.detector import reference
from pgoutlier.detector.arrays import BoolVector, Float64Matrix, Float64Vector, IntVector
from pgoutlier.detector.cleaning import isolation_forest_outliers
from pgoutlier.detector.detector import Detector
from pgoutlier.detector.encoding import Kind, encoded, fit_encodings
from pgoutlier.detector.errors import TrainingDataError
from pgoutlier.detector.far import decided_by_few, far_rows
from pgoutlier.detector.fit_result import FitResult, error_metrics, not_normal_metrics
from pgoutlier.detector.network import FittedNetwork, Progress, ProgressCallback, fit_network
from pgoutlier.detector.preprocessing import apply_preprocessing, fit_preprocessing
from pgoutlier.detector.prototypes import fit_prototypes, fit_quantiser, fit_scale
from pgoutlier.detector.recipes import MAX_FEATURES, AlertBudgetThreshold, Recipe
from pgoutlier.detector.residuals import fit_whitening, untrimmed
from pgoutlier.detector.sequence_training import fit_sequences
from pgoutlier.detector.thresholds import AllRows, choose_threshold, exceeds, no_anomalies, unknown_rate

MIN_ROWS = 200
# More rows than this change the statistics of residuals by nothing that shows, and take memory.
MAX_STATISTICS_ROWS = 200_000
BLOCK_ROWS = 65_536


def fit(
    recipe: Recipe,
    features: ArrayLike,
    feature_names: Sequence[str],
    *,
    normal: ArrayLike | None = None,
    held_out: ArrayLike | None = None,
    anomalous: ArrayLike | None = None,
    rows_per_day: float | None = None,
    groups: ArrayLike | None = None,
    codes: Mapping[str, Kind] | None = None,
    seed: int | None = None,
    on_progress: ProgressCallback | None = None,
) -> FitResult:
    """Fit the recipe to rows and calibrate its threshold.

    features: (n_rows, n_features) float64 in the source's units, rows in time order.
    normal: (n_rows,) bool; only these rows are fitted on and calibrated with, but for the few that the recipe takes
    for far out (`detector.far`). The others are measured, and alert budgets and the threshold policies that need
    labels count them, in the proportion of the data.
    held_out: (n_rows,) bool; in place of the recipe's split, calibrate with the normal rows among these and fit
    on the other normal ones.
    anomalous: (n_rows,) bool, the labelled anomalies; None for all that are not normal.
    rows_per_day: how many such rows a day brings, for an alert budget only.
    groups: (n_rows,) whose row each is, for a recipe with a window, see `detector.windows`.
    codes: features that come as codes, by name, see `detector.encoding`.
    seed: replaces the recipe's. on_progress is called after each epoch; what it raises ends the fit.
    Preprocessing, network and residual statistics see the fit part alone; the scales of the two distances and the
    threshold come from the calibration part, which also decides when the network stops.
    Raises TrainingDataError, in one sentence, on too few rows (MIN_ROWS normal ones), wrong shapes, no
    features, features that are all constant, non-finite ones when recipe.missing is "quarantine", and where
    the threshold policy needs labelled anomalies or rows_per_day that are not given.
    """
    seed = recipe.seed if seed is None else seed
    matrix, is_normal, names = _checked(recipe, features, feature_names, normal)
    encodings = fit_encodings(
        matrix[is_normal], {names.index(name): kind for name, kind in (codes or {}).items()}
    )
    matrix = encoded(matrix, encodings)
    is_anomaly = _checked_anomalies(recipe, anomalous, is_normal, rows_per_day)
    far = _far(recipe, matrix, is_normal)
    few = decided_by_few(matrix[is_normal], names, left_out=far[is_normal])
    is_normal = is_normal & ~far
    fit_index, calibration_index = _split(recipe, is_normal, held_out, seed)
    if recipe.recurrent is not None:
        fitted = fit_sequences(
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
    else:
        fitted = _fit_rows(
            recipe,
            matrix,
            names,
            is_normal=is_normal,
            is_anomaly=is_anomaly,
            rows_per_day=rows_per_day,
            fit_index=fit_index,
            calibration_index=calibration_index,
            seed=seed,
            on_progress=on_progress,
        )
    return replace(
        fitted,
        detector=fitted.detector.with_encodings(encodings),
        far_rows=np.flatnonzero(far),
        decided_by_few=few,
    )


def _fit_rows(
    recipe: Recipe,
    matrix: Float64Matrix,
    names: tuple[str, ...],
    *,
    is_normal: BoolVector,
    is_anomaly: BoolVector,
    rows_per_day: float | None,
    fit_index: IntVector,
    calibration_index: IntVector,
    seed: int,
    on_progress: ProgressCallback | None,
) -> FitResult:
    started = time.perf_counter()
    arrays, network = _fit_arrays(
        recipe, matrix, names, fit_index, calibration_index, seed=seed, on_progress=on_progress
    )
    calibration_errors = _errors(recipe, names, arrays, matrix[calibration_index])
    fit_errors = _errors(recipe, names, arrays, matrix[fit_index])
    is_other = ~is_normal & (np.isfinite(matrix).all(axis=1) | (recipe.missing == "median"))
    other_errors = _errors(recipe, names, arrays, matrix[is_other])
    all_rows = _all_rows(
        calibration_errors,
        other_errors,
        is_anomaly[is_other],
        len(calibration_index) / int(is_normal.sum()),
        rows_per_day,
    )
    threshold = choose_threshold(
        recipe.threshold, calibration_errors=calibration_errors, fit_errors=fit_errors, all_rows=all_rows
    )
    metrics: dict[str, float] = {
        "n_fit": len(fit_index),
        "n_calibration": len(calibration_index),
        "seed": seed,
        **network.metrics,
        "threshold": threshold,
        **error_metrics("calibration", calibration_errors, threshold),
        **not_normal_metrics(other_errors, threshold),
        **_measure_labels(all_rows, threshold),
        "seconds": time.perf_counter() - started,
    }
    return FitResult(
        detector=Detector(recipe, names, arrays, threshold),
        metrics=metrics,
        history=network.history,
        calibration_rows=calibration_index,
        calibration_errors=calibration_errors,
    )


def _fit_arrays(
    recipe: Recipe,
    matrix: Float64Matrix,
    names: tuple[str, ...],
    fit_index: IntVector,
    calibration_index: IntVector,
    *,
    seed: int,
    on_progress: ProgressCallback | None,
) -> tuple[dict[str, np.ndarray], FittedNetwork]:
    """All that a detector computes with but its threshold, and how the fit of the network went."""
    arrays = fit_preprocessing(recipe, matrix[fit_index], names)
    fit_values = apply_preprocessing(recipe, arrays, matrix[fit_index], names)
    fit_values = _without_outliers(recipe, fit_values, seed=seed)
    calibration_values = apply_preprocessing(recipe, arrays, matrix[calibration_index], names)
    if recipe.takes_tails:
        return arrays, _of_tails(fit_values, calibration_values, on_progress)
    fit_reconstruction = fit_quantiser if recipe.quantises else fit_network
    network = fit_reconstruction(
        recipe,
        _trimmed(fit_values, recipe.trim_fit_fraction).astype(np.float32),
        calibration_values.astype(np.float32),
        seed=seed,
        on_progress=on_progress,
    )
    arrays.update(network.arrays)
    if recipe.error_metric == "mahalanobis":
        arrays = _fit_statistics(recipe, arrays, fit_values, calibration_values, seed=seed)
    return arrays, network


def _of_tails(
    fit_values: Float64Matrix, calibration_values: Float64Matrix, on_progress: ProgressCallback | None
) -> FittedNetwork:
    """Nothing is left to fit; the losses are the mean depths."""
    loss, val_loss = float(fit_values.mean()), float(calibration_values.mean())
    if on_progress is not None:
        on_progress(Progress(epoch=1, n_epochs=1, loss=loss, val_loss=val_loss, eta_seconds=0.0))
    return FittedNetwork({}, [loss], [val_loss], kept_epoch=1)


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


def _checked_anomalies(
    recipe: Recipe, anomalous: ArrayLike | None, is_normal: BoolVector, rows_per_day: float | None
) -> BoolVector:
    is_anomaly = ~is_normal if anomalous is None else np.asarray(anomalous)
    if is_anomaly.shape != is_normal.shape or is_anomaly.dtype != np.bool_ or (is_anomaly & is_normal).any():
        raise TrainingDataError(
            f"anomalous must hold one bool for each of the {len(is_normal)} rows, true only where normal is false."
        )
    if recipe.needs_labels and not is_anomaly.any():
        raise no_anomalies()
    if isinstance(recipe.threshold, AlertBudgetThreshold) and not (rows_per_day and rows_per_day > 0):
        raise unknown_rate()
    return is_anomaly


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


def _far(recipe: Recipe, matrix: Float64Matrix, is_normal: BoolVector) -> BoolVector:
    """Which rows are left out for a value that is far out; they count as neither normal nor anomalous."""
    far = np.zeros(len(is_normal), dtype=bool)
    if recipe.far_spreads is not None:
        far[is_normal] = far_rows(matrix[is_normal], recipe.far_spreads)
    return far


def _split(
    recipe: Recipe, is_normal: BoolVector, held_out: ArrayLike | None, seed: int
) -> tuple[IntVector, IntVector]:
    """(fit rows, calibration rows), each in time order."""
    if held_out is not None:
        calibrates = np.asarray(held_out)
        if calibrates.shape != is_normal.shape or calibrates.dtype != np.bool_:
            raise TrainingDataError(f"held_out must hold one bool for each of the {len(is_normal)} rows.")
        n_fit, n_held_out = int((is_normal & ~calibrates).sum()), int((is_normal & calibrates).sum())
        if n_fit < MIN_ROWS or not n_held_out:
            raise TrainingDataError(
                f"A fit needs at least {MIN_ROWS} normal rows beside the held out ones, of which there must be "
                f"one; there are {n_fit} and {n_held_out}."
            )
        return np.flatnonzero(is_normal & ~calibrates), np.flatnonzero(is_normal & calibrates)
    order = rows = np.flatnonzero(is_normal)
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
        scale = fit_scale(reference.differences_of(recipe, fitted, calibration_values))
        fitted["prototypes.scale"] = scale / np.array([1.0, recipe.prototype_weight])
    return fitted


def _errors(
    recipe: Recipe, names: Sequence[str], arrays: dict[str, np.ndarray], features: Float64Matrix
) -> Float64Vector:
    """The reconstruction errors of rows in the source's units, block by block for the memory."""
    blocks = range(0, max(len(features), 1), BLOCK_ROWS)
    errors = [reference.score(recipe, names, arrays, features[i : i + BLOCK_ROWS])[0] for i in blocks]
    return np.concatenate(errors)


def _all_rows(
    calibration_errors: Float64Vector,
    other_errors: Float64Vector,
    other_is_anomaly: BoolVector,
    calibration_share: float,
    rows_per_day: float | None,
) -> AllRows:
    """The calibration rows and every row that is not normal, in the proportion in which the data have them.

    The calibration rows are only a share of the normal rows, while none of the others was fitted on; so each
    of those counts as much as that share. Then the prevalence of anomalies is that of all rows, by whichever
    order they are split, and no label is wasted.
    """
    n_calibration, n_others = len(calibration_errors), len(other_errors)
    return AllRows(
        errors=np.concatenate([calibration_errors, other_errors]),
        anomalous=np.concatenate([np.zeros(n_calibration, dtype=bool), other_is_anomaly]),
        weights=np.concatenate([np.ones(n_calibration), np.full(n_others, calibration_share)]),
        rows_per_day=rows_per_day,
    )


def _measure_labels(rows: AllRows, threshold: float) -> dict[str, float]:
    """Precision and recall at the threshold, where anomalies are labelled."""
    if not rows.anomalous.any():
        return {}
    flagged = exceeds(rows.errors, threshold)
    # All anomalies weigh the same.
    metrics = {"calibration_recall": float(flagged[rows.anomalous].mean())}
    if flagged.any():
        precision = np.average(rows.anomalous[flagged], weights=rows.weights[flagged])
        metrics["calibration_precision"] = float(precision)
    return metrics
