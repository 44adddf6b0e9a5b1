"""How far out in the upper tail of its feature a value is: how rare so large a value is, or a larger one.

The depth of a value x is -log P(X >= x) among the fit rows. Below their 99 % quantile P is counted. Above it the tail
is taken for a Pareto distribution, whose index is Hill's estimate of the largest 1 % of the rows (A simple general
approach to inference about the tail of a distribution, Annals of Statistics 3 (1975) 1163-1174), or, where the quantile
is not positive, for an exponential one with their mean: so of two rows beyond all that was seen the larger one is
deeper.

A row's error is its largest depth. A feature's contribution is its share of the depths to the power of SHARPNESS, so
that they add up to the error and name the feature that it comes from.

Made for features that are suspicious when they are large: an amount against those before it, a share of frauds. One
deep value says all, where a distance from a centre lets a heavy tail of one feature bury the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pgoutlier.detector.arrays import Float64Matrix, Float64Vector

PARTS = ("knots", "depths", "start", "depth_at_start", "scale", "is_pareto")
# Of each feature's distribution below its tail.
KNOTS = 256
TAIL_SHARE = 0.01
SHARPNESS = 8.0
_LEAST_IN_TAIL = 20
# No value is deeper, so that an error is finite.
DEEPEST = 1e6
# A tail whose rows are all alike tells no scale: then a value has to be so many times as large to be one deeper.
_NO_SPREAD = 1.0


def fit_tails(rows: Float64Matrix) -> dict[str, np.ndarray[Any, Any]]:
    """knots, depths (n_features, KNOTS), and beyond the last knot start, depth_at_start, scale (n_features,), is_pareto
    (n_features,) of 0 and 1. rows: (n, n_features) finite, n at least 2."""
    parts = [_tail(np.sort(column)) for column in rows.T]
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def _tail(values: Float64Vector) -> dict[str, np.ndarray[Any, Any]]:
    n = len(values)
    n_tail = min(max(_LEAST_IN_TAIL, int(n * TAIL_SHARE)), n - 1)
    start = values[n - n_tail]
    different, first = np.unique(values[values <= start], return_index=True)
    depths = -np.log((n - first) / n)
    if len(different) > KNOTS:
        wanted = np.linspace(0.0, depths[-1], KNOTS)
        kept = np.unique(np.append(np.searchsorted(depths, wanted), len(depths) - 1))
        different, depths = different[kept], depths[kept]
    is_pareto = start > 0
    with np.errstate(over="ignore"):
        excess = np.log(values[-n_tail:]) - np.log(start) if is_pareto else values[-n_tail:] - start
    scale = float(np.mean(np.minimum(excess, np.finfo(np.float64).max / n)))
    room = KNOTS - len(different)
    return {
        "knots": np.concatenate([np.full(room, different[0]), different]),
        "depths": np.concatenate([np.zeros(room), depths]),
        "start": np.asarray(start),
        "depth_at_start": np.asarray(depths[-1]),
        "scale": np.asarray(scale if scale > 0 else _NO_SPREAD),
        "is_pareto": np.asarray(float(is_pareto)),
    }


def depths_of(rows: Float64Matrix, fitted: Mapping[str, np.ndarray[Any, Any]]) -> Float64Matrix:
    """The depth of each value (n, n_features), dimensionless, not negative."""
    found = np.empty_like(rows)
    for column, values in enumerate(rows.T):
        knots, depths = fitted["knots"][column], fitted["depths"][column]
        start = fitted["start"][column]
        with np.errstate(all="ignore"):
            excess = np.log(values) - np.log(start) if fitted["is_pareto"][column] else values - start
            beyond = fitted["depth_at_start"][column] + excess / fitted["scale"][column]
        counted = np.interp(values, knots, depths)
        found[:, column] = np.where(values > start, np.minimum(beyond, DEEPEST), counted)
    return found


def shares_of(depths: Float64Matrix) -> tuple[Float64Vector, Float64Matrix]:
    """The error of each row (n,), and what each feature adds to it (n, n_features)."""
    errors = depths.max(axis=1)
    weights = np.power(depths / np.where(errors > 0, errors, 1.0)[:, None], SHARPNESS)
    total = weights.sum(axis=1)
    return errors, weights * (errors / np.where(total > 0, total, 1.0))[:, None]
