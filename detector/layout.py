"""Which arrays a detector is made of: the contract between fitting, storing and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pgoutlier.detector.arrays import Arrays
from pgoutlier.detector.errors import InvalidDetector
from pgoutlier.detector.recipes import MAX_FEATURES, GlobalMinMax, Recipe, Standardise
from pgoutlier.detector.tails import KNOTS, PARTS

Layout = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


def expected_arrays(recipe: Recipe, n_features: int, *, feature_names: Sequence[str] = ()) -> Layout:
    """Name, shape and dtype of every array of a detector of this recipe; nothing large is allocated.

    feature_names is needed only for a recipe that drops columns, to know how many are left.

    missing.median              (n_features,) float64, source's units   when recipe.missing is "median"
    preprocessing.<i>.shift     (n_features,) or (1,) float64           for each step that rescales
    preprocessing.<i>.scale     likewise, positive
    preprocessing.<i>.mean      (n_kept,) float64                       for the step pca
    preprocessing.<i>.components  (n_inputs, n_kept) float64            orthonormal rows
    preprocessing.<i>.knots, .depths  (n_kept, KNOTS) float64           for the step tails, see `detector.tails`
    preprocessing.<i>.start, .depth_at_start, .scale, .is_pareto  (n_kept,) float64
    layer.<i>.kernel            (inputs, units) float32                 hidden layers, then the output
    layer.<i>.bias              (units,) float32
    recurrent.<i>.kernel        (inputs, 4 units) float32               encoder, then decoder; the gates are
    recurrent.<i>.recurrent     (units, 4 units) float32                input, forget, cell, output; the dense
    recurrent.<i>.bias          (4 units,) float32                      layer after them is layer.0
    residual.location           (m,) float64                            for error_metric "mahalanobis",
    residual.whitening          (m, m) float64                          m = n_kept, or twice with join_input
    prototypes.rows             (prototypes, n_kept) float64            when it has prototypes; after a PCA as many
                                                                        columns as it has components
    prototypes.scale            (2,) float64, positive                  beside layers, see `detector.prototypes`

    Raises InvalidDetector when n_features is not within 1 to MAX_FEATURES, InvalidRecipe when every
    feature is dropped.
    """
    if not 1 <= n_features <= MAX_FEATURES:
        raise InvalidDetector(f"A detector takes 1 to {MAX_FEATURES} features, not {n_features}.")
    names = feature_names or [f"feature {i}" for i in range(n_features)]
    n_kept = len(recipe.kept_columns(names))
    float64 = np.dtype(np.float64)
    layout: Layout = {}
    if recipe.missing == "median":
        layout["missing.median"] = ((n_features,), float64)
    for i, step in enumerate(recipe.preprocessing):
        if isinstance(step, Standardise | GlobalMinMax):
            width = n_features if isinstance(step, Standardise) else 1
            layout[f"preprocessing.{i}.shift"] = ((width,), float64)
            layout[f"preprocessing.{i}.scale"] = ((width,), float64)
    if recipe.takes_tails:
        return layout | _tails(recipe, n_kept)
    n_inputs = recipe.n_inputs(n_kept)
    if recipe.pca is not None:
        layout[f"preprocessing.{len(recipe.preprocessing) - 1}.mean"] = ((n_kept,), float64)
        layout[f"preprocessing.{len(recipe.preprocessing) - 1}.components"] = ((n_inputs, n_kept), float64)
    if recipe.quantises:
        layout["prototypes.rows"] = ((recipe.prototypes, n_inputs), float64)
    else:
        layout.update(_network(recipe, n_inputs))
    if recipe.error_metric == "mahalanobis":
        m = 2 * n_kept if recipe.join_input else n_kept
        layout["residual.location"] = ((m,), float64)
        layout["residual.whitening"] = ((m, m), float64)
        if recipe.prototypes:
            layout["prototypes.rows"] = ((recipe.prototypes, n_kept), float64)
            layout["prototypes.scale"] = ((2,), float64)
    return layout


def _tails(recipe: Recipe, n_kept: int) -> Layout:
    step = f"preprocessing.{len(recipe.preprocessing) - 1}"
    shapes = {part: (n_kept, KNOTS) if part in ("knots", "depths") else (n_kept,) for part in PARTS}
    return {f"{step}.{part}": (shape, np.dtype(np.float64)) for part, shape in shapes.items()}


def _network(recipe: Recipe, n_inputs: int) -> Layout:
    layout: Layout = {}
    float32 = np.dtype(np.float32)
    widths = [n_inputs, *(layer.units for layer in recipe.layers), n_inputs]
    if recipe.recurrent is not None:
        units_by_layer = (*recipe.recurrent.encoder, *recipe.recurrent.decoder)
        for i, (inputs, units) in enumerate(pairwise((n_inputs, *units_by_layer))):
            layout[f"recurrent.{i}.kernel"] = ((inputs, 4 * units), float32)
            layout[f"recurrent.{i}.recurrent"] = ((units, 4 * units), float32)
            layout[f"recurrent.{i}.bias"] = ((4 * units,), float32)
        widths = [units_by_layer[-1], n_inputs]
    for i, (inputs, units) in enumerate(pairwise(widths)):
        layout[f"layer.{i}.kernel"] = ((inputs, units), float32)
        layout[f"layer.{i}.bias"] = ((units,), float32)
    return layout


def checked_arrays(
    recipe: Recipe, feature_names: Sequence[str], arrays: Arrays
) -> dict[str, np.ndarray[Any, Any]]:
    """Read-only copies of the arrays, in the layout's order. Raises InvalidDetector naming what is wrong."""
    layout = expected_arrays(recipe, len(feature_names), feature_names=feature_names)
    missing, extra = sorted(set(layout) - set(arrays)), sorted(set(arrays) - set(layout))
    if missing or extra:
        raise InvalidDetector(
            f"The arrays do not fit recipe {recipe.name!r}: "
            f"missing {', '.join(missing) or 'none'}; unexpected {', '.join(extra) or 'none'}."
        )
    checked = {}
    for name, (shape, dtype) in layout.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InvalidDetector(f"Array {name!r} must be {dtype} {shape}, not {found}.")
        if not np.isfinite(array).all():
            raise InvalidDetector(f"Array {name!r} holds NaN or infinity.")
        if name.endswith(".scale") and not (array > 0).all():
            raise InvalidDetector(f"Array {name!r} holds a scale that is not positive.")
        checked[name] = np.array(array, order="C")
        checked[name].setflags(write=False)
    return checked
