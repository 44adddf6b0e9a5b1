"""Which labelled anomalies should calibrate a threshold: all of them, weighted, or only a share of them.

    python -m benchmarks.threshold_labels creditcard.csv.gz

Prints what docs/decisions/0016-all-labelled-anomalies-weighted.md says: fitted on the first 70 % of the rows by
time, figures on the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

from pgoutlier.detector import exceeds, fit, recipe_named, training
from pgoutlier.detector.recipes import Split
from pgoutlier.detector.thresholds import (
    AllRows,
    max_f1,
    precision_equals_recall,
    target_precision,
    target_recall,
)

FIT_FRACTION = 0.7
N_DRAWINGS = 50
POLICIES: dict[str, Callable[..., float]] = {
    "max_f1": max_f1,
    "precision_equals_recall": precision_equals_recall,
    "target_precision:0.8": lambda e, p, weights=None: target_precision(e, p, 0.8, weights=weights),
    "target_recall:0.75": lambda e, p, weights=None: target_recall(e, p, 0.75, weights=weights),
}


@dataclass(frozen=True)
class Test:
    """Rows that were not fitted on, to judge a threshold by."""

    errors: np.ndarray
    is_fraud: np.ndarray

    def figures(self, threshold: float) -> list[float]:
        """Threshold, precision, recall, F1."""
        flagged = exceeds(self.errors, threshold)
        n_hits = (flagged & self.is_fraud).sum()
        precision, recall = n_hits / max(flagged.sum(), 1), n_hits / self.is_fraud.sum()
        return [threshold, precision, recall, 2 * n_hits / (flagged.sum() + self.is_fraud.sum())]


def main(path: str) -> None:
    frame = pd.read_csv(path, engine="pyarrow").drop_duplicates().sort_values("Time", kind="stable")
    is_fraud = frame.pop("Class").astype(str).str.strip("'\"").astype(int).to_numpy() == 1
    features = frame.drop(columns="Time")
    n_first = int(len(features) * 0.7)
    for order in ("random", "time"):
        split = Split(fit_fraction=FIT_FRACTION, order=order)
        recipe = recipe_named("default").model_copy(update={"split": split})
        with patch.object(training, "choose_threshold", wraps=training.choose_threshold) as chosen:
            detector = fit(
                recipe, features[:n_first], list(features.columns), normal=~is_fraud[:n_first]
            ).detector
        rows: AllRows = chosen.call_args.kwargs["all_rows"]
        test = Test(detector.score(features[n_first:]).reconstruction_error, is_fraud[n_first:])
        normal_rows = np.flatnonzero(~is_fraud[:n_first])
        first_calibration_row = normal_rows[int(FIT_FRACTION * len(normal_rows))]
        in_period = np.flatnonzero(is_fraud[:n_first]) >= first_calibration_row
        compare(order, rows, in_period, test)


def compare(order: str, rows: AllRows, in_period: np.ndarray, test: Test) -> None:
    """in_period: of the anomalies, those of the time of the calibration rows, for a split by time."""
    calibration, anomalies = rows.errors[~rows.anomalous], rows.errors[rows.anomalous]
    random = np.random.default_rng(0)
    n_some = round((1 - FIT_FRACTION) * len(anomalies))
    for name, policy in POLICIES.items():
        show(order, name, "all, weighted", [policy(rows.errors, rows.anomalous, weights=rows.weights)], test)
        drawings = (
            [anomalies[in_period]]
            if order == "time"
            else [random.choice(anomalies, n_some, replace=False) for _ in range(N_DRAWINGS)]
        )
        thresholds = [
            policy(
                np.concatenate([calibration, some]),
                np.arange(len(calibration) + len(some)) >= len(calibration),
            )
            for some in drawings
        ]
        show(order, name, "a share", thresholds, test)


def show(order: str, name: str, what: str, thresholds: list[float], test: Test) -> None:
    figures: Any = np.array([test.figures(threshold) for threshold in thresholds])
    mean, deviation = figures.mean(axis=0), figures.std(axis=0)
    print(
        f"{order:7}{name:25}{what:14} threshold {mean[0]:8.2f}  precision {mean[1]:.3f}  recall {mean[2]:.3f}"
        f"  F1 {mean[3]:.3f} (sd {deviation[3]:.3f})",
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1])
