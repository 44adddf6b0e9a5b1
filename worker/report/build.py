"""Report data from a detector and rows at hand, of a file or a training; nothing here knows a database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pgoutlier.detector import Detector, FitResult, exceeds, top_features
from pgoutlier.detector.drift import Reference, psi, psi_by_chance
from pgoutlier.detector.far import FarValues
from pgoutlier.worker.report.data import (
    Amount,
    Bools,
    Drift,
    Example,
    FeatureDrift,
    FlaggedFeature,
    Floats,
    ReportData,
)

if TYPE_CHECKING:
    from pgoutlier.db.drift.drift_reports import DriftReport

# Rows whose contributions are looked at for the top features, and whose spread is compared for drift.
_MOST_FLAGGED, _MOST_COMPARED = 1_000, 50_000
_LARGEST_ERROR = 1e300
_AMOUNT_NAMES = ("amount", "value", "price", "total", "sum", "cost")
# What makes a row a series, see `is_series`.
_LEAST_SAMPLES, _LEAST_CORRELATION, _MOST_CORRELATED = 24, 0.5, 2_000


def report_data_of(
    detector: Detector,
    history: Mapping[str, Sequence[float]],
    features: ArrayLike,
    *,
    title: str,
    rows_are: str = "Rows that the detector was not fitted on",
    labels: ArrayLike | None = None,
    errors: ArrayLike | None = None,
    contributions: ArrayLike | None = None,
    times: tuple[str, str] | None = None,
    training_features: ArrayLike | None = None,
    kept_epoch: int | None = None,
    facts: Sequence[tuple[str, str]] = (),
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ReportData:
    """What the report of these rows shows.

    features: (n_rows, n_features) in the source's units, in the order they are to be shown, at least one row.
    labels: (n_rows,) bool, True for an anomaly. errors: (n_rows,) if they are known already, else the rows are scored;
    contributions: (n_rows, n_features) likewise.
    times: of the first and the last row, as text. training_features: (m, n_features), to measure drift against.
    Raises what `Detector.score` raises.
    """
    matrix = np.asarray(features, dtype=np.float64)
    truth = None if labels is None else np.asarray(labels, dtype=np.bool_)
    found = np.asarray(detector.score(matrix).reconstruction_error if errors is None else errors, np.float64)
    # An error too large for a double is infinite; no axis can show that.
    found = np.nan_to_num(found, nan=_LARGEST_ERROR, posinf=_LARGEST_ERROR)
    flagged = np.flatnonzero(exceeds(found, detector.threshold))
    looked_at = flagged[np.argsort(-found[flagged], kind="stable")[:_MOST_FLAGGED]]
    top = flagged_features(
        detector, matrix[looked_at], None if contributions is None else np.asarray(contributions)[looked_at]
    )
    return ReportData(
        title=title,
        rows_are=rows_are,
        recipe_name=detector.recipe.name,
        error_metric=detector.recipe.error_metric,
        made_at=now(),
        errors=found,
        threshold=detector.threshold,
        labels=truth,
        times=times,
        amount=amount_of(detector.feature_names, detector.encoded(matrix), top),
        history=history,
        kept_epoch=kept_epoch,
        examples=examples(detector, matrix, found, truth),
        top_features=top,
        n_flagged_looked_at=len(looked_at),
        drift=None
        if training_features is None
        else drift_between(
            detector.feature_names, detector.encoded(training_features), detector.encoded(matrix)
        ),
        facts=(*facts, *detector_facts(detector)),
    )


def detector_facts(detector: Detector) -> list[tuple[str, str]]:
    """What the table says of every detector."""
    recipe = detector.recipe
    layers = ", ".join(f"{layer.units} {layer.activation}" for layer in recipe.layers)
    if recipe.recurrent is not None:
        units = (*recipe.recurrent.encoder, *recipe.recurrent.decoder)
        layers = f"LSTM {', '.join(map(str, units))}, windows of {recipe.window}"
    elif recipe.takes_tails:
        layers = "none; the depth in the tail of each feature"
    elif recipe.quantises:
        layers = f"none; {recipe.prototypes} prototypes"
    return [
        ("recipe", recipe.name),
        ("features", f"{len(detector.feature_names):,}"),
        ("hidden layers", layers),
        ("error metric", recipe.error_metric),
        ("threshold", f"{detector.threshold:.6g} (policy {recipe.threshold.policy})"),
    ]


def notes_of_few(found: Iterable[FarValues]) -> list[tuple[str, str]]:
    """What the table says of features whose spread a few rows decide."""
    return [("note", few.sentence()) for few in found]


def flagged_features(
    detector: Detector, rows: Floats, contributions: ArrayLike | None = None
) -> tuple[FlaggedFeature, ...]:
    """The features among the top ones of flagged rows (n, n_features), those of most rows first.

    contributions (n, n_features): if they are known. Of a recipe with a window these rows alone do not give them.
    """
    if not len(rows) or (contributions is None and detector.recipe.window > 1):
        return ()
    if contributions is None:
        # In NumPy: for so few rows ONNX Runtime need not be imported.
        contributions = detector.numpy_score(rows).contributions
    indices, values = top_features(np.asarray(contributions), detector.recipe.top_features)
    n_rows = np.bincount(indices.ravel(), minlength=len(detector.feature_names))
    total = np.bincount(indices.ravel(), weights=values.ravel(), minlength=len(detector.feature_names))
    order = [i for i in np.lexsort((-total, -n_rows)) if n_rows[i]]
    return tuple(
        FlaggedFeature(
            name=detector.feature_names[i], n_rows=int(n_rows[i]), contribution=float(total[i] / n_rows[i])
        )
        for i in order
    )


def amount_of(names: Sequence[str], matrix: Floats, top: Sequence[FlaggedFeature]) -> Amount | None:
    """A feature that is named like an amount, else the first of the top features."""
    named = next((i for i, name in enumerate(names) if name.lower() in _AMOUNT_NAMES), None)
    if named is None and top:
        named = list(names).index(top[0].name)
    return None if named is None else Amount(name=names[named], values=matrix[:, named])


def examples(detector: Detector, matrix: Floats, errors: Floats, labels: Bools | None) -> tuple[Example, ...]:
    """A normal and an anomalous row, each the one with the middle error of its class; fewer if a class is empty.

    None of a recipe with a window: what a row was scored with is not in the row.
    """
    if detector.recipe.window > 1:
        return ()
    by_label = labels is not None and 0 < int(labels.sum()) < len(labels)
    anomalous = labels if labels is not None and by_label else exceeds(errors, detector.threshold)
    usual = np.isfinite(matrix).all(axis=1) | (detector.recipe.missing == "median")
    kept = list(detector.recipe.kept_columns(detector.feature_names))
    series = is_series([detector.feature_names[i] for i in kept], matrix[:, kept])
    words = ("labelled normal", "labelled an anomaly") if by_label else ("not flagged", "flagged")
    made = []
    for mask, what in ((~anomalous, words[0]), (anomalous, words[1])):
        index = np.flatnonzero(mask & usual)
        if len(index):
            middle = int(index[np.argsort(errors[index], kind="stable")[len(index) // 2]])
            text = f"The row with the middle error of those {what}"
            made.append(_example(detector, matrix[middle : middle + 1], float(errors[middle]), text, series))
    return tuple(made)


def _example(detector: Detector, row: Floats, error: float, what: str, series: bool) -> Example:
    kept = list(detector.recipe.kept_columns(detector.feature_names))
    names = tuple(detector.feature_names[i] for i in kept)
    original, reconstruction = (
        values[0].astype(np.float64) for values in (detector.preprocess(row), detector.reconstruct(row))
    )
    contributions = detector.numpy_score(row).contributions[0, kept].astype(np.float64)
    if detector.recipe.pca is not None:
        names = tuple(f"component {i}" for i in range(1, len(original) + 1))
        contributions = np.square(original - reconstruction)
    return Example(
        what=what,
        error=error,
        names=names,
        original=original,
        reconstruction=reconstruction,
        contributions=contributions,
        is_series=series and detector.recipe.pca is None,
    )


def is_series(names: Sequence[str], rows: Floats) -> bool:
    """Whether features (n_rows, n_features) are the samples of one series and not the columns of a table.

    They are many, named alike but for a number, and the values of a row go with their neighbours: the median over
    the rows of the autocorrelation at lag 1 is at least 0.5.
    """
    stems = {"".join(c for c in name if not c.isdigit()) for name in names}
    if len(names) < _LEAST_SAMPLES or len(stems) != 1 or not len(rows):
        return False
    some = np.nan_to_num(evenly(rows, _MOST_CORRELATED))
    centred = some - some.mean(axis=1, keepdims=True)
    power = np.square(centred).sum(axis=1)
    lagged = (centred[:, 1:] * centred[:, :-1]).sum(axis=1)
    return bool(np.median(lagged / np.where(power > 0, power, 1.0)) >= _LEAST_CORRELATION)


def drift_reference(fitted: FitResult, matrix: Floats) -> Reference:
    """What a version keeps to tell drift by: the spread of its training rows, and of the errors of those held out."""
    sample = evenly(matrix, _MOST_COMPARED)
    return Reference.of(sample, fitted.detector.feature_names, fitted.calibration_errors)


def drift_between(names: Sequence[str], before: Floats, after: Floats) -> Drift | None:
    """Drift of the features from the rows of training to these, each (n, n_features)."""
    reference = Reference.of(evenly(before, _MOST_COMPARED), names, np.zeros(1))
    return drift_of(reference, names, evenly(after, _MOST_COMPARED), None)


def drift_of(
    reference: Reference, names: Sequence[str], matrix: Floats, errors: Floats | None
) -> Drift | None:
    """Drift of rows (n, n_features), and of their errors (n,), against what a version kept of its training rows."""
    known = [(i, name) for i, name in enumerate(names) if name in reference.features]
    if not known or not len(matrix):
        return None
    chance = [psi_by_chance(reference.features[name], len(matrix)) for _, name in known]
    return Drift(
        features=tuple(
            FeatureDrift(name=name, psi=psi(reference.features[name], matrix[:, i])) for i, name in known
        ),
        error=None if errors is None else psi(reference.error, errors),
        by_chance=float(np.median(chance)),
    )


def drift_as_measured(report: DriftReport) -> Drift:
    """Drift as a report of the source has it."""
    return Drift(
        features=tuple(FeatureDrift(name=f.feature, psi=f.psi, limit=f.limit) for f in report.features),
        error=report.error_psi,
        error_limit=report.error_limit,
        by_chance=None,
        measured=f"Measured at {report.measured_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC, of"
        f" {report.n_rows:,} rows.",
    )


def evenly(rows: Any, most: int) -> Any:
    """At most so many of the rows, evenly chosen."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
