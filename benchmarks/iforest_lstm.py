"""The recipe iforest-lstm-32-16 over its sweep of contamination, judged by labels that it never saw.

python -m benchmarks.iforest_lstm --data creditcard.csv.gz
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score

from pgoutlier.detector import exceeds, fit, recipe_named
from pgoutlier.detector.cleaning import isolation_forest_outliers

CONTAMINATIONS = (0.01, 0.015, 0.02, 0.025, 0.03)
COLUMNS = {
    "contamination": "{}",
    "pseudo_precision": "{:.4f}",
    "pseudo_recall": "{:.3f}",
    "agreement": "{:.3f}",
    "precision": "{:.4f}",
    "recall": "{:.3f}",
    "auroc": "{:.3f}",
    "average_precision": "{:.4f}",
    "seconds": "{:.0f}",
}


def read_series(path: Path, *, label: str, time_column: str) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Features (n, d) in time order, their names, and the labels (n,), 1 for an anomaly; no duplicate rows."""
    frame = pd.read_csv(path).drop_duplicates().sort_values(time_column, kind="stable")
    features = frame.drop(columns=[label, time_column])
    return features.to_numpy(dtype=np.float64), list(features.columns), frame[label].to_numpy(dtype=np.int64)


def sweep(
    features: np.ndarray,
    names: Sequence[str],
    labels: np.ndarray,
    *,
    contaminations: Sequence[float] = CONTAMINATIONS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """For each contamination: pseudo-labels and network against the labels (n,), all on the rows (n, d) fitted on.

    agreement: precision, which is also recall, of the network against the pseudo-labels.
    """
    published = recipe_named("iforest-lstm-32-16")
    if published.pseudo_labels is None:
        raise AssertionError("the recipe makes pseudo-labels")
    rows = []
    for contamination in contaminations:
        pseudo = published.pseudo_labels.model_copy(update={"contamination": contamination})
        recipe = published.model_copy(update={"pseudo_labels": pseudo})
        outliers = isolation_forest_outliers(features, **pseudo.model_dump(), seed=seed)
        started = time.perf_counter()
        fitted = fit(recipe, features, names, seed=seed)
        seconds = time.perf_counter() - started
        errors = fitted.detector.score(features).reconstruction_error
        flagged = exceeds(errors, fitted.detector.threshold)
        rows.append(
            {
                "contamination": contamination,
                "pseudo_precision": precision_score(labels, outliers),
                "pseudo_recall": recall_score(labels, outliers),
                "agreement": fitted.metrics["pseudo_recall"],
                "precision": precision_score(labels, flagged),
                "recall": recall_score(labels, flagged),
                "auroc": roc_auc_score(labels, errors),
                "average_precision": average_precision_score(labels, errors),
                "seconds": seconds,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CSV with a header, also packed by gzip")
    parser.add_argument("--label", default="Class", help="column that is 1 for an anomaly")
    parser.add_argument("--time", default="Time", help="column to order by")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    given = parser.parse_args()
    features, names, labels = read_series(given.data, label=given.label, time_column=given.time)
    rows = sweep(features, names, labels, seed=given.seed)
    if given.json:
        print(json.dumps(rows))
        return
    print(f"{len(features):,} rows, {int(labels.sum())} anomalies, {len(names)} features\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(form.format(row[name]) for name, form in COLUMNS.items()) + " |")


if __name__ == "__main__":
    main()
