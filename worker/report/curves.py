"""Precision, recall and false positives at every threshold, and their summaries."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pgoutlier.detector import metrics
from pgoutlier.worker.report.data import Bools, Floats


@dataclass(frozen=True)
class Curves:
    """At thresholds[i] and down to just above the next one, hits[i] anomalies and alarms[i] normal rows are flagged.

    thresholds: the distinct errors, the largest first; (k,) each. n_anomalies, n_normal: of all rows, both not 0.
    auroc, average_precision: see `detector.metrics.Ranking`.
    """

    thresholds: Floats
    hits: Floats
    alarms: Floats
    n_anomalies: int
    n_normal: int
    auroc: float
    average_precision: float

    @classmethod
    def of(cls, errors: Floats, labels: Bools) -> Curves:
        order = np.argsort(-errors, kind="stable")
        ordered, anomaly = errors[order], labels[order]
        last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
        hits = np.cumsum(anomaly)[last].astype(np.float64)
        found = metrics.ranking(labels, errors)
        return cls(
            thresholds=ordered[last],
            hits=hits,
            alarms=last + 1 - hits,
            n_anomalies=found.n_anomalies,
            n_normal=found.n_rows - found.n_anomalies,
            auroc=found.auroc,
            average_precision=found.average_precision,
        )

    @property
    def recall(self) -> Floats:
        return self.hits / self.n_anomalies

    @property
    def precision(self) -> Floats:
        return self.hits / (self.hits + self.alarms)

    @property
    def false_positives(self) -> Floats:
        """The share of the normal rows that is flagged."""
        return self.alarms / self.n_normal

    def thinned(self, most: int = 400) -> Curves:
        """At most about this many points: every change of the hits that can be told apart, and a few between."""
        if len(self.thresholds) <= most:
            return self
        distance = np.hypot(
            np.diff(self.recall, prepend=0.0), np.diff(self.false_positives, prepend=0.0)
        ) + np.abs(np.diff(self.precision, prepend=1.0))
        way = np.cumsum(distance)
        steps = np.searchsorted(way, np.linspace(0, way[-1], most))
        kept = np.unique(np.clip(np.concatenate([[0], steps, [len(way) - 1]]), 0, len(way) - 1))
        return replace(self, thresholds=self.thresholds[kept], hits=self.hits[kept], alarms=self.alarms[kept])
