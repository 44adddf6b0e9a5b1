"""Preprocessing: fitted once on the fit rows, kept as arrays, applied in float64.

Standardising and min-max scaling are both (x - shift) / scale. Values are bounded to +-RAW_LIMIT between
the steps and to +-LIMIT before the network, so that a row of 1e300 gives a huge but finite error, never NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pgoutlier.detector.arrays import Arrays, Float64Matrix, Float64Vector
from pgoutlier.detector.recipes import Clip, GlobalMinMax, Pca, Recipe, Standardise, Tails
from pgoutlier.detector.tails import PARTS, depths_of, fit_tails

LIMIT = 1e6
# Differences of two numbers within this bound still fit into a float64.
RAW_LIMIT = 1e300
# A column whose spread is this small a part of its size is constant but for rounding.
CONSTANT_SPREAD = 1e-12


def fit_preprocessing(
    recipe: Recipe, features: Float64Matrix, feature_names: Sequence[str]
) -> dict[str, np.ndarray]:
    """The arrays of the recipe's steps, and the training medians when missing values are imputed.

    features: (n_rows, n_features), the fit rows only, in the source's units; NaN and infinity are
    allowed when recipe.missing is "median". Keys are those of `detector.layout.expected_arrays`.
    """
    arrays: dict[str, np.ndarray] = {}
    if recipe.missing == "median":
        arrays["missing.median"] = _finite_medians(features)
    values = impute(features, arrays)
    kept = list(recipe.kept_columns(feature_names))
    for i, step in enumerate(recipe.preprocessing):
        if isinstance(step, Standardise):
            shift, scale = _standardisation(values, step, feature_names)
        elif isinstance(step, GlobalMinMax):
            shift, scale = _global_range(values[:, kept])
        elif isinstance(step, Pca):
            mean, components = _principal_components(np.clip(values[:, kept], -LIMIT, LIMIT), step)
            arrays[f"preprocessing.{i}.mean"], arrays[f"preprocessing.{i}.components"] = mean, components
            continue
        elif isinstance(step, Tails):
            fitted = fit_tails(values[:, kept])
            arrays |= {f"preprocessing.{i}.{part}": array for part, array in fitted.items()}
            continue
        else:
            if isinstance(step, Clip):
                values = np.clip(values, step.low, step.high)
            continue
        arrays[f"preprocessing.{i}.shift"] = shift
        arrays[f"preprocessing.{i}.scale"] = scale
        values = rescale(values, shift, scale)
    return arrays


def apply_preprocessing(
    recipe: Recipe, arrays: Arrays, features: Float64Matrix, feature_names: Sequence[str]
) -> Float64Matrix:
    """(n_rows, n_features) in the source's units to (n_rows, n_inputs) dimensionless, both float64."""
    values = impute(features, arrays)
    for i, step in enumerate(recipe.preprocessing):
        if isinstance(step, Clip):
            values = np.clip(values, step.low, step.high)
        elif isinstance(step, Tails):
            fitted = {part: arrays[f"preprocessing.{i}.{part}"] for part in PARTS}
            return depths_of(values[:, list(recipe.kept_columns(feature_names))], fitted)
        elif f"preprocessing.{i}.shift" in arrays:
            values = rescale(values, arrays[f"preprocessing.{i}.shift"], arrays[f"preprocessing.{i}.scale"])
    values = np.clip(values[:, list(recipe.kept_columns(feature_names))], -LIMIT, LIMIT)
    if recipe.pca is None:
        return values
    last = f"preprocessing.{len(recipe.preprocessing) - 1}"
    projected: Float64Matrix = (values - arrays[f"{last}.mean"]) @ arrays[f"{last}.components"].T
    return projected


def impute(features: Float64Matrix, arrays: Arrays) -> Float64Matrix:
    """Non-finite entries become the training medians where the arrays have them; all are bounded."""
    values = features
    if "missing.median" in arrays:
        values = np.where(np.isfinite(values), values, arrays["missing.median"])
    return np.clip(values, -RAW_LIMIT, RAW_LIMIT)


def rescale(values: Float64Matrix, shift: Float64Vector, scale: Float64Vector) -> Float64Matrix:
    """(values - shift) / scale, bounded to +-RAW_LIMIT; shift and scale are (n_features,) or (1,)."""
    with np.errstate(over="ignore"):
        return np.clip((values - shift) / scale, -RAW_LIMIT, RAW_LIMIT)


def _finite_medians(features: Float64Matrix) -> Float64Vector:
    """The median of the finite entries of each column, 0 for a column that has none."""
    medians = np.zeros(features.shape[1])
    for column, values in enumerate(features.T):
        finite = values[np.isfinite(values)]
        if len(finite):
            # Halved before adding, which np.median does not do, two huge middle values stay finite.
            low, high = np.quantile(finite, 0.5, method="lower"), np.quantile(finite, 0.5, method="higher")
            medians[column] = np.clip(low / 2 + high / 2, -RAW_LIMIT, RAW_LIMIT)
    return medians


def _standardisation(
    values: Float64Matrix, step: Standardise, feature_names: Sequence[str]
) -> tuple[Float64Vector, Float64Vector]:
    """Mean and population standard deviation by column; (0, 1) for a column that is left as it is."""
    # Dividing by the largest entry first keeps the squares of huge values from overflowing.
    size = np.abs(values).max(axis=0)
    size[size == 0] = 1.0
    parts = values / size
    mean, spread = parts.mean(axis=0), parts.std(axis=0)
    constant = spread <= CONSTANT_SPREAD
    shift = np.where(constant, values[0], mean * size)
    scale = np.where(constant, 1.0, np.maximum(spread * size, np.finfo(np.float64).tiny))
    if step.only is not None:
        left = ~np.isin(np.asarray(feature_names, dtype=object), np.asarray(step.only, dtype=object))
        shift[left], scale[left] = 0.0, 1.0
    return shift, scale


def _principal_components(values: Float64Matrix, step: Pca) -> tuple[Float64Vector, Float64Matrix]:
    """Mean (d,) and the eigenvectors of the covariance with the largest eigenvalues, as rows (k, d)."""
    mean = values.mean(axis=0)
    centred = values - mean
    _, vectors = np.linalg.eigh(centred.T @ centred / len(values))
    components = vectors[:, ::-1][:, : step.n_components].T
    # An eigenvector may as well point the other way; the largest entry is made positive.
    largest = np.abs(components).argmax(axis=1)
    signs = np.where(components[np.arange(len(components)), largest] < 0, -1.0, 1.0)
    return mean, np.ascontiguousarray(components * signs[:, None])


def _global_range(values: Float64Matrix) -> tuple[Float64Vector, Float64Vector]:
    """Smallest entry and range of the whole matrix, each (1,)."""
    low, high = float(values.min()), float(values.max())
    width = high - low
    return np.array([low]), np.array([width if width > 0 else 1.0])
