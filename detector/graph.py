"""The graph that scores, from raw features to error and contributions, as ONNX Runtime takes it.

Built from the recipe and the detector's arrays, in memory: no file of this format is stored or read anywhere.
Float64 but for the network where the recipe allows float32: residuals are differences of nearly equal numbers,
whitening enlarges what is lost there, and which prototype is the nearest to a row that is nearly a prototype is
told by the last digits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pgoutlier.detector.arrays import Arrays, Float64Matrix
from pgoutlier.detector.onnx_nodes import Nodes, Value, activation, lstm
from pgoutlier.detector.preprocessing import LIMIT, RAW_LIMIT
from pgoutlier.detector.recipes import Clip, DropColumns, Pca, Recipe

FEATURES = "features"


def build_graph(recipe: Recipe, kept: tuple[int, ...], arrays: Arrays, *, explains: bool) -> bytes:
    """An ONNX model of (n_rows, n_kept) float64, the features that no step drops, n_rows at least 1.

    kept: their places among all features. It gives the errors (n_rows,) float64 and, if it explains, the contributions
    (n_rows, n_kept) float32. With recurrent layers it takes windows, (window, n_rows, n_kept), the oldest row first.
    """
    nodes = Nodes()
    if recipe.recurrent is None:
        values = _preprocess(nodes, recipe, arrays, FEATURES, kept)
        outputs = _reconstruct(nodes, recipe, arrays, values)
        shape: tuple[int | None, ...] = (None, len(kept))
    else:
        rows = nodes.add("Reshape", FEATURES, np.array([-1, len(kept)]))
        rows = _preprocess(nodes, recipe, arrays, rows, kept)
        steps = nodes.add_parts("Split", rows, n_parts=recipe.window, num_outputs=recipe.window, axis=0)
        values = steps[-1]
        outputs = _reconstruct(nodes, recipe, arrays, _decoded(nodes, recipe, arrays, steps))
        shape = (recipe.window, None, len(kept))
    residual = nodes.add("Sub", values, outputs)
    measure = _mahalanobis if recipe.error_metric == "mahalanobis" else _mean
    error, contributions = measure(nodes, recipe, arrays, values, residual, len(kept), explains=explains)
    precisions = {error: "float64"}
    if contributions is not None:
        precisions[nodes.cast(contributions, "float32")] = "float32"
    return nodes.model({FEATURES: shape}, precisions)


def _preprocess(nodes: Nodes, recipe: Recipe, arrays: Arrays, values: Value, kept: tuple[int, ...]) -> Value:
    columns = list(kept)

    def of_kept(array: NDArray[np.float64]) -> NDArray[np.float64]:
        return array if len(array) == 1 else array[columns]

    if recipe.missing == "median":
        finite = nodes.add("LessOrEqual", nodes.add("Abs", values), float(np.finfo(np.float64).max))
        values = nodes.add("Where", finite, values, of_kept(arrays["missing.median"]))
    low, high = -RAW_LIMIT, RAW_LIMIT
    for i, step in enumerate(recipe.preprocessing):
        if isinstance(step, Clip):
            # Bounds that follow one another are one pair.
            low, high = (min(max(bound, step.low), step.high) for bound in (low, high))
        elif not isinstance(step, DropColumns | Pca):
            values = nodes.clip(values, low, high)
            values = nodes.add("Sub", values, of_kept(arrays[f"preprocessing.{i}.shift"]))
            values = _over(nodes, values, of_kept(arrays[f"preprocessing.{i}.scale"]))
            low, high = -RAW_LIMIT, RAW_LIMIT
    values = nodes.clip(values, *(min(max(bound, -LIMIT), LIMIT) for bound in (low, high)))
    if recipe.pca is None:
        return values
    last = f"preprocessing.{len(recipe.preprocessing) - 1}"
    centred = nodes.add("Sub", values, arrays[f"{last}.mean"])
    return nodes.add("MatMul", centred, arrays[f"{last}.components"].T)


def _over(nodes: Nodes, values: Value, divisor: NDArray[np.float64]) -> Value:
    """values / divisor, which is positive: as a product, which takes a third of the time, where the reciprocal is exact
    but for rounding."""
    if divisor.min() >= 1 / RAW_LIMIT and divisor.max() <= RAW_LIMIT:
        return nodes.add("Mul", values, 1 / divisor)
    return nodes.add("Div", values, divisor)


def _decoded(nodes: Nodes, recipe: Recipe, arrays: Arrays, steps: list[Value]) -> Value:
    """What the last decoder layer gives at the last step, (n_rows, units); see `detector.reference`."""
    if recipe.recurrent is None:
        raise ValueError("the recipe has no recurrent layers")
    precision = recipe.scoring_precision
    function, sigmoid = (
        activation(nodes, name, precision) for name in (recipe.recurrent.activation, "sigmoid")
    )
    n_encoder = len(recipe.recurrent.encoder)
    steps = [nodes.cast(step, precision) for step in steps]
    for i in range(n_encoder + len(recipe.recurrent.decoder)):
        if i == n_encoder:
            steps = steps[-1:] * len(steps)
        parts = (arrays[f"recurrent.{i}.{part}"] for part in ("kernel", "recurrent", "bias"))
        steps = lstm(nodes, steps, [part.astype(precision) for part in parts], function, sigmoid)
    return steps[-1]


def _reconstruct(nodes: Nodes, recipe: Recipe, arrays: Arrays, values: Value) -> Value:
    if recipe.quantises:
        return _nearest(nodes, values, arrays["prototypes.rows"])
    precision = recipe.scoring_precision
    values = nodes.cast(values, precision)
    activations = [*(layer.activation for layer in recipe.layers), recipe.output_activation]
    for i, name in enumerate(activations):
        kernel, bias = (arrays[f"layer.{i}.{part}"].astype(precision) for part in ("kernel", "bias"))
        values = activation(nodes, name, precision)(nodes.add("Gemm", values, kernel, bias))
    return nodes.cast(values, "float64")


def _mean(
    nodes: Nodes,
    recipe: Recipe,
    arrays: Arrays,
    values: Value,
    residual: Value,
    n_kept: int,
    *,
    explains: bool,
) -> tuple[Value, Value | None]:
    """Errors (n_rows,), and contributions (n_rows, n_kept) that sum to them."""
    terms = nodes.add("Abs", residual) if recipe.error_metric == "mae" else _squares(nodes, residual)
    contributions = _over(nodes, terms, np.array(float(recipe.n_inputs(n_kept))))
    error = nodes.sums(contributions)
    if not explains or recipe.pca is None:
        return error, contributions if explains else None
    components = arrays[f"preprocessing.{len(recipe.preprocessing) - 1}.components"]
    shares = _squares(nodes, nodes.add("MatMul", residual, components))
    return error, _in_proportion(nodes, shares, nodes.sums(shares), error)


def _mahalanobis(
    nodes: Nodes,
    recipe: Recipe,
    arrays: Arrays,
    values: Value,
    residual: Value,
    n_kept: int,
    *,
    explains: bool,
) -> tuple[Value, Value | None]:
    """Errors (n_rows,), and contributions (n_rows, n_kept) that sum to them."""
    joined = nodes.add("Concat", values, residual, axis=1) if recipe.join_input else residual
    centred = nodes.add("Sub", joined, arrays["residual.location"])
    terms = _squares(nodes, nodes.add("MatMul", centred, arrays["residual.whitening"]))
    scale, near_scale = arrays["prototypes.scale"] if recipe.prototypes else (1.0, 1.0)
    square = nodes.sums(terms)
    far = nodes.add("Div", nodes.add("Sqrt", square), scale)
    if recipe.join_input and explains:
        terms = nodes.add("Add", *nodes.add_parts("Split", terms, n_parts=2, num_outputs=2, axis=1))
    of_far = _in_proportion(nodes, terms, square, far) if explains else None
    if not recipe.prototypes:
        return far, of_far
    terms = _squares(nodes, nodes.add("Sub", values, _nearest(nodes, values, arrays["prototypes.rows"])))
    square = nodes.sums(terms)
    near = nodes.add("Div", nodes.add("Sqrt", square), near_scale)
    if math.isfinite(recipe.prototype_limit):
        near = nodes.add("Clip", near, "", nodes.constant(recipe.prototype_limit))
    error = nodes.add("Add", far, near)
    if of_far is None:
        return error, None
    return error, nodes.add("Add", of_far, _in_proportion(nodes, terms, square, near))


def _squares(nodes: Nodes, values: Value) -> Value:
    return nodes.add("Mul", values, values)


def _in_proportion(nodes: Nodes, terms: Value, total: Value, whole: Value) -> Value:
    """The whole (n_rows,) in the proportion of the terms (n_rows, n), whose sum is total (n_rows,)."""
    # Where the total is zero, so is the whole.
    positive = nodes.add("Clip", total, float(np.finfo(np.float64).tiny))
    return nodes.add("Mul", terms, nodes.column(nodes.add("Div", whole, positive)))


def _nearest(nodes: Nodes, rows: Value, prototypes: Float64Matrix) -> Value:
    """The prototype (of (k, m)) that is nearest to each of the rows (n, m)."""
    far = nodes.add("Gemm", rows, -prototypes.T, np.square(prototypes).sum(axis=1) / 2)
    number = nodes.add("ArgMin", far, axis=1, keepdims=0)
    return nodes.add("Gather", prototypes, number, axis=0)
