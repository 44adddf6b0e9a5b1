"""Fit a recipe on one part of a table and measure it on the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pgoutlier import detector
from pgoutlier.detector import Detector, DetectorError, FitResult, Progress, Recipe, Scores, metrics
from pgoutlier.detector.far import FarValues
from pgoutlier.detector.metrics import Confusion, Ranking
from pgoutlier.detector.recipes import FixedThreshold, MeanStdThreshold
from pgoutlier.detector.training import MIN_ROWS
from pgoutlier.worker.evaluation.splits import Split
from pgoutlier.worker.evaluation.table import EvaluationError, Table

if TYPE_CHECKING:
    from pgoutlier.db.tables import TopFeature

ERROR_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """A detector, what it was fitted on, what it was tested on, and what came of it.

    training_features (n_train, n_features): the rows that were fitted on and calibrated with, the normal ones of
    the training part. test_features (n_test, n_features), test_errors (n_test,), test_contributions (n_test,
    n_features); test_is_anomaly and test_times (n_test,) or None. ranking and confusion: None without a label.
    history: "loss" and "val_loss" of each epoch, and "seconds" from the start of the fit to the epoch's end.
    decided_by_few: features whose spread a few rows decide, see `detector.far`.
    """

    table: Table
    split: Split
    detector: Detector
    seed: int
    fit_metrics: dict[str, float]
    history: dict[str, list[float]]
    training_features: npt.NDArray[np.float64]
    n_training_anomalies: int
    test_features: npt.NDArray[np.float64]
    test_is_anomaly: npt.NDArray[np.bool_] | None
    test_times: npt.NDArray[Any] | None
    test_errors: npt.NDArray[np.float64]
    test_contributions: npt.NDArray[np.float32]
    fit_seconds: float
    score_seconds: float
    decided_by_few: tuple[FarValues, ...] = ()

    @property
    def recipe(self) -> Recipe:
        return self.detector.recipe

    @property
    def flagged(self) -> npt.NDArray[np.bool_]:
        """Which test rows are flagged at the recipe's threshold."""
        return detector.exceeds(self.test_errors, self.detector.threshold)

    @property
    def ranking(self) -> Ranking | None:
        """The figures that need no threshold."""
        if self.test_is_anomaly is None:
            return None
        return metrics.ranking(self.test_is_anomaly, self.test_errors)

    def confusion_at(self, threshold: float) -> Confusion | None:
        """What flagging above this threshold gives."""
        if self.test_is_anomaly is None:
            return None
        return metrics.confusion_at(self.test_is_anomaly, self.test_errors, threshold)

    @property
    def error_quantiles(self) -> dict[str, float]:
        """Of the test rows, by names such as q0.5."""
        values = np.quantile(self.test_errors, ERROR_QUANTILES)
        return {f"q{q:g}": float(value) for q, value in zip(ERROR_QUANTILES, values, strict=True)}

    @property
    def top_features(self) -> list[TopFeature]:
        """The features that contribute most to the flagged test rows, on the mean; empty if none is flagged."""
        flagged = self.flagged
        if not flagged.any():
            return []
        means = self.test_contributions[flagged].mean(axis=0, dtype=np.float64)[None, :]
        places, values = detector.top_features(means, self.recipe.top_features)
        return [
            {"feature": self.detector.feature_names[place], "contribution": float(value)}
            for place, value in zip(places[0], values[0], strict=True)
        ]


def evaluate(
    table: Table,
    recipe: Recipe,
    split: Split,
    *,
    seed: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Fit on the normal rows of the training part (all of them without a label), test on every row of the test part.

    seed: of the fit, the recipe's own if None. Raises EvaluationError if a part holds too few rows of a class or
    the recipe does not fit the table.
    """
    training, test = split.parts(len(table.features))
    truth = table.is_anomaly
    normal = training if truth is None else training[~truth[training]]
    test_truth = None if truth is None else truth[test]
    _check_parts(len(normal), test_truth)
    try:
        detector.require_tensorflow(recipe)
    except DetectorError as error:
        raise EvaluationError(f"{recipe.name} cannot be evaluated: {error}") from error
    detector.load_tensorflow()
    started = time.perf_counter()
    seconds: list[float] = []

    def record(progress: Progress) -> None:
        seconds.append(time.perf_counter() - started)
        if on_progress is not None:
            on_progress(progress)

    try:
        fitted = _fit(recipe, table, normal, test, seed, record)
        fit_seconds = time.perf_counter() - started
        scores = _score(fitted, table.features[test])
    except DetectorError as error:
        raise EvaluationError(f"{recipe.name} cannot be evaluated on {table.name}: {error}") from error
    return Evaluation(
        table=table,
        split=split,
        detector=fitted.detector,
        seed=recipe.seed if seed is None else seed,
        fit_metrics=fitted.metrics,
        history={**fitted.history, "seconds": seconds},
        training_features=table.features[normal],
        n_training_anomalies=len(training) - len(normal),
        test_features=table.features[test],
        test_is_anomaly=test_truth,
        test_times=None if table.times is None else table.times[test],
        test_errors=scores.reconstruction_error,
        test_contributions=scores.contributions,
        fit_seconds=fit_seconds,
        score_seconds=time.perf_counter() - started - fit_seconds,
        decided_by_few=fitted.decided_by_few,
    )


def _check_parts(n_normal: int, test_truth: npt.NDArray[np.bool_] | None) -> None:
    if n_normal < MIN_ROWS:
        raise EvaluationError(
            f"The training part has {n_normal} normal rows and a fit needs {MIN_ROWS}; take a smaller --test-size "
            "or a larger file, and check --normal-value."
        )
    if test_truth is not None and (test_truth.all() or not test_truth.any()):
        found = "only" if test_truth.all() else "no"
        raise EvaluationError(
            f"The test part holds {found} anomalies, so there is nothing to measure; take a larger --test-size, "
            "another --split, or no --label."
        )


def _fit(
    recipe: Recipe,
    table: Table,
    normal: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
    seed: int | None,
    on_progress: Callable[[Progress], None],
) -> FitResult:
    rows, held_out = normal, None
    if _learns_nothing_from_calibration(recipe):
        # As the published systems were fitted: on the whole training part, with the test rows, anomalies among
        # them, for the validation loss.
        rows = np.concatenate([normal, test])
        held_out = np.arange(len(rows)) >= len(normal)
    return detector.fit(
        recipe,
        table.features[rows],
        table.feature_names,
        held_out=held_out,
        codes=table.codes,
        seed=seed,
        on_progress=on_progress,
    )


def _learns_nothing_from_calibration(recipe: Recipe) -> bool:
    """Whether the calibration rows only show the validation loss, so that test rows may take their place."""
    threshold = recipe.threshold
    from_fit_rows = isinstance(threshold, FixedThreshold) or (
        isinstance(threshold, MeanStdThreshold) and threshold.rows == "fit"
    )
    return from_fit_rows and recipe.early_stopping is None and recipe.error_metric != "mahalanobis"


def _score(fitted: FitResult, features: npt.NDArray[np.float64]) -> Scores:
    scores = fitted.detector.score(features)
    if not np.isfinite(scores.reconstruction_error).all():
        raise DetectorError("some test rows have no finite error")
    return scores
