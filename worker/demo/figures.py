"""What a demo found: detection against the truth, and everything --json prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pgoutlier.db.demo.demo_tables import FlaggedRow, Totals
from pgoutlier.detector import metrics


@dataclass(frozen=True)
class Detection:
    """Figures over rows the model was not trained on; None where the truth is not known or has one class only."""

    n_rows: int
    n_frauds: int | None = None
    prevalence: float | None = None
    auroc: float | None = None
    average_precision: float | None = None
    precision: float | None = None
    recall: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Everything the demo measured. worst: the flagged live rows with the largest errors."""

    totals: Totals
    latency_ms: dict[str, float | None]
    rows_per_second: float
    detection: Detection
    model_version: int
    dead_processes: dict[str, int]
    worst: list[FlaggedRow]

    @property
    def complaints(self) -> list[str]:
        """Why the demo failed; empty if every row has one score and every process lived."""
        totals = self.totals
        unscored = totals.n_rows - totals.n_scored - totals.n_quarantined
        found = [f"{unscored:,} rows were left unscored"] if unscored else []
        if totals.n_queued:
            found.append(f"{totals.n_queued:,} rows are still queued")
        if totals.n_rewritten:
            found.append(f"{totals.n_rewritten:,} scores were written twice")
        return found + [
            f"the {name} process died with exit code {c}" for name, c in self.dead_processes.items()
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "rows_inserted": self.totals.n_rows,
            "rows_scored": self.totals.n_scored,
            "rows_quarantined": self.totals.n_quarantined,
            "duplicate_scores": self.totals.n_rewritten,
            "rows_flagged": self.totals.n_flagged,
            "latency_ms": self.latency_ms,
            "rows_per_second": round(self.rows_per_second),
            "auroc": self.detection.auroc,
            "average_precision": self.detection.average_precision,
            "precision": self.detection.precision,
            "recall": self.detection.recall,
            "prevalence": self.detection.prevalence,
            "model_version": self.model_version,
            "ok": not self.complaints,
        }


def measure_detection(
    keys: npt.NDArray[np.int64],
    errors: npt.NDArray[np.float64],
    flagged: npt.NDArray[np.bool_],
    fraud_kinds: list[str | None] | None,
    *,
    after_key: int,
) -> Detection:
    """Figures of the rows with a key above after_key. fraud_kinds: by key, from 1."""
    later = keys > after_key
    keys, errors, flagged = keys[later], errors[later], flagged[later]
    if fraud_kinds is None:
        return Detection(n_rows=len(keys))
    fraud = np.array([kind is not None for kind in fraud_kinds], dtype=np.bool_)[keys - 1]
    if not 0 < fraud.sum() < len(fraud):
        return Detection(n_rows=len(keys), n_frauds=int(fraud.sum()))
    found, flags = metrics.ranking(fraud, errors), metrics.confusion(fraud, flagged)
    return Detection(
        n_rows=found.n_rows,
        n_frauds=found.n_anomalies,
        prevalence=round(found.prevalence, 6),
        auroc=round(found.auroc, 4),
        average_precision=round(found.average_precision, 4),
        precision=None if flags.precision is None else round(flags.precision, 4),
        recall=None if flags.recall is None else round(flags.recall, 4),
    )
