"""Prototypes: rows that stand for all others, and how far a row is from the nearest of them.

The Mahalanobis distance from one centre takes data of several groups for one cloud. The difference from the nearest of
many centres follows their form, as a vector quantiser's residual does: Gersho and Gray, Vector Quantization and Signal
Compression (Kluwer 1992), chapter 10. The centres are fitted by k-means in batches: Sculley, Web-scale k-means
clustering, Proceedings of the 19th International Conference on World Wide Web (2010) 1177-1178.

Beside a network, the reconstruction error is the sum of the two distances, each divided by its median over the
calibration rows, the second weighted by the recipe: with weight 1 an ordinary row has an error of about 2. It is a sum,
not one of logarithms or ranks: a row that is a thousand times as far as others by the first distance is an anomaly
whatever the second says. The second may have a cap: it is there to tell rows between the groups from ordinary ones, and
among rows that are far out it knows less than the first.

Without a network the nearest prototype is the row's reconstruction, in the recipe's own error metric: a vector
quantiser is an autoencoder whose code is the number of a prototype.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pgoutlier.detector.arrays import Float32Matrix, Float64Matrix, Float64Vector
from pgoutlier.detector.network import FittedNetwork, Progress, ProgressCallback
from pgoutlier.detector.recipes import Recipe

# A centre of fewer rows than this would be a copy of single rows, anomalies among them.
MIN_ROWS_PER_PROTOTYPE = 5
# The centres of more rows are the same ones for practical purposes, and take longer.
MAX_ROWS = 30_000
# Distances to all prototypes are held for this many rows at once.
_BLOCK_ROWS = 16_384


def fit_prototypes(rows: Float64Matrix, n_prototypes: int, *, seed: int) -> Float64Matrix:
    """(n_prototypes, m) centres of rows (n, m); with few rows there are fewer different ones, repeated.

    The same rows and seed give the same centres.
    """
    from sklearn.cluster import MiniBatchKMeans

    if len(rows) > MAX_ROWS:
        rows = rows[np.random.default_rng(seed).choice(len(rows), MAX_ROWS, replace=False)]
    n_different = max(1, min(n_prototypes, len(rows) // MIN_ROWS_PER_PROTOTYPE))
    means = MiniBatchKMeans(n_different, batch_size=4096, max_iter=20, n_init=1, random_state=seed).fit(rows)
    # A centre that is one row alone is far from all others: an anomaly maybe, which would hide others like it.
    shared = np.bincount(means.labels_, minlength=n_different) > 1
    centres: Float64Matrix = np.resize(
        means.cluster_centers_[shared if shared.any() else slice(None)].astype(np.float64),
        (n_prototypes, rows.shape[1]),
    )
    return centres


def fit_quantiser(
    recipe: Recipe,
    fit_rows: Float32Matrix,
    validation_rows: Float32Matrix,
    *,
    seed: int,
    on_progress: ProgressCallback | None = None,
) -> FittedNetwork:
    """`detector.network.fit_network` for a recipe without layers: array "prototypes.rows", in one epoch.

    The losses are the mean squared differences of the rows, preprocessed, (n, k), from the nearest prototype.
    """
    prototypes = fit_prototypes(fit_rows.astype(np.float64), recipe.prototypes, seed=seed)
    loss, val_loss = (
        float(np.square(from_nearest(rows.astype(np.float64), prototypes)).mean())
        for rows in (fit_rows, validation_rows)
    )
    if on_progress is not None:
        on_progress(Progress(epoch=1, n_epochs=1, loss=loss, val_loss=val_loss, eta_seconds=0.0))
    return FittedNetwork({"prototypes.rows": prototypes}, [loss], [val_loss], kept_epoch=1)


def from_nearest(rows: Float64Matrix, prototypes: Float64Matrix) -> Float64Matrix:
    """rows (n, m) minus the nearest of the prototypes (k, m), (n, m)."""
    difference = np.empty_like(rows)
    half = np.square(prototypes).sum(axis=1) / 2
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        nearest = np.argmin(half - rows[block] @ prototypes.T, axis=1)
        difference[block] = rows[block] - prototypes[nearest]
    return difference


def fit_scale(differences: Iterable[Float64Matrix]) -> Float64Vector:
    """The median length of the rows of each matrix; their mean where most are zero, 1 where all are."""
    lengths = [np.sqrt(np.square(rows).sum(axis=1)) for rows in differences]
    return np.array([np.median(length) or length.mean() or 1.0 for length in lengths])
