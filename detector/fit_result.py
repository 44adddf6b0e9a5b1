"""What a fit gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pgoutlier.detector.arrays import Float64Vector, IntVector
from pgoutlier.detector.detector import Detector
from pgoutlier.detector.far import FarValues
from pgoutlier.detector.thresholds import exceeds

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """metrics: numbers that JSON can hold; history: "loss" and "val_loss", one number an epoch.

    calibration_rows (m,): which rows of the matrix calibrated, ascending; calibration_errors (m,): their errors,
    by which the threshold was chosen. far_rows (k,): rows given as normal that were left out, see `detector.far`;
    decided_by_few: features whose spread a few rows decide, left out or not.
    """

    detector: Detector
    metrics: dict[str, float]
    history: dict[str, list[float]]
    calibration_rows: IntVector
    calibration_errors: Float64Vector
    far_rows: IntVector = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    decided_by_few: tuple[FarValues, ...] = ()


def error_metrics(prefix: str, errors: Float64Vector, threshold: float) -> dict[str, float]:
    """Flag rate and quantiles of errors (n,), named with the prefix; n at least 1."""
    metrics = {f"{prefix}_flag_rate": float(exceeds(errors, threshold).mean())}
    for quantile in QUANTILES:
        metrics[f"{prefix}_error_q{quantile * 100:g}"] = float(np.quantile(errors, quantile))
    return metrics


def not_normal_metrics(errors: Float64Vector, threshold: float) -> dict[str, float]:
    """How the rows (n,) that were not fitted on as normal are scored; n may be 0."""
    if not len(errors):
        return {"n_not_normal": 0}
    return {"n_not_normal": len(errors), **error_metrics("not_normal", errors, threshold)}
