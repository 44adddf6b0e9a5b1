"""What a report shows, as plain arrays: filled by the builders, drawn by `worker.report.page`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from pgoutlier.detector import exceeds

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Amount:
    """A feature whose histogram is shown by class: values (n,), one for each row of the report."""

    name: str
    values: Floats


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row as the network saw it and as it rebuilt it, in preprocessed units: (n_kept,) each.

    names and contributions (n_kept,) go with them. is_series: the features are samples of one series.
    """

    what: str
    error: float
    names: tuple[str, ...]
    original: Floats
    reconstruction: Floats
    contributions: Floats
    is_series: bool


@dataclass(frozen=True, kw_only=True)
class FlaggedFeature:
    """How often a feature was among the top ones of flagged rows, and what it added to their error on average."""

    name: str
    n_rows: int
    contribution: float


@dataclass(frozen=True, kw_only=True)
class FeatureDrift:
    """The population stability index of a feature (or of the error), see detector.drift; and what it may be, if that
    was measured.
    """

    name: str
    psi: float
    limit: float | None = None


@dataclass(frozen=True, kw_only=True)
class Drift:
    """features as they come; by_chance: what the index would be about without any drift.

    measured: when and of how many rows, in words, if it is the source's last report and not of the page's own rows.
    """

    features: tuple[FeatureDrift, ...]
    error: float | None
    by_chance: float | None
    error_limit: float | None = None
    measured: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything on the page; what is None or empty has no picture.

    errors: (n,) reconstruction errors in the order of rows. labels: (n,) True for an anomaly, None where the truth is
    not known. rows_are: what these rows are, in words. history: "loss" and "val_loss", one number an epoch.
    counts: rows by what became of them, where that is not told by labels or flags. facts: (name, value) pairs.
    """

    title: str
    rows_are: str
    recipe_name: str
    error_metric: str
    made_at: datetime
    errors: Floats
    threshold: float
    labels: Bools | None = None
    times: tuple[str, str] | None = None
    amount: Amount | None = None
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    kept_epoch: int | None = None
    counts: tuple[tuple[str, int], ...] = ()
    examples: tuple[Example, ...] = ()
    top_features: tuple[FlaggedFeature, ...] = ()
    n_flagged_looked_at: int = 0
    drift: Drift | None = None
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def flagged(self) -> Bools:
        """(n,) by the one comparison that decides it."""
        return exceeds(self.errors, self.threshold)

    @property
    def truth(self) -> Bools | None:
        """The labels, if rows of both classes are among them: otherwise there is nothing to measure."""
        if self.labels is None or not 0 < int(self.labels.sum()) < len(self.labels):
            return None
        return self.labels
