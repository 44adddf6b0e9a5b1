"""Fitting a recipe with a window: pseudo-labels, windows of normal rows, and a threshold against the labels."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import ArrayLike

from pgoutlier.detector.arrays import BoolVector, Float64Matrix, Float64Vector, IntVector
from pgoutlier.detector.cleaning import isolation_forest_outliers
from pgoutlier.detector.detector import Detector
from pgoutlier.detector.errors import TrainingDataError
from pgoutlier.detector.fit_result import FitResult, error_metrics, not_normal_metrics
from pgoutlier.detector.network import ProgressCallback
from pgoutlier.detector.preprocessing import apply_preprocessing, fit_preprocessing, impute
from pgoutlier.detector.recipes import Recipe
from pgoutlier.detector.recurrent import fit_recurrent
from pgoutlier.detector.thresholds import AllRows, choose_threshold, exceeds
from pgoutlier.detector.windows import window_positions

MIN_WINDOWS = 20


def fit_sequences(
    recipe: Recipe,
    matrix: Float64Matrix,
    names: tuple[str, ...],
    *,
    is_normal: BoolVector,
    groups: ArrayLike | None,
    fit_index: IntVector,
    calibration_index: IntVector,
    seed: int,
    on_progress: ProgressCallback | None,
) -> FitResult:
    """`detector.training.fit` for a recipe with recurrent layers; the arguments are checked already.

    The pseudo-labels are those of the normal rows. Preprocessing sees the fit rows, pseudo-outliers too, since
    the published system standardised the whole table; the network sees the windows in which every row is normal
    and pseudo-normal. A threshold against labels is drawn from all normal rows, any other from the calibration
    windows without outliers. Raises TrainingDataError when too few windows are left.
    """
    started = time.perf_counter()
    if recipe.recurrent is None:
        raise ValueError("the recipe has no recurrent layers")
    outlier = _pseudo_outliers(recipe, matrix, names, is_normal, seed)
    positions = window_positions(len(matrix), groups, recipe.window)
    learned: BoolVector = np.logical_and.reduce((is_normal & ~outlier)[positions], axis=1)
    fit_windows = _enough(recipe, fit_index[learned[fit_index]], "fit")
    calibration_windows = _enough(recipe, calibration_index[learned[calibration_index]], "calibrate with")
    arrays = fit_preprocessing(recipe, matrix[fit_index], names)
    values = apply_preprocessing(recipe, arrays, matrix, names).astype(np.float32)
    network = fit_recurrent(
        recipe,
        recipe.recurrent,
        values[positions[fit_windows]],
        values[positions[calibration_windows]],
        seed=seed,
        on_progress=on_progress,
    )
    arrays.update(network.arrays)
    measured, errors = _errors(Detector(recipe, names, arrays, 0.0), matrix, groups)
    threshold = _threshold(
        recipe,
        errors,
        outlier,
        labelled=measured & is_normal,
        fit_windows=fit_windows,
        calibration_windows=calibration_windows,
    )
    metrics: dict[str, float] = {
        "n_fit": len(fit_windows),
        "n_calibration": len(calibration_windows),
        "n_pseudo_outliers": int(outlier.sum()),
        "seed": seed,
        **network.metrics,
        "threshold": threshold,
        **error_metrics("calibration", errors[calibration_windows], threshold),
        **_agreement(exceeds(errors, threshold), outlier, measured & is_normal),
        **not_normal_metrics(errors[measured & ~is_normal], threshold),
        "seconds": time.perf_counter() - started,
    }
    return FitResult(
        detector=Detector(recipe, names, arrays, threshold),
        metrics=metrics,
        history=network.history,
        calibration_rows=calibration_windows,
        calibration_errors=errors[calibration_windows],
    )


def _enough(recipe: Recipe, windows: IntVector, what: str) -> IntVector:
    if len(windows) < MIN_WINDOWS:
        raise TrainingDataError(
            f"There are {len(windows)} windows of {recipe.window} normal rows in a row to {what}, and"
            f" {MIN_WINDOWS} are needed; widen the training window, or leave out fewer rows."
        )
    return windows


def _pseudo_outliers(
    recipe: Recipe, matrix: Float64Matrix, names: tuple[str, ...], is_normal: BoolVector, seed: int
) -> BoolVector:
    outlier = np.zeros(len(matrix), dtype=bool)
    if recipe.pseudo_labels is None:
        return outlier
    kept = list(recipe.kept_columns(names))
    rows = matrix[is_normal]
    medians = fit_preprocessing(recipe, rows, names) if recipe.missing == "median" else {}
    outlier[is_normal] = isolation_forest_outliers(
        impute(rows, medians)[:, kept],
        n_trees=recipe.pseudo_labels.n_trees,
        n_samples=recipe.pseudo_labels.n_samples,
        contamination=recipe.pseudo_labels.contamination,
        seed=seed,
    )
    return outlier


def _errors(
    detector: Detector, matrix: Float64Matrix, groups: ArrayLike | None
) -> tuple[BoolVector, Float64Vector]:
    """Which rows have a window without gaps, and the errors of all rows, NaN where there is a gap."""
    finite: BoolVector = np.logical_and.reduce(np.isfinite(matrix), axis=1)
    if detector.recipe.missing == "median" or finite.all():
        return np.ones(len(matrix), dtype=bool), detector.score(matrix, groups=groups).reconstruction_error
    positions = window_positions(len(matrix), groups, detector.recipe.window)
    measured: BoolVector = np.logical_and.reduce(finite[positions], axis=1)
    errors = np.full(len(matrix), np.nan)
    scored = detector.score(np.where(finite[:, None], matrix, 0.0), groups=groups)
    errors[measured] = scored.reconstruction_error[measured]
    return measured, errors


def _threshold(
    recipe: Recipe,
    errors: Float64Vector,
    outlier: BoolVector,
    *,
    labelled: BoolVector,
    fit_windows: IntVector,
    calibration_windows: IntVector,
) -> float:
    n_labelled = int(labelled.sum())
    return choose_threshold(
        recipe.threshold,
        calibration_errors=errors[calibration_windows],
        fit_errors=errors[fit_windows],
        all_rows=AllRows(
            errors=errors[labelled],
            anomalous=outlier[labelled],
            weights=np.ones(n_labelled),
            rows_per_day=None,
        ),
    )


def _agreement(flagged: BoolVector, outlier: BoolVector, labelled: BoolVector) -> dict[str, float]:
    """Precision and recall of the network's flags against the pseudo-labels; nothing without any."""
    n_both = int((flagged & outlier & labelled).sum())
    n_flagged, n_outliers = int((flagged & labelled).sum()), int(outlier.sum())
    if not n_outliers or not n_flagged:
        return {}
    return {"pseudo_precision": n_both / n_flagged, "pseudo_recall": n_both / n_outliers}
