"""Two sets whose features are of the rows before: card transactions, and series made here with known anomalies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pgoutlier.detector.arrays import BoolVector, Float64Matrix
from pgoutlier.detector.encoding import encoded, fit_encodings
from pgoutlier.worker.evaluation.declared import Declared, declared

CARDS_FILE = "card_transactions.csv.gz"
# What attach --suggest prints for this table.
CARD_FEATURES = (
    "amount, ratio(amount, 90d) by customer_id, distinct(terminal_id, 24h) by customer_id,"
    " is_new(terminal_id, 90d) by customer_id, risk(terminal_id, 7d, delay 7d)"
)
# Fitted on a week; measured on the week that begins when the labels of the last day before it are a week old.
FIT_FROM, TEST_FROM, N_DAYS, DELAY_DAYS = pd.Timestamp("2018-07-25"), pd.Timestamp("2018-08-08"), 7, 7
CARDS_A_DAY = 100
# The share of the rows with the largest scores among which each kind of fraud is looked for.
LOOKED_AT = 0.01

SERIES_FEATURES = {
    "series-value": "value",
    "series-before": "value, diff(value, 1), z(value, 1d), std(value, 1h)",
}
N_SERIES, _POINTS, _A_DAY = 7, 4_032, 288
_FITTED = 0.4


@dataclass(frozen=True, eq=False)
class Cards:
    """Of the test rows (n,): the day, the card, and the kind of fraud, 0 for none."""

    days: npt.NDArray[Any]
    cards: npt.NDArray[Any]
    kinds: npt.NDArray[np.int64]

    def precision(self, scores: npt.NDArray[np.float64]) -> float:
        """The mean over the days of the share of compromised cards among the CARDS_A_DAY with the largest scores.

        Le Borgne and others, Reproducible Machine Learning for Credit Card Fraud Detection, chapter 4.
        """
        frame = pd.DataFrame({"day": self.days, "card": self.cards, "score": scores, "fraud": self.kinds > 0})
        of_days = [
            day.groupby("card")[["score", "fraud"]].max().nlargest(CARDS_A_DAY, "score")["fraud"].sum()
            / CARDS_A_DAY
            for _, day in frame.groupby("day")
        ]
        return float(np.mean(of_days))

    def figures(self, scores: npt.NDArray[np.float64]) -> dict[str, float]:
        """That, and of each kind of fraud the share among the LOOKED_AT of the rows with the largest scores."""
        limit = np.quantile(scores, 1 - LOOKED_AT)
        recall = {f"recall_{kind}": float((scores[self.kinds == kind] >= limit).mean()) for kind in (1, 2, 3)}
        return {"card_precision": self.precision(scores), **recall}


@dataclass(frozen=True, eq=False)
class Cut:
    """names, fit_rows (n_fit, d), test_rows (n, d), is_anomaly (n,), and of cards what is measured beside."""

    names: tuple[str, ...]
    fit_rows: Float64Matrix
    test_rows: Float64Matrix
    is_anomaly: BoolVector
    cards: Cards | None = None


def card_transactions(path: Path) -> Cut:
    """All rows of the fitted week, frauds among them as nobody knows them yet; cards known to be compromised by then
    are left out of the test."""
    table = pd.read_csv(path, parse_dates=["at"]).sort_values(["at", "transaction_id"], ignore_index=True)
    is_fraud = table["fraud"].to_numpy() == 1
    day = table["at"].dt.normalize()
    found = declared(table, CARD_FEATURES, table["at"].to_numpy(), is_fraud)
    fit = ((day >= FIT_FROM) & (day < FIT_FROM + pd.Timedelta(days=N_DAYS))).to_numpy()
    test = _not_known(table, day, is_fraud, set(table["customer_id"][fit & is_fraud]))
    matrix = _in_numbers(found, fit)
    cards = Cards(
        day[test].to_numpy(),
        table["customer_id"][test].to_numpy(),
        table["scenario"][test].to_numpy(np.int64),
    )
    return Cut(found.names, matrix[fit], matrix[test], is_fraud[test], cards)


def _not_known(table: pd.DataFrame, day: pd.Series[Any], is_fraud: BoolVector, known: set[int]) -> BoolVector:
    test = np.zeros(len(table), dtype=np.bool_)
    for n in range(N_DAYS):
        date = TEST_FROM + pd.Timedelta(days=n)
        told = (day == date - pd.Timedelta(days=DELAY_DAYS + 1)).to_numpy() & is_fraud
        known |= set(table["customer_id"][told])
        test |= (day == date).to_numpy() & ~table["customer_id"].isin(known).to_numpy()
    return test


def _in_numbers(found: Declared, fit: BoolVector) -> Float64Matrix:
    """What a version makes of codes, for the peers as well."""
    places = {found.names.index(name): kind for name, kind in found.codes.items()}
    return encoded(found.matrix, fit_encodings(found.matrix[fit], places))


def series(name: str, seed: int) -> Cut:
    """One series of two weeks, with anomalies in the part that is not fitted on; the same for the same seed."""
    frame, is_anomaly = _simulated(seed)
    found = declared(frame, SERIES_FEATURES[name], frame["at"].to_numpy(), None)
    n_fit = int(len(frame) * _FITTED)
    return Cut(found.names, found.matrix[:n_fit], found.matrix[n_fit:], is_anomaly[n_fit:])


def _simulated(seed: int) -> tuple[pd.DataFrame, BoolVector]:
    """A day's wave, a level that wanders, noise; then spikes, a shift of level, a still hour and an uneasy one."""
    random = np.random.default_rng(seed)
    steps = np.arange(_POINTS)
    wave = random.uniform(2, 6) * np.sin(2 * np.pi * steps / _A_DAY + random.uniform(0, 6))
    noise = random.normal(size=_POINTS) * random.uniform(0.3, 1.0)
    values = 50 + wave + np.cumsum(random.normal(size=_POINTS)) * 0.03 + noise
    is_anomaly = np.zeros(_POINTS, dtype=np.bool_)
    first = int(_POINTS * _FITTED) + _A_DAY
    begins = np.sort(random.choice(np.arange(first, _POINTS - 60, 90), size=8, replace=False))
    for n, begin in enumerate(begins):
        length = (1, 24, 12, 12)[n % 4]
        those = slice(begin, begin + length)
        if n % 4 == 0:
            values[those] += random.choice([-1, 1]) * random.uniform(4, 7)
        elif n % 4 == 1:
            values[those] += random.choice([-1, 1]) * random.uniform(3, 5)
        elif n % 4 == 2:
            values[those] = values[begin]
        else:
            values[those] += random.normal(size=length) * 4
        is_anomaly[those] = True
    at = pd.Timestamp("2026-01-01") + pd.to_timedelta(steps * 5, unit="min")
    return pd.DataFrame({"at": at, "value": values}), is_anomaly
