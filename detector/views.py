"""The views of a row that a recipe with prototypes measures, and adds up.

Each view is a difference, (n_rows, n_kept) or (n_rows, 2 n_kept), whose length is a distance:
0. the whitened residual of `detector.residuals`: how far the row is from the centre of all, the farther the more it
   breaks the correlations; what it is best at are a few rows far out of one cloud;
1. the same minus the nearest prototype: several clouds, or known rows far out;
2. the preprocessed row minus the nearest prototype: groups that whitening would blur;
3. its normal scores minus the nearest prototype: skewed features, and those of few levels.

The reconstruction error is the sum of the four distances, each divided by its median over the calibration rows: an
ordinary row has an error of about 4. A sum, and not one of logarithms or ranks, since a row that is a thousand times as
far as others in one view is an anomaly whatever the others say.
"""

from __future__ import annotations

import numpy as np

from detector.arrays import Arrays, Float64Matrix, Float64Vector
from detector.normal_scores import fit_normal_scores, normal_scores
from detector.prototypes import fit_prototypes, from_nearest
from detector.recipes import Recipe

N_VIEWS = 4


def views(
    recipe: Recipe, arrays: Arrays, values: Float64Matrix, residuals: Float64Matrix
) -> tuple[Float64Matrix, ...]:
    """The differences; values and residuals as `detector.reference.residuals` takes and gives them."""
    whitened = (residuals - arrays["residual.location"]) @ arrays["residual.whitening"]
    if not recipe.prototypes:
        return (whitened,)
    return (
        whitened,
        from_nearest(whitened, arrays["prototypes.whitened"]),
        from_nearest(values, arrays["prototypes.values"]),
        from_nearest(_scores(arrays, values), arrays["prototypes.normal_scores"]),
    )


def fit_views(
    recipe: Recipe, arrays: Arrays, values: Float64Matrix, residuals: Float64Matrix, *, seed: int
) -> dict[str, np.ndarray]:
    """The arrays of normal scores and prototypes, from cleaned fit rows; arguments as in `views`."""
    whitened = (residuals - arrays["residual.location"]) @ arrays["residual.whitening"]
    knots, slopes, first = fit_normal_scores(values)
    fitted = {"normal_scores.knots": knots, "normal_scores.slopes": slopes, "normal_scores.first": first}
    for name, rows in (
        ("whitened", whitened),
        ("values", values),
        ("normal_scores", _scores(fitted, values)),
    ):
        fitted[f"prototypes.{name}"] = fit_prototypes(rows, recipe.prototypes, seed=seed)
    return fitted


def fit_scale(differences: tuple[Float64Matrix, ...]) -> Float64Vector:
    """The median length of each view's differences; their mean where most are zero, 1 where all are."""
    lengths = [np.sqrt(np.square(view).sum(axis=1)) for view in differences]
    return np.array([np.median(length) or length.mean() or 1.0 for length in lengths])


def _scores(arrays: Arrays, values: Float64Matrix) -> Float64Matrix:
    parts = (arrays[f"normal_scores.{part}"] for part in ("knots", "slopes", "first"))
    return normal_scores(values, *parts)
