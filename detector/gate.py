"""The gate: whether a version that was just fitted may take the champion's place.

The champion, the new version and a baseline without a network are measured on the same rows, which came after those
that the new version was fitted on. Where enough of them are known to be fraud, average precision and the precision of
as many rows as the champion flags decide. Where not, proxies do: the flag rate is about that of the calibration, the
errors are spread as the calibration errors were, and every feature that varies has a part in some error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pgoutlier.detector import drift
from pgoutlier.detector.arrays import BoolVector, Float64Matrix, Float64Vector, IntVector
from pgoutlier.detector.detector import Detector
from pgoutlier.detector.errors import DetectorError
from pgoutlier.detector.metrics import precision_of_top, ranking
from pgoutlier.detector.residuals import fit_whitening
from pgoutlier.detector.thresholds import exceeds

# A hold-out of fewer rows tells nothing; it is a tenth of the rows of the training window.
MIN_HELD_OUT = 100
HELD_OUT_SHARE = 0.1
# With fewer frauds than this, what they say is chance.
MIN_FRAUD = 5
# The flag rate of the hold-out is about that of the calibration: not more than so many times it.
FLAG_RATE_FACTOR = 3.0
# Of the errors' PSI against the calibration errors chance alone may exceed its limit once in so many trainings.
CHANCE = 1e-3
# A feature with a smaller share in all errors together is silent.
SILENT_SHARE = 1e-6
_BASELINE_TRIM = 0.01


@dataclass(frozen=True)
class Rows:
    """The rows of a training window, the oldest first, of which the last n_held_out are the hold-out.

    matrix (n, d) float64; normal, fraud (n,) bool: neither is a flagged row of which nobody knows more, and it has
    no part in precision. groups (n,): whose row each is, for recipes with a window.
    """

    matrix: Float64Matrix
    normal: BoolVector
    fraud: BoolVector
    n_held_out: int
    groups: IntVector | None = None

    @property
    def known(self) -> BoolVector:
        return (self.normal | self.fraud)[-self.n_held_out :]

    @property
    def held_out_fraud(self) -> BoolVector:
        return self.fraud[-self.n_held_out :]


# By name: flag_rate, not of the baseline; where labels decide also average_precision and precision_at_budget.
Figures = dict[str, float]


@dataclass(frozen=True)
class Judgement:
    """What the gate found on the hold-out.

    n_fraud: rows of it known to be fraud. budget: how many top rows precision_at_budget is of. champion: None where
    there is none or it could not be measured, champion_not_measured says why. refused: sentences that say why the new
    version must not be the champion; worse: why it should not; none of either means that it may.
    """

    n_held_out: int
    n_fraud: int
    budget: int
    decided_by: Literal["labels", "proxies"]
    new: Figures
    champion: Figures | None
    champion_not_measured: str | None
    baseline: Figures
    note: str | None
    refused: list[str]
    worse: list[str]


def judge(
    new: Detector,
    champion: Detector | None,
    rows: Rows,
    *,
    calibration_errors: Float64Vector,
    most_flagged: float,
) -> Judgement:
    """Measure all three on the hold-out, and say whether the new version may be the champion.

    calibration_errors: the new version's. most_flagged: of a version that flags a larger share of the hold-out
    something is wrong.
    """
    errors, shares = _scored(new, rows)
    champions, why_not = _champion_errors(champion, rows)
    n_flagged = _n_flagged(errors, new.threshold)
    budget = max(
        1, n_flagged if champions is None or champion is None else _n_flagged(champions, champion.threshold)
    )
    by_labels = int(rows.held_out_fraud.sum()) >= MIN_FRAUD and not rows.held_out_fraud[rows.known].all()
    of_new = _figures(errors, new.threshold, rows, budget, by_labels)
    of_champion = (
        None
        if champions is None or champion is None
        else _figures(champions, champion.threshold, rows, budget, by_labels)
    )
    of_baseline = _figures(_baseline_errors(rows), None, rows, budget, by_labels)
    flag_rate = of_new["flag_rate"]
    too_many = f"it flags {flag_rate:.2%} of the hold-out, above {most_flagged:.2%}"
    return Judgement(
        n_held_out=rows.n_held_out,
        n_fraud=int(rows.held_out_fraud.sum()),
        budget=budget,
        decided_by="labels" if by_labels else "proxies",
        new=of_new,
        champion=of_champion,
        champion_not_measured=why_not,
        baseline=of_baseline,
        note=_note(of_new, of_baseline) if by_labels else None,
        refused=[too_many] if flag_rate > most_flagged else [],
        worse=_worse_by_labels(of_new, of_champion, budget)
        if by_labels
        else _worse_by_proxies(new, rows, errors, shares, calibration_errors, flag_rate),
    )


def _scored(detector: Detector, rows: Rows) -> tuple[Float64Vector, Float64Vector]:
    """Errors of the hold-out, and each feature's share in them, on the mean: one row far out has no more of a say."""
    if detector.recipe.window > 1:
        scores = detector.score(rows.matrix, groups=rows.groups)
    else:
        scores = detector.score(rows.matrix[-rows.n_held_out :])
    errors = scores.reconstruction_error[-rows.n_held_out :]
    parts = scores.contributions[-rows.n_held_out :] / np.maximum(errors, np.finfo(np.float32).tiny)[:, None]
    return errors, parts.mean(axis=0)


def _champion_errors(champion: Detector | None, rows: Rows) -> tuple[Float64Vector | None, str | None]:
    if champion is None:
        return None, "there is none"
    if champion.recipe.window > 1 and rows.groups is None:
        return None, "it scores rows by those before them, and the new version does not"
    try:
        return _scored(champion, rows)[0], None
    except DetectorError as error:
        return None, str(error)


def _baseline_errors(rows: Rows) -> Float64Vector:
    """Mahalanobis distances (n_held_out,) from the normal rows before the hold-out, standardised, 1 % trimmed."""
    before = rows.matrix[: -rows.n_held_out][rows.normal[: -rows.n_held_out]]
    finite = np.where(np.isfinite(before), before, np.nan)
    known = np.isfinite(finite).any(axis=0)
    location, spread = np.zeros(before.shape[1]), np.ones(before.shape[1])
    location[known], spread[known] = np.nanmean(finite[:, known], axis=0), np.nanstd(finite[:, known], axis=0)
    spread[spread == 0] = 1.0

    def standard(values: Float64Matrix) -> Float64Matrix:
        result: Float64Matrix = (np.where(np.isfinite(values), values, location) - location) / spread
        return result

    centre, whitening = fit_whitening(standard(before), _BASELINE_TRIM)
    distance: Float64Vector = np.sqrt(
        np.square((standard(rows.matrix[-rows.n_held_out :]) - centre) @ whitening).sum(axis=1)
    )
    return distance


def _n_flagged(errors: Float64Vector, threshold: float) -> int:
    return int(exceeds(errors, threshold).sum())


def _figures(
    errors: Float64Vector, threshold: float | None, rows: Rows, budget: int, by_labels: bool
) -> Figures:
    found: Figures = {}
    if threshold is not None:
        found["flag_rate"] = _n_flagged(errors, threshold) / len(errors)
    if by_labels:
        truth, known = rows.held_out_fraud[rows.known], errors[rows.known]
        found["average_precision"] = ranking(truth, known).average_precision
        found["precision_at_budget"] = precision_of_top(truth, known, budget)
    return found


def _worse_by_labels(new: Figures, champion: Figures | None, budget: int) -> list[str]:
    if champion is None:
        return []
    names = {
        "average_precision": "average precision",
        "precision_at_budget": f"precision of the top {budget:,}",
    }
    worse = [
        f"its {words} is {new[name]:.3f}, the champion's {champion[name]:.3f}"
        for name, words in names.items()
        if new[name] < champion[name]
    ]
    if not worse and all(new[name] == champion[name] for name in names):
        worse.append("it is no better than the champion")
    return worse


def _note(of_new: Figures, of_baseline: Figures) -> str | None:
    """The baseline is no candidate, so that it is better is no reason to keep a champion that is worse still."""
    new, baseline = of_new["average_precision"], of_baseline["average_precision"]
    if new >= baseline:
        return None
    return f"the baseline without a network has average precision {baseline:.3f}, the version {new:.3f}"


def _worse_by_proxies(
    new: Detector,
    rows: Rows,
    errors: Float64Vector,
    shares: Float64Vector,
    calibration_errors: Float64Vector,
    flag_rate: float,
) -> list[str]:
    worse = []
    expected = _n_flagged(calibration_errors, new.threshold) / len(calibration_errors)
    if flag_rate > FLAG_RATE_FACTOR * max(expected, 1 / len(errors)):
        worse.append(f"it flags {flag_rate:.2%} of the hold-out, and {expected:.2%} of the calibration rows")
    spread = drift.binned(calibration_errors)
    moved = drift.psi(spread, errors)
    limit = max(drift.PSI_LARGE, drift.psi_limit(spread, len(errors), CHANCE))
    if moved > limit:
        worse.append(
            f"its errors on the hold-out are not those of the calibration (PSI {moved:.2f}, above {limit:.2f})"
        )
    with np.errstate(invalid="ignore"):
        varies = np.nanstd(rows.matrix[-rows.n_held_out :], axis=0) > 0
    kept = set(new.recipe.kept_columns(new.feature_names))
    silent = [
        name
        for column, name in enumerate(new.feature_names)
        if column in kept and varies[column] and shares[column] < SILENT_SHARE
    ]
    if silent:
        worse.append(f"{', '.join(silent)} has no part in any error")
    return worse
